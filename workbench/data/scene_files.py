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
from workbench.data.folder import CARD
from workbench.data.formats import import_folder
from workbench.data.scene_text import caption
from workbench.data.scenes import Scene, draw_scene, sample_scene
from workbench.errors import DataError
from workbench.resources import atomic_folder, write_atomic

SEED = 2026
"""Seed of the quickstart's scenes; the tiny starting parts were made from other seeds."""
VERSION = 2
"""Goes up whenever the same seed draws other pictures or tells other annotations."""


@dataclass(frozen=True)
class Planted:
    """How many faults to plant: exact copies, near copies (re-encoded, resized, brighter), broken files."""

    exact: int = 40
    near: int = 40
    broken: int = 12


def make(
    out: Path | str,
    *,
    count: int = 2000,
    seed: int = SEED,
    planted: Planted = Planted(),  # noqa: B008
    fresh: bool = False,
    replace: bool = False,
) -> Dataset:
    """Draw `count` scenes with exact annotations, plant faults, and import them as the dataset `out`, named `scenes`.

    `out` holds `pictures/` (PNG, and JPEG for near copies), `planted.json` and the dataset's own files. The card is
    written last, so that a folder with one is complete. One made with the same arguments by the same version is opened,
    or, with `fresh`, drawn anew; another dataset in the way raises DataError, or, with `replace`, makes room.

    >>> dataset = wb.scenes("drawn", count=100)
    scenes: 192 images in drawn
    ...
    >>> dataset.images["status"].value_counts(sort=True).rows()
    [('ok', 180), ('quarantined', 12)]
    """
    out = Path(out)
    faults = [planted.exact, planted.near, planted.broken]
    made = {"count": count, "seed": seed, "planted": faults, "version": VERSION}
    if (out / CARD).exists():
        dataset = Dataset.open(out)
        same = dataset.card.get("made") == made
        if same and not fresh:
            return dataset
        if not same and not replace:
            fix = "choose another folder, or remove this one"
            raise DataError(str(out), found="another dataset", expected=f"scenes made as {made}", fix=fix)
        (out / CARD).unlink()  # first: killed in between, what is left is no dataset
        shutil.rmtree(out)
    pictures = out / "pictures"
    if pictures.exists():
        shutil.rmtree(pictures)
    with atomic_folder(pictures) as building:
        annotations = _draw_all(building, count, seed)
        truth = _plant(building, sorted(annotations), planted, seed)
    write_atomic(out / "planted.json", json.dumps(truth, indent=1))
    told = annotations | _inherited(truth, annotations)
    card = {"made": made, **_CARD}
    return import_folder(pictures, out, name="scenes", card=card, annotate=lambda rows: _annotate(rows, told))


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


def _annotate(rows: pl.DataFrame, annotations: dict[str, str]) -> pl.DataFrame:
    """The imported rows with the exact annotations and a caption where one is known."""
    captions = {name: [caption(Scene.from_json(text))] for name, text in annotations.items()}
    paths = rows["path"].to_list()
    return rows.with_columns(
        pl.Series("objects", [annotations.get(path) for path in paths], dtype=pl.String),
        pl.Series("captions", [captions.get(path, []) for path in paths], dtype=pl.List(pl.String)),
    )
