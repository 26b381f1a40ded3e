"""Whether a failure is covered by the training data: the training pictures most like it, and how alike that is.

Knows: how alike training pictures are to each other, and so which failure has no near neighbour among them.
Does not know: the model's insides; vectors are those of `curation/search.py`, each computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from workbench.data.dataset import Dataset
from workbench.display import AsPrinted
from workbench.errors import DataError
from workbench.result_rows import about, failures, rows_of

if TYPE_CHECKING:
    from workbench.model.clip import Clip

USUAL = 5
"""Percent of training pictures that are less like their nearest fellow than the bar."""


@dataclass(frozen=True)
class Coverage(AsPrinted):
    """What training data there is near each picture that was failed on."""

    table: pl.DataFrame
    """Columns: image, rank (1: the nearest), train_id, train_image, similarity (cosine), near (at least `bar`)."""
    bar: float
    """Similarity that 95 % of training pictures reach with the one most like them."""
    failed: int
    """Pictures with a failure."""
    uncovered: tuple[str, ...]
    """Those without a training picture that is near."""
    right: int
    """Pictures without a failure."""
    uncovered_right: int

    @property
    def share(self) -> float:
        """Of pictures with a failure: without a near neighbour in the training data."""
        return len(self.uncovered) / self.failed if self.failed else 0.0

    def summary(self) -> dict[str, Any]:
        told = {"failed": self.failed, "uncovered": len(self.uncovered), "share": round(self.share, 4)}
        more = {"right": self.right, "uncovered_right": self.uncovered_right, "bar": round(self.bar, 4)}
        return told | more | {"images": list(self.uncovered)}

    def __str__(self) -> str:
        told = f"{len(self.uncovered):,} of {self.failed:,} pictures with a wrong answer have no near training picture"
        other = f"of those without one {self.uncovered_right:,} of {self.right:,}"
        return f"{told} (similarity {self.bar:.3f}); {other}"


def covered(
    results: Any,
    dataset: Dataset | str | Path | None = None,
    *,
    training: Dataset | str | Path | None = None,
    model: str | Path | Clip = "tiny",
    k: int = 5,
) -> Coverage:
    """The `k` training pictures most like each picture that was failed on: is this covered by my data?

    `dataset`: what was asked about, by default the one that the folder of results names; `training`: what was trained
    on, by default the same; only its split train is looked at, where it has one. `model`: a CLIP as for `search`. The
    bar of what is near is set by the training pictures themselves. Raises `DataError` for fewer than two of them.
    """
    from workbench.curation.measures import vectors
    from workbench.curation.near_pairs import unit_matrix
    from workbench.curation.scores import placed_rows
    from workbench.curation.search import clip_of

    asked = _opened(dataset if dataset is not None else about(results).get("dataset"))
    data = asked if training is None else _opened(training)
    placed = placed_rows(rows_of(results), asked)
    clip = clip_of(model)
    rows = _trained(data)
    known = vectors(data, clip.embed_images, name=clip.name, images=rows)
    shown = asked.images.filter(pl.col("id").is_in(placed["image_id"].unique().implode()))
    looked = vectors(asked, clip.embed_images, name=clip.name, images=shown).join(shown.select("id", "path"), on="id")
    ours, theirs = unit_matrix(looked["vector"]), unit_matrix(known["vector"])
    bar = float(np.percentile(_nearest_fellow(theirs), USUAL))
    wrong = set(failures(placed)["image_id"])
    paths = dict(rows.select("id", "path").iter_rows())
    neighbours, nearest = _neighbours(ours, theirs, k)
    table = []
    for place, (name, path) in enumerate(looked.select("id", "path").iter_rows()):
        for rank, (other, similarity) in enumerate(neighbours[place], 1):
            if name in wrong:
                train = known["id"][other]
                table.append((path, rank, train, paths[train], similarity, similarity >= bar))
    far = [
        (name in wrong, path)
        for name, path, one in zip(looked["id"], looked["path"], nearest, strict=True)
        if one < bar
    ]
    schema = {"image": pl.String, "rank": pl.Int64, "train_id": pl.String, "train_image": pl.String}
    frame = pl.DataFrame(table, schema={**schema, "similarity": pl.Float64, "near": pl.Boolean}, orient="row")
    uncovered = tuple(path for failed, path in far if failed)
    return Coverage(frame, bar, len(wrong), uncovered, looked.height - len(wrong), len(far) - len(uncovered))


def _opened(dataset: Dataset | str | Path | None) -> Dataset:
    if dataset is None:
        raise DataError("covered", found="no dataset", expected="the dataset that was asked about, or its folder")
    return Dataset.open(dataset)


def _trained(data: Dataset) -> pl.DataFrame:
    """The pictures of the split train; all of them where no picture has a split."""
    from workbench.curation.measures import ok_images

    rows = ok_images(data)
    rows = rows.filter(pl.col("split") == "train") if rows["split"].count() else rows
    if rows.height < 2:
        raise DataError(str(data.path), found=f"{rows.height} training pictures", expected="two at least")
    return rows


def _nearest_fellow(matrix: np.ndarray) -> np.ndarray:
    """(N,) of N unit vectors: the cosine with the one most like each, itself left out."""
    from sklearn.neighbors import NearestNeighbors

    lengths, _ = NearestNeighbors(n_neighbors=1).fit(matrix).kneighbors()
    return 1 - np.square(lengths[:, 0].astype(np.float64)) / 2  # of unit vectors


def _neighbours(ours: np.ndarray, theirs: np.ndarray, k: int) -> tuple[list[list[tuple[int, float]]], np.ndarray]:
    """For each of ours the places and cosines of the `k` nearest of theirs, and the cosine of the nearest."""
    from sklearn.neighbors import NearestNeighbors

    lengths, places = NearestNeighbors(n_neighbors=min(k, len(theirs))).fit(theirs).kneighbors(ours)
    cosines = 1 - np.square(lengths.astype(np.float64)) / 2
    pairs = [
        [(int(place), float(value)) for place, value in zip(*row, strict=True)]
        for row in zip(places, cosines, strict=True)
    ]
    return pairs, cosines[:, 0]
