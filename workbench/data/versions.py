"""The versions of a dataset: snapshots named by content, what led from one to the next, and the way back.

Knows: the entries of the lineage, how they are drawn, which version a person means by a few characters.
Does not know: how the files stay whole (`folder.py`), or what differs between two versions (`diff.py`).

After an undo a version stands in the lineage a second time: time goes on, the content is an earlier one.
"""

from __future__ import annotations

import difflib
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workbench.conversation import new_id
from workbench.data import tables
from workbench.data.folder import Folder, now
from workbench.errors import DataError

LONGEST = 100
"""Characters that are shown of one parameter."""


class Lineage(list[dict[str, Any]]):
    """Entries in order of time: `version`, `parent`, `operations`, `counts`, `time`. It prints as a tree.

    Each version stands below the one it was made from, over the operations that made it; one that an undo left
    behind stands to the right.
    """

    def __str__(self) -> str:
        if not self:
            return "no snapshot yet: dataset.snapshot() keeps the present state"
        return "\n".join(_Tree(self).lines())

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


class _Tree:
    """The lineage by version: where each was made first, what was made from it, when it came back."""

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self.first: dict[str | None, Mapping[str, Any]] = {}
        self.again: dict[str | None, list[Mapping[str, Any]]] = {}
        self.children: dict[str | None, list[str | None]] = {}
        self.present = entries[-1]["version"]
        for entry in entries:
            version = entry["version"]
            if version in self.first:
                self.again.setdefault(version, []).append(entry)
                continue
            above = entry["parent"] if entry["parent"] in self.first else ""
            self.children.setdefault(above, []).append(version)
            self.first[version] = entry

    def lines(self, above: str | None = "", indent: str = "") -> Iterator[str]:
        """What was made from `above`: the latest below it, all others to its right."""
        while made := self.children.get(above, []):
            for left in made[:-1]:
                yield from self._told(left, f"{indent}| ")
                yield from self.lines(left, f"{indent}| ")
            yield from self._told(made[-1], indent)
            above = made[-1]

    def _told(self, version: str | None, indent: str) -> Iterator[str]:
        entry, back = self.first[version], self.again.get(version, [])
        here = "  <- now" if version == self.present and version else ""
        yield f"{indent}* {version or 'now, not kept yet'}{_when(entry)}{_counted(entry.get('counts'))}{here}"
        for text in _operations(entry):
            yield f"{indent}|     {text}"
        for one in back:
            yield f"{indent}|     again{_when(one)}  {'; '.join(_operations(one))}"


def _when(entry: Mapping[str, Any]) -> str:
    return f"  {entry['time'][:19].replace('T', ' ')} UTC" if entry.get("time") else ""


def _counted(counts: Mapping[str, Any] | None) -> str:
    if not counts:
        return ""
    status = ", ".join(f"{count:,} {name}" for name, count in counts.get("status", {}).items() if name != "ok")
    videos = f" and {counts['videos']:,} videos" if counts.get("videos") else ""
    images = f"{counts['images']:,} images{videos}" + (f" ({status})" if status else "")
    return f"  {images}, {counts['conversations']:,} conversations"


def _operations(entry: Mapping[str, Any]) -> list[str]:
    """Each operation on one line: its name, its parameters, the table."""
    lines = []
    for operation in entry["operations"]:
        hidden = ("name", "id", "time", "table")
        given = [f"{name} {_short(value)}" for name, value in operation.items() if name not in hidden]
        table = f" ({operation['table']})" if operation.get("table") else ""
        lines.append(f"{operation['name']}{': ' if given else ''}{', '.join(given)}{table}")
    return lines


def _short(value: object) -> str:
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        value = " ".join(map(str, value))
    text = " ".join((value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


# --- a dataset's versions; what writes is called under the folder's lock ----------------------------------------


def lineage(folder: Folder) -> Lineage:
    """The snapshots, and what happened since the last one as an entry with version None."""
    past = folder.present_card().get("snapshots") or []
    edits = [{**edit, "table": table} for table in tables.COLUMNS for edit in folder.waiting(table)]
    waiting = _waiting(folder, past) + edits
    return Lineage([*past, {"version": None, "parent": _last(past), "operations": waiting}] if waiting else past)


def snapshot(folder: Folder) -> str:
    """Keep the present state; returns its version. See `Dataset.snapshot`."""
    folder.compact()
    hashes = [tables.content_hash(folder.table(table)) for table in tables.COLUMNS]
    version = new_id("dataset", *hashes)[:16]
    card = folder.card()
    past = card.get("snapshots") or []
    if _last(past) != version:
        entry = {"version": version, "parent": _last(past), "operations": _waiting(folder, past)}
        card["snapshots"] = [*past, {**entry, "counts": folder.counts(), "time": now()}]
        folder.keep(version, card)
        folder.write_card(card)
    return version


def undo(folder: Folder, version: str | None = None) -> str:
    """Keep the present state, then go back; returns the version that is present now. See `Dataset.undo`."""
    past = folder.card().get("snapshots") or []
    wanted = find(folder, version) if version is not None or not past else None
    present = snapshot(folder)
    past = folder.card()["snapshots"]
    wanted = wanted or next((entry["version"] for entry in reversed(past) if entry["version"] != present), None)
    if wanted is None:
        raise DataError(
            str(folder.path), found=f"nothing but version {present}", fix="nothing changed since it was kept"
        )
    if wanted != present:
        for table in tables.COLUMNS:
            folder.kept(wanted).table(table)  # a damaged one is told while there is still something to read
        counts = next(entry["counts"] for entry in past if entry["version"] == wanted)
        operation = {"name": "undo", "from": present, "to": wanted, "id": new_id(), "time": now()}
        entry = {"version": wanted, "parent": present, "operations": [operation], "counts": counts, "time": now()}
        folder.append_edit({"undo": wanted, "entry": entry})
        folder.take_in_undo()
    return wanted


def find(folder: Folder, version: str | None) -> str:
    """The one version that begins so. Raises `DataError` for none, with the nearest, and for several."""
    known = list(dict.fromkeys(entry["version"] for entry in folder.present_card().get("snapshots") or []))
    where = f"version {version!r}" if version is not None else str(folder.path)
    if not known:
        raise DataError(where, found="no snapshot yet", fix="dataset.snapshot() keeps the present state")
    found = [one for one in known if version and one.startswith(str(version))]
    if len(found) > 1:
        raise DataError(where, found=f"{len(found)} versions that begin so", expected=" or ".join(found[:5]))
    if not found:
        short = {one[: len(str(version))]: one for one in known}  # compared at the length that was typed
        near = difflib.get_close_matches(str(version), short, 1) if version else []
        fix = f"did you mean {short[near[0]]}?" if near else "print(dataset.lineage) shows all"
        raise DataError(where, found="no such version", expected=", ".join(known[-5:]), fix=fix)
    return found[0]


def _waiting(folder: Folder, past: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Operations that no snapshot holds yet."""
    known = {operation["id"] for entry in past for operation in entry["operations"]}
    return [operation for operation in folder.operations() if operation["id"] not in known]


def _last(past: Sequence[Mapping[str, Any]]) -> str | None:
    return past[-1]["version"] if past else None
