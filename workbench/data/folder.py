"""The files of a dataset, each changed by one rename: card, tables, log of edits, snapshots.

Knows: which file is which, one writer at a time, how a table and the edits after it make the present rows.
Does not know: what the rows mean to anybody (`dataset.py`) or what a row must look like (`tables.py`).

A table carries in its own footer the operations that made it and the number of the last edit it has taken in. So no
change touches two files: a process killed at any moment leaves the state before or the state after. An undo is one
more line of the log of edits: until the tables have taken it in, readers are given the tables of the snapshot it names.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
import yaml

from workbench.conversation import new_id
from workbench.data import parquet, tables
from workbench.errors import DataError
from workbench.resources import atomic_folder, disk_errors, expanded, file_lock, write_atomic

CARD, EDITS, SNAPSHOTS, LOCK = "card.yaml", "edits.jsonl", "snapshots", ".lock"
REPORT = "import.json"
"""In the dataset folder: what came of the import, with every name."""
CHECKS = ".checks.jsonl"
"""There until the card is: what an import found in images so far (`checks.py`)."""
CLIMBS = "a path that climbs out of its root"
SHARDS = "part-*.parquet"
"""What we name shards in the folder `conversations/`; other tools may name theirs as they like."""
STAYS = ("name", "roots", "source", "licence", "created", "snapshots")
"""Sections of the card that an undo leaves alone: they tell of the dataset, not of what was in it at a time."""
WAIT = 60.0
"""Seconds that a writer waits for another one."""
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, ten times as fast where it was built


class Folder:
    """The files below `path`. Everything that writes is called under `lock()`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._tables: dict[str, tuple[list[Any], list[dict[str, Any]], pl.DataFrame]] = {}
        self._log: tuple[object, list[dict[str, Any]]] | None = None
        self._card: tuple[object, dict[str, Any]] | None = None
        self._roots: dict[str, Path] = {}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One writer at a time. Raises `DataError` where another one stays, and for a snapshot: those do not change."""
        with file_lock(self.path / LOCK, wait=WAIT, error=DataError):
            if self.has_card() and self.card().get("snapshot"):
                raise DataError(
                    str(self.path), found="a snapshot", fix="snapshots do not change: write to their dataset"
                )
            for name in (CARD, REPORT, *(f"{table}.parquet" for table in tables.COLUMNS)):
                for rest in self.path.glob(f".{name}.*.tmp"):  # of a writer that was killed
                    rest.unlink(missing_ok=True)
            for rest in (self.path / SNAPSHOTS).glob(".*.tmp"):
                shutil.rmtree(rest, ignore_errors=True)
            for table in tables.COLUMNS if self.has_card() else ():
                if (self.path / f"{table}.parquet").exists():  # it took the place of these shards
                    self._clear(table, shards_only=True)
            if self.has_card() and self.pending_undo():
                self.take_in_undo()
            yield

    @contextmanager
    def begin(self) -> Iterator[None]:
        """The lock of a folder that becomes a dataset with its card, written last; a failure leaves no table.

        Raises `DataError` where there is a dataset already.
        """
        try:
            with self.lock():
                if self.has_card():
                    raise DataError(str(self.path), found="a dataset", fix="open it, or choose another folder")
                try:
                    yield
                finally:
                    for table in tables.COLUMNS if not self.has_card() else ():
                        self._clear(table)
        except BaseException:
            if [one.name for one in self.path.iterdir()] == [LOCK]:  # nothing came of it, so nothing is left
                shutil.rmtree(self.path)
            raise

    # --- card ---------------------------------------------------------------------------------------------------

    def has_card(self) -> bool:
        return (self.path / CARD).exists()

    def card(self) -> dict[str, Any]:
        """What `card.yaml` says. Raises `DataError` where it is missing or not a card."""
        file = self.path / CARD
        stamp = _stamp(file)
        if stamp is None:
            found = f"no {CARD}" if self.path.is_dir() else "a file" if self.path.exists() else "no such folder"
            raise DataError(str(self.path), found=found, expected="a dataset folder", fix=self._way_to_one())
        if self._card is None or self._card[0] != stamp:
            try:
                read = yaml.load(file.read_text(encoding="utf-8"), Loader=_SafeLoader)
            except (yaml.YAMLError, UnicodeDecodeError) as problem:
                raise DataError(str(file), found=f"broken YAML ({problem})", fix="correct it by hand") from problem
            self._card = stamp, _checked_card(file, read)
            self._roots = {str(name): (self.path / expanded(place)).resolve() for name, place in read["roots"].items()}
        return dict(self._card[1])

    def _way_to_one(self) -> str:
        """What to do where there is no card: people name their pictures where a dataset is meant."""
        if not self.path.exists():
            return "check the path; `workbench import FILES --out DIR` makes a dataset"
        interrupted = any(self.path.glob("*.parquet")) or any(
            (self.path / name).exists() for name in (REPORT, LOCK, CHECKS)
        )
        if interrupted or not (self.path.is_file() or any(self.path.iterdir())):
            return "check the path; if an import was interrupted, run it again: it goes on"
        return f"make one first: workbench import {self.path} --out DIR"

    def roots(self) -> dict[str, Path]:
        """Absolute folders by name, as the card has them now."""
        self.card()
        return dict(self._roots)

    def write_card(self, card: Mapping[str, Any]) -> None:
        """Write the card, with the counts as they are."""
        try:
            text = yaml.safe_dump({**card, "counts": self.counts()}, sort_keys=False, allow_unicode=True)
        except yaml.YAMLError as problem:
            raise DataError(
                str(self.path / CARD), found=str(problem), expected="text, numbers, lists, maps"
            ) from problem
        (self.path / CHECKS).unlink(missing_ok=True)
        write_atomic(self.path / CARD, text)

    def counts(self) -> dict[str, Any]:
        images = self.table("images")
        by_column = {
            column: dict(images.group_by(pl.col(column).fill_null("none")).len().sort(column).iter_rows())
            for column in ("status", "split")
        }
        undone = self._undo_of("conversations")
        conversations = parquet.count_rows((self.kept(undone["undo"]) if undone else self).files("conversations"))
        videos = int((images["media"] == "video").sum())
        told = {"images": images.height - videos, **({"videos": videos} if videos else {})}
        return {**told, "conversations": conversations, **by_column}

    # --- tables -------------------------------------------------------------------------------------------------

    def files(self, table: str) -> list[Path]:
        """The table's file, or its shards."""
        files = self._files(table)
        if not files:
            fix = "the folder is half written: copy it again, or import again into a new folder"
            name = f"{table}.parquet"
            raise DataError(str(self.path), found=f"no {name}", expected=f"{name} beside {CARD}", fix=fix)
        return files

    def _files(self, table: str) -> list[Path]:
        single = self.path / f"{table}.parquet"
        return [single] if single.exists() else sorted((self.path / table).glob("*.parquet"))

    def meta(self, table: str) -> dict[str, Any]:
        """`operations` that made the table, and `edits`: the number of the last one it took in."""
        return parquet.read_meta(self.files(table)[0])

    def table(self, table: str) -> pl.DataFrame:
        """The rows as they are now: the file, and over it the edits that it has not taken in."""
        edits = self.edits(table)  # before the stamps: files that are the same then have not taken these in
        files = self.files(table)
        stamp = [_stamp(file) for file in files]
        known, seen, rows = self._tables.get(table, (None, [], None))
        new = edits[len(seen) :]
        if rows is None or known != stamp or edits[: len(seen)] != seen or any("undo" in edit for edit in new):
            try:
                rows = self._read(table, files)
            except DataError:
                if self.files(table) == files:
                    raise
                return self.table(table)  # a writer put one file in the place of shards
        elif new:  # a verdict on one of 200,000 conversations does not read them all again
            rows = tables.apply_edits(rows, new, table)
        self._tables[table] = stamp, edits, rows
        return rows

    def _read(self, table: str, files: list[Path]) -> pl.DataFrame:
        frame, meta = parquet.read_parquet(files)
        taken = meta["edits"]
        for edit in self.edits(table, taken):
            if "undo" in edit:
                frame, taken = self.kept(edit["undo"]).table(table), edit["number"]
        return tables.apply_edits(tables.complete(frame, table), self.edits(table, taken), table)

    def parts(self, table: str) -> Iterator[pl.DataFrame]:
        """The rows as `table` has them, shard by shard: what is in memory is one shard, and the edits."""
        files = self.files(table)
        if len(files) == 1 or self._undo_of(table) or not parquet.one_schema(files):
            yield self.table(table)
            return
        edits = self.edits(table, parquet.read_meta(files[0])["edits"])
        for frame in parquet.each_parquet(files):
            yield tables.apply_edits(tables.complete(frame, table), edits, table)

    def fill(self, table: str, frames: Iterable[pl.DataFrame]) -> int:
        """Make the frames a table of a folder that has no card yet; returns its rows. Several are as many shards."""
        self._clear(table)
        meta = {"operations": [], "edits": self._last_edit()}
        waiting = iter(frames)
        ahead = deque(islice(waiting, 2))
        many, number, rows = len(ahead) > 1, 0, 0
        while ahead:
            frame = ahead.popleft()
            name = f"{table}/{SHARDS.replace('*', f'{number:05}')}" if many else f"{table}.parquet"
            write_atomic(self.path / name, parquet.to_parquet(frame, meta))
            number, rows = number + 1, rows + frame.height
            ahead.extend(islice(waiting, 1))
        return rows

    def _clear(self, table: str, *, shards_only: bool = False) -> None:
        """Remove what `fill` wrote; in a folder named as the table there may be pictures too, which stay."""
        if not shards_only:
            (self.path / f"{table}.parquet").unlink(missing_ok=True)
        ours = [*(self.path / table).glob(SHARDS), *(self.path / table).glob(f".{SHARDS}.*.tmp")]
        for file in ours:
            file.unlink(missing_ok=True)
        if ours and not any((self.path / table).iterdir()):
            (self.path / table).rmdir()

    def commit(self, table: str, frame: pl.DataFrame, operation: Mapping[str, Any] | None = None) -> None:
        """Make `frame` the table: one rename. The counts on the card follow; readers count for themselves."""
        operations = []
        if self.has_card():
            meta = self.meta(table)
            new = [*self.waiting(table), *([dict(operation)] if operation else [])]
            operations = [*meta["operations"], *({**one, "table": table, "id": new_id(), "time": now()} for one in new)]
        try:
            data = parquet.to_parquet(frame, {"operations": operations, "edits": self._last_edit()})
        except TypeError as problem:
            raise DataError(
                f"operation {operation}", found=str(problem), expected="parameters as JSON has them"
            ) from None
        write_atomic(self.path / f"{table}.parquet", data)
        if self.has_card():
            self.write_card(self.card())

    # --- edits --------------------------------------------------------------------------------------------------

    def edits(self, table: str | None = None, after: int = 0) -> list[dict[str, Any]]:
        """The edits in order, of one table or all; an undo concerns every table.

        A last line without its end was never acknowledged and does not count.
        """
        log = self.path / EDITS
        stamp = _stamp(log)
        if self._log is None or self._log[0] != stamp:
            lines = log.read_bytes().split(b"\n")[:-1] if stamp else []
            self._log = stamp, [_checked_edit(f"{log}, line {number}", line) for number, line in enumerate(lines, 1)]
        every = [edit for edit in self._log[1] if edit["number"] > after]
        return [edit for edit in every if table in (None, edit["table"]) or "undo" in edit]

    def waiting(self, table: str) -> list[dict[str, Any]]:
        """The edits that the table has not taken in, as one operation with who made them; none is no operation."""
        edits = [edit for edit in self.edits(table, self.meta(table)["edits"]) if "undo" not in edit]
        who = sorted({str(name) for edit in edits if (name := edit.get("who", edit.get("by")))})
        return [{"name": "edits", "count": len(edits), **({"who": who} if who else {})}] if edits else []

    def append_edit(self, record: Mapping[str, Any]) -> None:
        """One more whole line, on the disk when this returns. What a killed process began of one is cut off first."""
        log = self.path / EDITS
        try:
            text = json.dumps({**record, "number": self._last_edit() + 1, "time": now()}, ensure_ascii=False)
        except TypeError as problem:
            raise DataError(
                f"edit of {record.get('id')!r}", found=str(problem), expected="values as JSON has them"
            ) from None
        with disk_errors(log), open(log, "ab+", buffering=0) as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            line = text.encode() + b"\n"
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, "a line was written in part")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise

    def _last_edit(self) -> int:
        """The number of the latest edit, also of those that a table took in before the log was cut."""
        taken = [self.meta(table)["edits"] for table in tables.COLUMNS if self._files(table)]
        return max([0, *taken, *(edit["number"] for edit in self.edits())])

    # --- snapshots ----------------------------------------------------------------------------------------------

    def compact(self) -> None:
        """Let every table take in its edits."""
        for table in tables.COLUMNS:
            if self.edits(table, self.meta(table)["edits"]):
                self.commit(table, self.table(table))

    def keep(self, version: str, card: Mapping[str, Any]) -> None:
        """Keep the present files as `snapshots/VERSION`, a dataset folder whose roots are where they were."""
        target = self.path / SNAPSHOTS / version
        if target.exists():
            return
        moved = {
            name: place if expanded(place).is_absolute() else f"../../{place}" for name, place in card["roots"].items()
        }
        with atomic_folder(target) as folder:
            for table in tables.COLUMNS:
                for file in self.files(table):
                    _link(file, folder / file.relative_to(self.path))
            text = yaml.safe_dump({**card, "roots": moved, "snapshot": version}, sort_keys=False, allow_unicode=True)
            (folder / CARD).write_text(text, encoding="utf-8")

    def kept(self, version: str) -> Folder:
        """The folder of a snapshot. Raises `DataError` where somebody removed it."""
        folder = self.path / SNAPSHOTS / version
        if not (folder / CARD).exists():
            there = sorted(entry.parent.name for entry in folder.parent.glob(f"*/{CARD}"))
            inside = "open the dataset that this snapshot belongs to" if self.card().get("snapshot") else ""
            fix = inside or "its files were removed by hand: choose another version, or copy them back"
            raise DataError(str(folder), found="no such snapshot", expected=", ".join(there[-5:]), fix=fix)
        return Folder(folder)

    # --- undo ---------------------------------------------------------------------------------------------------

    def pending_undo(self) -> dict[str, Any] | None:
        """The undo that some table has not taken in: its writer is at it, or was killed."""
        return next((undone for table in tables.COLUMNS if (undone := self._undo_of(table))), None)

    def _undo_of(self, table: str) -> dict[str, Any] | None:
        undone = [edit for edit in self.edits(table) if "undo" in edit]
        return undone[-1] if undone and undone[-1]["number"] > self.meta(table)["edits"] else None

    def take_in_undo(self) -> None:
        """Let the card and then the tables be what readers are given already."""
        self.write_card(self.present_card())
        self.compact()

    def present_card(self) -> dict[str, Any]:
        """The card; after an undo that is not taken in, with the sections of that time and its entry of the lineage."""
        card, undone = self.card(), self.pending_undo()
        if undone is None:
            return card
        then = self.kept(undone["undo"]).card()
        past, entry = card["snapshots"], undone["entry"]
        known = {operation["id"] for one in past for operation in one["operations"]}
        card["snapshots"] = past if entry["operations"][0]["id"] in known else [*past, entry]
        names = [name for name in {**card, **then} if name in STAYS or name in then and name != "snapshot"]
        return {name: (card if name in STAYS else then).get(name) for name in names}

    def operations(self) -> list[dict[str, Any]]:
        """What was done to both tables, in order of time, without edits that wait in the log."""
        every = [operation for table in tables.COLUMNS for operation in self.meta(table)["operations"]]
        return sorted(every, key=lambda operation: operation["time"])


def resolve_inside(root: Path, path: str) -> Path:
    """`root / path`. Raises `DataError` where the path is absolute, holds `..`, or leads outside through a link."""
    pure = PurePosixPath(path)
    if not pure.parts or "\0" in path or pure.is_absolute() or ".." in pure.parts:
        fix = "write it relative to its root; add another folder as another root"
        raise DataError(repr(path), found=CLIMBS, expected="a path below it", fix=fix)
    try:
        real = (root / pure).resolve()
        inside = real.is_relative_to(root) or real.is_relative_to(root.resolve())  # most roots are resolved already
    except (OSError, RuntimeError):  # links in a circle
        inside = False
    if not inside:
        fix = "add the folder it leads to as a root in card.yaml"
        raise DataError(str(root / pure), found=f"a link that leads out of {root}", expected="a file below", fix=fix)
    return root / pure


def inside(root: Path, *, there: bool = False) -> Callable[[str], Path]:
    """`resolve_inside` for many paths below one root: each folder is looked at once, and each file asked for once.

    there: a path that leads to no file raises `DataError`, too.
    """
    safe: set[str] = set()

    def find(path: str) -> Path:
        folder, _, name = path.rpartition("/")
        if folder not in safe or name in ("", "..") or "\0" in name:
            whole = _there(resolve_inside(root, path), there)
            if not folder or resolve_inside(root, folder):
                safe.add(folder)
            return whole
        whole = root / path
        with suppress(OSError):
            if stat.S_ISREG(os.lstat(whole).st_mode):  # no link: it lies where its folder does
                return whole
        return _there(resolve_inside(root, path), there)

    return find


def _there(path: Path, wanted: bool) -> Path:
    if wanted and not path.is_file():
        raise DataError(str(path), found="no such file")
    return path


def now() -> str:
    """The time as cards and logs have it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _checked_card(file: Path, card: Any) -> dict[str, Any]:
    roots = card.get("roots") if isinstance(card, dict) else None
    if not isinstance(roots, dict) or not all(isinstance(place, str) for place in roots.values()):
        raise DataError(str(file), found="no roots", expected="roots: with a name and a folder per line")
    if not card.get("name"):
        raise DataError(str(file), found="no name", expected="name: a text")
    return card


def _checked_edit(where: str, line: bytes) -> dict[str, Any]:
    try:
        edit = json.loads(line)
        undone = "undo" in edit
        given = {"entry": dict(edit["entry"])} if undone else {"set": dict(edit["set"]), "id": edit["id"]}
        return {"table": None if undone else edit["table"], **edit, **given, "number": int(edit["number"])}
    except (ValueError, KeyError, TypeError) as problem:
        fix = "correct or remove this line by hand"
        raise DataError(where, found=f"a broken edit ({problem})", expected="JSON", fix=fix) from problem


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)
