"""How large every image of a run is, for models that make more tokens of a larger one; of videos, how many frames.

Knows: sizes that conversations carry or a dataset records, and headers of files for the others. Does not know: what is
made of a size; that a file is as large as was recorded is checked when it is opened (`features.py`).

A picture that a model shows as one padded square beside others, and as tiles where it is alone, has two keys: features
are kept by key.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import polars as pl

from workbench.data.images import image_size
from workbench.data.video import Film
from workbench.errors import ImageError
from workbench.model.film import film_size
from workbench.model.tiling import PADDED, Size, Tiling
from workbench.training.rows import Rows
from workbench.training.source import Source, refuse_images

READERS = 8
"""Threads that read headers: most of it is waiting for the disk."""
Sizes = Mapping[str, Size]
"""Image key -> (width, height) in pixels, upright."""
BESIDE = "\0beside others"
"""What follows an image's key where it is shown as one padded square. No path has a zero byte."""


def shown_key(key: str, size: Size) -> str:
    """The key of an image that counts by this size, which may be `PADDED`."""
    return key + BESIDE if size == PADDED else key


def file_key(key: str) -> str:
    """The key of the image's file."""
    return key.removesuffix(BESIDE)


def shown_keys(rows: Rows, tiling: Tiling) -> list[list[str]]:
    """For each conversation the keys of its images, in the way in which it shows them."""
    held = [keys or [] for keys in rows.frame["keys"].to_list()]
    if tiling.seen((1, 1), 2) != PADDED:
        return held
    videos, shown = rows.videos, []
    for keys in held:
        pictures = sum(key not in videos for key in keys)
        shown.append([key if key in videos else shown_key(key, tiling.seen((1, 1), pictures)) for key in keys])
    return shown


def find_sizes(source: Source, files: Mapping[str, Path], tiling: Tiling) -> Sizes | None:
    """The size of every image; None for a model to which it does not matter.

    Raises `TrainingError` naming each image that cannot be read, with the conversations that need it.
    """
    if not tiling.varies:
        return None
    sizes: dict[str, Size] = {}
    for known in (_carried(source.train), _carried(source.val), source.recorded()):
        for key, width, height in known.unique("key", keep="first", maintain_order=True).iter_rows():
            if key in files:
                sizes.setdefault(key, (width, height))
    films = source.train.videos | source.val.videos
    unknown = sorted(files.keys() - sizes.keys() - (set() if tiling.frames else films))  # refused by the renderer
    errors = []
    with ThreadPoolExecutor(READERS) as pool:
        reads = (partial(_frames, most=tiling.frames) if key in films else _size for key in unknown)
        found = pool.map(lambda read, key: read(files[key]), reads, unknown)
        for key, read in zip(unknown, found, strict=True):
            if isinstance(read, ImageError):
                errors.append(read)
            else:
                sizes[key] = read
    refuse_images(errors, source, dict(files))
    return sizes


def _size(path: Path) -> Size | ImageError:
    try:
        return image_size(path)
    except ImageError as error:
        return error


def _frames(path: Path, most: int) -> Size | ImageError:
    try:
        return film_size(Film(path).count(most))
    except ImageError as error:
        return error


def _carried(rows: Rows) -> pl.DataFrame:
    """`SIZE_COLUMNS` of the images whose size their conversations carry."""
    return rows.media.select("key", "width", "height").drop_nulls()
