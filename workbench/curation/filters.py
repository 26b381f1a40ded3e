"""Named filters over the images of a dataset, run in their order.

Knows: what a filter is, the filters that need no threshold, and how what they find is written into the dataset.
Does not know: measures (`measure_filters.py`), recipes (`curate_recipe.py`), how the funnel is shown (`funnel.py`), or
FiftyOne, except to bring a view up to date that the caller hands in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from workbench.curation.duplicates import exact_groups, near_groups
from workbench.curation.funnel import Funnel
from workbench.curation.measures import image_paths
from workbench.data.batches import use_engine
from workbench.data.dataset import Dataset

if TYPE_CHECKING:
    import fiftyone as fo

    from workbench.curation.curate_recipe import CurateRecipe


@dataclass(frozen=True)
class Filter:
    """Finds the rows to leave out, among the images that the filters before it have kept."""

    name: str
    find: Callable[[Dataset, pl.DataFrame], pl.DataFrame]
    """Dataset and rows of images -> columns id, reason."""
    status: str = "removed"
    """What the images that it leaves out become."""


def broken() -> Filter:
    """Images that were quarantined when they were imported, and those whose file has gone since."""

    def find(dataset: Dataset, images: pl.DataFrame) -> pl.DataFrame:
        quarantined = pl.col("status") == "quarantined"
        held = images.filter(~quarantined)  # of the others a path may even climb out of its root
        there = pl.Series([path.is_file() for path in image_paths(dataset, held)], dtype=pl.Boolean)
        gone = held.filter(~there)["id"]
        reason = pl.when(quarantined).then("reason").otherwise(pl.lit("no such file"))
        return images.filter(quarantined | pl.col("id").is_in(gone.implode())).select("id", reason)

    return Filter("broken", find, status="quarantined")


def exact_duplicates() -> Filter:
    """All but the keeper of images whose files are equal."""
    return Filter("exact duplicates", lambda _, images: _all_but_keeper(exact_groups(images), images))


def near_duplicates(vectors: pl.DataFrame | None = None) -> Filter:
    """All but the keeper of images that show the same picture, and of videos that begin and end alike.

    A picture is no copy of a video. `vectors` (id, vector) propose further pairs.
    """

    def find(dataset: Dataset, images: pl.DataFrame) -> pl.DataFrame:
        return _all_but_keeper(near_groups(dataset, images, vectors, across=False), images)

    return Filter("near duplicates", find)


def min_size(pixels: int) -> Filter:
    """Images whose shorter side has less than `pixels` pixels."""
    shorter = pl.min_horizontal("width", "height")
    reason = pl.format("{} x {}, less than {} pixels", "width", "height", pl.lit(pixels)).alias("reason")
    return Filter("min size", lambda _, images: images.filter(shorter < pixels).select("id", reason))


def curate(
    dataset: Dataset | str | Path,
    recipe: CurateRecipe | str | Path | Sequence[Filter] | None = None,
    *,
    view: fo.Dataset | None = None,
) -> Funnel:
    """Leave out what the filters find, in their order, and say so in the dataset: status, and reason "FILTER: why".

    `recipe`: one that is loaded, its file or shipped name, or filters. By default: broken, exact duplicates, near
    duplicates. `view`, made by `to_fiftyone`, gets the same status, reason and tags, and a saved view of what each
    filter took out. Images that were removed before stay removed and are not counted again.

    >>> wb.curate("data").counts
    [24]
    """
    dataset = Dataset.open(dataset)
    filters, engine = _filters(recipe)
    if view is not None:
        from workbench.curation.marks import take_marks

        take_marks(view, dataset)
    left = dataset.images.filter(pl.col("status") != "removed")
    table: list[tuple[str, int, int, int]] = []
    removed = [pl.DataFrame(schema={"id": pl.String, "filter": pl.String, "reason": pl.String, "status": pl.String})]
    for step in filters:
        with use_engine(engine):
            found = step.find(dataset, left).cast(pl.String)
        after = left.join(found, on="id", how="anti", maintain_order="left")
        table.append((step.name, left.height, after.height, left.height - after.height))
        removed.append(found.select("id", filter=pl.lit(step.name), reason="reason", status=pl.lit(step.status)))
        left = after
    schema = {"name": pl.String, "before": pl.Int64, "after": pl.Int64, "removed": pl.Int64}
    funnel = Funnel(pl.DataFrame(table, schema=schema, orient="row"), pl.concat(removed).drop("status"), dataset)
    _write(dataset, pl.concat(removed), funnel.table)
    if view is not None:
        _show(view, dataset, funnel)
    return funnel


def _filters(recipe: CurateRecipe | str | Path | Sequence[Filter] | None) -> tuple[Sequence[Filter], str | None]:
    """The steps, and the engine that they ask for."""
    if recipe is None:
        return [broken(), exact_duplicates(), near_duplicates()], None
    from workbench.curation.curate_recipe import CurateRecipe

    if isinstance(recipe, (str, Path)):
        recipe = CurateRecipe.load(recipe)
    return (recipe.steps(), recipe.engine) if isinstance(recipe, CurateRecipe) else (recipe, None)


def _show(view: fo.Dataset, dataset: Dataset, funnel: Funnel) -> None:
    from workbench.curation.table import mark

    mark(view, dataset)
    from fiftyone import ViewField

    for name in funnel.table.filter(pl.col("removed") > 0)["name"]:
        view.save_view(f"removed: {name}", view.match(ViewField("reason").starts_with(f"{name}: ")), overwrite=True)


def _write(dataset: Dataset, removed: pl.DataFrame, table: pl.DataFrame) -> None:
    """Only rows that were ok change: one that was quarantined before keeps its own reason."""
    ok = dataset.images.filter(pl.col("status") == "ok")
    rows = removed.join(ok.select("id"), on="id").select(
        "id", "status", pl.format("{}: {}", "filter", pl.col("reason").fill_null("")).alias("reason")
    )
    if rows.height:
        counts = dict(table.select("name", "removed").iter_rows())
        dataset.update_images(rows, operation={"name": "curate", "removed": counts})


def _all_but_keeper(groups: pl.DataFrame, images: pl.DataFrame) -> pl.DataFrame:
    names = images.select(keeper="id", kept="path")
    copies = groups.filter(pl.col("id") != pl.col("keeper")).join(names, on="keeper", maintain_order="left")
    return copies.select("id", pl.format("copy of {}", "kept").alias("reason"))
