"""What the pages about results show: pictures as data URIs, examples, confusion tables as shaded cells.

Knows: where a row's picture lies, which failures are shown, and in what order.
Does not know: the pages (`report.py`, `change_report.py`), or how anything was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import polars as pl

from workbench.conversation import Image
from workbench.data.dataset import Dataset
from workbench.data.folder import resolve_inside
from workbench.data.video import by_content, seen
from workbench.errors import WorkbenchError
from workbench.evaluation.confusion import Confusion
from workbench.report import picture_source
from workbench.result_rows import about

SIDE = 224
"""Pixels of a picture on the page: twice of what is shown, for sharp screens."""
Shown = Callable[[str | None, str | None], str | None]
"""Path and root of a picture -> its data URI; None where it cannot be opened."""


def pictures_of(results: Any, dataset: Dataset | None) -> Shown:
    """Opens the pictures of rows: by the dataset that was asked about, else by the roots that the results name."""
    roots = {name: Path(folder) for name, folder in (about(results).get("roots") or {}).items()}

    def shown(path: str | None, root: str | None) -> str | None:
        if not path:
            return None
        try:
            if root in roots:
                file = resolve_inside(roots[root], path)
            elif dataset is not None:
                file = dataset.resolve(Image(path, root or "images"))
            else:
                return None
            return picture_source(seen(by_content(file)), SIDE)
        except (WorkbenchError, OSError):  # a page without one picture is better than none
            return None

    return shown


def in_turn(rows: pl.DataFrame, count: int) -> pl.DataFrame:
    """The first `count` rows taken from each type in turn, the types in the order of their share of failures."""
    sizes = rows.group_by("type").len().sort("len", "type", descending=[True, False])
    groups = [rows.filter(pl.col("type").eq_missing(kind))["id"].to_list() for kind in sizes["type"]]
    ids = [one for one in chain(*zip_longest(*groups)) if one is not None][:count]
    order = pl.DataFrame({"id": ids}, schema={"id": pl.String})
    return order.join(rows, on="id", how="left", maintain_order="left")


def examples(rows: Iterable[Mapping[str, Any]], shown: Shown, names: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Rows as the pages show them; `names`: what an answer is called, and the column that ends in it (earned too)."""
    found = []
    for row in rows:
        answers = [
            (name, row[f"answer{end}"], (row[f"earned{end}"] or 0) >= 0.5) for name, end in names
        ]  # fmt: skip
        margin = row.get("margin")
        note = " · ".join(filter(None, (row["type"], None if margin is None else f"margin {margin:.2f}", row["image"])))
        picture = shown(row["image"], row["root"])
        told = {"question": row["question"], "reference": row["reference"], "image": row["image"], "note": note}
        found.append({**told, "answers": answers, "source": picture})
    return found


def shaded(table: Confusion) -> dict[str, Any]:
    """A confusion table as cells: count, how dark from 0 to 1 of its row, and whether it is the right answer."""
    rows = []
    for reference, counts in zip(table.references, table.counts, strict=True):
        whole = sum(counts) or 1
        cells = [
            {"count": count, "heat": round(0.75 * count / whole, 3), "same": said == reference}
            for said, count in zip(table.said, counts, strict=True)
        ]
        rows.append({"reference": reference, "cells": cells})
    return {"type": table.type, "said": table.said, "rows": rows}
