from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from workbench.curation.outliers import outliers


def frame(matrix: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"i{row}" for row in range(len(matrix))], "vector": matrix.tolist()})


def test_the_one_that_is_like_no_other_is_farthest() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(0, 0.1, (60, 8)) + np.repeat(np.eye(8)[:3], 20, axis=0)
    matrix[17] = -np.eye(8)[5]
    found = outliers(frame(matrix), neighbours=5)
    assert found["id"].to_list() == frame(matrix)["id"].to_list()
    assert found.sort("distance")["id"].to_list()[-1] == "i17"
    assert found["distance"][17] > 5 * found.filter(pl.col("id") != "i17")["distance"].max()


def test_distances_are_cosine_distances_without_oneself() -> None:
    found = outliers(frame(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])), neighbours=2)
    assert found["distance"].to_list() == pytest.approx([0.5, 1.0, 0.5])


def test_alone_there_is_no_distance() -> None:
    assert outliers(frame(np.ones((1, 3))))["distance"].to_list() == [None]
    empty = pl.DataFrame(schema={"id": pl.String, "vector": pl.List(pl.Float32)})
    assert outliers(empty).is_empty()
