"""The product itself: `workbench.evaluate` in a process of its own, with a clock around each benchmark.

python evaluate_side.py JOB.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import workbench as wb
from workbench.inference.opening import open_model


def main() -> None:
    """Write each benchmark's seconds beside its results: {benchmark: [processor, wall]}."""
    job = json.loads(Path(sys.argv[1]).read_text())
    model, seconds = open_model(job["model"], device="cpu"), {}
    for name in job["benchmarks"]:
        used, wall = time.process_time(), time.perf_counter()
        wb.evaluate(model, name, data=Path(job["data"]) / name, prompts=job["prompts"], out=Path(job["out"]) / name)
        seconds[name] = [time.process_time() - used, time.perf_counter() - wall]
    Path(job["times"]).write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
