"""What is measured per image, each once: vectors of a model that the caller hands in.

Knows: where images lie, and which were measured before, by content hash, in `measures/NAME.parquet` beside the dataset.
Does not know: the model. `embed` is any function from pictures to vectors, such as a vision tower's pooled features.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL.Image import Image

from workbench.conversation import Image as ImageReference
from workbench.data.dataset import Dataset, resolve_inside
from workbench.data.images import load_image
from workbench.errors import DataError
from workbench.progress import progress
from workbench.resources import write_atomic

Embed = Callable[[Sequence[Image]], np.ndarray]
"""B RGB pictures -> (B, D) vectors."""
SAVE_EVERY = 2000
"""Images between two writes, so that an interruption costs little."""


def vectors(dataset: Dataset, embed: Embed, *, name: str, batch: int = 64) -> pl.DataFrame:
    """A vector for every image that is ok. Columns: id, vector (list of float32).

    `name` stands for the model with its version: under one name each content is measured once, also for copies and
    after a restart. Raises `ImageError` for an unreadable file and `DataError` for vectors of a wrong shape.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise DataError(f"measure {name!r}", found="a name that is no file name", expected="letters, digits, . _ -")
    path = dataset.path / "measures" / f"{name}.parquet"
    schema: dict[str, Any] = {"hash": pl.String, "vector": pl.List(pl.Float32)}
    known = pl.read_parquet(path) if path.exists() else pl.DataFrame(schema=schema)
    images = dataset.images.filter(pl.col("status") == "ok", pl.col("hash").is_not_null())
    missing = images.unique("hash", maintain_order=True).join(known, on="hash", how="anti", maintain_order="left")
    waiting: list[tuple[str, list[float]]] = []
    paths = iter(image_paths(dataset, missing))
    with progress(f"measuring {name}", total=missing.height, unit="image") as bar:
        for part in missing.iter_slices(batch):
            pictures = [load_image(path) for path in islice(paths, part.height)]
            waiting += zip(part["hash"], _checked(embed(pictures), part.height, known, name).tolist(), strict=True)
            bar.advance(part.height)
            if len(waiting) >= SAVE_EVERY:
                known, waiting = _saved(path, known, waiting), []
    if waiting:
        known = _saved(path, known, waiting)
    return images.select("id", "hash").join(known, on="hash", maintain_order="left").select("id", "vector")


def image_paths(dataset: Dataset, images: pl.DataFrame) -> list[Path]:
    """Where the files of these rows lie, as `dataset.resolve` tells, which would read the card for each of them."""
    roots = dataset.roots
    return [
        resolve_inside(roots[root], path) if root in roots else dataset.resolve(ImageReference(path, root))
        for root, path in images.select("root", "path").iter_rows()
    ]


def _checked(found: np.ndarray, count: int, known: pl.DataFrame, name: str) -> np.ndarray:
    """(count, D) float32. Raises `DataError` where the shape is another or numbers are not finite."""
    array = np.asarray(found, np.float32)
    width = len(known["vector"][0]) if known.height else None
    if array.ndim != 2 or len(array) != count or width not in (None, array.shape[-1]) or not np.isfinite(array).all():
        expected = f"({count}, {width or 'D'}) finite numbers"
        fix = "another model needs another name" if width else ""
        raise DataError(f"measure {name!r}", found=f"an array {array.shape}", expected=expected, fix=fix)
    return array


def _saved(path: Path, known: pl.DataFrame, found: list[tuple[str, list[float]]]) -> pl.DataFrame:
    frame = pl.concat([known, pl.DataFrame(found, schema=known.schema, orient="row")])
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    write_atomic(path, buffer.getvalue())
    return frame
