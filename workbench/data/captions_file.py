"""The file beside a folder of images that says what is in them: captions, and where it has them labels and splits.

    captions.csv      columns file and caption; optionally label, split
    captions.jsonl    the same as objects, one a line; a caption may be a list of several

Knows: these files as people write them (names of columns, separators, marks of encoding), and how we write one.
Does not know: which images there are (`image_folder.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from workbench.errors import DataError

CAPTION_FILES = ("captions.csv", "captions.jsonl")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
"""What people call a split, and what it is called here."""
ID = "workbench_id"
"""Key of an image's own id in files that we write, where the id does not follow from the path."""
_FILE_COLUMNS = ("file", "file_name", "filename", "image", "path")
_TEXT_COLUMNS = ("caption", "text", "captions")


@dataclass(frozen=True)
class Line:
    """What one line says about the image `file`."""

    file: str
    texts: tuple[str, ...] = ()
    label: str | None = None
    split: str | None = None
    id: str | None = None


def read_lines(file: Path, column: str | None = None) -> tuple[list[Line], frozenset[str]]:
    """The lines, and which of `caption`, `label` and `split` the file has; `column` names that of captions.

    Raises `DataError` for a broken file, one without the columns, and an unknown split.
    """
    rows = _csv_rows(file) if file.suffix.lower() == ".csv" else _jsonl_rows(file)
    keys = {key.strip().lower(): key for row in rows for key in row}
    name = next((keys[key] for key in _FILE_COLUMNS if key in keys), None)
    text = next((keys[key] for key in ([column.lower()] if column else _TEXT_COLUMNS) if key in keys), None)
    has = {key for key in ("label", "split") if key in keys} | ({"caption"} if text else set())
    if name is None or not has or (column and not text):
        wanted = f"{' | '.join(_FILE_COLUMNS)} and {column or ' | '.join(_TEXT_COLUMNS)} (label and split as well)"
        raise DataError(str(file), found=f"columns {', '.join(keys) or 'none'}", expected=wanted, fix="rename them")
    lines = []
    for number, row in enumerate(rows, 1):
        said = row.get(text) if text else []
        texts = tuple("" if one is None else str(one) for one in (said if isinstance(said, list) else [said]))
        split = _split(f"{file}, row {number}", row.get(keys.get("split", "")))
        label, own = (_word(row.get(keys.get(key, ""))) for key in ("label", ID))
        lines.append(Line(str(row.get(name) or ""), texts, label, split, own))
    return lines, frozenset(has)


def write_lines(lines: Iterable[Mapping[str, Any]]) -> str:
    """The text of a captions.jsonl."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _word(value: Any) -> str | None:
    return str(value).strip() or None if value is not None else None


def _split(where: str, value: Any) -> str | None:
    word = _word(value)
    if word and word.lower() not in SPLITS:
        raise DataError(where, found=f"split {word!r}", expected=" | ".join(SPLITS))
    return SPLITS[word.lower()] if word else None


def _csv_rows(file: Path) -> list[dict[str, Any]]:
    try:
        with open(file, encoding="utf-8-sig") as handle:
            header = handle.readline()
        return pl.read_csv(file, infer_schema=False, separator=max(",;\t", key=header.count)).to_dicts()
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as problem:
        first = (str(problem).splitlines() or [""])[0]
        raise DataError(str(file), found=f"a broken CSV file ({first})", expected="UTF-8, a row per image") from problem


def _jsonl_rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        where, expected = f"{file}, line {number}", '{"file": ..., "caption": ...}'
        try:
            row = json.loads(line)
        except ValueError as problem:
            raise DataError(where, found=f"broken JSON ({problem})", expected=expected) from problem
        if not isinstance(row, dict):
            raise DataError(where, found=type(row).__name__, expected=expected)
        rows.append(row)
    return rows
