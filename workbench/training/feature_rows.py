"""One set of features on the disk: rows of a fixed size in one file, read through a memory map, and an index.

    key.json       what all rows have in common, for people; its time is that of the last use
    rows           one row of bytes after the other
    index.sqlite   which image lies in which row, the row's checksum, and which file had which content when

Knows: how a row is written so that a kill at any moment, or another process that writes as well, does no harm.
Does not know: features, budgets, other sets.

One process writes at a time, by SQLite's lock, which ends with its process. Rows come first and are on the disk before
the index names them: what a killed writer left is unknown to the index and written over. A row is handed out only if
it has the checksum that the index gives for the image: neither a changed byte nor another image's row is taken for it.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from workbench.errors import WorkbenchError
from workbench.resources import write_atomic

LOCK_SECONDS = 60.0
FRESH_NS = 2_000_000_000
"""A file changed so recently may change again without its time telling it: next time its content is read again."""
TABLES = """
CREATE TABLE IF NOT EXISTS rows (image BLOB PRIMARY KEY, slot INTEGER UNIQUE, checksum BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, state TEXT, image BLOB) WITHOUT ROWID;
"""


class DamagedRow(WorkbenchError):
    """Bytes that are not those that were written; `slot` is their place."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        super().__init__(found=f"another checksum in row {slot}")


class FeatureRows:
    """An opened set. Images are the SHA-256 of their files, rows (row_bytes,) uint8. Threads may read at once.

    Every method may raise `OSError` and `sqlite3.Error`; `is_damage` tells those of a damaged index.
    """

    def __init__(self, folder: Path, row_bytes: int, about: str) -> None:
        self.folder, self.row_bytes = folder, row_bytes
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "key.json", about)
        self._file: IO[bytes] | None = None
        self._map = np.empty((0, row_bytes), np.uint8)
        self._index = self._connect()
        try:
            self._index.executescript(TABLES)
        except sqlite3.Error:
            self.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._index.close()
            if self._file is not None:
                self._file.close()

    @property
    def count(self) -> int:
        """Images whose rows are kept now."""
        return int(self._one("SELECT count(*) FROM rows")[0])

    # --- reading ------------------------------------------------------------------------------------------------

    def known(self, path: Path, state: str) -> bytes | None:
        """The content of a file that is still in the `state` it was in when its content was last read."""
        found = self._one("SELECT image FROM files WHERE path = ? AND state = ?", str(path), state)
        return found[0] if found else None

    def read(self, image: bytes) -> np.ndarray | None:
        """(row_bytes,) of an image, or None. Raises `DamagedRow`."""
        found = self._one("SELECT slot, checksum FROM rows WHERE image = ?", image)
        if not found:
            return None
        row = self._row(found[0])
        if row is None or checksum(row) != found[1]:
            raise DamagedRow(found[0])
        return row

    def _row(self, slot: int) -> np.ndarray | None:
        """A copy, which cannot change once it is checked; None where the file ends before.

        The file stays the one that was opened with the index, also if the set is removed and begun anew meanwhile.
        """
        with self._lock:
            try:
                self._file = self._file or open(self.folder / "rows", "rb")  # noqa: SIM115 - open as long as the set
            except FileNotFoundError:
                return None
            count = os.fstat(self._file.fileno()).st_size // self.row_bytes
            if slot >= count:
                return None
            if slot >= len(self._map):
                self._map = np.memmap(self._file, np.uint8, "r", shape=(count, self.row_bytes))
            mapped = self._map
        return np.array(mapped[slot])

    def _one(self, question: str, *values: str | bytes) -> tuple:
        with self._lock:
            return self._index.execute(question, values).fetchone()

    # --- writing ------------------------------------------------------------------------------------------------

    def write(
        self,
        rows: Mapping[bytes, np.ndarray],
        files: Mapping[str, tuple[str, bytes]],
        damaged: Sequence[tuple[bytes, int]],
        room: Callable[[int], int],
    ) -> tuple[int, int]:
        """Add rows by image, and what files (path -> state, image) contain; forget damaged ones (image, slot).

        `room(bytes)` says how many of these bytes may be written. Images that another process wrote meanwhile are
        left as they are. Returns how many were new, and how many of those were written.
        """
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} was removed by another process")
        index = self._connect()
        try:
            index.execute("BEGIN IMMEDIATE")
            index.executemany("DELETE FROM rows WHERE image = ? AND slot = ?", damaged)
            new = [
                image for image in rows if not index.execute("SELECT 1 FROM rows WHERE image = ?", (image,)).fetchone()
            ]
            kept = new[: max(0, room(len(new) * self.row_bytes)) // self.row_bytes] if new else []
            first = index.execute("SELECT coalesce(max(slot) + 1, 0) FROM rows").fetchone()[0]
            self._append(first, [rows[image] for image in kept])
            places = [(image, slot, checksum(rows[image])) for slot, image in enumerate(kept, first)]
            index.executemany("INSERT INTO rows VALUES (?, ?, ?)", places)
            index.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?)", [(p, *held) for p, held in files.items()]
            )
            index.execute("COMMIT")
            os.utime(self.folder / "key.json")
        finally:
            index.close()
        return len(new), len(kept)

    def _append(self, first: int, rows: Sequence[np.ndarray]) -> None:
        if not rows:
            return
        handle = os.open(self.folder / "rows", os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        with open(handle, "r+b") as file:
            file.seek(first * self.row_bytes)
            for row in rows:
                file.write(row)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())

    def _connect(self) -> sqlite3.Connection:
        """Transactions are begun by hand."""
        path = self.folder / "index.sqlite"
        return sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)


def checksum(row: np.ndarray) -> bytes:
    """16 bytes; a row of 2 MB takes 0.1 ms."""
    return xxhash.xxh3_128_digest(row.data)


def content_of(data: bytes) -> bytes:
    """SHA-256 of an image file's bytes: the same as in a dataset's column `hash`."""
    return hashlib.sha256(data).digest()


def state_of(path: Path) -> str:
    """Inode, size, and the two times in nanoseconds that a change to a file moves. Raises `OSError`."""
    found = path.stat()
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def is_settled(state: str) -> bool:
    """Whether a file changed long enough ago for its next change to show in `state_of`."""
    return time.time_ns() - max(int(part) for part in state.split()[2:]) > FRESH_NS


def is_damage(error: Exception) -> bool:
    """Whether SQLite says that a file is not, or not any more, one of its own."""
    return type(error) is sqlite3.DatabaseError
