"""Train, val and test without leakage: what shows the same picture, or is talked about together, stays together.

Videos are parted as images are, each seen by its first frame.

Knows: groups of images that must not be parted, fractions, strata, and how to find out that a split leaks.
Does not know: how duplicates are found (`duplicates.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from workbench.conversation import SPLITS
from workbench.curation.duplicates import near_groups, near_groups_of
from workbench.curation.measures import image_files
from workbench.data.dataset import Dataset
from workbench.data.image_folder import videos_among
from workbench.data.image_rows import image_rows
from workbench.data.images import SUFFIXES
from workbench.data.video import SUFFIXES as VIDEO_SUFFIXES
from workbench.data.video import Film
from workbench.errors import DataError

FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
_NEAR, _SAID = pl.lit("near"), pl.lit("conversation")


def split(
    dataset: Dataset | str | Path,
    fractions: Mapping[str, float] = FRACTIONS,
    *,
    seed: int = 0,
    stratify: Literal["label"] | None = None,
    vectors: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Assign every image and video that is ok to a split, write it to the dataset, and return the rows (id, split).

    The same files, fractions and seed give the same splits. With `stratify` each label is parted in these fractions
    too, as far as groups allow. `vectors` (id, vector) propose further near duplicates. Raises `DataError` for
    fractions that are not those of train, val and test or do not sum to 1.
    """
    dataset = Dataset.open(dataset)
    _check_fractions(fractions)
    images = dataset.images.filter(pl.col("status") == "ok")
    groups = _together(dataset, images, vectors)
    label = pl.col("label").fill_null("") if stratify else pl.lit("")
    frame = images.select("id", label=label).with_columns(group=pl.Series(groups, dtype=pl.Int64))
    units = frame.group_by("group").agg(pl.len().alias("size"), pl.min("id").alias("first"), pl.min("label"))
    order = pl.col("first").map_elements(lambda name: _rank(name, seed), pl.String)
    units = units.sort("label", order)
    chosen = pl.Series("split", _assign(units["size"].to_list(), fractions), dtype=pl.String)
    rows = frame.join(units.with_columns(chosen), on="group", maintain_order="left").select("id", "split")
    if rows.height:
        operation = {"name": "split", "fractions": dict(fractions), "seed": seed, "stratify": stratify}
        dataset.update_images(rows, operation=operation)
    return rows


def check_leakage(dataset: Dataset | str | Path, vectors: pl.DataFrame | None = None) -> pl.DataFrame:
    """Images and videos that are ok and leak into another split; no row where nothing leaks.

    Columns: id, other, split, other_split, kind. `exact` and `near`: the two show the same picture. `conversation`: one
    conversation is about both, or (id and other equal) the image and a conversation about it lie in different splits.

    >>> wb.check_leakage(dataset).is_empty()
    True
    """
    dataset = Dataset.open(dataset)
    images = dataset.images.filter(pl.col("status") == "ok")
    said = _said_about(dataset, images)
    splits = pl.concat([images.select("id", "split"), said.select("id", "split")]).drop_nulls()
    groups = [
        near_groups(dataset, images, vectors).select("id", pl.format("picture {}", "group").alias("group"), kind=_NEAR),
        said.select("id", "group", kind=_SAID).unique(maintain_order=True),
        images.select("id", pl.format("image {}", "id").alias("group"), kind=_SAID),
    ]
    hashes = images.select("id", "hash")
    found = (
        pl.concat(groups)
        .join(splits.unique(maintain_order=True), on="id", maintain_order="left")
        .with_columns(other=pl.first("id").over("group"), other_split=pl.first("split").over("group"))
        .filter(pl.col("split") != pl.col("other_split"))
        .join(hashes, on="id", maintain_order="left")
        .join(hashes.select(other="id", other_hash="hash"), on="other", maintain_order="left")
    )
    exact = (pl.col("kind") == "near") & (pl.col("hash") == pl.col("other_hash"))
    kind = pl.when(exact).then(pl.lit("exact")).otherwise("kind").alias("kind")
    return found.select("id", "other", "split", "other_split", kind).unique(maintain_order=True)


def check_benchmark(dataset: Dataset | str | Path, folder: str | Path, *, workers: int | None = None) -> pl.DataFrame:
    """Images and videos that are ok and show the same picture as one of a benchmark's; no row where nothing leaks.

    Columns: id, path, split, file (below `folder`), kind (exact or near). What is in train must not be in a benchmark
    that scores the model. Raises `DataError` for a folder without images and videos.
    """
    dataset = Dataset.open(dataset)
    folder = Path(folder)
    every = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES)
    files = [path.relative_to(folder).as_posix() for path in every]
    if not files:
        raise DataError(str(folder), found="no images", expected="the folder of a benchmark's images")
    films = videos_among(folder, files)
    other = image_rows(folder, files, videos=films, workers=workers).filter(pl.col("status") == "ok")
    theirs = [Film(folder / name) if name in films else folder / name for name in other["path"]]
    other = other.with_columns(id=pl.format("benchmark {}", "path"), file="path")
    own = dataset.images.filter(pl.col("status") == "ok")
    both = pl.concat([own.select(*_PICTURE, file=pl.lit(None, pl.String)), other.select(*_PICTURE, "file")])
    found = (
        near_groups_of(both, [*image_files(dataset, own), *theirs])
        .select("id", "group")
        .join(both, on="id", maintain_order="left")
    )
    shown = found.filter(pl.col("file").is_not_null()).select("group", "file", other_hash="hash")
    told = found.filter(pl.col("file").is_null()).drop("file").join(shown, on="group", maintain_order="left")
    kind = pl.when(pl.col("hash") == pl.col("other_hash")).then(pl.lit("exact")).otherwise(_NEAR).alias("kind")
    return told.join(own.select("id", "path", "split"), on="id", maintain_order="left").select(
        "id", "path", "split", "file", kind
    )


_PICTURE = ("id", "hash", "phash", "width", "height", "label", "objects", "captions")
"""What groups and keepers are chosen by."""


def _check_fractions(fractions: Mapping[str, float]) -> None:
    unknown = [name for name in fractions if name not in SPLITS]
    if unknown:
        raise DataError("split", found=f"a split named {unknown[0]!r}", expected=", ".join(SPLITS))
    if any(part < 0 for part in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise DataError("split", found=f"the fractions {dict(fractions)}", expected="0 or more each, 1 together")


def _rank(name: str, seed: int) -> str:
    """A random place in the order that depends on nothing but id and seed."""
    return hashlib.blake2b(f"{seed}\x1f{name}".encode(), digest_size=8).hexdigest()


def _assign(sizes: list[int], fractions: Mapping[str, float]) -> list[str]:
    """A split for each unit in turn: the one that lacks most of its share so far.

    Followed through the sorted units this holds the fractions in every stretch, and so in every label.
    """
    names = [name for name, part in fractions.items() if part > 0]
    shares = np.array([fractions[name] for name in names])
    counts, chosen = np.zeros(len(names)), []
    for size in sizes:
        lack = shares * (counts.sum() + size) - counts
        index = int(lack.argmax())
        counts[index] += size
        chosen.append(names[index])
    return chosen


def _together(dataset: Dataset, images: pl.DataFrame, vectors: pl.DataFrame | None) -> np.ndarray:
    """(N,) the number of the unit of each row."""
    place = {name: row for row, name in enumerate(images["id"])}
    said = _said_about(dataset, images).with_columns(pl.first("id").over("group").alias("first"))
    pairs = [*near_groups(dataset, images, vectors).select("id", "keeper").iter_rows()]
    pairs += said.filter(pl.col("id") != pl.col("first")).select("id", "first").iter_rows()
    one, other = np.array([[place[name] for name in pair] for pair in pairs], np.int64).reshape(-1, 2).T
    links = coo_array((np.ones(len(one), bool), (one, other)), shape=(images.height, images.height))
    return connected_components(links, directed=False)[1]


def _said_about(dataset: Dataset, images: pl.DataFrame) -> pl.DataFrame:
    """One row for each image or video in each conversation. Columns: its id, split (of the conversation), group."""
    names = {(root, path): name for name, root, path in images.select("id", "root", "path").iter_rows()}
    rows = [
        (names[one.root, one.path], conversation.split, f"conversation {conversation.id}")
        for conversation in dataset.iter_conversations()
        for one in conversation.media
        if (one.root, one.path) in names
    ]
    schema: dict[str, Any] = {"id": pl.String, "split": pl.String, "group": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")
