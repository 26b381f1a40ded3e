"""JSON lists and JSON lines, read record by record: a file of a gigabyte needs a few megabytes of memory.

Knows: where a record is, and what is broken about the file. Does not know: what a record means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import DataError, not_unicode

_BETWEEN = re.compile(r"[\s,]*")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""How half of a surrogate pair is written; where the other half follows, the two are a character."""
_CHUNK = 2**20
_LARGEST = 2**26
"""Characters of the largest record that a JSON list may hold; beyond it the JSON is taken to be broken."""


@dataclass(frozen=True)
class BadRecord:
    """A record that is no conversation, and what is wrong with it."""

    id: Any
    """Its own id as the file has it, or its number or line in the file."""
    error: str


def json_records(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it is, record) pairs; broken JSON in a line is a `BadRecord`, in a list it ends the file.

    A record with text that is not Unicode is a `BadRecord` too.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            start = file.read(_CHUNK).lstrip()[:1]
            file.seek(0)
            if start == "[":
                yield from _list(path, file)
            elif start == "{":
                yield from _lines(file)
            else:
                expected = "a JSON list, or one object per line"
                raise DataError(str(path), found=f"a file that begins with {start!r}", expected=expected)
    except UnicodeDecodeError as problem:
        raise DataError(str(path), found=f"bytes that are not UTF-8 ({problem})", fix="save it as UTF-8") from problem
    except OSError as problem:
        found, fix = str(problem.strerror or problem), ""
        if path.is_dir():
            fix = "name the file in it; a dataset becomes one by: workbench export DATASET FILE.json --as llava"
            found = "a folder"
        raise DataError(str(path), found=found, expected="a file to read", fix=fix) from problem


def _lines(file: Any) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", _saveable(json.loads(line), f"line {number}", line)
        except ValueError as problem:
            yield f"line {number}", BadRecord(f"line {number}", f"broken JSON: {problem}")


def _list(path: Path, file: Any) -> Iterator[tuple[str, Any]]:
    """The elements of one JSON list, with little more of the file in memory than the present element needs."""
    decoder = json.JSONDecoder()
    buffer = file.read(_CHUNK)
    at, number = buffer.index("[") + 1, 0
    while True:
        at = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]  # it matches nothing at all, too
        if buffer.startswith("]", at):
            return
        try:
            record, end = decoder.raw_decode(buffer, at)
        except ValueError as problem:
            buffer, at = buffer[at:], 0
            more = file.read(max(_CHUNK, len(buffer))) if len(buffer) < _LARGEST else ""
            if not more:
                found = f"broken or cut-off JSON behind record {number} ({problem})"
                fix = "get the file again"
                raise DataError(str(path), found=found, expected="a whole JSON list", fix=fix) from None
            buffer += more
            continue
        number += 1
        yield f"record {number}", _saveable(record, f"record {number}", buffer[at:end])
        at = end


def bad_name(record: Any, place: str) -> Any:
    """What a bad record is called: its own id, else where it is."""
    return record["id"] if isinstance(record, dict) and record.get("id") not in (None, "") else place


def _saveable(record: Any, place: str, text: str) -> Any:
    """The record that `text` is; a `BadRecord` where it has text that is not Unicode, and so cannot be written."""
    try:
        if _HALF.search(text):
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as problem:
        name = bad_name(record, place)
        name = place if _HALF.search(json.dumps(name)) else name
        wrong = DataError("record", found=not_unicode(problem), expected="text that can be saved")
        return BadRecord(name, str(wrong))
    return record
