"""What is measured per content, each once: kept beside the dataset, so that a restart goes on where the last one ended.

Knows: the folder `measures/NAME/` with Parquet parts keyed by content, where images lie, vectors of a given model.
Does not know: the model. `embed` is any function from pictures to vectors, such as a vision tower's pooled features.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL.Image import Image

from workbench.conversation import Image as ImageReference
from workbench.conversation import new_id
from workbench.data.batches import engine_in_use, map_batches
from workbench.data.dataset import Dataset
from workbench.data.folder import resolve_inside
from workbench.data.video import Film, seen
from workbench.errors import DataError
from workbench.resources import write_atomic

Embed = Callable[[Sequence[Image]], np.ndarray]
"""B RGB pictures -> (B, D) vectors."""
Make = Callable[[list[int], pl.DataFrame], Iterable[tuple[Any, ...]]]
"""Row numbers of what is not measured yet, and what is -> the values for each of these rows, one by one."""
SAVE_EVERY, SAVE_SECONDS = 2000, 30.0
"""Results, or seconds, between two writes: so much an interruption may cost."""


def measured_once(dataset: Dataset, name: str, keys: pl.Series, columns: Mapping[str, Any], make: Make) -> pl.DataFrame:
    """The measured `columns` (name -> polars type) for each of `keys`, in their order, copies included.

    `name` stands for the measure with its version, a key for a content. What is in `measures/NAME/` is taken from
    there; `make` measures the rest, each key once, and is saved as it goes. Raises `DataError` for a name that is no
    file name, and for a damaged part.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise DataError(f"measure {name!r}", found="a name that is no file name", expected="letters, digits, . _ -")
    folder = dataset.path / "measures" / name
    schema = {"key": pl.String, **columns}
    known = _kept(folder, schema)
    wanted = pl.DataFrame({"key": keys}, schema={"key": pl.String}).with_row_index("row")
    missing = wanted.unique("key", keep="first", maintain_order=True).join(known, on="key", how="anti")
    missing = missing.sort("row")
    made = zip(missing["key"], make(missing["row"].to_list(), known), strict=True) if missing.height else iter(())
    parts = [known]
    for batch in _batches(made):
        part = pl.DataFrame([(key, *values) for key, values in batch], schema=schema, orient="row")
        buffer = io.BytesIO()
        part.write_parquet(buffer)
        write_atomic(folder / f"{batch[0][0][:40]}.parquet", buffer.getvalue())
        parts.append(part)
    return wanted.join(pl.concat(parts), on="key", how="left", maintain_order="left").select(*columns)


def vectors(
    dataset: Dataset, embed: Embed, *, name: str, images: pl.DataFrame | None = None, batch: int = 64
) -> pl.DataFrame:
    """A vector for every image that is ok, or for these rows of `images`. Columns: id, vector (list of float32).

    A video is seen by its first frame.

    `name` stands for the model with its version: under one name each content is measured once, also for copies and
    after a restart. With Ray as engine the model travels to the cluster's processes, where it works on their CPUs.
    Raises `ImageError` for an unreadable file and `DataError` for vectors of a wrong shape.
    """
    rows = ok_images(dataset, images)
    files = image_files(dataset, rows)

    def make(missing: list[int], known: pl.DataFrame) -> Iterator[tuple[list[float]]]:
        width = len(known["vector"][0]) if known.height else None
        parts = [[files[row] for row in missing[start : start + batch]] for start in range(0, len(missing), batch)]
        workers = 1 if engine_in_use() == "local" else None  # here the model is, and perhaps its GPU
        options: dict[str, Any] = {"batch_size": 1, "workers": workers, "size": len}
        arrays = map_batches(partial(_embedded, embed), parts, f"measuring {name}", **options)
        for part, found in zip(parts, arrays, strict=True):
            array = _checked(found, len(part), width, name)
            width = array.shape[1]
            yield from ((vector,) for vector in array.tolist())

    found = measured_once(dataset, name, rows["hash"], {"vector": pl.List(pl.Float32)}, make)
    return rows.select("id").with_columns(found)


def _embedded(embed: Embed, files: Sequence[Path | Film]) -> np.ndarray:
    return embed([seen(file) for file in files])


def pair_keys(pairs: pl.DataFrame) -> pl.Series:
    """A key for `measured_once` per pair of content (column `hash`) and text."""
    return pl.Series("key", [new_id(*pair) for pair in pairs.select("hash", "text").iter_rows()], dtype=pl.String)


def ok_images(dataset: Dataset, images: pl.DataFrame | None = None) -> pl.DataFrame:
    """The rows, by default of the whole dataset, that are ok and have a content hash."""
    rows = dataset.images if images is None else images
    return rows.filter(pl.col("status") == "ok", pl.col("hash").is_not_null())


def image_paths(dataset: Dataset, images: pl.DataFrame) -> list[Path]:
    """Where the files of these rows lie, as `dataset.resolve` tells, which would read the card for each of them."""
    roots = dataset.roots
    return [
        resolve_inside(roots[root], path) if root in roots else dataset.resolve(ImageReference(path, root))
        for root, path in images.select("root", "path").iter_rows()
    ]


def image_files(dataset: Dataset, images: pl.DataFrame) -> list[Path | Film]:
    """What `video.seen` opens for each row: its file, or the film whose first frame it is seen by."""
    paths = image_paths(dataset, images)
    return [Film(path) if media == "video" else path for path, media in zip(paths, images["media"], strict=True)]


def _checked(found: np.ndarray, count: int, width: int | None, name: str) -> np.ndarray:
    """(count, D) float32. Raises `DataError` where the shape is another or numbers are not finite."""
    array = np.asarray(found, np.float32)
    if array.ndim != 2 or len(array) != count or width not in (None, array.shape[-1]) or not np.isfinite(array).all():
        expected = f"({count}, {width or 'D'}) finite numbers"
        fix = "another model needs another name" if width else ""
        raise DataError(f"measure {name!r}", found=f"an array {array.shape}", expected=expected, fix=fix)
    return array


def _kept(folder: Path, schema: Mapping[str, Any]) -> pl.DataFrame:
    """What was measured before. Two processes that measured at once may both have kept a content: one is taken."""
    frames = [pl.DataFrame(schema=dict(schema))]
    for path in sorted(folder.glob("*.parquet")):
        try:
            frames.append(pl.read_parquet(path, glob=False).select(*schema))
        except (pl.exceptions.PolarsError, OSError) as problem:
            first = (str(problem).splitlines() or [""])[0]
            raise DataError(str(path), found=f"a damaged measure ({first})", fix="delete it: it is made anew") from None
    return pl.concat(frames).unique("key", keep="first", maintain_order=True)


def _batches(found: Iterable[Any]) -> Iterator[list[Any]]:
    batch, started = [], time.monotonic()
    for item in found:
        batch.append(item)
        if len(batch) >= SAVE_EVERY or time.monotonic() - started >= SAVE_SECONDS:
            yield batch
            batch, started = [], time.monotonic()
    if batch:
        yield batch
