"""What a person marked on pictures and videos in FiftyOne: tags, splits, labels, taken into the dataset folder.

Knows: that a view says what the folder had when it was shown (the field `shown`), so that what a person did is told
from what the folder has become since; nothing marked is lost, and nothing that changed in the folder is undone.
Does not know: how views are made (`table.py`) or found (`refresh.py`); verdicts on conversations (`review.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.conversation import SPLITS
from workbench.curation.documents import LABELS, RESERVED_TAGS, SHOWN, STATUS_TAGS, tags_of
from workbench.data.dataset import Dataset
from workbench.errors import DataError

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

COLUMNS: dict[str, Any] = {key: pl.String for key in ("id", "split", "label", "status", "reason")}
COLUMNS["tags"] = pl.List(pl.String)


def take_marks(view: SampleCollection, dataset: Dataset) -> int:
    """Write what was marked in the view since it was shown into the folder; returns on how many pictures and videos.

    A split that was added as a tag takes the place of the one there was. The view's own tags are brought up to date by
    whoever shows it (`table.mark`). Raises `DataError` for one that was given two splits: then nothing is written.
    """
    found = marked(view, dataset)
    if found.height:
        dataset.update_images(found, operation={"name": "fiftyone", "changed": found.height})
        print(f"taken in from FiftyOne: what was marked on {found.height:,} of {dataset.images.height:,}")
    return found.height


def marked(view: SampleCollection, dataset: Dataset) -> pl.DataFrame:
    """The rows of the folder with what was marked in the view since it was shown, ready for `update_images`."""
    rows = []
    if view.has_field(SHOWN):
        known = {row["id"]: row for row in dataset.images.iter_rows(named=True)}
        for name, tags, label, shown in zip(*view.values(["workbench_id", "tags", "label.label", SHOWN]), strict=True):
            was = shown or {}
            same = set(tags) == set(was.get("tags") or ()) and label == was.get("label")
            if shown is not None and not same and name in known:
                row = known[name]
                now = _merged(row, tags, label, was, str(dataset.path))
                if now != (*(row[key] for key in list(COLUMNS)[:-1]), sorted(row.get("tags") or [])):
                    rows.append(now)
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def row_back(
    name: str, tags: Sequence[str], label: str | None, status: str, reason: str | None, where: str, path: str = ""
) -> tuple[Any, ...]:
    """A row of `COLUMNS` of what tags say. Raises `DataError` for two splits; where: the dataset or view, path: the
    file, for its words."""
    splits = [tag for tag in tags if tag in SPLITS]
    if len(splits) > 1:
        found = f"{path or f'image {name}'}: the splits {', '.join(splits)} as tags"
        fix = "take all but one of these tags off it in FiftyOne"
        raise DataError(where, found=found, expected="one at most", fix=fix)
    removed = STATUS_TAGS["removed"] in tags
    if removed != (status == "removed") and status != "quarantined":
        status, reason = ("removed", "removed by hand") if removed else ("ok", None)
    return name, splits[0] if splits else None, label, status, reason, sorted(set(tags) - RESERVED_TAGS)


def label_tags(view: SampleCollection) -> dict[str, list[str]]:
    """The tags of conversations that have any, by their ids."""
    named = zip(*view.values([f"{LABELS}.conversation_id", f"{LABELS}.tags"]), strict=True)
    pairs = (pair for names, tags in named for pair in zip(names or [], tags or [], strict=True))
    return {name: list(tags) for name, tags in pairs if tags}


def _merged(
    row: Mapping[str, Any], tags: Sequence[str], label: str | None, was: Mapping[str, Any], where: str
) -> tuple[Any, ...]:
    """The folder's row with what differs between the tags and label that are and those that were shown."""
    before = list(was.get("tags") or ())
    came = [tag for tag in tags if tag not in before]
    left = [tag for tag in tags_of(row) if tag in tags or tag not in before]
    if any(tag in SPLITS for tag in came):
        left = [tag for tag in left if tag not in SPLITS]
    now = row["label"] if label == was.get("label") else label
    return row_back(row["id"], [*dict.fromkeys([*left, *came])], now, row["status"], row["reason"], where, row["path"])
