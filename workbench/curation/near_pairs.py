"""Which pairs of images are worth a look: close perceptual hashes, or vectors that point the same way.

Knows: an index of hashes by their parts, vectors compared block by block.
Does not know: pictures, or whether a pair really shows the same (`duplicates.py`).

A hash is looked up by eight parts of 16 bits: its four quarters, and its four quarters when every fourth bit is taken.
Two hashes are compared where a part differs in one bit at most. So every pair of up to 7 bits is found; of 8 bits
99.8 %, of 9 98 %, of 10 93 % (counted on 20,000 random pairs each). It takes 0.2 s for 50,000 hashes and 1.5 s for
200,000 on one core; comparing each with each took 0.7 s and 12 s.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

HAMMING = 10
"""Bits of 64 in which perceptual hashes may differ for a pair to be looked at. Planted copies: at most 8."""
COSINE = 0.95
"""Similarity of two vectors from which on a pair is looked at."""
_BLOCK = 1024
_PARTS = [range(16 * part, 16 * part + 16) for part in range(4)] + [range(part, 64, 4) for part in range(4)]
_MASKS = np.array([0, *(1 << bit for bit in range(16))], np.uint16)
_CROWDED = 100
"""Where the index would compare more than a pair in so many, comparing each with each is faster."""
_PIECE = 2**20
"""Pairs that are compared at a time."""

Pair = tuple[int, np.ndarray]
"""A row number and the later row numbers proposed as its copies."""


def close_hashes(hashes: np.ndarray) -> Iterator[Pair]:
    """Pairs of N uint64 hashes that differ in at most `HAMMING` bits, each once, in the order of rows."""
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)  # (N, 64)
    keys = [(bits[:, list(part)] @ (1 << np.arange(16))).astype(np.uint16) for part in _PARTS]
    counts = [np.bincount(key, minlength=2**16) for key in keys]
    looked = sum(int(count[key ^ mask].sum()) for key, count in zip(keys, counts, strict=True) for mask in _MASKS)
    if looked * _CROWDED > len(hashes) ** 2 and looked > _PIECE:
        yield from _each_with_each(hashes)
        return
    parts = [part for key, count in zip(keys, counts, strict=True) for part in _close_in_part(hashes, key, count)]
    one, other = np.divmod(np.unique(np.concatenate(parts)), max(1, len(hashes)))
    firsts, starts = np.unique(one, return_index=True)
    if len(firsts):
        yield from zip(firsts.tolist(), np.split(other, starts[1:]), strict=True)


def _each_with_each(hashes: np.ndarray) -> Iterator[Pair]:
    for first in range(len(hashes)):
        others = np.flatnonzero(np.bitwise_count(hashes[first + 1 :] ^ hashes[first]) <= HAMMING)
        if len(others):
            yield first, others + first + 1


def _close_in_part(hashes: np.ndarray, keys: np.ndarray, counts: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs (first place * N + second) that are close, among those whose `keys` differ in one bit at most."""
    order = np.argsort(keys, kind="stable")
    starts = np.cumsum(counts) - counts  # where the rows of a key begin in `order`
    for mask in _MASKS:
        partner = keys ^ mask
        rows = np.flatnonzero(counts[partner])
        rows = rows[keys[rows] <= partner[rows]]  # the others are the same pairs, looked at from the other side
        sizes = counts[partner[rows]]
        for piece in np.split(rows, np.searchsorted(np.cumsum(sizes), np.arange(_PIECE, sizes.sum(), _PIECE))):
            size = counts[partner[piece]]
            one = np.repeat(piece, size)
            step = np.arange(len(one)) - np.repeat(np.cumsum(size) - size, size)
            other = order[np.repeat(starts[partner[piece]], size) + step]
            close = np.bitwise_count(hashes[one] ^ hashes[other]) <= HAMMING
            close &= (one < other) | (mask != 0)
            yield np.minimum(one, other)[close] * len(hashes) + np.maximum(one, other)[close]


def close_vectors(images: pl.DataFrame, vectors: pl.DataFrame) -> Iterator[Pair]:
    """Every pair of rows of `images` whose vectors (columns id, vector) are at least `COSINE` alike."""
    rows = images.select("id").with_row_index("row").join(vectors.drop_nulls("vector"), on="id", maintain_order="left")
    if rows.is_empty():
        return
    places = rows["row"].to_numpy()
    matrix = unit_matrix(rows["vector"])
    for start in range(0, len(matrix), _BLOCK):
        similar = matrix[start : start + _BLOCK] @ matrix[start:].T >= COSINE  # (block, later rows)
        for offset, row in enumerate(similar):
            others = np.flatnonzero(row[offset + 1 :])
            if len(others):
                yield int(places[start + offset]), places[others + start + offset + 1]


def unit_matrix(vectors: pl.Series) -> np.ndarray:
    """(N, D) float32 of a column of N lists, each row of length 1."""
    width = len(vectors[0]) if len(vectors) else 0
    matrix = vectors.cast(pl.List(pl.Float32)).list.to_array(width).to_numpy().reshape(-1, width)
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-9)
