"""One set of features on the disk: rows of a fixed size in one file, read through a memory map, and an index.

    key.json       what all rows have in common, for people; its time is that of the last use
    rows           one row of bytes after the other
    index.sqlite   which image lies in which row, the row's checksum, and which file had which content when

Knows: how a row is written so that a kill at any moment, or another process that writes as well, does no harm.
Does not know: features, budgets, other sets.

One process writes at a time, by SQLite's lock, which ends with its process. Rows come first and are on the disk before
the index names them: what a killed writer left is unknown to the index and written over. A row is handed out only if
it has the checksum that the index gives for the image: neither a changed byte nor another image's row is taken for it.
Where there is no room, rows that nobody here needs make some: the index forgets them first, then they are written over.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from workbench.errors import WorkbenchError
from workbench.resources import write_atomic

LOCK_SECONDS = 60.0
FRESH_NS = 2_000_000_000
"""A file changed so recently may change again without its time telling it: next time its content is read again."""
PASSES = 5
"""So many times room is looked for."""
IMAGE = 32
"""Bytes of a SHA-256: the names of an image's tiles begin with it."""
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
        self._used = bytearray()  # by slot: read or written since this was opened
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
        question = "SELECT slot, checksum FROM rows WHERE image = ?"
        found = self._one(question, image)
        if not found:
            return None
        row = self._row(found[0])
        if row is None or checksum(row) != found[1]:
            if self._one(question, image) != found:  # it made room for another meanwhile
                return None
            raise DamagedRow(found[0])
        self._use([found[0]])
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
        ours: Collection[Path] | None = None,
    ) -> tuple[int, int]:
        """Add rows by image, and what files (path -> state, image) contain; forget damaged ones (image, slot).

        `room(bytes)` says how many of these bytes may be added to the disk. Where they are too few, and `ours` is
        given, rows make room that were not used here and are of none of these files. Images that another
        process wrote meanwhile are left as they are. Returns how many were new, and how many of those were written.
        """
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} was removed by another process")
        for again in (*[True] * PASSES, False):  # another process may take the room that was made
            with self._transaction() as index:
                index.executemany("DELETE FROM rows WHERE image = ? AND slot = ?", damaged)
                known = "SELECT 1 FROM rows WHERE image = ?"
                new = [image for image in rows if not index.execute(known, (image,)).fetchone()]
                more = max(0, room(len(new) * self.row_bytes)) // self.row_bytes if new else 0
                slots = self._slots(index, len(new), more, gaps=ours is not None)
                lack = len(new) - len(slots)
                if again and lack and ours is not None and self._forget(index, lack, ours):
                    continue  # only once all others know may these rows be written over
                self._put(index, slots, {image: rows[image] for image in new[: len(slots)]})
                held = [(path, *each) for path, each in files.items()]
                index.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", held)
                break
        os.utime(self.folder / "key.json")
        return len(new), len(slots)

    def _slots(self, index: sqlite3.Connection, count: int, more: int, *, gaps: bool) -> list[int]:
        """Places for `count` rows, of which `more` may lengthen the file; fewer where there are not so many."""
        (end,) = index.execute("SELECT coalesce(max(slot) + 1, 0) FROM rows").fetchone()
        if count <= more or not gaps:
            return list(range(end, end + min(count, more)))
        file = self.folder / "rows"
        end = max(end, file.stat().st_size // self.row_bytes if file.exists() else 0)
        taken = {slot for (slot,) in index.execute("SELECT slot FROM rows")}
        return [*(slot for slot in range(end) if slot not in taken), *range(end, end + more)][:count]

    def _forget(self, index: sqlite3.Connection, lack: int, ours: Collection[Path]) -> bool:
        """Take at least so many rows of others' images out of the index, if there are; whether there were any.

        No place twice, as it is used then: two runs at once do not drive each other out for ever.
        """
        paths = {str(path) for path in ours}
        needed = {image for path, image in index.execute("SELECT path, image FROM files") if path in paths}
        held = index.execute("SELECT slot, image FROM rows ORDER BY slot").fetchall()
        used = self._used + bytes(held[-1][0] + 1 if held else 0)
        old = [(slot,) for slot, image in held if not used[slot] and image[:IMAGE] not in needed]
        old = old[: max(lack, len(old) // 20)]  # some at a time: to look for them takes a while
        index.executemany("DELETE FROM rows WHERE slot = ?", old)
        return bool(old)

    def _put(self, index: sqlite3.Connection, slots: Sequence[int], rows: Mapping[bytes, np.ndarray]) -> None:
        if not rows:
            return
        handle = os.open(self.folder / "rows", os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        with open(handle, "r+b") as file:
            for slot, row in zip(slots, rows.values(), strict=True):
                file.seek(slot * self.row_bytes)
                file.write(row)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        places = [(image, slot, checksum(row)) for slot, (image, row) in zip(slots, rows.items(), strict=True)]
        index.executemany("INSERT INTO rows VALUES (?, ?, ?)", places)
        self._use(slots)

    def _use(self, slots: Sequence[int]) -> None:
        with self._lock:
            self._used.extend(bytes(max(0, max(slots) + 1 - len(self._used))))
            for slot in slots:
                self._used[slot] = 1

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The one writer's: what is changed counts from its end on, or not at all."""
        index = self._connect()
        try:
            index.execute("BEGIN IMMEDIATE")
            yield index
            index.execute("COMMIT")
        finally:
            index.close()

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
