"""Scores of an evaluation where they can be seen: fields of a FiftyOne view, to sort and filter by.

    accuracy_NAME    of every image that was asked about: what its questions earned on average, 0 to 1
    wrong_NAME       Classifications, one per wrong answer: label is what the model said; question, reference, type

Knows: these fields, the saved view `failures of NAME`, and which of a view's images rows are about.
Does not know: how answers were scored. A view that is built anew loses the fields, as all others that it was given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.curation.brain import show_measures
from workbench.curation.database import database_errors, open_fiftyone
from workbench.curation.documents import Document, label_list
from workbench.curation.refresh import view_of
from workbench.curation.review import dataset_of
from workbench.data.dataset import Dataset
from workbench.errors import DataError
from workbench.result_rows import about, failures, name_of, rows_of

if TYPE_CHECKING:
    import fiftyone as fo
    from fiftyone.core.collections import SampleCollection

LONGEST = 80
"""Characters of an answer that serve as a label; the whole stands beside it."""


def write_results(
    results: Any, to: Dataset | str | Path | SampleCollection | None = None, *, name: str | None = None
) -> fo.Dataset:
    """Show how a model did on each image of a dataset in the App; returns the FiftyOne dataset.

    `results`: a `Results`, its folder, or rows; `to`: the dataset that was asked about, its folder, or a view of it;
    by default the one that the folder of results names. `name` (the folder's) tells several results apart; those of
    the same name are replaced. Raises `DataError` where the dataset has none of the images.
    """
    rows = rows_of(results)
    called = _slug(name or name_of(results))
    view = _view(to, results)
    placed = placed_rows(rows, dataset_of(view))
    fields = {"accuracy": f"accuracy_{called}", "wrong": f"wrong_{called}"}
    with database_errors():
        made = view._root_dataset
        for field in fields.values():
            if made.has_sample_field(field):
                made.clear_sample_field(field)
        means = placed.group_by("image_id").agg(pl.col("earned").mean().alias(fields["accuracy"]))
        show_measures(made, means.rename({"image_id": "id"}).drop_nulls())
        _write_wrong(made, failures(placed), fields["wrong"])
        _save_view(made, placed, called, fields["accuracy"])
    return made


def failed_view(
    results: Any, to: Dataset | str | Path | SampleCollection | None = None
) -> tuple[SampleCollection, pl.DataFrame]:
    """Exactly the images that rows failed on, in the order of the rows, and these rows; all where none failed."""
    rows = rows_of(results)
    view = _view(to, results)
    wrong = failures(rows)
    placed = placed_rows(wrong if wrong.height else rows, dataset_of(view))
    with database_errors():
        ids = placed["image_id"].unique(maintain_order=True).to_list()
        return view._root_dataset.select_by("workbench_id", ids, ordered=True), placed


def placed_rows(rows: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Rows with `image_id`, the id of their picture in the dataset; those about other pictures are left out.

    Raises `DataError` where all are about other pictures.
    """
    images = dataset.images.select("root", pl.col("path").alias("image"), pl.col("id").alias("image_id"))
    placed = rows.join(images, on=["root", "image"], how="inner", maintain_order="left")
    if not placed.height:
        found = f"none of the {rows['image'].n_unique():,} pictures that were asked about"
        raise DataError(str(dataset.path), found=found, expected="the dataset of these results")
    return placed


def _view(to: Dataset | str | Path | SampleCollection | None, results: Any) -> SampleCollection:
    if to is None:
        to = told_dataset(results)
        if to is None:
            fix = "name the dataset or its folder"
            raise DataError("results", found="no word of their dataset", expected="a folder of results", fix=fix)
    if hasattr(to, "_root_dataset"):  # FiftyOne's own
        return to  # type: ignore[return-value]
    found = Dataset.open(to)  # type: ignore[arg-type]  # a wrong name is told before a database starts
    open_fiftyone()
    return view_of(found)


def told_dataset(results: Any) -> str | None:
    """The folder of the dataset that results, or a table with a column `dataset`, are about."""
    if isinstance(results, pl.DataFrame):
        return next(iter(results["dataset"].drop_nulls()), None) if "dataset" in results.columns else None
    return about(results).get("dataset")


def _slug(name: str) -> str:
    """A name that a field of MongoDB may have."""
    return re.sub(r"\W+", "_", name).strip("_") or "results"


def _write_wrong(made: fo.Dataset, wrong: pl.DataFrame, field: str) -> None:
    from pymongo import UpdateOne

    _declare(made, field)
    writes = []
    for (image,), rows in wrong.group_by("image_id", maintain_order=True):
        labels = label_list("Classifications", [_label(row) for row in rows.iter_rows(named=True)])
        writes.append(
            UpdateOne({"workbench_id": image}, {"$set": {field: labels, "last_modified_at": datetime.now(UTC)}})
        )
    if writes:
        made._sample_collection.bulk_write(writes, ordered=False)
    made.reload()


def _label(row: Mapping[str, Any]) -> Document:
    from bson import ObjectId

    said = (row["said"] or row["answer"] or "(nothing)").strip()
    names = ("question", "reference", "answer", "type", "margin")
    told = {name: row[name] for name in names} | {"question_id": row["id"]}
    return {"_id": ObjectId(), "_cls": "Classification", "tags": ["wrong"], "label": said[:LONGEST], **told}


def _declare(made: fo.Dataset, field: str) -> None:
    """In the schema from the start: the App shows an undeclared one only after a reload."""
    fiftyone = open_fiftyone()
    if made.has_sample_field(field):
        return
    made.add_sample_field(field, fiftyone.EmbeddedDocumentField, embedded_doc_type=fiftyone.Classifications)
    for name in ("question", "reference", "answer", "type", "question_id"):
        made.add_sample_field(f"{field}.classifications.{name}", fiftyone.StringField)
    made.add_sample_field(f"{field}.classifications.margin", fiftyone.FloatField)


def _save_view(made: fo.Dataset, placed: pl.DataFrame, called: str, accuracy: str) -> None:
    """The images with a wrong answer, the worst first."""
    saved = f"failures of {called}"
    if made.has_saved_view(saved):
        made.delete_saved_view(saved)
    ids = failures(placed)["image_id"].unique().to_list()
    if ids:
        made.save_view(saved, made.select_by("workbench_id", ids).sort_by(accuracy))
