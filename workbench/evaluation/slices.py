"""Which question is in which slice of an evaluation.

Knows: slices by question type, task, tag, class, measure and split, and the names they are asked for by.
Does not know: what the questions earned (`slice_scores.py`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path

import polars as pl

from workbench.data.dataset import Dataset
from workbench.errors import DataError

KINDS = ("type", "task", "tag", "class", "measure", "split")
BINS = 4
"""Parts that a measure is cut into, of equal size but for pictures that measure the same."""
_PARTS = ("lowest", "low", "high", "highest")


def labelled(rows: pl.DataFrame, dataset: Dataset | str | Path | None, by: Sequence[str]) -> pl.DataFrame:
    """Columns: id (of a question), slice. A question may be in several slices of one kind, or in none."""
    data = None if dataset is None else Dataset.open(dataset)
    frames = [_one(rows, data, spec) for spec in by]
    schema = {"id": pl.String, "slice": pl.String}
    return pl.concat([pl.DataFrame(schema=schema), *frames]).unique(maintain_order=True)


def check_slices(dataset: Dataset | str | Path | None, by: Sequence[str]) -> None:
    """Raise `DataError` for slices that nothing in the dataset could be in, before anything is asked."""
    data = None if dataset is None else Dataset.open(dataset)
    for spec in by:
        kind, _, value = spec.partition(":")
        _check_kind(spec, kind, data)
        if kind == "measure":
            _check_measure(spec, value)
        if data is None or kind not in ("tag", "class") or not value:
            continue
        table = _tags(data) if kind == "tag" else _classes(data.images)
        known = set(table[table.columns[1]].drop_nulls())
        if value not in known:
            raise _nothing_in(spec, known)


def _check_kind(spec: str, kind: str, dataset: Dataset | None) -> None:
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, 1)
        fix = f"did you mean {near[0]}?" if near else ""
        raise DataError(f"slice {spec!r}", found=f"kind {kind!r}", expected=f"one of {', '.join(KINDS)}", fix=fix)
    if dataset is None and kind != "type":
        raise DataError(f"slice {spec!r}", found="no dataset", expected="the one that was asked about")


def _check_measure(spec: str, name: str) -> None:
    from workbench.curation.image_measures import MEANING

    if name not in MEANING:
        raise DataError(f"slice {spec!r}", found=f"measure {name!r}", expected=f"one of {', '.join(MEANING)}")


def _nothing_in(spec: str, known: Collection[str]) -> DataError:
    value = spec.partition(":")[2]
    first = sorted(known, key=lambda name: (value.lower() not in name.lower(), name))[:12]
    expected = f"one of {', '.join(first)}" if known else "a dataset that has some"
    return DataError(f"slice {spec!r}", found="nothing in it" if known else "none at all", expected=expected)


def _one(rows: pl.DataFrame, dataset: Dataset | None, spec: str) -> pl.DataFrame:
    kind, _, value = spec.partition(":")
    _check_kind(spec, kind, dataset)
    if dataset is None or kind == "type":
        named = rows.select("id", "type")
    elif kind == "task":
        named = rows.select("id").join(dataset.conversation_rows.select("id", "task"), on="id", how="inner")
    else:
        named = _by_image(rows, dataset, kind, value, spec)
    named = named.rename({named.columns[1]: "slice"}).drop_nulls()
    wanted = named.filter(pl.col("slice") == value) if value and kind != "measure" else named
    if not wanted.height:
        raise _nothing_in(spec, set(named["slice"]))
    return wanted.with_columns(pl.format(f"{kind} {{}}", "slice") if kind != "measure" else pl.col("slice"))


def _by_image(rows: pl.DataFrame, dataset: Dataset, kind: str, value: str, spec: str) -> pl.DataFrame:
    """Columns: id of a question, what its picture is in."""
    from workbench.curation.scores import placed_rows

    placed = placed_rows(rows, dataset).select("id", "image_id")
    asked = dataset.images.filter(pl.col("id").is_in(placed["image_id"].unique().implode()))
    if kind == "measure":
        kinds = _binned(dataset, asked, value, spec)
    elif kind == "tag":
        kinds = _tags(dataset)
    elif kind == "class":
        kinds = _classes(asked)
    else:
        kinds = asked.select("id", "split")
    named = kinds.rename({"id": "image_id", kinds.columns[1]: "slice"})
    return placed.join(named, on="image_id").select("id", "slice")


def _tags(dataset: Dataset) -> pl.DataFrame:
    """A person's tags as they stand in FiftyOne now, whether or not they were brought back to the folder."""
    from workbench.curation.refresh import view_of
    from workbench.curation.table import from_fiftyone

    return from_fiftyone(view_of(dataset)).select("id", "tags").explode("tags")


def _classes(images: pl.DataFrame) -> pl.DataFrame:
    """The label of a picture, and of everything that is annotated in it."""
    pairs: list[tuple[str, str | None]] = []
    for name, label, objects in images.select("id", "label", "objects").iter_rows():
        pairs.append((name, label))
        pairs += [(name, thing.get("label")) for thing in json.loads(objects or "[]")]
    return pl.DataFrame(pairs, schema={"id": pl.String, "class": pl.String}, orient="row").drop_nulls().unique()


def _binned(dataset: Dataset, images: pl.DataFrame, name: str, spec: str) -> pl.DataFrame:
    """The pictures that were asked about in four parts of equal size by a measure, each named with its limits."""
    from workbench.curation.image_measures import image_measures

    _check_measure(spec, name)
    measured = image_measures(dataset, images).select("id", pl.col(name).cast(pl.Float64)).drop_nulls().sort(name, "id")
    rank = (measured[name].rank("min") - 1) * BINS // measured.height  # equal pictures are never in two parts
    table = measured.with_columns(part=rank.cast(pl.Int64))
    limits = table.group_by("part").agg(low=pl.min(name), high=pl.max(name))
    names = {part: f"{name} {_PARTS[part]} quarter, {low:.4g} to {high:.4g}" for part, low, high in limits.iter_rows()}
    return table.select("id", slice=pl.col("part").replace_strict(names, return_dtype=pl.String))
