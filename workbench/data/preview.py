"""A dataset as a notebook shows it: counts and a few thumbnails, whatever its size.

Knows: HTML of a handful of pictures. Does not know: FiftyOne, or how to look at all of them.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.data.images import thumbnail_uri
from workbench.data.tables import media_of
from workbench.data.video import load_media, still
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.data.dataset import Dataset

THUMBNAILS, SIDE = 8, 112
_TILE = "display:inline-block;width:{side}px;margin:4px;vertical-align:top;font:11px sans-serif;overflow:hidden"


def preview(dataset: Dataset) -> str:
    """HTML of what the dataset holds. At most eight pictures are opened; one that cannot be is named."""
    images = dataset.images
    status = dict(images.group_by("status").len().sort("len", descending=True).iter_rows())
    splits = dict(images["split"].drop_nulls().value_counts().sort("split").iter_rows())
    tasks = dict(dataset.conversation_rows["task"].drop_nulls().value_counts(sort=True).head(8).iter_rows())
    files = "images and videos" if (images["media"] == "video").any() else "images"
    rows = [(files, status), ("splits", splits), ("conversations", tasks)]
    lines = "".join(f"<tr><th>{name}</th><td>{_counts(counts)}</td></tr>" for name, counts in rows)
    ok = images.filter(pl.col("status") == "ok")
    shown = ok.gather_every(max(1, ok.height // THUMBNAILS)).head(THUMBNAILS)
    tiles = "".join(
        _tile(dataset, row, row["label"] or (row["captions"] or [""])[0]) for row in shown.iter_rows(named=True)
    )
    head = f"<b>{html.escape(dataset.name)}</b> <code>{html.escape(str(dataset.path))}</code>"
    return f"<div>{head}<table>{lines}</table><div>{tiles}</div></div>"


def _counts(counts: dict[str, int]) -> str:
    return html.escape(", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none")


def _tile(dataset: Dataset, row: Mapping[str, Any], text: str) -> str:
    media, path = media_of(row), row["path"]
    try:
        source = thumbnail_uri(still(load_media(media, dataset.resolve(media))), SIDE)
        inside = f'<img src="{source}" alt="{html.escape(path)}">'
    except DataError as problem:
        inside = html.escape(problem.found or str(problem))
    return f'<div style="{_TILE.format(side=SIDE)}">{inside}<br>{html.escape(text[:60] or path)}</div>'
