"""A FiftyOne view brought up to date with its dataset folder, so that fields, tags and saved views survive.

Knows: which samples and labels differ from the folder, and when only a new view will do.
Does not know: how a view is made (`table.py`), or the App (`app.py`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.curation.database import database_errors, open_fiftyone
from workbench.curation.documents import LABELS, Document, conversation_labels, label_list
from workbench.curation.marks import take_marks
from workbench.curation.posters import posters
from workbench.curation.table import mark, to_fiftyone
from workbench.data.dataset import Dataset

if TYPE_CHECKING:
    import fiftyone as fo

_SAID = ("conversation_id", "messages", "status", "reason", "verdict", "split", "label")
"""What a label says; its tags are a person's own."""
_SHOWN = ("loss", "loss_excess")
"""Measured on a label by `losses.py`, where it was: kept like its tags."""


def view_of(dataset: Dataset) -> fo.Dataset:
    """The FiftyOne dataset of a folder, as the folder is now: the one that is there, or a new one.

    It bears the dataset's name; where that is taken by another one, a few characters for the folder are added. One
    that is there is built anew only if images came or went; what a person marked in it is taken into the folder first.
    Raises as `open_fiftyone` does, and as `take_in`.
    """
    with database_errors():
        name, made = _found(dataset)
        if made is not None and _refresh(made, dataset):
            return made
        return _stamped(to_fiftyone(dataset, name=name), dataset)


def take_in(dataset: Dataset | str | Path) -> int:
    """What was marked on a dataset in FiftyOne (tags, splits, labels) into its folder, where `curate`, `plan`, `train`
    and `evaluate` look; returns on how many pictures and videos. `open` does it whenever it shows a dataset.

    Raises `DataError` for one that was given two splits, and as `open_fiftyone` does.
    """
    opened = Dataset.open(dataset)
    with database_errors():
        _, made = _found(opened)
        return 0 if made is None else take_marks(made, opened)


def _found(dataset: Dataset) -> tuple[str, fo.Dataset | None]:
    """The name of the view of a folder, and the view where there is one."""
    fiftyone = open_fiftyone()
    path = str(dataset.path.absolute())
    own = f"{dataset.name}-{hashlib.sha256(path.encode()).hexdigest()[:6]}"
    for name in (dataset.name, own):
        made = fiftyone.load_dataset(name) if fiftyone.dataset_exists(name) else None
        if made is None or (made.info.get("workbench") or {}).get("dataset") == path:
            return name, made
    return own, None  # both are others'


def _refresh(made: fo.Dataset, dataset: Dataset) -> bool:
    """Whether the view could be brought up to date."""
    if sorted(made.values("workbench_id")) != sorted(dataset.images["id"]):
        return False
    take_marks(made, dataset)
    posters(dataset, dataset.images)  # somebody may have emptied the state folder since
    if made.info["workbench"].get("images") != _state(dataset):
        mark(made, dataset)
        _stamped(made, dataset)
    _refresh_conversations(made, dataset)
    return True


def _refresh_conversations(made: fo.Dataset, dataset: Dataset) -> None:
    from pymongo import UpdateOne

    places = {name: (root, path) for name, root, path in dataset.images.select("id", "root", "path").iter_rows()}
    said = conversation_labels(dataset)
    own = ("id", "tags", *(key for key in _SHOWN if made.has_field(f"{LABELS}.{key}")))
    fields = ["workbench_id", *(f"{LABELS}.{key}" for key in (*_SAID, *own))]
    updates = []
    for name, *shown in zip(*made.values(fields), strict=True):
        old = list(zip(*(part or [] for part in shown), strict=True))
        new = said.get(places[name], [])
        if [label[: len(_SAID)] for label in old] != [tuple(label.get(key) for key in _SAID) for label in new]:
            kept = {label[0]: dict(zip(own, label[len(_SAID) :], strict=True)) for label in old}
            labels = label_list("Classifications", [_with_own(label, kept) for label in new])
            updates.append(UpdateOne({"workbench_id": name}, {"$set": {"conversations": labels}}))
    if updates:
        made._sample_collection.bulk_write(updates, ordered=False)
        made.reload()


def _with_own(label: Document, kept: dict[str, dict[str, Any]]) -> Document:
    """The new label under the id of the old one, with its tags and what was measured on it."""
    from bson import ObjectId

    own = dict(kept.get(label["conversation_id"], {}))
    if not own:
        return label
    return {**label, "_id": ObjectId(own.pop("id")), **own, "tags": list(own["tags"] or [])}


def _state(dataset: Dataset) -> str:
    """Changes whenever what FiftyOne's tags say of the images does."""
    columns = [name for name in ("id", "split", "label", "status", "reason", "tags") if name in dataset.images.columns]
    text = dataset.images.select(columns).sort("id").write_ndjson()
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamped(made: fo.Dataset, dataset: Dataset) -> fo.Dataset:
    made.info["workbench"] = {**made.info["workbench"], "images": _state(dataset)}
    made.save()
    return made
