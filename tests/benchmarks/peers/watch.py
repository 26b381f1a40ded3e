"""One trainer in a fresh process, watched from outside in the same way whoever it is.

Knows: processor time, memory and the moment of each optimiser step, told by lines of a file that the trainer appends
to. Does not know: trainers.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

POLL = 0.02
"""Seconds between two looks. A process's own clock of processor time is no finer than 0.01."""
CHILDREN = 0.5
"""Seconds between two searches for new child processes."""


@dataclass
class Watched:
    """What was seen of a process and its children."""

    marks: list[tuple[float, float]] = field(default_factory=list)
    """(wall, processor) seconds at the end of each optimiser step."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The lines that the trainer wrote, one a step."""
    peak: int = 0
    """Most bytes of resident memory, children included."""

    def between(self, first: int, last: int) -> tuple[float, float]:
        """(wall, processor) seconds from the end of step `first` to the end of step `last`, counted from 1."""
        began, ended = self.marks[first - 1], self.marks[last - 1]
        return ended[0] - began[0], ended[1] - began[1]


def watch(
    command: Sequence[str],
    steps: Path,
    log: Path,
    *,
    threads: int,
    marker: str,
    clean: bool = False,
    until: int | None = None,
) -> Watched:
    """Run `command` to its end. `steps`: the JSON lines it appends; those with the key `marker` end a step.

    `clean`: without our `PYTHONPATH`, for an interpreter of another environment. `until`: end it after so many steps.
    Marks count from the start of the process. Raises `RuntimeError` with the end of its output when it fails.
    """
    seen, place, began = Watched(), 0, time.perf_counter()
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment(threads, clean))
        family, looked = [psutil.Process(process.pid)], 0.0
        while process.poll() is None:
            now = time.perf_counter()
            if now - looked > CHILDREN:
                family, looked = _family(family[0]), now
            used, resident = _sums(family)
            seen.peak = max(seen.peak, resident)
            size = steps.stat().st_size if steps.is_file() else 0
            if size > place and used:
                lines, place = _read(steps, place)
                new = [row for row in lines if marker in row]
                seen.rows += new
                seen.marks += [(now - began, used)] * len(new)
            if until is not None and len(seen.marks) >= until:
                process.kill()
            time.sleep(POLL)
    if process.returncode and not (until is not None and len(seen.marks) >= until):
        raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    seen.rows += [row for row in _read(steps, place)[0] if marker in row]  # written in its last moments: no time
    return seen


def last_line(command: Sequence[str], threads: int) -> dict[str, Any]:
    """What a process prints last, as JSON."""
    own = environment(threads, False)
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=own)
    return json.loads(done.stdout.splitlines()[-1])


def environment(threads: int, clean: bool) -> dict[str, str]:
    """The variables of a side: so many threads, no GPU, no hub; `clean`: nothing of our interpreter's."""
    own = {name: value for name, value in os.environ.items() if not (clean and name.startswith("PYTHON"))}
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"}
    return own | counts | quiet | {"CUDA_VISIBLE_DEVICES": ""}


def _family(parent: psutil.Process) -> list[psutil.Process]:
    try:
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return [parent]


def _sums(family: Sequence[psutil.Process]) -> tuple[float, int]:
    """Processor seconds and resident bytes now, of these and (seconds only) of their children that ended."""
    used, resident = 0.0, 0
    for process in family:
        try:
            with process.oneshot():
                used += sum(process.cpu_times()[:4])
                resident += process.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return used, resident


def _read(path: Path, place: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines from byte `place` on, and the place behind them."""
    if not path.is_file():
        return [], place
    with open(path, "rb") as file:
        file.seek(place)
        held = file.read()
    whole = held[: held.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], place + len(whole)
