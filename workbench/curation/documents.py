"""Rows of a dataset as the documents that FiftyOne keeps in MongoDB.

Knows: the stored shape of a sample and its labels, boxes in pixels to relative ones, conversations as labels.
Does not know: the database, or which fields the schema declares (`table.py`).

`fo.Dataset.add_samples` takes 5 ms for a sample with four conversations, nearly all of it for building and checking its
own objects. As FiftyOne's own importer does, documents are written straight into the collection instead; a test
compares them with what `add_samples` writes.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from bson import ObjectId

from workbench.conversation import SPLITS, Conversation, Image, Video, to_chat
from workbench.curation.measures import image_paths
from workbench.curation.posters import posters
from workbench.data.boxes import to_fiftyone
from workbench.data.dataset import Dataset
from workbench.data.tables import frame_to_conversations

Document = dict[str, Any]
LABELS = "conversations.classifications"
"""Where FiftyOne keeps the conversations of a sample."""
STATUS_TAGS = {"quarantined": "broken", "removed": "removed"}
RESERVED_TAGS = {*SPLITS, *STATUS_TAGS.values()}
"""Tags that stand for a column; all others are a person's own."""
SHOWN = "shown"
"""What of tags and label the folder gave, so that what a person changed of them is told apart."""
_TAKEN = ("id", "tags", "index", "mask", "mask_path", "attributes", "bounding_box", "instance", "confidence")
"""Names that FiftyOne's Detection uses itself."""


def documents(
    dataset: Dataset, images: pl.DataFrame, types: Mapping[str, type], said: Mapping[tuple[str, str], list[Document]]
) -> Iterator[Document]:
    """One document per row of `images`; `types` as of `attribute_types`, `said` as of `conversation_labels`.

    A video is its poster, with its own path in `video`.
    """
    now, films = datetime.now(UTC), posters(dataset, images)
    for row, path in zip(images.iter_rows(named=True), image_paths(dataset, images), strict=True):
        document = {
            "_id": ObjectId(),
            "filepath": str(films.get(row["id"], path)),
            "video": str(path) if row["media"] == "video" else None,
            "tags": tags_of(row),
            SHOWN: shown_of(row),
            "metadata": _metadata(row),
            "_media_type": "image",
            "_rand": random.random(),  # FiftyOne shuffles and takes samples by it
            "created_at": now,
            "last_modified_at": now,
            "workbench_id": row["id"],
            "label": None if row["label"] is None else _label("Classification", label=row["label"]),
            "objects": _detections(row, types),
            "captions": row["captions"],
            "conversations": label_list("Classifications", said.get((row["root"], row["path"]))),
            **{key: row[key] for key in ("status", "reason", "phash")},
        }
        yield {key: value for key, value in document.items() if value is not None}


def conversation_labels(dataset: Dataset) -> dict[tuple[str, str], list[Document]]:
    """Every conversation as a label, under root and path of its first image or video; those without are left out."""
    rows = dataset.conversation_rows
    found: dict[tuple[str, str], list[Document]] = {}
    for conversation, status, reason in zip(frame_to_conversations(rows), rows["status"], rows["reason"], strict=True):
        if conversation.media:
            first = conversation.media[0]
            found.setdefault((first.root, first.path), []).append(_conversation(conversation, status, reason))
    return found


def attribute_types(objects: pl.Series) -> dict[str, type]:
    """What the annotations say beside label and box: float where it is always a number, else str."""
    found: dict[str, type] = {}
    for text in objects.drop_nulls():
        for thing in json.loads(text):
            for key, value in _attributes(thing).items():
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                found[key] = float if number and found.get(key, float) is float else str
    return found


def readable(conversation: Conversation) -> str:
    """The conversation as text to read: a line per turn that begins with its role."""
    media = {Image: "[image]", Video: "[video]"}
    lines = []
    for message in conversation.messages:
        parts = [part if isinstance(part, str) else media[type(part)] for part in message.content]
        lines.append(f"{message.role}: {' '.join(parts)}")
    return "\n".join(lines)


def tags_of(row: Mapping[str, Any]) -> list[str]:
    """Split and status of a row as tags, then a person's own."""
    tags = [row["split"], STATUS_TAGS.get(row["status"]), *(row.get("tags") or [])]
    return [tag for tag in tags if tag]


def shown_of(row: Mapping[str, Any]) -> Document:
    """What `SHOWN` holds of a row."""
    return {"tags": tags_of(row), "label": row["label"]}


def _metadata(row: Mapping[str, Any]) -> Document | None:
    if not row["width"] or not row["height"]:
        return None
    suffix = ".jpg" if row["media"] == "video" else Path(row["path"]).suffix
    kind = {"mime_type": f"image/{suffix.lower().lstrip('.').replace('jpg', 'jpeg')}"}
    return {"_cls": "ImageMetadata", **kind, "width": row["width"], "height": row["height"]}


def _detections(row: Mapping[str, Any], types: Mapping[str, type]) -> Document | None:
    """The annotated objects that have a box: x0, y0, x1, y1 in pixels becomes x, y, width, height from 0 to 1."""
    if not row["objects"] or not row["width"] or not row["height"]:
        return None
    width, height, found = row["width"], row["height"], []
    for thing in json.loads(row["objects"]):
        if thing.get("box"):
            box = list(to_fiftyone(thing["box"], width, height))
            more = {key: _plain(types[key], value) for key, value in _attributes(thing).items()}
            found.append(_label("Detection", attributes={}, label=thing.get("label"), bounding_box=box, **more))
    return label_list("Detections", found)


def _plain(kind: type, value: Any) -> Any:
    """Numbers and texts; lists and mappings, such as an outline, as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else kind(value)


def own_value(value: Any) -> Any:
    """What `_plain` was given."""
    try:
        return json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value
    except ValueError:  # a text that only begins so
        return value


def own_name(key: str) -> str:
    """The name that an annotation had before it became an attribute of a Detection."""
    return key.removeprefix("object_") if key.removeprefix("object_") in _TAKEN else key


def _attributes(thing: Mapping[str, Any]) -> Document:
    """Everything beside label and box, under names that MongoDB allows and FiftyOne does not use itself."""
    named = {re.sub(r"\W", "_", key).strip("_"): value for key, value in thing.items() if key not in ("label", "box")}
    return {f"object_{key}" if key in _TAKEN else key: value for key, value in named.items() if value is not None}


def _conversation(conversation: Conversation, status: str, reason: str | None) -> Document:
    return _label(
        "Classification",
        label=conversation.task or "conversation",
        conversation_id=conversation.id,
        task=conversation.task,
        messages=json.dumps(to_chat(conversation), ensure_ascii=False),
        text=readable(conversation),
        split=conversation.split,
        status=status,
        reason=reason,
        verdict=conversation.metadata.get("verdict"),
    )


def _label(kind: str, **fields: Any) -> Document:
    return {"_id": ObjectId(), "_cls": kind, "tags": [], **fields}


def label_list(kind: str, labels: Sequence[Document] | None) -> Document | None:
    return {"_cls": kind, kind.lower(): list(labels)} if labels else None
