"""The product itself: one call of `workbench.train`.

python workbench_side.py JOB.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import workbench as wb

if __name__ == "__main__":
    job = json.loads(Path(sys.argv[-1]).read_text())
    wb.train(wb.Recipe.from_dict(job["recipe"]), out=job["out"], progress=False)
