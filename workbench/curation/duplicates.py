"""Exact and near duplicates as groups, each with the one image to keep.

Knows: content hashes, perceptual hashes, small pictures compared place by place, groups by union-find.
Does not know: what to do with a group (`filters.py` leaves out all but the keeper, `splits.py` keeps it together).

Exact copies share the SHA-256 of their file, which the dataset has already. Near copies (re-encoded, resized, a little
brighter) are found in two steps: the perceptual hash, or vectors handed in, proposes pairs; then both pictures are
brought to 32 x 32, smoothed, evened out in brightness, and compared by their *largest* local difference, because the
distance of two hashes or vectors hardly sees that one small thing is another. FiftyOne Brain, given these small
pictures as vectors, finds the planted copies of `scenes` as well (precision and recall 1.00 both ways); but it merges
pictures of one background in which a small thing has another color or place, and it needs a running database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image as PILImage

from workbench.curation.measures import image_paths
from workbench.data.batches import map_batches
from workbench.data.dataset import Dataset
from workbench.data.images import load_image

HAMMING = 10
"""Bits of 64 in which perceptual hashes may differ for a pair to be looked at. Planted copies: at most 8."""
COSINE = 0.95
"""Similarity of two vectors from which on a pair is looked at."""
DIFFERENCE = 18.0
"""Largest local difference, in levels of 255, of near copies. Planted copies: at most 16; different scenes: from 24."""
GAIN = 1.25
"""A copy may be this many times brighter or darker."""
SIDE = 32
POOL_FROM = 4000
"""Images from which on starting a pool of processes pays."""
_BLOCK = 1024

Pairs = Iterator[tuple[int, np.ndarray]]
"""A row number and the later row numbers proposed as its copies."""


def exact_groups(images: pl.DataFrame) -> pl.DataFrame:
    """Groups of rows with the same content hash. Columns: id, group, kind (exact), keeper, distance (0)."""
    known = images.filter(pl.col("hash").is_not_null())
    groups = _groups(known, known["hash"].rank("dense").to_numpy())
    return groups.with_columns(pl.lit(0.0).alias("distance"))


def near_groups(dataset: Dataset, images: pl.DataFrame, vectors: pl.DataFrame | None = None) -> pl.DataFrame:
    """Groups of rows that show the same picture, exact copies included. Columns: id, group, kind, keeper, distance.

    `images` are rows of `dataset.images`; `vectors` (columns id, vector), where given, propose further pairs. `kind` is
    exact where the file equals the keeper's, else near; `distance` to the keeper is in levels of 255. The keeper is
    the one with most annotations, then the largest, then the first by id. Raises `ImageError` for an unreadable file.
    """
    known = images.filter(pl.col("hash").is_not_null(), pl.col("phash").is_not_null())
    unique = known.unique("hash", keep="first", maintain_order=True)
    pictures = _pictures(dataset, unique, _members(_proposed(unique, vectors)))
    roots = _connect(unique.height, _proposed(unique, vectors), pictures)
    place = {name: number for number, name in enumerate(unique["hash"])}
    groups = _groups(known, roots[[place[name] for name in known["hash"]]])
    hashes = dict(known.select("id", "hash").iter_rows())
    distances = [
        0.0 if kind == "exact" else _difference(pictures[place[hashes[name]]], pictures[place[hashes[keeper]]][None])[0]
        for name, kind, keeper in groups.select("id", "kind", "keeper").iter_rows()
    ]
    return groups.with_columns(pl.Series("distance", distances, dtype=pl.Float64))


# --- proposing pairs ------------------------------------------------------------------------------------------


def _proposed(images: pl.DataFrame, vectors: pl.DataFrame | None) -> Pairs:
    """Made anew when walked again, as there may be more pairs than fit into memory."""
    yield from _close_hashes(np.array([int(text, 16) for text in images["phash"]], dtype=np.uint64))
    if vectors is not None:
        yield from _close_vectors(images, vectors)


def _close_hashes(hashes: np.ndarray) -> Pairs:
    for first in range(len(hashes)):
        bits = np.bitwise_count(hashes[first + 1 :] ^ hashes[first])  # (later rows,)
        others = np.flatnonzero(bits <= HAMMING)
        if len(others):
            yield first, others + first + 1


def _close_vectors(images: pl.DataFrame, vectors: pl.DataFrame) -> Pairs:
    rows = images.select("id").with_row_index("row").join(vectors.drop_nulls("vector"), on="id", maintain_order="left")
    if rows.is_empty():
        return
    places = rows["row"].to_numpy()
    matrix = np.stack([np.asarray(vector, np.float32) for vector in rows["vector"]])  # (N, D)
    matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-9)
    for start in range(0, len(matrix), _BLOCK):
        similar = matrix[start : start + _BLOCK] @ matrix[start:].T >= COSINE  # (block, later rows)
        for offset, row in enumerate(similar):
            others = np.flatnonzero(row[offset + 1 :])
            if len(others):
                yield int(places[start + offset]), places[others + start + offset + 1]


def _members(pairs: Pairs) -> list[int]:
    found: set[int] = set()
    for first, others in pairs:
        found.add(first)
        found.update(others.tolist())
    return sorted(found)


# --- looking at them ------------------------------------------------------------------------------------------


def _pictures(dataset: Dataset, images: pl.DataFrame, rows: list[int]) -> dict[int, np.ndarray]:
    """Row number -> small picture (SIDE, SIDE, 3)."""
    paths = image_paths(dataset, images[rows])
    made = map_batches(_small, paths, "comparing pictures", workers=1 if len(paths) < POOL_FROM else None)
    return dict(zip(rows, made, strict=True))


def _small(path: Path) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: averaged down and smoothed, so that noise and blurred edges do not count."""
    picture = load_image(path).resize((SIDE, SIDE), PILImage.Resampling.BOX)
    padded = np.pad(np.asarray(picture, np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    smooth = sum(padded[y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)) / 9
    return np.round(smooth).astype(np.uint8)


def _difference(picture: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(K,) largest local difference of a picture (SIDE, SIDE, 3) to others (K, SIDE, SIDE, 3), at equal brightness."""
    one, many = picture.astype(np.float32), others.astype(np.float32)
    gain = (one.mean() + 1) / (many.mean(axis=(1, 2, 3), keepdims=True) + 1)
    local = np.abs(many * np.clip(gain, 1 / GAIN, GAIN) - one).mean(axis=-1)  # (K, SIDE, SIDE)
    return local.max(axis=(1, 2))


# --- groups ---------------------------------------------------------------------------------------------------


def _connect(count: int, pairs: Pairs, pictures: dict[int, np.ndarray]) -> np.ndarray:
    """(count,) the group of each row: rows are in one group when confirmed pairs lead from one to the other."""
    roots = np.arange(count)
    for first, others in pairs:
        waiting = others[roots[others] != roots[first]]  # what is connected already needs no comparison
        for part in _parts(waiting):
            distances = _difference(pictures[first], np.stack([pictures[row] for row in part]))
            for row in part[distances <= DIFFERENCE]:
                roots[roots == roots[row]] = roots[first]
    return roots


def _parts(rows: np.ndarray) -> Iterable[np.ndarray]:
    return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))


def _groups(images: pl.DataFrame, roots: np.ndarray) -> pl.DataFrame:
    """Rows that share a root with another. Columns: id, group (numbered from 0 in the table's order), kind, keeper."""
    told = [pl.col(name).is_not_null().cast(pl.Int8) for name in ("label", "objects")]
    frame = (
        images.with_row_index("row")
        .with_columns(pl.Series("root", roots, dtype=pl.Int64))
        .filter(pl.len().over("root") > 1)
        .with_columns((pl.col("captions").list.len().clip(0, 1) + sum(told, pl.lit(0))).alias("told"))
        .with_columns((pl.col("width") * pl.col("height")).alias("pixels"))
        .sort("told", "pixels", "id", descending=[True, True, False])
        .with_columns(
            pl.first("id", "hash").over("root").name.prefix("keeper "), pl.min("row").over("root").alias("group")
        )
        .sort("row")
    )
    return frame.select(
        "id",
        (pl.col("group").rank("dense").cast(pl.Int64) - 1).alias("group"),
        pl.when(pl.col("hash") == pl.col("keeper hash")).then(pl.lit("exact")).otherwise(pl.lit("near")).alias("kind"),
        pl.col("keeper id").alias("keeper"),
    )
