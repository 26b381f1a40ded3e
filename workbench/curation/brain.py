"""Measures where they can be seen: fields of a FiftyOne view, and what FiftyOne Brain makes of vectors.

Knows: uniqueness, representativeness, and a map of all images in the plane, from vectors that are there already.
Does not know: models, or how a view is made (`table.py`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.util import find_spec
from types import ModuleType
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
FEWEST = {"pca": 3, "umap": 20, "uniqueness": 20}
"""Images that each needs: UMAP looks at 15 neighbours, FiftyOne Brain makes 20 groups to see what is typical."""


def show_measures(view: SampleCollection, measures: pl.DataFrame) -> None:
    """Write every column of `measures` (id and numbers or texts) into the view, as fields of these names.

    Images of the view that `measures` lacks keep what they have, and ids that the view lacks are passed over.
    """
    from pymongo import UpdateOne

    fo = open_fiftyone()
    columns = [name for name in measures.columns if name != "id"]
    with database_errors():
        known = dict(zip(*view.values(["workbench_id", "_id"]), strict=True))
        rows = measures.filter(pl.col("id").is_in(list(known)))
        for name in columns:
            if rows[name].count() and not view.has_sample_field(name):
                view._dataset.add_sample_field(name, _field_of(fo, rows.schema[name]))
        changed = {"last_modified_at": datetime.now(UTC)}
        writes = []
        for row in rows.iter_rows(named=True):
            values = {name: row[name] for name in columns if row[name] is not None}
            writes.append(UpdateOne({"_id": known[row["id"]]}, {"$set": {**values, **changed}}))
        if writes:  # at once: `set_values` goes through all images once for each field
            view._dataset._bulk_write(writes)


def _field_of(fo: ModuleType, kind: pl.DataType) -> type:
    if kind.is_float():
        return fo.FloatField
    return fo.IntField if kind.is_integer() else fo.BooleanField if kind == pl.Boolean else fo.StringField


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


def embedding_map(
    view: fo.Dataset, vectors: pl.DataFrame, *, method: Literal["pca", "umap"] | None = None
) -> pl.DataFrame:
    """Every image as a point in the plane, alike ones near each other: in the App's panel Embeddings under `map`.

    Columns: id, x, y. `pca` shows the two directions in which the vectors differ most; `umap` keeps neighbours
    together, and needs the package umap-learn and 20 images. None is umap where it can be used, else pca. Raises
    `MissingPackageError` where umap is asked for and not installed, and `DataError` for too few images.
    """
    installed = find_spec("umap") is not None
    if method == "umap" and not installed:
        fix = "pip install 'llava-workbench[umap]'"
        raise MissingPackageError("a map by UMAP", found="no package umap-learn", fix=fix)
    open_fiftyone()
    import fiftyone.brain as brain

    part, matrix = _matched(view, vectors, FEWEST[method or "pca"])
    chosen = method or ("umap" if installed and len(matrix) >= FEWEST["umap"] else "pca")
    with database_errors():
        if MAP in view.list_brain_runs():
            view.delete_brain_run(MAP)
        made = brain.compute_visualization(
            part, embeddings=matrix, method=chosen, num_dims=2, brain_key=MAP, seed=0, progress=False
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
