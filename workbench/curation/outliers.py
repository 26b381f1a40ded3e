"""Images unlike all others, by vectors of a model.

Knows: how far each image is from the images most like it. Does not know: the model, or what is to become of an outlier.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from sklearn.neighbors import NearestNeighbors

from workbench.curation.near_pairs import unit_matrix
from workbench.errors import DataError, kind_of


def outliers(vectors: pl.DataFrame, *, neighbours: int = 10) -> pl.DataFrame:
    """How far each image is from its nearest neighbours. Columns: id, distance (mean cosine distance, 0 to 2).

    `vectors` (id, vector) as `measures.vectors` makes them; the order stays. An image with a copy has a neighbour at
    distance 0, so take duplicates out first. Null where there is no other image.
    """
    if not isinstance(vectors, pl.DataFrame) or not {"id", "vector"} <= set(vectors.columns):
        raise DataError("outliers", found=kind_of(vectors), expected="a table with the columns id and vector")
    count = min(neighbours, vectors.height - 1)
    if count < 1:
        return vectors.select("id", distance=pl.lit(None, dtype=pl.Float64))
    matrix = unit_matrix(vectors["vector"])
    lengths, _ = NearestNeighbors(n_neighbors=count).fit(matrix).kneighbors()  # (N, count), each without itself
    distance = np.square(lengths.astype(np.float64)).mean(1) / 2  # of unit vectors: 1 - cosine
    return vectors.select("id").with_columns(distance=pl.Series(distance))
