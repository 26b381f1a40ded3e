"""What leaves a dataset: the images, and where a format has room for them the videos, that are ok, all below one root.

Knows: which images are exported, and that a file's paths have no root. Does not know: any format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from workbench.conversation import new_id
from workbench.data.captions_file import ID
from workbench.data.dataset import Dataset
from workbench.data.image_rows import ROOT
from workbench.errors import DataError
from workbench.resources import atomic_folder, disk_errors


def outgoing_images(dataset: Dataset, split: str | None = None, *, videos: bool = False) -> pl.DataFrame:
    """The rows of the images that are ok, in order, with the `videos` or with a printed line on how many are left out.

    Raises `DataError` where there is none, or where roots differ.
    """
    rows = dataset.images.filter(pl.col("status") == "ok")
    if split is not None:
        rows = rows.filter(pl.col("split") == split)
    if not videos:
        rows = pictures_of(rows, "which this format cannot hold")
    if not rows.height:
        where = f" in split {split}" if split else ""
        raise DataError(str(dataset.path), found=f"no image that is ok{where}", expected="something to export")
    roots = rows["root"].unique().sort().to_list()
    if len(roots) > 1:
        found = f"images of the roots {', '.join(roots)}"
        raise DataError(str(dataset.path), found=found, expected="one root: paths in this format have no root")
    return rows


def pictures_of(rows: pl.DataFrame, why: str) -> pl.DataFrame:
    """The rows of pictures; how many videos are left out, and why, is printed."""
    pictures = rows.filter(pl.col("media") == "image")
    if left := rows.height - pictures.height:
        print(f"left out: {left:,} video{'s' * (left != 1)}, {why}")
    return pictures


def root_of(dataset: Dataset, rows: pl.DataFrame) -> Path:
    """The folder that the paths of the rows start from."""
    return dataset.roots[rows["root"][0]]


def own_id(row: Mapping[str, Any]) -> dict[str, str]:
    """The image's id as a key for a file, where an import would not find the same one from its path."""
    return {} if row["id"] == new_id("image", ROOT, row["path"]) else {ID: row["id"]}


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Build the folder `out` under a temporary name. Raises `DataError` where something lies there, or `DiskError`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(str(out), found="something of that name", expected="a new or empty folder")
    with disk_errors(out), atomic_folder(out) as building:
        yield building
