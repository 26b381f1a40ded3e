"""One real MongoDB and one FiftyOne for all tests of this folder, below the session's state folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageDraw

from workbench.conversation import Conversation, Message
from workbench.conversation import Image as ImageReference
from workbench.curation.database import open_fiftyone, stop_database
from workbench.data.dataset import Dataset
from workbench.data.images import check_image

SIDE = 96


@pytest.fixture(scope="session")
def fiftyone() -> Iterator[ModuleType]:
    yield open_fiftyone()
    stop_database()


def draw(seed: int) -> Image.Image:
    """One to three coloured shapes on a noisy background, much like another seed's at first sight."""
    rng = np.random.default_rng(seed)
    tone = rng.uniform(90, 170, 3)
    pixels = tone + rng.normal(0, 5, (SIDE, SIDE, 3))
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 4))):
        x, y, size = (int(value) for value in rng.integers([4, 4, 14], [60, 60, 34]))
        color = tuple(int(value) for value in rng.integers(0, 256, 3))
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + size, y + size), fill=color)
    return picture


def dataset_of(folder: Path, names: list[str], **columns: object) -> Dataset:
    """A dataset over files that lie in `folder/images` already; one that cannot be read is quarantined."""
    rows = []
    for name in names:
        row: dict[str, object] = {"id": name.split(".")[0], "path": name, "status": "ok"}
        try:
            facts = check_image(folder / "images" / name)
            row |= {"width": facts.width, "height": facts.height, "hash": facts.hash, "phash": facts.phash}
        except Exception as error:
            row |= {"status": "quarantined", "reason": str(error)}
        rows.append(row)
    frame = pl.DataFrame(rows, infer_schema_length=None).with_columns(**columns)  # type: ignore[arg-type]
    return Dataset.create(folder, name="shapes", images=frame)


@pytest.fixture(scope="session")
def helpers() -> SimpleNamespace:
    """The functions above; test modules cannot import each other."""
    return SimpleNamespace(draw=draw, dataset_of=dataset_of)


@pytest.fixture
def shapes(tmp_path: Path) -> Dataset:
    """Six good images with labels, boxes and splits, one broken file, and two conversations about each of two."""
    (tmp_path / "images").mkdir()
    names = [f"shape-{number}.png" for number in range(6)]
    for number, name in enumerate(names):
        draw(number).save(tmp_path / "images" / name)
    (tmp_path / "images" / "torn.png").write_bytes((tmp_path / "images" / names[0]).read_bytes()[:300])
    thing = {"label": "red star", "box": [12, 24, 36, 72], "color": "red", "id": 7, "mask": "no", "score": 0.5}
    dataset = dataset_of(
        tmp_path,
        [*names, "torn.png"],
        label=pl.Series(["a", "b"] * 3 + [None]),
        split=pl.Series(["train"] * 4 + ["val", "test", None]),
        objects=pl.Series([json.dumps([thing])] * 5 + [None, None]),
        captions=pl.Series([["a red star"]] * 6 + [[]]),
    )
    dataset.write_conversations(_talk(name, task) for name in names[:2] for task in ("caption", "detail"))
    return dataset


def _talk(name: str, task: str) -> Conversation:
    question = Message("user", (ImageReference(name), "What is this?"))
    return Conversation(f"{task}-{name}", (question, Message("assistant", "A red star.")), task=task)
