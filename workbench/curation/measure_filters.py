"""Filters that take out what lies outside a range: of a picture's measures, of its captions', of a model's opinion.

Knows: which measure a filter looks at, and how the reason is told. Several texts about one image: it stays where one
of them is within the range; an image about which nothing is said stays.
Does not know: how anything is measured, or good thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import polars as pl

from workbench.curation.filters import Filter
from workbench.curation.image_measures import MEANING, image_measures
from workbench.curation.measures import image_files, measured_once, ok_images, pair_keys, vectors
from workbench.curation.outliers import outliers
from workbench.curation.text_measures import script, texts_of
from workbench.data.dataset import Dataset
from workbench.data.video import seen
from workbench.errors import DataError
from workbench.progress import progress, track

Score = Callable[[Dataset, pl.DataFrame, pl.DataFrame], pl.DataFrame]
"""Dataset, rows of images, their texts (id, text) -> the texts with a column value."""
SHAPE = {"width": pl.col("width"), "height": pl.col("height"), "aspect": pl.col("width") / pl.col("height")}
BATCH = 32
_CUT = 80
"""Characters of a caption that a reason quotes."""


def image_range(measure: str, low: float | None = None, high: float | None = None) -> Filter:
    """Images whose `measure`, one of `image_measures.MEANING`, is below `low` or above `high`."""
    if measure not in MEANING:
        raise DataError("filter", found=f"the measure {measure!r}", expected=", ".join(MEANING))

    def find(dataset: Dataset, images: pl.DataFrame) -> pl.DataFrame:
        rows = ok_images(dataset, images)
        if measure in SHAPE:
            values = rows.select("id", value=SHAPE[measure])
        else:
            values = image_measures(dataset, rows).select("id", value=measure)
        return values.filter(_outside(low, high)).select("id", reason=_reason(measure, low, high))

    return Filter(measure, find)


def text_range(
    name: str, measure: Callable[[str], float], low: float | None, high: float | None, *, text_as: str = "{text}"
) -> Filter:
    """Images of whose texts none has a `measure` from `low` to `high`. `text_as` is what is measured of a text."""

    def score(_: Dataset, __: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
        values = [float(measure(text_as.replace("{text}", text))) for text in texts["text"]]
        return texts.with_columns(value=pl.Series(values, dtype=pl.Float64))

    return scored_range(name, score, low, high)


def scored_range(name: str, score: Score, low: float | None, high: float | None) -> Filter:
    """Images of whose texts none scores from `low` to `high`."""

    def find(dataset: Dataset, images: pl.DataFrame) -> pl.DataFrame:
        rows = ok_images(dataset, images)
        texts = score(dataset, rows, texts_of(dataset, rows))
        bad = texts.with_columns(bad=_outside(low, high)).filter(pl.col("bad").all().over("id"))
        return _quoting(bad.unique("id", keep="first", maintain_order=True), _reason(name, low, high))

    return Filter(name, find)


def scripts(allowed: Sequence[str]) -> Filter:
    """Images about which nothing is written in one of these scripts, such as Latin or CJK."""
    wanted = {name.lower() for name in allowed}

    def find(dataset: Dataset, images: pl.DataFrame) -> pl.DataFrame:
        texts = texts_of(dataset, ok_images(dataset, images))
        written = [script(text) or "none" for text in texts["text"]]
        found = texts.with_columns(script=pl.Series(written, dtype=pl.String))
        good = pl.col("script").str.to_lowercase().is_in(list(wanted))
        bad = found.filter(~good.any().over("id")).unique("id", keep="first", maintain_order=True)
        return _quoting(bad, pl.format("script {}", "script"))

    return Filter("script", find)


def similarity(low: float | None, high: float | None, *, model: str) -> Filter:
    """Images of whose texts none is as like the picture as asked, by the CLIP `model` (cosine, -1 to 1)."""

    def score(dataset: Dataset, images: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
        from workbench.curation.search import similarities  # not above: it loads torch

        return similarities(dataset, images, texts, model=model).rename({"similarity": "value"})

    return scored_range("similarity", score, low, high)


def perplexity(low: float | None, high: float | None, *, model: str) -> Filter:
    """Images of whose texts none has a perplexity from `low` to `high` by the causal language model `model`."""

    def score(dataset: Dataset, _: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
        from workbench.curation.caption_judges import Perplexity

        judge = Perplexity(model)
        keys = pair_keys(texts.with_columns(hash=pl.lit("")))

        def make(missing: list[int], _: pl.DataFrame) -> Iterator[tuple[float]]:
            said = texts["text"].gather(missing).to_list()
            yield from ((value,) for value in track(judge(said), "perplexity", total=len(said), unit="caption"))

        return texts.with_columns(measured_once(dataset, judge.name, keys, {"value": pl.Float64}, make))

    return scored_range("perplexity", score, low, high)


def matching(low: float | None, high: float | None, *, model: str) -> Filter:
    """Images of whose texts none fits the picture with a probability from `low` to `high`, by the BLIP `model`."""

    def score(dataset: Dataset, images: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
        from workbench.curation.caption_judges import Matching

        judge = Matching(model)
        files = image_files(dataset, images)
        places = images.select("id", "hash").with_row_index("file")
        pairs = texts.join(places, on="id", maintain_order="left")

        def make(missing: list[int], _: pl.DataFrame) -> Iterator[tuple[float]]:
            with progress("matching captions", total=len(missing), unit="caption") as bar:
                for start in range(0, len(missing), BATCH):
                    part = pairs[missing[start : start + BATCH]]
                    pictures = [seen(files[place]) for place in part["file"]]
                    yield from ((value,) for value in judge(pictures, part["text"].to_list()))
                    bar.advance(part.height)

        return texts.with_columns(measured_once(dataset, judge.name, pair_keys(pairs), {"value": pl.Float64}, make))

    return scored_range("matching", score, low, high)


def unlike_others(share: float, *, model: str, neighbours: int = 10) -> Filter:
    """The `share` (0 to 1) of the images that are farthest from those most like them, by the CLIP `model`."""

    def find(dataset: Dataset, images: pl.DataFrame) -> pl.DataFrame:
        from workbench.model.clip import Clip

        clip = Clip(model)
        found = outliers(vectors(dataset, clip.embed_images, name=clip.name, images=images), neighbours=neighbours)
        farthest = (
            found.drop_nulls().sort("distance", descending=True, maintain_order=True).head(int(share * found.height))
        )
        return farthest.select("id", reason=pl.format("{} from its neighbours", pl.col("distance").round_sig_figs(3)))

    return Filter("outliers", find)


def _outside(low: float | None, high: float | None) -> pl.Expr:
    """Whether `value` lies below or above; one that is missing or no number does."""
    value = pl.col("value").cast(pl.Float64)
    inside = value.is_not_nan()
    if low is not None:
        inside = inside & (value >= low)
    if high is not None:
        inside = inside & (value <= high)
    return ~inside.fill_null(False)


def _reason(name: str, low: float | None, high: float | None) -> pl.Expr:
    value = pl.col("value").cast(pl.Float64).round_sig_figs(4)
    less = pl.format("{} {}, less than {}", pl.lit(name), value, pl.lit(low))
    more = pl.format("{} {}, more than {}", pl.lit(name), value, pl.lit(high))
    return more if low is None else pl.when(pl.col("value") < low).then(less).otherwise(more)


def _quoting(rows: pl.DataFrame, reason: pl.Expr) -> pl.DataFrame:
    return rows.select("id", reason=pl.format("{}: {}", reason, pl.col("text").str.slice(0, _CUT)))
