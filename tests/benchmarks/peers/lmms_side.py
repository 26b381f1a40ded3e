"""lmms-eval's own command in a process of its own, with a clock around its asking.

    python lmms_side.py TIMES.json [lmms-eval's arguments]

Knows: where lmms-eval asks its LLaVA. Does not know: tasks, files.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import groupby
from pathlib import Path
from typing import Any

from lmms_eval.__main__ import cli_evaluate
from lmms_eval.models.chat.llava_hf import LlavaHf


def main() -> None:
    """Ask as it would, one task after the other, and write each task's seconds: {task: [processor, wall]}."""
    file, ask = Path(sys.argv.pop(1)), LlavaHf.generate_until
    seconds: dict[str, list[float]] = {}

    def timed(model: Any, requests: list[Any]) -> list[Any]:
        answers: list[Any] = []
        for task, part in groupby(requests, key=lambda request: request.args[4]):
            used, wall = time.process_time(), time.perf_counter()
            answers += ask(model, list(part))
            seconds[task] = [time.process_time() - used, time.perf_counter() - wall]
        file.write_text(json.dumps(seconds))
        return answers

    LlavaHf.generate_until = timed
    cli_evaluate()


if __name__ == "__main__":
    main()
