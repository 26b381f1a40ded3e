"""Losses of a training run where they can be seen: fields of a FiftyOne view, to sort and filter by.

    loss, loss_excess                 of every conversation label, as `losses.by_conversation` gives them
    worst_loss, worst_loss_excess     of every image: the largest of its conversations

Knows: these fields, and the saved view `worst loss first`, which shows the images with a loss, worst first.
Does not know: how losses were measured. A view that is built anew loses the fields, as all others that it was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.conversation import Conversation
from workbench.curation.brain import show_measures
from workbench.curation.database import database_errors, open_fiftyone
from workbench.curation.documents import LABELS
from workbench.curation.refresh import view_of
from workbench.curation.review import dataset_of
from workbench.data.conversation_file import named
from workbench.data.dataset import Dataset
from workbench.errors import DataError, WorkbenchError
from workbench.losses import hardest
from workbench.recipe import mix_marks
from workbench.run import Run

if TYPE_CHECKING:
    import fiftyone as fo
    from fiftyone.core.collections import SampleCollection

FIELDS = {"loss": "loss", "excess": "loss_excess"}
"""Columns of the table, and the fields of a label that show them."""
SAVED = "worst loss first"


def write_losses(run: Run | str | Path, to: Dataset | str | Path | SampleCollection) -> fo.Dataset:
    """Show what each conversation lost in a run beside it in the App; returns the FiftyOne dataset.

    `to`: the dataset trained on, its folder, or a view of it. Raises `RunError` for a run that recorded no losses, and
    `DataError` where the dataset has none of the run's conversations.
    """
    table = hardest(run)
    found = None if hasattr(to, "_root_dataset") else Dataset.open(to)  # type: ignore[arg-type]
    open_fiftyone()
    view: Any = to if found is None else view_of(found)
    shown = dataset_of(view)
    show_losses(view._root_dataset, _of_one(table, shown, _marks(run if isinstance(run, Run) else Run(run), shown)))
    return view._root_dataset


def _of_one(table: pl.DataFrame, dataset: Dataset, marks: Sequence[str]) -> pl.DataFrame:
    """The losses of one dataset by its own ids, which begin with one of `marks` in the run; each id once."""
    own = [table.filter(pl.col("id").str.starts_with(mark)) for mark in marks]
    stripped = [one.with_columns(pl.col("id").str.strip_prefix(mark)) for mark, one in zip(marks, own, strict=True)]
    table = pl.concat(stripped).sort("excess", descending=True, maintain_order=True)
    table = table.unique("id", keep="first", maintain_order=True)  # a dataset may be in a mixture twice
    if table["id"].is_in(dataset.conversation_rows["id"].implode()).any():
        return table
    ours = {name: one.id for name, one in named(dataset.iter_conversations()) if isinstance(one, Conversation)}
    return table.with_columns(pl.col("id").replace(ours))


def _marks(run: Run, dataset: Dataset) -> list[str]:
    """What a run calls the conversations of a dataset: by their ids, or in a mixture perhaps by `NAME:ID`.

    The recipe tells, by the dataset's folder, or by its name if it was moved since; else both are tried.
    """
    try:
        data = run.recipe.data
    except WorkbenchError:
        return mix_marks(["", str(dataset.path)])
    places = [data.dataset, *(part.dataset for part in data.mix)]
    marked = list(zip(mix_marks(places), places, strict=True))
    here = [mark for mark, place in marked if _folder(place) == dataset.path.resolve()]
    name = dataset.path.name
    alike = [mark for mark, place in marked if name in (Path(place).name, Path(place).stem)]  # a file, imported
    return here or alike or mix_marks(["", str(dataset.path)])


def _folder(place: str) -> Path | None:
    try:
        return Dataset.open(place).path.resolve()
    except WorkbenchError:  # a file, or moved since
        return None


def show_losses(made: fo.Dataset, losses: pl.DataFrame) -> None:
    """Write a table (id of the conversation, loss, excess) into the labels and images of a FiftyOne dataset.

    Losses of an earlier run go. Raises `DataError` where it has none of the conversations.
    """
    with database_errors():
        ids, names = made.values(["workbench_id", f"{LABELS}.conversation_id"])
        shown = pl.DataFrame({"image": ids, "id": names}, schema={"image": pl.String, "id": pl.List(pl.String)})
        known = shown.explode("id").drop_nulls("id").join(losses, on="id", how="left", maintain_order="left")
        if not known["loss"].count():
            where = f"FiftyOne dataset {made.name!r}"
            raise DataError(where, found="no conversation of that run", expected="the dataset it was trained on")
        _write_labels(made, known)
        _write_images(made, known)


def _write_labels(made: fo.Dataset, known: pl.DataFrame) -> None:
    from pymongo import UpdateOne

    fiftyone = open_fiftyone()
    for field in FIELDS.values():
        if not made.has_field(f"{LABELS}.{field}"):
            made.add_sample_field(f"{LABELS}.{field}", fiftyone.FloatField)
    writes = []
    for (image,), rows in known.group_by("image"):
        values: dict[str, Any] = {"last_modified_at": datetime.now(UTC)}
        filters: list[Mapping[str, Any]] = []
        for number, row in enumerate(rows.iter_rows(named=True)):
            values |= {f"{LABELS}.$[c{number}].{field}": row[column] for column, field in FIELDS.items()}
            filters.append({f"c{number}.conversation_id": row["id"]})
        writes.append(UpdateOne({"workbench_id": image}, {"$set": values}, array_filters=filters))
    made._sample_collection.bulk_write(writes, ordered=False)


def _write_images(made: fo.Dataset, known: pl.DataFrame) -> None:
    fiftyone = open_fiftyone()
    largest = [pl.col(column).max().alias(f"worst_{field}") for column, field in FIELDS.items()]
    measures = known.group_by("image").agg(largest).rename({"image": "id"})
    names = [name for name in measures.columns if name != "id"]
    for name in names:
        if made.has_sample_field(name):
            made.clear_sample_field(name)
    show_measures(made, measures)
    if made.has_saved_view(SAVED):
        made.delete_saved_view(SAVED)
    seen = made.match(fiftyone.ViewField("worst_loss_excess") != None)  # noqa: E711 - FiftyOne makes a query of it
    made.save_view(SAVED, seen.sort_by("worst_loss_excess", reverse=True))
    made.reload()
