"""A dataset as a FiftyOne dataset, and what a person changed there back as changed rows.

Knows: the field names, tags and saved views below; conversations as labels that can be tagged one by one.
Does not know: why an image was left out (`filters.py`), or how to write the truth: the caller hands the rows of
`changes` to `Dataset.update_images`.

    filepath         absolute path of the image, or of the poster of a video (`posters.py`)
    video            absolute path of the video; only where the dataset has any
    workbench_id     the image's id in the dataset
    tags             its split (train, val, test); `broken` or `removed` where it is not ok; a person's own tags
    metadata         width and height in pixels
    label            Classification
    objects          Detections; whatever else an annotation says (color, size, ...) as attributes
    captions         list of texts
    conversations    Classifications, one per conversation: label is its task; attributes conversation_id, task,
                     messages (JSON, the Hugging Face chat shape), text (the same to read), split, status, reason,
                     verdict
    status, reason, phash    as in the dataset
    shown            which tags and label the dataset gave: what a person changed of them is told by it (`marks.py`)

Saved views: `ok`, `broken`, `removed`. The FiftyOne dataset is a view of the truth: `to_fiftyone` builds it anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.curation.brain import show_measures
from workbench.curation.database import database_errors, open_fiftyone
from workbench.curation.documents import (
    LABELS,
    RESERVED_TAGS,
    SHOWN,
    STATUS_TAGS,
    attribute_types,
    conversation_labels,
    documents,
    shown_of,
    tags_of,
)
from workbench.curation.marks import COLUMNS, label_tags, row_back, take_marks
from workbench.data.dataset import Dataset
from workbench.errors import DataError

if TYPE_CHECKING:
    import fiftyone as fo
    from fiftyone.core.collections import SampleCollection

VERDICTS = ("accept", "reject")
"""Tags on a conversation that say what a person thinks of it."""
_MADE_BY = "workbench"


def to_fiftyone(
    dataset: Dataset,
    *,
    name: str | None = None,
    conversations: bool = True,
    measures: pl.DataFrame | None = None,
    persistent: bool = True,
) -> fo.Dataset:
    """A FiftyOne dataset with every image and video, the broken and removed ones too; one made before is replaced.

    `name` is the dataset's own by default. `measures` (id and a column each, as `image_measures` gives them) become
    fields to sort and filter by. What was marked in the one before is taken into the folder first. Raises `DataError`
    where the name belongs to a dataset that was not made here, and as `marks.take_marks` does.
    """
    fo = open_fiftyone()
    name = name or dataset.name
    with database_errors():
        tagged = _remove_old(fo, name, dataset)
        made = fo.Dataset(name, persistent=persistent)
        roots = [[root, str(folder)] for root, folder in dataset.roots.items()]  # a key must not hold a dot
        made.info = {_MADE_BY: {"dataset": str(dataset.path.absolute()), "name": dataset.name, "roots": roots}}
        made.save()
        images = dataset.images
        types = attribute_types(images["objects"])
        _declare_fields(fo, made, types, videos=bool((images["media"] == "video").any()))
        said = conversation_labels(dataset) if conversations else {}
        for label in (label for labels in said.values() for label in labels):
            label["tags"] = tagged.get(label["conversation_id"], label["tags"])
        rows = ({**document, "_dataset_id": made._doc.id} for document in documents(dataset, images, types, said))
        fo.core.odm.insert_documents(rows, made._sample_collection)
        made.create_index("workbench_id", unique=True)
        made.create_index(f"{LABELS}.conversation_id")
        for status in ("ok", *STATUS_TAGS):
            made.save_view(STATUS_TAGS.get(status, status), made.match(fo.ViewField("status") == status))
    if measures is not None:
        show_measures(made, measures)
    return made


def mark(view: SampleCollection, dataset: Dataset) -> None:
    """Bring status, reason, tags and label up to date, without building the view anew. A person's own tags stay; what
    else was marked is to be taken in before (`marks.take_marks`)."""
    rows = {row["id"]: row for row in dataset.images.iter_rows(named=True)}
    known = view.has_field(SHOWN)
    new: dict[str, dict[str, Any]] = {key: {} for key in ("status", "reason", "tags", "label", *([SHOWN] * known))}
    fields = ["workbench_id", *(f"{key}.label" if key == "label" else key for key in new)]
    for name, *said in zip(*view.values(fields), strict=True):
        row = rows[name]
        shown = (said[-1] if known else None) or {}
        own = [tag for tag in said[2] if tag not in RESERVED_TAGS and tag not in shown.get("tags", ())]
        now = [row["status"], row["reason"], list(dict.fromkeys(tags_of(row) + own)), row["label"], shown_of(row)]
        for field, old, value in zip(new, said, now, strict=False):
            if old != value:
                new[field][name] = value
    made = open_fiftyone().Classification
    new["label"] = {name: None if label is None else made(label=label) for name, label in new["label"].items()}
    for field, values in new.items():
        if values:
            view.set_values(field, values, key_field="workbench_id")


def ids_of(view: SampleCollection) -> list[str]:
    """The dataset ids of a view's images and videos, in its order."""
    return list(view.values("workbench_id"))


def from_fiftyone(view: SampleCollection) -> pl.DataFrame:
    """What FiftyOne says now. Columns: id, split, label, status, reason, tags (a person's own, sorted).

    A person leaves an image out by the tag `removed` and takes it back by deleting that tag. Raises `DataError` for
    an image with two splits.
    """
    fields = ("workbench_id", "tags", "label.label", "status", "reason")
    where = f"FiftyOne dataset {view._root_dataset.name!r}"
    read = zip(*view.values(list(fields)), strict=True)
    rows = [row_back(name, tags, label, status, reason, where) for name, tags, label, status, reason in read]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def changes(view: SampleCollection, dataset: Dataset) -> pl.DataFrame:
    """The rows of `from_fiftyone` that differ from the dataset, ready for `dataset.update_images`."""
    found = from_fiftyone(view)
    known = dataset.images
    if "tags" not in known.columns:
        known = known.with_columns(pl.lit([], dtype=pl.List(pl.String)).alias("tags"))
    known = known.with_columns(pl.col("tags").fill_null([]))
    return found.join(known.select(found.columns), on=found.columns, how="anti", nulls_equal=True)


def verdicts(view: SampleCollection) -> pl.DataFrame:
    """What was said about conversations. Columns: id (of the conversation), verdict (accept, reject or null), tags.

    A tag counts more than the attribute. Raises `DataError` for a conversation tagged both ways.
    """
    values = view.values([f"{LABELS}.{key}" for key in ("conversation_id", "verdict", "tags")])
    rows = []
    for labels in zip(*values, strict=True):
        for name, verdict, tags in zip(*(part or [] for part in labels), strict=True):
            rows.append((name, verdict_of(name, tags, verdict), sorted(set(tags) - set(VERDICTS))))
    schema: dict[str, Any] = {"id": pl.String, "verdict": pl.String, "tags": pl.List(pl.String)}
    return pl.DataFrame(rows, schema=schema, orient="row")


def verdict_of(name: str, tags: Iterable[str], verdict: str | None) -> str | None:
    """What a label's tags and attribute say of a conversation. Raises `DataError` for both verdicts as tags."""
    said = [tag for tag in tags if tag in VERDICTS]
    if len(said) > 1:
        raise DataError(f"conversation {name}", found="tags accept and reject", expected="one of them")
    return said[0] if said else verdict


# --- fields ---------------------------------------------------------------------------------------------------


def _remove_old(fo: ModuleType, name: str, dataset: Dataset) -> dict[str, list[str]]:
    """Delete the one of this name, once what was marked there is in the folder; returns its `label_tags`."""
    if not fo.dataset_exists(name):
        return {}
    old = fo.load_dataset(name)
    if _MADE_BY not in old.info:
        raise DataError(
            f"FiftyOne dataset {name!r}", found="one that was not made from a dataset folder", fix="choose another name"
        )
    tagged = {}
    if old.info[_MADE_BY].get("dataset") == str(dataset.path.absolute()):
        take_marks(old, dataset)
        tagged = label_tags(old)
    fo.delete_dataset(name)
    return tagged


def _declare_fields(fo: ModuleType, made: fo.Dataset, attributes: Mapping[str, type], *, videos: bool) -> None:
    """Every field in the schema from the start: the App shows an undeclared one only after a reload.

    Done by adding and deleting one full example, as one call for each field takes ten times as long.
    """
    said = {key: "" for key in ("conversation_id", "task", "messages", "text", "split", "status", "reason", "verdict")}
    thing = fo.Detection(label="", bounding_box=[0, 0, 1, 1], **{key: kind() for key, kind in attributes.items()})
    example = fo.Sample(
        "example.png",
        **{key: "" for key in ("workbench_id", "status", "reason", "phash", *(["video"] if videos else []))},
        metadata=fo.ImageMetadata(width=1, height=1, mime_type=""),
        captions=[""],
        **{SHOWN: {"tags": [""], "label": ""}},
        label=fo.Classification(label=""),
        objects=fo.Detections(detections=[thing]),
        conversations=fo.Classifications(classifications=[fo.Classification(label="", **said)]),
    )
    made.add_sample(example, dynamic=True)
    made.delete_samples(example)
