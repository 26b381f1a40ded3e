"""A dataset as one COCO file, which `import_coco` reads back equal.

Knows: which ids came in and which are new. Does not know: how such files are read (`coco.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from workbench.data.boxes import to_coco
from workbench.data.dataset import Dataset
from workbench.data.outgoing import outgoing_images, own_id
from workbench.resources import write_atomic


def export_coco(dataset: Dataset, out: str | Path, *, split: str | None = None) -> int:
    """Write the images that are ok with captions and objects as one COCO file; return how many images.

    It holds paths, sizes, captions, objects with everything that is known of them, and as further keys of an image its
    split, class and id (where that does not follow from the path). It cannot hold conversations, videos (their number
    is printed), nor the ids that captions had; objects come back with an `id`. Image ids are those that came in
    (`coco_id`), else the numbers after them. Raises `DataError` where roots differ.
    """
    rows = outgoing_images(dataset, split)
    ids = _image_ids(rows)
    things = [json.loads(text or "[]") for text in rows["objects"]]
    categories = _categories(dataset.card.get("coco") or [], things)
    by_name = {category["name"]: category["id"] for category in categories}
    annotations: list[dict[str, Any]] = []
    for image_id, captions, found in zip(ids, rows["captions"], things, strict=True):
        annotations += [{"image_id": image_id, "caption": caption} for caption in captions]
        annotations += [_annotation(thing, image_id, by_name) for thing in found]
    _number(annotations)
    images = [_image(row, image_id) for row, image_id in zip(rows.iter_rows(named=True), ids, strict=True)]
    held = {"info": {"description": dataset.name}, "licenses": [], "images": images}
    held |= {"annotations": annotations, "categories": categories}
    write_atomic(out, json.dumps(held, ensure_ascii=False))
    return rows.height


def _image_ids(rows: pl.DataFrame) -> list[int]:
    """The ids that came in; the others get the numbers after them."""
    known = rows["coco_id"].to_list() if "coco_id" in rows.columns else [None] * rows.height
    following = max([0, *(key for key in known if key is not None)])
    ids = []
    for key in known:
        following += key is None
        ids.append(following if key is None else key)
    return ids


def _image(row: Mapping[str, Any], key: int) -> dict[str, Any]:
    said = {name: row[name] for name in ("split", "label") if row[name] is not None}
    size = {"width": row["width"], "height": row["height"]}
    return {"id": key, "file_name": row["path"], **size, **said, **own_id(row)}


def _categories(known: Sequence[dict[str, Any]], things: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The categories that came in, and one more for each new label."""
    names = dict.fromkeys(str(thing.get("label", "object")) for found in things for thing in found)
    new = [name for name in names if name not in {category["name"] for category in known}]
    start = max([0, *(category["id"] for category in known)]) + 1
    return [*known, *({"id": number, "name": name} for number, name in enumerate(new, start))]


def _annotation(thing: Mapping[str, Any], image_id: int, by_name: Mapping[str, int]) -> dict[str, Any]:
    """An object as COCO has it; `area` and `iscrowd`, which its tools ask for, are filled in where they lack."""
    more = {key: value for key, value in thing.items() if key not in ("label", "box")}
    made: dict[str, Any] = {"image_id": image_id, "category_id": by_name[str(thing.get("label", "object"))]}
    if thing.get("box"):
        box = to_coco(thing["box"])
        made |= {"bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
    return made | more


def _number(annotations: Sequence[dict[str, Any]]) -> None:
    """Keep the ids that are whole numbers and there once; the others get new ones."""
    taken: set[int] = set()
    for annotation in annotations:
        key = annotation.get("id")
        if isinstance(key, int) and key not in taken:
            taken.add(key)
        else:
            annotation.pop("id", None)
    following = max(taken, default=0)
    for annotation in annotations:
        if "id" not in annotation:
            following += 1
            annotation["id"] = following
