"""Files of predictions and references made by others, read into rows.

Knows: JSON of any shape (also not strict), JSON lines, xlsx, tsv, csv, parquet, MME's text files, and folders of these.
Does not know: which field is what (`fields`), which rows belong together (`matching`), how they are scored (`rules`).
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import DataError
from workbench.evaluation import lenient_json
from workbench.evaluation.fields import ANSWERS, ID, Row

_ENDINGS = (".json", ".jsonl", ".xlsx", ".tsv", ".csv", ".txt", ".parquet", ".ndjson")
_LISTS = ("questions", "annotations", "data", "logs", "samples", "predictions", "results", "answers")
_SPLITS = {"train", "val", "test", "trainval", "minitrain", "minival", "minitest"}
"""The names in ScienceQA's pid_splits.json, which holds no rows."""
_POPE = re.compile(r"(random|popular|adversarial)")
_ROW = {*ID, *ANSWERS, "answer", "text", "label", "conversations"}
"""A JSON object with one of these names is a row; POPE's own answers have no id."""
_IMAGE_CELL = 2000
"""A cell longer than this many characters under `image` is the picture itself, in base64; a shorter one may be."""
_BASE64 = re.compile(r"(data:image/|/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk)[\w+/=;,:\s-]{40,}")
"""How a JPEG, PNG, GIF, WebP or BMP begins in base64, and is no file name, which has no so many letters in a row."""
Keep = Callable[[bytes | str], str]
"""Keeps a picture that lies in a row, as bytes or in base64, and gives the name by which it is found again."""


@dataclass
class Table:
    """The rows of one or several files, `about` from around them, and what a person should know of the reading."""

    rows: list[Row] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read(paths: Sequence[Path | str], keep: Keep | None = None) -> Table:
    """Every row of these files and folders, with field names in lower case and `_` for spaces and hyphens.

    Pictures in rows are left out, or handed to `keep`; the row then holds their names under `media`.

    Raises DataError where a path is missing, of no known kind, or holds no row.
    """
    table = Table()
    for path in (Path(given) for given in paths):
        if not path.exists():
            raise DataError(str(path), found="no such file", expected=f"a file ending in {', '.join(_ENDINGS)}")
        for file in files_of(path):
            rows = _read_file(file, table, loose=not path.is_dir(), keep=keep)
            table.rows += [_clean(row, file, keep) for row in rows]
    if not table.rows:
        raise DataError(", ".join(map(str, paths)), found="no row", expected="one row or object for each question")
    return table


def files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _ENDINGS and file.is_file())
    return [file for file in files if not file.name.startswith((".", "~$")) and "readme" not in file.name.lower()]


def _read_file(file: Path, table: Table, *, loose: bool, keep: Keep | None) -> list[Row]:
    kind = file.suffix.lower()
    if kind == ".xlsx":
        return _read_xlsx(file)
    if kind == ".parquet":
        return _read_parquet(file) if keep is None else _read_pictures(file, keep)
    text = _text(file)
    if kind in (".tsv", ".csv"):
        header = text.partition("\n")[0]
        return _read_columns(text, "\t" if kind == ".tsv" else max(",;", key=header.count))
    if kind == ".txt" and "\t" in text and not text.lstrip().startswith(("{", "[")):
        return _read_mme(text, file)
    return _read_json(text, file, table, loose)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            str(file), found=f"bytes that are not UTF-8 ({error.reason})", fix="save it as UTF-8"
        ) from error


def _read_json(text: str, file: Path, table: Table, loose: bool) -> list[Row]:
    values, lost = lenient_json.parse(text)
    if lost:
        shown = ", ".join(map(str, lost[:5])) + (", ..." if len(lost) > 5 else "")
        if not values:
            raise DataError(
                f"{file}:{lost[0]}", found="text that is no JSON", expected="objects, one for each question"
            )
        table.notes.append(f"{file.name}: {len(lost)} broken row(s) left out, at line {shown}")
    rows: list[Row] = []
    for value in values:
        rows += _rows_of(value, table.about, loose)
    strange = sum(not isinstance(value, dict | list) for value in values)
    if strange:
        table.notes.append(f"{file.name}: {strange} value(s) that are no rows are left out")
    return rows


def _rows_of(value: Any, about: dict[str, Any], loose: bool) -> list[Row]:
    """The rows in one JSON value: a list, a row, a container such as {"questions": [...]}, or a dict of id to row.

    `loose` takes a dict of id to answer too; in a folder such a file is more likely something else.
    """
    if isinstance(value, list):
        return [row for row in value if isinstance(row, dict)]
    if not isinstance(value, dict):
        return []
    if isinstance(value.get("outputs"), dict):  # ScienceQA results: {"acc": ..., "outputs": {id: text}}
        about["says"] = value.get("acc")
        return _rows_of(value["outputs"], about, loose)
    for name in _LISTS:
        if isinstance(value.get(name), list) and any(isinstance(row, dict) for row in value[name]):
            about.update({key: kept for key, kept in value.items() if isinstance(kept, dict)})
            return _rows_of(value[name], about, loose)
        if isinstance(value.get(name), dict) and len(value) == 1:
            return _rows_of(value[name], about, loose)
    if any(name in _ROW for name in map(str.lower, value)):
        return [value]
    held = list(value.values())
    if held and all(isinstance(part, list) and all(isinstance(row, dict) for row in part) for part in held):
        return [
            row for part in held for row in part
        ]  # LLaVA's ScienceQA output: {"correct": [...], "incorrect": [...]}
    if held and all(isinstance(row, dict) for row in held):
        return [{"id": key, **row} for key, row in value.items()]
    if not loose or set(value) <= _SPLITS:
        return []
    return [{"id": key, "answer": part} for key, part in value.items()]


def _read_columns(text: str, delimiter: str) -> list[Row]:
    csv.field_size_limit(sys.maxsize)
    return [{**row} for row in csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter)]


def _read_mme(text: str, file: Path) -> list[Row]:
    """MME: `image, question, reference[, answer]` in a file per task, or `question, reference` in a file per image."""
    rows: list[Row] = []
    for line in text.splitlines():
        cells = line.strip("\n").split("\t")
        if len(cells) == 2:
            folder = file.parent.parent if file.parent.name == "questions_answers_YN" else file.parent
            rows.append({"image": file.stem, "question": cells[0], "gt": cells[1], "category": folder.name})
        elif len(cells) >= 3:
            row = dict(zip(("image", "question", "gt", "prediction"), cells, strict=False))
            rows.append({**row, "category": file.stem})
    return rows


def _read_xlsx(file: Path) -> list[Row]:
    from openpyxl import load_workbook

    try:
        book = load_workbook(file, read_only=True, data_only=True)
    except Exception as error:  # openpyxl raises whatever zipfile and its parsers raise
        raise DataError(str(file), found=f"a file that is no workbook ({error})", expected="an .xlsx file") from error
    lines = book.worksheets[0].iter_rows(values_only=True)
    header = [str(cell) if cell is not None else "" for cell in next(lines, ())]
    rows = [dict(zip(header, line, strict=False)) for line in lines if any(cell is not None for cell in line)]
    book.close()
    return rows


def _read_parquet(file: Path) -> list[Row]:
    import polars as pl

    try:
        schema = pl.read_parquet_schema(file)
    except pl.exceptions.PolarsError as error:
        raise DataError(str(file), found=f"no Parquet ({error})", expected="a .parquet file") from error
    pictures = [name for name, kind in schema.items() if "Binary" in str(kind)]
    there = [pl.col(name).is_not_null().alias(f"has_{name}") for name in pictures]
    return pl.scan_parquet(file).with_columns(there).drop(pictures).collect().to_dicts()


def _read_pictures(file: Path, keep: Keep) -> list[Row]:
    """Rows of a Parquet file, a few at a time: their pictures go to `keep`, in the order of their columns."""
    import pyarrow.parquet as pq

    rows: list[Row] = []
    for batch in pq.ParquetFile(file).iter_batches(batch_size=32):
        for row in batch.to_pylist():
            found = {name: picture for name, value in row.items() if (picture := _bytes(value)) is not None}
            plain = {name: value for name, value in row.items() if name not in found}
            there = {f"has_{name}": True for name in found}
            rows.append({**plain, **there, "media": [keep(found[name]) for name in sorted(found)]})
    return rows


def _bytes(value: Any) -> bytes | None:
    """A picture as the Hub keeps it: bytes, or {"bytes": ..., "path": ...}."""
    held = value.get("bytes") if isinstance(value, dict) else value
    return held if isinstance(held, bytes) else None


def _is_picture(cell: str) -> bool:
    return len(cell) > _IMAGE_CELL or _BASE64.fullmatch(cell) is not None


def _clean(row: Row, file: Path, keep: Keep | None = None) -> Row:
    """Lower-case names; a nested `doc` or metric of lmms-eval is laid open; pictures in base64 go."""
    names = {str(name or "").strip().lower().replace(" ", "_").replace("-", "_"): part for name, part in row.items()}
    clean = {name: None if part == "" and file.suffix in (".tsv", ".csv") else part for name, part in names.items()}
    for part in names.values():
        if isinstance(part, dict) and ({str(name).lower() for name in part} & set(ID) or part is names.get("doc")):
            for name, inner in part.items():
                clean.setdefault(str(name).lower().replace("-", "_"), inner)
    turns = clean.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[-1], dict):  # LLaVA's own training and test files
        clean.setdefault("question", turns[0].get("value"))
        clean.setdefault("answer", turns[-1].get("value"))
    if _is_picture(str(clean.get("image") or "")):
        cell = str(clean.pop("image"))
        if keep is not None:
            clean["media"] = [keep(cell)]
    named = _POPE.search(file.stem)
    if named and not clean.get("category"):
        clean["category"] = named.group()
    return clean
