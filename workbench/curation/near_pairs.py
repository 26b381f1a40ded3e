"""Which pairs of images are worth a look: close perceptual hashes, or vectors that point the same way.

Knows: every such pair, exactly. Does not know: pictures, or whether a pair really shows the same (`duplicates.py`).

Each hash is compared with every later one: 0.8 s for 50,000 images on one core, 12 s for 200,000. An index over four
bands of 16 bits finds the same pairs, but took 1.3 s and 13 s, and longer where many hashes are alike.
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

Pair = tuple[int, np.ndarray]
"""A row number and the later row numbers proposed as its copies."""


def close_hashes(hashes: np.ndarray) -> Iterator[Pair]:
    """Every pair of N uint64 hashes that differ in at most `HAMMING` bits, each once, in the order of rows."""
    for first in range(len(hashes)):
        bits = np.bitwise_count(hashes[first + 1 :] ^ hashes[first])  # (later rows,)
        others = np.flatnonzero(bits <= HAMMING)
        if len(others):
            yield first, others + first + 1


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
