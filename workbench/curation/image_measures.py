"""What every picture tells without a model: its shape, how bright, how rich in contrast, how sharp, how varied it is.

Of a video its first frame is measured, and the size of its file.

Knows: the measures and their units. Does not know: which values are good ones (`curate_recipe.py` takes thresholds).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image as PILImage
from PIL import ImageStat

from workbench.curation.measures import image_files, measured_once, ok_images
from workbench.data.batches import map_batches
from workbench.data.dataset import Dataset
from workbench.data.video import Film, seen

SIDE = 512
"""Pictures are brought down to at most so many pixels a side, so that a large photo is not called blurred for it."""
POOL_FROM = 1000
"""Images from which on starting a pool of processes pays."""
MEANING = {
    "width": "pixels",
    "height": "pixels",
    "aspect": "width / height",
    "bytes": "size of the file",
    "brightness": "mean grey level, 0 black to 255 white",
    "contrast": "standard deviation of the grey levels",
    "sharpness": "variance of the Laplacian of the colour channel that has most: near 0 if blurred or empty",
    "entropy": "bits per pixel, 0 for one colour to 8",
}
_PIXELS = {"bytes": pl.Int64, **dict.fromkeys(("brightness", "contrast", "sharpness", "entropy"), pl.Float64)}
_NAME = "pixels-2"
"""With the version of what is measured: another one is measured anew."""


def image_measures(
    dataset: Dataset | str | Path, images: pl.DataFrame | None = None, *, workers: int | None = None
) -> pl.DataFrame:
    """The measures of `MEANING` for every image that is ok, or these rows of `images`. Columns: id, then these.

    Each content is opened once, in other processes where there are many, and kept in `measures/`. `workers` None uses
    every processor. Raises `ImageError` for a file that cannot be read.

    >>> wb.image_measures("data").columns
    ['id', 'width', 'height', 'aspect', 'bytes', 'brightness', 'contrast', 'sharpness', 'entropy']
    """
    dataset = Dataset.open(dataset)
    rows = ok_images(dataset, images)
    files = image_files(dataset, rows)

    def make(missing: list[int], _: pl.DataFrame) -> Iterable[tuple[float, ...]]:
        count = 1 if len(missing) < POOL_FROM else workers
        told = "measuring images and videos" if any(isinstance(file, Film) for file in files) else "measuring images"
        return map_batches(_measure, [files[row] for row in missing], told, workers=count)

    found = measured_once(dataset, _NAME, rows["hash"], _PIXELS, make)
    shape = rows.select("id", "width", "height", aspect=pl.col("width") / pl.col("height"))
    return shape.with_columns(found)


def _measure(file: Path | Film) -> tuple[int, float, float, float, float]:
    """Bytes, brightness, contrast, sharpness, entropy."""
    from scipy.ndimage import laplace

    picture = seen(file)
    picture.thumbnail((SIDE, SIDE), PILImage.Resampling.BOX)
    grey = picture.convert("L")
    told = ImageStat.Stat(grey)
    # By channel: the edge between a red and a green of equal brightness is as sharp as any, but not there in grey.
    sharpness = max(float(laplace(np.asarray(band, np.float32)).var()) for band in picture.split())
    path = file.source if isinstance(file, Film) else file
    assert isinstance(path, Path)  # films of a dataset are files
    return path.stat().st_size, told.mean[0], told.stddev[0], sharpness, grey.entropy()
