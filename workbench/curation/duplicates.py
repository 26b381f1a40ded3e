"""Exact and near duplicates as groups, each with the one image to keep.

Knows: content hashes, small pictures compared place by place, groups, keepers, copies of pictures outside the dataset.
Does not know: which pairs are worth a look (`near_pairs.py`), or what to do with a group (`filters.py` leaves out all
but the keeper, `splits.py` keeps it together). A video is seen by its first frame; of
two videos the last ones are compared as well, since many begin with the same black or the same title.

Exact copies share the SHA-256 of their file, which the dataset has already. Near copies (re-encoded, resized, a little
brighter) are found in two steps: the perceptual hash, or vectors handed in, proposes pairs; then both pictures are
brought to 32 x 32, smoothed, evened out in brightness, and compared by their *largest* local difference, because the
distance of two hashes or vectors hardly sees that one small thing is another. FiftyOne Brain, given these small
pictures as vectors, finds the planted copies of `scenes` as well (precision and recall 1.00 both ways); but it merges
pictures of one background in which a small thing has another color or place, and it needs a running database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image as PILImage

from workbench.curation.measures import image_files
from workbench.curation.near_pairs import Pair, close_hashes, close_vectors
from workbench.data.batches import map_batches
from workbench.data.dataset import Dataset
from workbench.data.video import Film, seen

DIFFERENCE = 18.0
"""Largest local difference, in levels of 255, of near copies. Planted copies: at most 16; different scenes: from 24,
but for a pair in a hundred thousand."""
GAIN = 1.25
"""A copy may be this many times brighter or darker."""
SIDE = 32
POOL_FROM = 4000
"""Images from which on starting a pool of processes pays."""
_BLOCK = 1024


def exact_groups(images: pl.DataFrame) -> pl.DataFrame:
    """Groups of rows with the same content hash. Columns: id, group, kind (exact), keeper, distance (0)."""
    known = images.filter(pl.col("hash").is_not_null())
    groups = _groups(known, known["hash"].rank("dense").to_numpy())
    return groups.with_columns(pl.lit(0.0).alias("distance"))


def near_groups(
    dataset: Dataset, images: pl.DataFrame, vectors: pl.DataFrame | None = None, *, across: bool = True
) -> pl.DataFrame:
    """Groups of rows that show the same picture, exact copies included. Columns: id, group, kind, keeper, distance.

    `images` are rows of `dataset.images`; `vectors` (columns id, vector), where given, propose further pairs. `kind` is
    exact where the file equals the keeper's, else near; `distance` to the keeper is in levels of 255. The keeper is
    the one with most annotations, then the largest, then the first by id. `across`: a picture and a video that begins
    with it show the same; they do not where one of a group is kept and the others are lost, as a picture is no copy of
    a video, and would make one group of all videos with its title. Raises `ImageError` for an unreadable file.
    """
    return near_groups_of(images, image_files(dataset, images), vectors, across=across)


def near_groups_of(
    images: pl.DataFrame,
    files: Sequence[Path | Film],
    vectors: pl.DataFrame | None = None,
    *,
    across: bool = True,
) -> pl.DataFrame:
    """As `near_groups`, for rows whose `files` are these, whatever dataset they are of."""
    frame = images.with_row_index("place of file")
    known = frame.filter(pl.col("hash").is_not_null(), pl.col("phash").is_not_null())
    unique = known.unique("hash", keep="first", maintain_order=True)
    seen_as = [files[place] for place in unique["place of file"]]
    pairs = _proposed(unique, vectors)
    if not across:
        pairs = _of_one_kind(pairs, np.array([isinstance(file, Film) for file in seen_as]))
    members = _members(pairs, unique.height)
    pictures = _pictures(_small, seen_as, members)
    ends = _pictures(_small_end, seen_as, [row for row in members if isinstance(seen_as[row], Film)])
    roots = _connect(unique.height, pairs, pictures, ends)
    place = {name: number for number, name in enumerate(unique["hash"])}
    groups = _groups(known, roots[[place[name] for name in known["hash"]]])
    hashes = dict(known.select("id", "hash").iter_rows())
    distances = [
        0.0
        if kind == "exact"
        else _differences(place[hashes[name]], np.array([place[hashes[keeper]]]), pictures, ends)[0]
        for name, kind, keeper in groups.select("id", "kind", "keeper").iter_rows()
    ]
    return groups.with_columns(pl.Series("distance", distances, dtype=pl.Float64))


def _proposed(images: pl.DataFrame, vectors: pl.DataFrame | None) -> list[Pair]:
    hashes = np.array([int(text, 16) for text in images["phash"]], dtype=np.uint64)
    pairs = chain(close_hashes(hashes), close_vectors(images, vectors) if vectors is not None else ())
    return [(first, others.astype(np.int32)) for first, others in pairs]  # there can be very many


def _of_one_kind(pairs: Sequence[Pair], films: np.ndarray) -> list[Pair]:
    """Pairs without those of a picture and a video; films: (N,) whether a row is a video."""
    return [(first, others[films[others] == films[first]]) for first, others in pairs]


def _members(pairs: Sequence[Pair], count: int) -> list[int]:
    """Every row that is in a pair."""
    found = np.zeros(count, bool)
    for first, others in pairs:
        found[first] = True
        found[others] = True
    return np.flatnonzero(found).tolist()


# --- looking at them ------------------------------------------------------------------------------------------


def _pictures(
    small: Callable[[Any], np.ndarray], files: Sequence[Path | Film], rows: list[int]
) -> dict[int, np.ndarray]:
    """Row number -> small picture (SIDE, SIDE, 3)."""
    wanted = [files[row] for row in rows]
    made = map_batches(small, wanted, "comparing pictures", workers=1 if len(wanted) < POOL_FROM else None)
    return dict(zip(rows, made, strict=True))


def _small(file: Path | Film) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8, of a video its first frame."""
    return _smoothed(seen(file))


def _small_end(film: Film) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8 of the last frame."""
    return _smoothed(film.at([film.total - 1])[0])


def _smoothed(picture: PILImage.Image) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: averaged down and smoothed, so that noise and blurred edges do not count."""
    small = picture.resize((SIDE, SIDE), PILImage.Resampling.BOX)
    padded = np.pad(np.asarray(small, np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    smooth = sum(padded[y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)) / 9
    return np.round(smooth).astype(np.uint8)


def _differences(
    row: int, others: np.ndarray, pictures: dict[int, np.ndarray], ends: dict[int, np.ndarray]
) -> np.ndarray:
    """(K,) of a row to others: of their pictures, and where both are videos of their last frames if that is more."""
    found = _difference(pictures[row], np.stack([pictures[other] for other in others]))
    if row in ends:
        for place, other in enumerate(others.tolist()):
            if other in ends and found[place] <= DIFFERENCE:
                found[place] = max(found[place], _difference(ends[row], ends[other][None])[0])
    return found


def _difference(picture: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(K,) largest local difference of a picture (SIDE, SIDE, 3) to others (K, SIDE, SIDE, 3), at equal brightness."""
    one, many = picture.astype(np.float32), others.astype(np.float32)
    gain = (one.mean() + 1) / (many.mean(axis=(1, 2, 3), keepdims=True) + 1)
    local = np.abs(many * np.clip(gain, 1 / GAIN, GAIN) - one).mean(axis=-1)  # (K, SIDE, SIDE)
    return local.max(axis=(1, 2))


# --- groups ---------------------------------------------------------------------------------------------------


def _connect(
    count: int, pairs: Sequence[Pair], pictures: dict[int, np.ndarray], ends: dict[int, np.ndarray]
) -> np.ndarray:
    """(count,) the group of each row: rows are in one group when confirmed pairs lead from one to the other."""
    roots = np.arange(count)
    members: dict[int, list[int]] = {}
    for first, others in pairs:
        waiting = others[roots[others] != roots[first]]  # what is connected already needs no comparison
        for part in _parts(waiting):
            distances = _differences(int(first), part, pictures, ends)
            for row in part[distances <= DIFFERENCE].tolist():
                _join(roots, members, int(roots[first]), int(roots[row]))
    return roots


def _join(roots: np.ndarray, members: dict[int, list[int]], one: int, other: int) -> None:
    """Make two groups one: the smaller takes the number of the larger, so that a row seldom gets a new one."""
    if one == other:
        return
    large, small = sorted((one, other), key=lambda root: -len(members.get(root, (root,))))
    moved = members.pop(small, [small])
    members.setdefault(large, [large]).extend(moved)
    roots[moved] = large


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
