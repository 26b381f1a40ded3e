"""The file of a person's votes between answers: JSON lines, the last one of a question counts.

Knows: what a line of votes looks like, also one torn by a killed writer, and that no other file is written to.
Does not know: models, or how votes are cast.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from workbench.errors import DataError
from workbench.json_lines import JsonLines

_BEGINS = b'{"id": "'


class VoteFile:
    """One such file, made by the first vote. Raises `DataError` for a path where something else than votes lies."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._lines = JsonLines(path)
        _refuse_other(self._lines.path)

    def last(self) -> dict[str, str]:
        """Id of a question -> the last vote on it."""
        return {row["id"]: row["vote"] for row in self._lines.rows()}

    def add(self, id: str, vote: str, question: str, answers: Mapping[str, str]) -> None:
        """Keep a vote for good. answers: text by model, of those that answered. Raises `DiskError`."""
        row = {"id": id, "vote": vote, "question": question, "answers": dict(answers)}
        self._lines.append({**row, "time": round(time.time(), 3)})
        self._lines.sync()


def _refuse_other(path: Path) -> None:
    expected, fix = "votes as compare_answers writes them, one JSON line each", "name a new file in votes="
    if path.is_dir():
        raise DataError(str(path), found="a folder", expected=f"a file of {expected}", fix=fix)
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not _is_vote(line):
                shown = line[:60].decode("utf-8", "replace").strip()
                raise DataError(f"{path}, line {number}", found=repr(shown), expected=expected, fix=fix)


def _is_vote(line: bytes) -> bool:
    """Whether it is a vote, or the beginning of one that a killed writer left."""
    try:
        row = json.loads(line)
    except ValueError:
        return line.rstrip(b"\n").startswith(_BEGINS) or _BEGINS.startswith(line.rstrip(b"\n"))
    return isinstance(row, dict) and isinstance(row.get("id"), str) and isinstance(row.get("vote"), str)
