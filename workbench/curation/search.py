"""Images found by words, and how well captions fit their images: a CLIP's similarities.

Knows: which vectors are compared, and that an image's are computed once (`measures.py`).
Does not know: the model's insides (`model/clip.py`), or from which similarity on a caption is right: that differs from
model to model, so look at both ends of the order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from workbench.curation.measures import vectors
from workbench.data.dataset import Dataset
from workbench.errors import DataError
from workbench.model.clip import Clip
from workbench.progress import track

CHUNK = 4096
"""Captions that are compared at once."""


def search(dataset: Dataset, text: str, *, model: str | Path | Clip = "tiny", count: int = 20) -> pl.DataFrame:
    """The `count` images most like the text, best first. Columns: id, path, similarity (cosine, -1 to 1).

    Only images that are ok are searched. `model`: `tiny`, a CLIP's folder or Hub name, or a `Clip` that is loaded
    already, which spares loading it for every search. Raises `DataError` for an empty text, or a `count` below 1.
    """
    if not text.strip() or count < 1:
        expected = "a few words, and a count of at least 1"
        raise DataError("search", found=f"text {text!r} and count {count}", expected=expected)
    clip, images = _measured(dataset, model)
    similarity = _matrix(images, clip) @ clip.embed_texts([text])[0]
    found = images.select("id", "path", similarity=pl.Series(similarity, dtype=pl.Float32))
    return found.sort("similarity", descending=True, maintain_order=True).head(count)


def caption_similarity(dataset: Dataset, *, model: str | Path | Clip = "tiny") -> pl.DataFrame:
    """How like its image each image's best caption is, for images that are ok, in the dataset's order.

    Columns: id, similarity (cosine, -1 to 1; null without a caption). `model` as for `search`. Sorted by similarity,
    wrong captions come first: `caption_similarity(dataset).sort("similarity", nulls_last=True)`.
    """
    clip, images = _measured(dataset, model)
    matrix = _matrix(images, clip)
    rows = images.with_row_index("row").select("row", caption="captions").explode("caption")
    rows = rows.filter(pl.col("caption").str.strip_chars() != "")
    scores = [np.zeros(0, np.float32)]
    for start in track(range(0, rows.height, CHUNK), "comparing captions"):
        part = rows[start : start + CHUNK]
        scores.append((matrix[part["row"].to_numpy()] * clip.embed_texts(part["caption"].to_list())).sum(1))
    best = rows.select("row", similarity=pl.Series(np.concatenate(scores))).group_by("row").agg(pl.max("similarity"))
    joined = images.with_row_index("row").join(best, on="row", how="left", maintain_order="left")
    return joined.select("id", "similarity")


def _measured(dataset: Dataset, model: str | Path | Clip) -> tuple[Clip, pl.DataFrame]:
    """The model, and a row for each image that is ok. Columns: id, vector, path, captions."""
    clip = model if isinstance(model, Clip) else Clip(model)
    found = vectors(dataset, clip.embed_images, name=clip.name)
    told = dataset.images.select("id", "path", "captions")
    return clip, found.join(told, on="id", maintain_order="left")


def _matrix(images: pl.DataFrame, clip: Clip) -> np.ndarray:
    """(N, D) float32."""
    return images["vector"].list.to_array(clip.width).to_numpy().reshape(-1, clip.width)
