"""A file of JSON lines that grows while a run works and that others read meanwhile.

Knows: a line per row with its `step`, that a killed writer leaves a torn line at most, going back to an earlier step,
and reading on from where one stopped.
Does not know: what the rows mean.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from workbench import resources
from workbench.errors import DiskError

Rows = list[dict[str, Any]]
"""One mapping per line."""


class JsonLines:
    """One such file: one process appends, any number read.

    >>> lines = JsonLines(folder / "metrics.jsonl")
    >>> lines.append({"step": 1, "loss": 2.3})
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line and flush it. Numbers that JSON lacks (NaN, infinity) become null. Raises `DiskError`."""
        with resources.disk_errors(self.path):
            if self._file is None:
                self._file = self._open()
            try:
                self._file.write(json.dumps(plain(row), ensure_ascii=False) + "\n")
                self._file.flush()
            except OSError:
                with suppress(DiskError, OSError):  # closing tries the line once more
                    self.close()
                raise

    def rows(self) -> Rows:
        """Every whole line; [] where there is no file."""
        return _parsed(self.path.read_bytes()) if self.path.is_file() else []

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`, so that a run that goes on from there adds each step once."""
        self.close()
        if not self.path.is_file():
            return
        rows = [row for row in self.rows() if row.get("step", 0) <= step]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        resources.write_atomic(self.path, text)

    def sync(self) -> None:
        """Return once what was appended is on the disk. Raises `DiskError`."""
        if self._file is not None:
            with resources.disk_errors(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file; a line that could not be written was told by its `append`. Raises `DiskError`."""
        file, self._file = self._file, None
        if file is not None:
            with resources.disk_errors(self.path):
                file.close()

    def _open(self) -> IO[str]:
        """Open for appending, with an end put to a line that a killed writer left torn."""
        torn = False
        if self.path.is_file() and self.path.stat().st_size:
            with open(self.path, "rb") as file:
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
        handle = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - kept open while the run logs
        if torn:
            handle.write("\n")
        return handle


class Tail:
    """Reads on: each call of `new` gives the lines that came since the last one.

    A file that was rewound or replaced is read from its beginning, and `again` is then true: forget what was read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.again = Path(path), False
        self._place, self._file = 0, 0

    def new(self) -> Rows:
        self.again = False
        try:
            with open(self.path, "rb") as file:
                held = os.fstat(file.fileno())
                if held.st_size < self._place or (self._file and held.st_ino != self._file):
                    self.again, self._place = True, 0
                self._file = held.st_ino
                file.seek(self._place)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text.rfind(b"\n") + 1  # the rest is being written
        self._place += whole
        return _parsed(text[:whole])


def plain(value: Any) -> Any:
    """JSON's own types: paths become text, one-element tensors and NumPy scalars numbers, NaN and infinity null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _parsed(text: bytes) -> Rows:
    rows = (_row(line) for line in text.split(b"\n"))  # not `splitlines`: an answer may hold a line separator
    return [row for row in rows if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
