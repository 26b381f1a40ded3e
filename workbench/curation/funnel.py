"""What came of curating: how many images each filter left, and which it took out and why, as text, figure and page.

Knows: how that is shown. Does not know: how a filter decides (`filters.py`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from workbench.curation.measures import image_files
from workbench.data.dataset import Dataset
from workbench.data.images import thumbnail_uri
from workbench.data.video import Film, seen
from workbench.errors import ImageError
from workbench.resources import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THUMBNAIL = 96
"""Largest side of a shown picture, in pixels."""
LONGEST = 100
"""Characters of a reason below its picture."""
SHOWN = 12
"""So many pictures of each filter are shown."""


@dataclass(frozen=True)
class Funnel:
    """What `curate` did."""

    table: pl.DataFrame
    """One row a filter. Columns: name, before, after, removed."""
    removed: pl.DataFrame
    """One row an image that was left out. Columns: id, filter, reason."""
    dataset: Dataset = field(repr=False)

    def __str__(self) -> str:
        if self.table.is_empty():
            return "no filter: nothing was taken out"
        lines = [f"{row['name']}: {row['before']:,} -> {row['after']:,}" for row in self.table.iter_rows(named=True)]
        return "\n".join([*lines, " > ".join(f"{count:,}" for count in self.counts)])

    @property
    def counts(self) -> list[int]:
        """Images before the first filter, and after each that took out something."""
        rows = self.table.filter(pl.col("removed") > 0)
        return [*self.table["before"].head(1), *rows["after"]]

    def figure(self) -> Figure:
        """The funnel as horizontal bars, with what each filter took out."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 0.6 + 0.35 * (self.table.height + 1)), layout="constrained")
        axes = figure.subplots()
        names = ["all", *self.table["name"]]
        left = [*self.table["before"].head(1), *self.table["after"]] or [0]
        gone = [0, *self.table["removed"]]
        axes.barh(names[: len(left)], left, color="#4c72b0", label="left")
        axes.barh(names[: len(left)], gone, left=left, color="#dd8452", label="taken out")
        for place, (kept, lost) in enumerate(zip(left, gone, strict=True)):
            axes.text(kept + lost, place, f" {kept:,}" + (f"  (-{lost:,})" if lost else ""), va="center")
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("images")
        return figure

    def to_html(self, count: int = SHOWN) -> str:
        """The figure, and `count` of the removed pictures of each filter with the reason."""
        drawn = io.StringIO()
        self.figure().savefig(drawn, format="svg")
        svg = drawn.getvalue()
        parts = [svg[svg.index("<svg") :]]
        for (name,), rows in self.removed.group_by("filter", maintain_order=True):
            more = f", the first {count}" if rows.height > count else ""
            parts.append(f"<h3>{escape(str(name))}: {rows.height:,} taken out{more}</h3>")
            parts.append(f'<div style="display:flex;flex-wrap:wrap">{"".join(self._cards(rows.head(count)))}</div>')
        return "\n".join(parts)

    def save(self, path: str | Path, count: int = 100) -> None:
        """Write `to_html` as a page of its own."""
        title = f"{escape(self.dataset.name)}: {' &gt; '.join(f'{number:,}' for number in self.counts)}"
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        body = f'<body style="font-family:sans-serif"><h2>{title}</h2>{self.to_html(count)}</body></html>'
        write_atomic(path, head + body)

    def _repr_html_(self) -> str:
        return self.to_html(SHOWN)

    def _cards(self, rows: pl.DataFrame) -> Iterator[str]:
        images = self.dataset.images.select("id", "root", "path", "media")
        told = rows.join(images, on="id", maintain_order="left")
        for file, name, reason in zip(image_files(self.dataset, told), told["path"], told["reason"], strict=True):
            source = _thumbnail(file)
            shown = f'<img alt="" src="{source}">' if source else "(cannot be shown)"
            style = f"width:{2 * THUMBNAIL}px;margin:4px;font-size:11px;overflow-wrap:anywhere"
            yield f'<div style="{style}">{shown}<br><b>{escape(name)}</b><br>{escape((reason or "")[:LONGEST])}</div>'


def _thumbnail(file: Path | Film) -> str | None:
    """A small JPEG as a data URL; None for a file that cannot be read."""
    try:
        return thumbnail_uri(seen(file), THUMBNAIL)
    except ImageError:
        return None
