"""COCO's annotation files as a dataset: captions and instances about the same images.

    images        id, file_name, width, height
    annotations   image_id and caption; or image_id, category_id, bbox (x, y, width, height in pixels) and more
    categories    id, name

Knows: these files, one or several at once, and every way in which their ids can fail to fit.
Does not know: how images are checked (`image_rows.py`); what `segmentation` means, which is kept as it is; the way
out (`coco_out.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from workbench.data.boxes import from_coco
from workbench.data.captions_file import ID, SPLITS
from workbench.data.dataset import Dataset
from workbench.data.image_rows import ROOT, image_rows, refuse_existing, refuse_missing, root_for
from workbench.data.imported import by_reason, keep
from workbench.errors import DataError

_SHAPE = '{"images": [...], "annotations": [...], "categories": [...]}'
_PLACED = ("image_id", "category_id", "bbox")
"""Keys of an annotation that become something else; all others are kept in `objects` as they are."""


def import_coco(
    files: str | Path | Sequence[str | Path],
    images_root: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    workers: int | None = None,
    card: Mapping[str, Any] | None = None,
) -> Dataset:
    """Make the dataset `out` of COCO files (captions, instances or both) and the images below `images_root`.

    `objects` are mappings of `label` (the category's name), `box` in pixels, and the annotation's other keys: `id`,
    `segmentation`, `area` (unless it is that of the box), `iscrowd` (unless 0). Images without an annotation are rows
    like the others; missing and broken ones are quarantined. Raises `DataError` for a broken file, an id that is
    unknown or there twice, and a box of other than four numbers.
    """
    folder, out = Path(images_root), Path(out)
    paths = [Path(files)] if isinstance(files, (str, Path)) else [Path(file) for file in files]
    refuse_existing(out)
    if not folder.is_dir():
        raise DataError(str(folder), found="no such folder", expected="the folder that file_name starts from")
    images, captions, objects, categories = _gather(paths)
    files_named = [image["file_name"] for image in images.values()]
    frame = image_rows(folder, files_named, out, workers=workers).with_columns(
        pl.Series("captions", [captions.get(key, []) for key in images], dtype=pl.List(pl.String)),
        pl.Series("objects", [_packed(objects.get(key)) for key in images], dtype=pl.String),
        pl.Series("split", [SPLITS.get(_word(image, "split") or "") for image in images.values()], dtype=pl.String),
        pl.Series("label", [_word(image, "label") for image in images.values()], dtype=pl.String),
        pl.Series("coco_id", list(images), dtype=pl.Int64),
    )
    refuse_missing(", ".join(map(str, paths)), folder, frame)
    own = pl.Series("id", [_word(image, ID) for image in images.values()], dtype=pl.String)
    frame = frame.with_columns(pl.coalesce(own, "id").alias("id"))
    report: dict[str, Any] = {
        "captions": sum(map(len, captions.values())),
        "objects": sum(map(len, objects.values())),
        "quarantined images": by_reason(frame),
        "images without annotation": sum(key not in captions and key not in objects for key in images),
        "sizes that differ from the file's": _other_sizes(frame, images),
    }
    made = {"made": f"imported from COCO files: {', '.join(path.name for path in paths)}", "coco": categories}
    roots = {ROOT: root_for(folder, out)}
    return keep(out, frame, report, name=name or paths[0].stem, roots=roots, made=made, card=card)


def _gather(paths: Sequence[Path]) -> tuple[dict[int, Any], dict[int, list[str]], dict[int, list[Any]], list[Any]]:
    """Of all files: images by id, captions and objects by image id, and categories."""
    images: dict[int, Any] = {}
    captions: dict[int, list[str]] = {}
    objects: dict[int, list[Any]] = {}
    categories: dict[int, Any] = {}
    for path in paths:
        held = _read(path)
        _merge(path, images, _by_id(path, "images", held["images"], "file_name"), "file_name")
        _merge(path, categories, _by_id(path, "categories", held.get("categories", []), "name"), "name")
        for annotation in _annotations(path, held["annotations"], images):
            where, key = f"{path}, annotation {annotation['id']!r}", annotation["image_id"]
            if "caption" in annotation:
                captions.setdefault(key, []).append(_caption(where, annotation))
            else:
                objects.setdefault(key, []).append(_object(where, annotation, categories))
    if not images:
        raise DataError(", ".join(map(str, paths)), found="no image", expected=_SHAPE)
    names: dict[str, int] = {}
    for key, image in images.items():
        if names.setdefault(image["file_name"], key) != key:
            found = f"{image['file_name']!r} as the images {names[image['file_name']]} and {key}"
            raise DataError(str(paths[0]), found=found, expected="each file once")
    return images, captions, objects, list(categories.values())


def _read(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_bytes())
    except OSError as problem:
        raise DataError(str(path), found=str(problem.strerror or problem), expected="a COCO file") from problem
    except ValueError as problem:  # UnicodeDecodeError too
        raise DataError(str(path), found=f"broken JSON ({problem})", expected=_SHAPE, fix="get it again") from problem
    keys = held if isinstance(held, dict) else {}
    for key, needed in (("images", True), ("annotations", True), ("categories", False)):
        value = keys.get(key, None if needed else [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            found = f"no list {key!r}" if isinstance(held, dict) else f"a {type(held).__name__}"
            raise DataError(str(path), found=found, expected=_SHAPE)
    return held


def _by_id(path: Path, kind: str, entries: Sequence[dict[str, Any]], text: str) -> dict[int, Any]:
    """The entries by id, each with a whole number as id and a text under the key `text`."""
    found: dict[int, Any] = {}
    for number, entry in enumerate(entries):
        key, where = entry.get("id"), f"{path}, {kind}[{number}]"
        if not isinstance(key, int) or not isinstance(entry.get(text), str):
            raise DataError(where, found=str(entry)[:80], expected=f"id, a whole number, and {text}, a text")
        if key in found:
            raise DataError(where, found=f"the id {key} a second time", expected="each id once")
        found[key] = entry
    return found


def _merge(path: Path, known: dict[int, Any], new: Mapping[int, Any], text: str) -> None:
    """Several files may tell of the same image, if they agree on which it is."""
    for key, entry in new.items():
        other = known.setdefault(key, entry)
        if other[text] != entry[text]:
            found = f"id {key} for {entry[text]!r}, and in an earlier file for {other[text]!r}"
            raise DataError(str(path), found=found, expected="files about the same images", fix="import them apart")


def _annotations(path: Path, entries: Sequence[dict[str, Any]], images: Mapping[int, Any]) -> Iterator[dict[str, Any]]:
    seen: set[Any] = set()
    for number, entry in enumerate(entries):
        key, where = entry.get("id"), f"{path}, annotations[{number}]"
        if not isinstance(key, int):
            raise DataError(where, found=f"id {key!r}", expected="a whole number")
        if key in seen:
            raise DataError(where, found=f"the id {key} a second time", expected="each id once")
        if entry.get("image_id") not in images:
            raise DataError(where, found=f"image_id {entry.get('image_id')!r}", expected="the id of an image")
        seen.add(key)
        yield entry


def _caption(where: str, annotation: Mapping[str, Any]) -> str:
    if not isinstance(annotation["caption"], str) or not annotation["caption"].strip():
        raise DataError(where, found=f"caption {annotation['caption']!r}", expected="a text")
    return annotation["caption"]


def _object(where: str, annotation: Mapping[str, Any], categories: Mapping[int, Any]) -> dict[str, Any]:
    category: Any = annotation.get("category_id")
    box = annotation.get("bbox")
    if category not in categories:
        known = ", ".join(map(str, list(categories)[:10])) or "categories"
        raise DataError(where, found=f"category_id {category!r}", expected=f"one of {known}")
    made: dict[str, Any] = {"label": categories[category]["name"]}
    if box is not None:
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
            raise DataError(where, found=f"bbox {box!r}", expected="x, y, width and height in pixels")
        made["box"] = list(from_coco(box))
    plain = {"iscrowd": 0, "area": box[2] * box[3] if box else None}  # what COCO asks for and says nothing more
    more = {key: value for key, value in annotation.items() if key not in _PLACED}
    return made | {key: value for key, value in more.items() if key not in plain or value != plain[key]}


def _packed(things: list[Any] | None) -> str | None:
    return json.dumps(things, ensure_ascii=False) if things else None


def _word(image: Mapping[str, Any], key: str) -> str | None:
    return str(image[key]) if image.get(key) not in (None, "") else None


def _other_sizes(frame: pl.DataFrame, images: Mapping[int, Any]) -> list[str]:
    """Boxes would not fit a picture that was resized or turned since."""
    found = []
    known = frame.filter(pl.col("width").is_not_null()).select("coco_id", "path", "width", "height")
    for key, path, width, height in known.iter_rows():
        said = images[key].get("width", width), images[key].get("height", height)
        if said != (width, height):
            found.append(f"{path} (is {width} x {height}, annotated as {said[0]} x {said[1]})")
    return found
