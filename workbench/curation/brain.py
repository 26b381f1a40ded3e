"""Measures where they can be seen: fields of a FiftyOne view, and what FiftyOne Brain makes of vectors.

Knows: uniqueness, representativeness, and a map of all images in the plane, from vectors that are there already.
Does not know: models, or how a view is made (`table.py`).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from workbench.curation.database import database_errors, open_fiftyone
from workbench.errors import DataError, MissingPackageError

if TYPE_CHECKING:
    import fiftyone as fo
    from fiftyone.core.collections import SampleCollection

MAP = "map"
"""The name of the map in the App's panel Embeddings."""
FEWEST = {"map": 3, "uniqueness": 20}
"""Images that each needs: FiftyOne Brain makes 20 groups to see what is typical."""


def show_measures(view: SampleCollection, measures: pl.DataFrame) -> None:
    """Write every column of `measures` (id and numbers or texts) into the view, as fields of these names.

    Images of the view that `measures` lacks keep what they have, and ids that the view lacks are passed over.
    """
    known = set(view.values("workbench_id"))
    rows = measures.filter(pl.col("id").is_in(list(known)))
    with database_errors():
        for name in rows.columns:
            if name != "id":
                values = dict(rows.select("id", name).drop_nulls().iter_rows())
                if values:
                    view.set_values(name, values, key_field="workbench_id", dynamic=True)


def uniqueness(view: fo.Dataset, vectors: pl.DataFrame) -> pl.DataFrame:
    """How unlike the others and how typical each image is, by FiftyOne Brain, as fields of the view too.

    Columns: id, uniqueness, representativeness (both 0 to 1; null where FiftyOne cannot tell, as among too few).
    `vectors` (id, vector) as `measures.vectors` makes them; images without one are left out. Raises
    `DataError` for fewer than 20.
    """
    open_fiftyone()
    import fiftyone.brain as brain

    part, matrix = _matched(view, vectors, FEWEST["uniqueness"])
    with database_errors():
        brain.compute_uniqueness(part, embeddings=matrix, progress=False)
        brain.compute_representativeness(part, embeddings=matrix, progress=False)
        ids, *found = part.values(["workbench_id", "uniqueness", "representativeness"])
    return pl.DataFrame({"id": ids, "uniqueness": found[0], "representativeness": found[1]}).fill_nan(None)


def embedding_map(view: fo.Dataset, vectors: pl.DataFrame, *, method: Literal["pca", "umap"] = "pca") -> pl.DataFrame:
    """Every image as a point in the plane, alike ones near each other: in the App's panel Embeddings under `map`.

    Columns: id, x, y. `pca` shows the two directions in which the vectors differ most; `umap` keeps neighbours
    together, and needs the package umap-learn. Raises `MissingPackageError` where it is not installed.
    """
    if method == "umap" and find_spec("umap") is None:
        raise MissingPackageError(
            "a map by UMAP", found="no package umap-learn", fix="pip install 'llava-workbench[umap]'"
        )
    open_fiftyone()
    import fiftyone.brain as brain

    part, matrix = _matched(view, vectors, FEWEST["map"])
    with database_errors():
        if MAP in view.list_brain_runs():
            view.delete_brain_run(MAP)
        made = brain.compute_visualization(
            part, embeddings=matrix, method=method, num_dims=2, brain_key=MAP, seed=0, progress=False
        )
        points = np.asarray(made.points)
        return pl.DataFrame({"id": part.values("workbench_id"), "x": points[:, 0], "y": points[:, 1]})


def _matched(view: fo.Dataset, vectors: pl.DataFrame, fewest: int) -> tuple[SampleCollection, np.ndarray]:
    """The view's samples that have a vector, and these vectors in the same order, (N, D)."""
    known = vectors.drop_nulls("vector")
    part = view.select_by("workbench_id", known["id"].to_list())
    ids = part.values("workbench_id")
    if len(ids) < fewest:
        found = f"{len(ids)} images of the view with a vector"
        raise DataError("measures by FiftyOne Brain", found=found, expected=f"at least {fewest}")
    ordered = pl.DataFrame({"id": ids}).join(known, on="id", how="left", maintain_order="left")
    return part, np.stack([np.asarray(vector, np.float32) for vector in ordered["vector"]])
