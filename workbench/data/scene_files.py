"""`scenes` as a dataset folder: PNG files, exact annotations in Parquet, and planted faults with the truth about them.

Knows: how pictures of `scenes.py` become files, and which exact copies, near copies and broken files are planted.
Does not know: how those faults are found (`curation/`); the truth goes to `planted.json`, which nothing here reads.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image as PILImage
from PIL import ImageEnhance

from workbench.data.batches import map_batches
from workbench.data.dataset import Dataset
from workbench.data.formats import import_folder
from workbench.data.scene_text import caption
from workbench.data.scenes import draw_scene, sample_scene
from workbench.resources import atomic_folder, write_atomic

SEED = 2026
"""Seed of the shipped and the quickstart's scenes; the tiny starting parts were made from other seeds."""


@dataclass(frozen=True)
class Planted:
    """How many faults to plant: exact copies, near copies (re-encoded, resized, brighter), broken files."""

    exact: int = 40
    near: int = 40
    broken: int = 12


def make(out: Path | str, *, count: int = 2000, seed: int = SEED, planted: Planted = Planted()) -> Dataset:  # noqa: B008
    """Write `count` scenes and the planted faults to the folder `out` and import it as a dataset named `scenes`.

    `out` holds `pictures/` (PNG, and JPEG for near copies), `planted.json` and the dataset's own files. A folder that
    was completed before with the same arguments is opened, not made again; anything else in the way raises DataError.
    """
    out = Path(out)
    made = {"count": count, "seed": seed, "planted": [planted.exact, planted.near, planted.broken]}
    if (out / "card.yaml").exists():
        dataset = Dataset.open(out)
        if dataset.card.get("made") == made:
            return dataset
    pictures = out / "pictures"
    if pictures.exists():
        shutil.rmtree(pictures)
    with atomic_folder(pictures) as building:
        annotations = _draw_all(building, count, seed)
        truth = _plant(building, sorted(annotations), planted, seed)
    write_atomic(out / "planted.json", json.dumps(truth, indent=1))
    dataset = import_folder(pictures, out, name="scenes", card={"made": made, **_CARD})
    return _annotate(dataset, annotations | _inherited(truth, annotations))


_CARD = {
    "source": "drawn by workbench.data.scenes",
    "licence": "CC0-1.0",
    "description": "One to four coloured shapes on varied backgrounds, with exact annotations and planted faults.",
}


def _draw_all(folder: Path, count: int, seed: int) -> dict[str, str]:
    """Draw and write every picture; returns file name -> annotation as JSON."""
    annotations: dict[str, str] = {}
    jobs = [(index, seed) for index in range(count)]
    drawn = map_batches(_draw_one, jobs, description="drawing scenes")
    for (index, _), (png, annotation) in zip(jobs, drawn, strict=True):
        name = f"scene-{index:05d}.png"
        (folder / name).write_bytes(png)
        annotations[name] = annotation
    return annotations


def _draw_one(job: tuple[int, int]) -> tuple[bytes, str]:
    index, seed = job
    rng = np.random.default_rng([seed, index])
    scene = sample_scene(rng)
    buffer = io.BytesIO()
    draw_scene(scene, rng).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue(), scene.to_json()


def _plant(folder: Path, names: list[str], planted: Planted, seed: int) -> dict[str, dict[str, str]]:
    """Plant the faults; returns for each kind planted file -> original file, or -> what is wrong with it."""
    rng = np.random.default_rng([seed, 7])
    exact, near, broken = {}, {}, {}
    chosen = [names[int(index)] for index in rng.permutation(len(names))[: planted.exact + planted.near]]
    for number, original in enumerate(chosen[: planted.exact]):
        copy = f"exact-{number:03d}.png"
        shutil.copyfile(folder / original, folder / copy)
        exact[copy] = original
    for number, original in enumerate(chosen[planted.exact :]):
        copy = f"near-{number:03d}.{('jpg', 'png')[number % 2]}"
        _near_copy(PILImage.open(folder / original), rng, number).save(folder / copy, quality=82)
        near[copy] = original
    for number in range(planted.broken):
        copy = f"broken-{number:03d}.png"
        broken[copy] = _break(folder / copy, (folder / names[number % len(names)]).read_bytes(), number)
    return {"exact": exact, "near": near, "broken": broken}


def _near_copy(picture: PILImage.Image, rng: np.random.Generator, number: int) -> PILImage.Image:
    """Re-encoded, and in turn resized, made brighter, or both."""
    if number % 3 != 1:
        side = int(rng.integers(64, 160))
        picture = picture.resize((side, side), PILImage.Resampling.BICUBIC)
    if number % 3 != 0:
        picture = ImageEnhance.Brightness(picture).enhance(float(rng.uniform(0.93, 1.06)))
    return picture


def _break(path: Path, good: bytes, number: int) -> str:
    kinds = {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "not an image": b"this is text, not an image\n" * 20,
        "damaged header": b"\x00" * 16 + good[16:],
    }
    kind = list(kinds)[number % len(kinds)]
    path.write_bytes(kinds[kind])
    return kind


def _inherited(truth: dict[str, dict[str, str]], annotations: dict[str, str]) -> dict[str, str]:
    """Exact copies carry their original's annotation; near ones none, as a resized copy's boxes are wrong."""
    return {copy: annotations[original] for copy, original in truth["exact"].items()}


def _annotate(dataset: Dataset, annotations: dict[str, str]) -> Dataset:
    """Add the exact annotations and a caption to the rows of the imported folder."""
    from workbench.data.scenes import Scene

    names = list(annotations)
    told = pl.DataFrame(
        {
            "path": names,
            "objects": [annotations[name] for name in names],
            "captions": [[caption(Scene.from_json(annotations[name]))] for name in names],
        }
    )
    rows = dataset.images.drop("objects", "captions").join(told, on="path", how="inner")
    dataset.update_images(rows.select("id", "objects", "captions"), operation={"name": "annotate", "count": len(rows)})
    return dataset
