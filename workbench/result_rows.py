"""What a model answered and what it earned, read as one table wherever it lies.

Knows: the columns of a row, and that a folder of results, a file of JSON lines and a table in memory say the same.
Does not know: how rows come about (`evaluation`) or where they are looked at (`curation/scores.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import DataError
from workbench.json_lines import JsonLines

if TYPE_CHECKING:
    import polars as pl

ROWS, ABOUT = "rows.jsonl", "evaluation.json"
"""In a folder of results: every answer, and what was asked of whom."""
TEXTS = ("id", "item", "type", "image", "root", "question", "reference", "answer", "said", "rule", "error")
NUMBERS = ("earned", "margin")
HALF = 0.5
"""Who earns less has failed; most questions earn 0 or 1."""


def rows_of(results: Any) -> pl.DataFrame:
    """A row per question, from a `Results`, its folder, a file of JSON lines, or a table: `TEXTS` and `NUMBERS`.

    `image` and `root` name the first picture as a dataset does; `earned` is from 0 to 1, and null where nothing could
    be scored. A question that was asked in several forms (`item`) counts as its worst one, and one that was asked
    again as it was answered last. Raises `DataError` for what holds no rows.
    """
    import polars as pl

    if isinstance(results, (str, Path)):
        where, records = str(results), _records(Path(results))
    else:
        where = "results"
        frame = results if isinstance(results, pl.DataFrame) else getattr(results, "rows", None)
        if not isinstance(frame, pl.DataFrame):
            raise DataError(where, found=f"a {type(results).__name__}", expected="results, their folder, or a table")
        records = frame.to_dicts()
    if not records or not any("earned" in row or "right" in row for row in records):
        raise DataError(where, found="no scored answers", expected="a folder of results or rows with `earned`")
    kinds: dict[str, Any] = {**dict.fromkeys(TEXTS, pl.String), **dict.fromkeys(NUMBERS, pl.Float64)}
    known = [_row(record, number) for number, record in enumerate(records)]
    table = pl.DataFrame(known, schema=kinds, orient="row").unique("id", keep="last", maintain_order=True)
    if table["item"].n_unique() == table.height:
        return table
    answered = pl.col("answer").is_null()  # of several wrong forms the one that was asked
    return table.sort("earned", answered, maintain_order=True).unique("item", keep="first", maintain_order=True)


def failures(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that earned less than half. What could not be scored is none of them."""
    return rows.filter(rows["earned"] < HALF)


def pictures(rows: pl.DataFrame) -> list[str]:
    """Which picture each row is about; a question without one stands alone."""
    return [f"{root}/{path}" if path else name for root, path, name in rows.select("root", "image", "id").iter_rows()]


def name_of(results: Any) -> str:
    """What results are called: their folder's name, else the model's."""
    import polars as pl

    if isinstance(results, (str, Path)):
        return Path(results).absolute().stem
    if isinstance(results, pl.DataFrame):
        return "results"
    folder = folder_of(results)
    return folder.absolute().name if folder else Path(str(getattr(results, "model", ""))).name or "results"


def folder_of(results: Any) -> Path | None:
    """Where results lie; None for those in memory alone."""
    folder = results if isinstance(results, (str, Path)) else getattr(results, "path", None)
    return Path(folder) if folder is not None and Path(folder).is_dir() else None


def about(results: Any) -> Mapping[str, Any]:
    """What results say of themselves: model, scorer, dataset, roots of the pictures; {} where they say nothing."""
    settings = getattr(results, "settings", None)
    if isinstance(settings, Mapping):
        return settings
    folder = folder_of(results)
    file = folder / ABOUT if folder else None
    return json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}


def _records(path: Path) -> list[dict[str, Any]]:
    file = path / ROWS if path.is_dir() else path
    if not file.is_file():
        raise DataError(str(path), found="no results there", expected=f"a folder with {ROWS}, or such a file")
    return JsonLines(file).rows()


def _row(record: Mapping[str, Any], number: int) -> tuple[Any, ...]:
    told = {**record, "id": record.get("id") or f"row {number}"}
    told["item"] = told.get("item") or told["id"]
    earned = told.get("earned", told.get("right"))
    numbers = (None if earned is None else float(earned), told.get("margin"))
    return (*(_text(told.get(name)) for name in TEXTS), *numbers)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
