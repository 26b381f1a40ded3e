"""Every reply a teacher gave, kept for ever under its content address: what was paid for once is never asked again.

Knows: one SQLite file, written whole transaction by whole transaction, safe with kill -9 and with several processes.
Does not know: what was asked (the address says it) or what a reply is good for.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from types import TracebackType

from workbench.errors import DataError
from workbench.resources import disk_errors

WAIT_SECONDS = 30
"""For another process that is writing."""
_AT_ONCE = 500
"""Keys in one query; SQLite takes 32,766 at most."""


@dataclass(frozen=True)
class Reply:
    """One reply as it is kept."""

    key: str
    """Content address of the request."""
    text: str
    finish_reason: str
    model: str
    """As the endpoint called it."""
    endpoint: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    raw: str
    """The whole response."""
    time: float = field(default_factory=time.time)
    """Seconds since 1970 when it came."""


_COLUMNS = [column.name for column in fields(Reply)]


class ReplyStore:
    """Replies by key in the file `path`. May be used from several threads."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        with self._errors():
            self._db = sqlite3.connect(self.path, timeout=WAIT_SECONDS, check_same_thread=False, isolation_level=None)
            tables = [row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if tables and "replies" not in tables:
                other = f"a database with tables {', '.join(tables)}"
                raise DataError(str(self.path), found=other, expected="a file of replies", fix="name another file")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")  # a commit is on the disk when it returns
            kinds = {"prompt_tokens": "INTEGER", "completion_tokens": "INTEGER", "seconds": "REAL", "time": "REAL"}
            columns = ", ".join(f"{name} {kinds.get(name, 'TEXT')} NOT NULL" for name in _COLUMNS)
            self._db.execute(f"CREATE TABLE IF NOT EXISTS replies ({columns}, PRIMARY KEY (key)) WITHOUT ROWID")
            found = [row[1] for row in self._db.execute("PRAGMA table_info(replies)")]
        if found != _COLUMNS:
            fix = "move it away; a new one is made"
            raise DataError(
                str(self.path), found=f"replies with columns {', '.join(found)}", expected=", ".join(_COLUMNS), fix=fix
            )

    def get(self, key: str) -> Reply | None:
        return self.get_many([key]).get(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies there are for these keys."""
        found: dict[str, Reply] = {}
        for start in range(0, len(keys), _AT_ONCE):
            part = list(keys[start : start + _AT_ONCE])
            marks = ", ".join("?" * len(part))
            with self._lock, self._errors():
                rows = self._db.execute(f"SELECT * FROM replies WHERE key IN ({marks})", part).fetchall()
            found |= {row[0]: Reply(*row) for row in rows}
        return found

    def put_many(self, replies: Iterable[Reply]) -> None:
        """Keep replies in one transaction, on the disk when this returns. The first reply for a key stays."""
        marks = ", ".join("?" * len(_COLUMNS))
        rows = [astuple(reply) for reply in replies]
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(f"INSERT INTO replies VALUES ({marks}) ON CONFLICT (key) DO NOTHING", rows)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def __len__(self) -> int:
        with self._lock, self._errors():
            return int(self._db.execute("SELECT count(*) FROM replies").fetchone()[0])

    def __iter__(self) -> Iterator[Reply]:
        with self._lock, self._errors():
            rows = self._db.execute("SELECT * FROM replies ORDER BY key").fetchall()
        return (Reply(*row) for row in rows)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> ReplyStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with disk_errors(self.path):
                yield
        except sqlite3.OperationalError as problem:
            if "full" in str(problem) or "disk I/O" in str(problem):
                from workbench.errors import DiskError

                raise DiskError(str(self.path), found=str(problem), fix="free some space and run again") from None
            raise DataError(str(self.path), found=str(problem), expected="a writable file of replies") from None
        except sqlite3.DatabaseError as problem:
            fix = "move it away; a new one is made, and what was paid for is asked again"
            raise DataError(str(self.path), found=str(problem), expected="an SQLite file of replies", fix=fix) from None
