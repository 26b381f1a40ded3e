"""What the image checks of an import found so far, kept in its folder until the card is there: a rerun goes on.

    out/.checks.jsonl    a line per batch: {"root": folder, "rows": [[path, size, mtime_ns, what was found ...], ...]}

Knows: this file; which of it still holds, and that a kill may leave half a last line.
Does not know: how an image is checked. Only images that are ok are kept: a broken one is looked at again, since it may
be mended by what no time of change tells (a permission, a decoder installed since, more memory).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from workbench.data.folder import CHECKS, resolve_inside
from workbench.errors import DataError
from workbench.resources import disk_errors

Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds: a file that has others is checked again."""
AT_ONCE = 32
"""Results between two lines: as many are handed over by the workers at a time."""
SYNC_SECONDS = 5.0
"""A killed process loses no line that it wrote; a power cut may lose those of so many seconds."""


def stamp(file: Path) -> Stamp | None:
    """None where there is no such file, or none that may be asked for."""
    try:
        told = os.stat(file)
    except (OSError, ValueError):
        return None
    return told.st_size, told.st_mtime_ns


class Checks:
    """What is known of images below `folder` by an earlier try to make the dataset `out`, and what is found now.

    >>> with Checks(out, folder) as checks:
    ...     known = checks.known(paths)
    ...     checks.add("cat/1.png", (812, 1764072755000000000), [640, 480])

    Raises `DiskError` where `out` cannot be written. The file is there from the first line on; the card ends it.
    """

    def __init__(self, out: Path, folder: Path) -> None:
        self._file, self._folder = out / CHECKS, folder
        self._root = str(folder.resolve())
        self._open: Any = None
        self._rows: list[list[Any]] = []
        self._synced = time.monotonic()

    def __enter__(self) -> Checks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._write()
        finally:
            if self._open is not None:
                self._open.close()

    def known(self, paths: Sequence[str]) -> dict[str, list[Any]]:
        """What was found in those of `paths` that are still the same files."""
        kept = self._kept()
        asked = {path: kept[path] for path in paths if path in kept}
        return {path: row[2:] for path, row in asked.items() if self._stamp(path) == (row[0], row[1])}

    def add(self, path: str, stamp: Stamp, found: Sequence[Any]) -> None:
        """`stamp` was taken before the file was read. Written with the next line."""
        self._rows.append([path, *stamp, *found])
        if len(self._rows) >= AT_ONCE:
            self._write()

    def _stamp(self, path: str) -> Stamp | None:
        try:
            return stamp(resolve_inside(self._folder, path))
        except DataError:  # it leads out of the folder by now
            return None

    def _kept(self) -> dict[str, list[Any]]:
        kept: dict[str, list[Any]] = {}
        if not self._file.exists():
            return kept
        with disk_errors(self._file), open(self._file, "rb") as lines:
            for line in lines:
                try:
                    read = json.loads(line)
                    if read["root"] == self._root:
                        kept |= {path: row for path, *row in read["rows"]}
                except (ValueError, TypeError, KeyError):
                    continue  # half a line, of a process that was killed
        return kept

    def _write(self) -> None:
        if not self._rows:
            return
        line = json.dumps({"root": self._root, "rows": self._rows}, separators=(",", ":")).encode()
        with disk_errors(self._file):
            if self._open is None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._open = open(self._file, "ab", buffering=0)  # noqa: SIM115  # closed by __exit__
                line = b"\n" + line  # ends half a line of an earlier try
            self._open.write(line + b"\n")
            self._rows = []
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                os.fsync(self._open.fileno())
                self._synced = time.monotonic()
