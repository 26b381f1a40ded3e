"""Images found by words, and how well captions fit their images: a CLIP's similarities.

Knows: which vectors are compared, and that an image's are computed once (`measures.py`).
Does not know: the model's insides (`model/clip.py`), or from which similarity on a caption is right: that differs from
model to model, so look at both ends of the order.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from pathlib import Path

import numpy as np
import polars as pl

from workbench.curation.measures import measured_once, ok_images, pair_keys, vectors
from workbench.data.dataset import Dataset
from workbench.errors import DataError, kind_of
from workbench.model.clip import Clip
from workbench.progress import progress

CHUNK = 256
"""Captions that are compared at once."""


def search(
    dataset: Dataset | str | Path, text: str, *, model: str | Path | Clip = "tiny", count: int = 20
) -> pl.DataFrame:
    """The `count` images most like the text, best first. Columns: id, path, similarity (cosine, -1 to 1).

    Only images that are ok are searched. `model`: `tiny`, a CLIP's folder or Hub name, or a `Clip` that is loaded
    already, which spares loading it for every search. Raises `DataError` for an empty text, a `count` below 1, and
    values of other kinds.

    >>> wb.search("data", "a red star", count=3).columns
    ['id', 'path', 'similarity']
    """
    dataset = Dataset.open(dataset)
    if not isinstance(text, str) or not text.strip():
        raise DataError("search, text", found=kind_of(text), expected="a few words")
    if not isinstance(count, Integral) or count < 1:
        raise DataError("search, count", found=kind_of(count), expected="a whole number of at least 1")
    clip = clip_of(model)
    images = vectors(dataset, clip.embed_images, name=clip.name)
    similarity = _matrix(images["vector"], clip) @ clip.embed_texts([text])[0]
    found = images.select("id", similarity=pl.Series(similarity, dtype=pl.Float32))
    told = found.join(dataset.images.select("id", "path"), on="id", maintain_order="left")
    ordered = told.sort("similarity", descending=True, maintain_order=True)
    return ordered.select("id", "path", "similarity").head(count)


def caption_similarity(dataset: Dataset | str | Path, *, model: str | Path | Clip = "tiny") -> pl.DataFrame:
    """How like its image each image's best caption is, for images that are ok, in the dataset's order.

    Columns: id, similarity (cosine, -1 to 1; null without a caption). `model` as for `search`. Sorted by similarity,
    wrong captions come first: `caption_similarity(dataset).sort("similarity", nulls_last=True)`.

    >>> wb.caption_similarity("data").columns
    ['id', 'similarity']
    """
    dataset = Dataset.open(dataset)
    images = ok_images(dataset)
    texts = images.select("id", text="captions").explode("text").filter(pl.col("text").str.strip_chars() != "")
    scores = similarities(dataset, images, texts, model=model)
    best = scores.group_by("id").agg(pl.max("similarity"))
    return images.select("id").join(best, on="id", how="left", maintain_order="left")


def similarities(
    dataset: Dataset, images: pl.DataFrame, texts: pl.DataFrame, *, model: str | Path | Clip = "tiny"
) -> pl.DataFrame:
    """How like its image each text is. `texts` (id of the image, text) with a column similarity (cosine, -1 to 1).

    `images` are rows of `dataset.images`, all ok. Each pair of picture and text is compared once and kept.
    """
    clip = clip_of(model)
    pictures = vectors(dataset, clip.embed_images, name=clip.name, images=images)
    pairs = texts.with_row_index("row").join(images.select("id", "hash"), on="id", maintain_order="left")
    place = pairs.select("id").join(pictures.select("id").with_row_index("place"), on="id", maintain_order="left")
    places = place["place"].to_numpy()

    def make(missing: list[int], _: pl.DataFrame) -> Iterator[tuple[float]]:
        with progress("comparing captions", total=len(missing), unit="caption") as bar:
            for start in range(0, len(missing), CHUNK):
                rows = missing[start : start + CHUNK]
                shown = _matrix(pictures["vector"].gather(places[rows]), clip)
                said = clip.embed_texts(pairs["text"].gather(rows).to_list())
                yield from ((value,) for value in (shown * said).sum(1).tolist())
                bar.advance(len(rows))

    found = measured_once(dataset, f"{clip.name}-captions", pair_keys(pairs), {"similarity": pl.Float32}, make)
    return texts.with_columns(found)


def clip_of(model: str | Path | Clip) -> Clip:
    """A CLIP by its source, or as it is."""
    return model if isinstance(model, Clip) else Clip(model)


def _matrix(column: pl.Series, clip: Clip) -> np.ndarray:
    """(N, D) float32."""
    return column.list.to_array(clip.width).to_numpy().reshape(-1, clip.width)
