"""What is in a dataset, as tables and a figure: images, boxes, conversations, words.

Knows: counting over the two tables of a dataset, and how to draw it.
Does not know: pixels (`measures.py`), FiftyOne, whether anything in it is good.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.conversation import Conversation
from workbench.data.dataset import Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 15
"""Rows of a table of frequencies."""
_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMON = frozenset(
    "the and are was were with that this there what which who how many much does not from for has have its his her "
    "they image picture photo yes can you into onto where when why".split()
)
_COLOR = "#4477aa"


@dataclass(frozen=True)
class Description:
    """Counts over the images, videos and conversations of a dataset that are ok."""

    name: str
    images: int
    per_image: pl.DataFrame
    """Conversations of an image or video. Columns: conversations, images (so many of them)."""
    tokens: pl.DataFrame
    """One row a conversation. Columns: task, turns, tokens (words where no tokenizer was given)."""
    words: pl.DataFrame
    """Of answers. Columns: word, count."""
    objects: pl.DataFrame
    """Annotated labels. Columns: label, count, images."""
    boxes: pl.DataFrame
    """One row a box. Columns: label, share (of the image's area, 0 to 1)."""
    unit: str
    """tokens or words"""
    videos: int = 0

    def __str__(self) -> str:
        counts = self.tokens.group_by("task").len().sort("len", descending=True)
        videos = f" and {self.videos:,} videos" if self.videos else ""
        lines = [f"{self.name}: {self.images:,} images{videos}, {self.tokens.height:,} conversations"]
        if self.tokens.height:
            half, most = _number(self.tokens["tokens"].median()), _number(self.tokens["tokens"].max())
            lines.append(f"  {self.unit} of a conversation: median {half:g}, most {most:,.0f}")
            lines += [f"  {task:<16} {count:>8,}" for task, count in counts.iter_rows()]
        if self.objects.height:
            said = ", ".join(
                f"{label} {count:,}" for label, count in self.objects.select("label", "count").head(5).rows()
            )
            lines.append(f"  {int(self.objects['count'].sum()):,} annotated objects: {said}, ...")
        if self.boxes.height:
            share = self.boxes["share"]
            small = int((share < 0.01).sum()) / share.len()
            lines.append(f"  boxes: median {_number(share.median()):.1%} of the image, {small:.0%} below 1 %")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Up to six plots, of what there is: conversations per image, lengths, tasks, words, objects, box sizes."""
        from matplotlib.figure import Figure

        tasks = self.tokens.group_by("task").len().sort("len", "task", descending=[True, False])
        often, words = self.objects.head(MOST), self.words
        plots: list[tuple[pl.Series, Callable[[Any], None]]] = [
            (tasks["len"], self._draw_per_image),
            (tasks["len"], lambda axes: _histogram(axes, self.tokens["tokens"], f"{self.unit} of a conversation")),
            (tasks["len"], lambda axes: _bars(axes, tasks["task"], tasks["len"], "tasks")),
            (words["count"], lambda axes: _bars(axes, words["word"], words["count"], "words in answers")),
            (often["count"], lambda axes: _bars(axes, often["label"], often["count"], "annotated objects")),
            (self.boxes["share"], lambda axes: _histogram(axes, self.boxes["share"] * 100, "boxes: % of the image")),
        ]
        drawn = [draw for values, draw in plots if values.len()] or [self._draw_per_image]
        columns = min(3, len(drawn))
        rows = -(-len(drawn) // columns)
        figure = Figure(figsize=(4 * columns, 3.25 * rows), layout="constrained")
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        for draw, axes in zip(drawn, places, strict=False):
            draw(axes)
        for axes in places[len(drawn) :]:
            axes.set_axis_off()
        return figure

    def _draw_per_image(self, axes: Any) -> None:
        counts = self.per_image.select("conversations", "images")
        axes.bar(*counts.to_dict(as_series=False).values(), color=_COLOR)
        axes.set_title("conversations of an image", fontsize=10)

    def _repr_png_(self) -> bytes:
        from io import BytesIO

        buffer = BytesIO()
        self.plot().savefig(buffer, format="png", dpi=80)
        return buffer.getvalue()


def describe(dataset: Dataset | str | Path, *, count_tokens: Callable[[str], int] | None = None) -> Description:
    """Count what is in a dataset: print it, or let a notebook draw it.

    `count_tokens` counts the tokens of a text, for example `lambda text: len(tokenizer(text).input_ids)`; without it
    words are counted. Images are looked up in the tables; no picture is opened.

    >>> found = wb.describe("data")
    >>> found.images, found.tokens.columns
    (24, ['task', 'turns', 'tokens'])
    """
    dataset = Dataset.open(dataset)
    ok = dataset.images.filter(pl.col("status") == "ok")
    words: Counter[str] = Counter()
    images: Counter[tuple[str, str]] = Counter()
    lengths: list[tuple[str, int, int]] = []
    length = count_tokens or (lambda text: len(text.split()))
    for one in dataset.iter_conversations():
        images.update((shown.root, shown.path) for shown in dict.fromkeys(one.media))
        words.update(word for word in _answer_words(one) if word not in _COMMON)
        turns = sum(message.role == "user" for message in one.messages)
        lengths.append((one.task or "other", turns, sum(length(message.text) for message in one.messages)))
    return Description(
        dataset.name,
        int((ok["media"] == "image").sum()),
        _per_image(ok, images),
        pl.DataFrame(lengths, schema={"task": pl.String, "turns": pl.Int64, "tokens": pl.Int64}, orient="row"),
        pl.DataFrame(words.most_common(MOST), schema={"word": pl.String, "count": pl.Int64}, orient="row"),
        *_things(ok),
        "tokens" if count_tokens else "words",
        int((ok["media"] == "video").sum()),
    )


def _answer_words(conversation: Conversation) -> list[str]:
    said = [message.text for message in conversation.messages if message.role == "assistant"]
    return [word for text in said for word in _WORD.findall(text.lower())]


def _per_image(ok: pl.DataFrame, counted: Counter[tuple[str, str]]) -> pl.DataFrame:
    counts = Counter(counted.get((root, path), 0) for root, path in ok.select("root", "path").iter_rows())
    schema: dict[str, Any] = {"conversations": pl.Int64, "images": pl.Int64}
    return pl.DataFrame(sorted(counts.items()), schema=schema, orient="row")


def _things(ok: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Labels with how often they occur, and the sizes of their boxes."""
    labels: Counter[str] = Counter()
    within: Counter[str] = Counter()
    boxes: list[tuple[str, float]] = []
    for text, width, height in ok.select("objects", "width", "height").drop_nulls("objects").iter_rows():
        things = json.loads(text)
        names = [str(thing.get("label", "object")) for thing in things]
        labels.update(names)
        within.update(set(names))
        for name, thing in zip(names, things, strict=True):
            if thing.get("box") and width and height:
                x0, y0, x1, y1 = thing["box"]
                boxes.append((name, abs((x1 - x0) * (y1 - y0)) / (width * height)))
    rows = [(label, count, within[label]) for label, count in labels.most_common()]
    kinds: dict[str, Any] = {"label": pl.String, "count": pl.Int64, "images": pl.Int64}
    sizes: dict[str, Any] = {"label": pl.String, "share": pl.Float64}
    return pl.DataFrame(rows, schema=kinds, orient="row"), pl.DataFrame(boxes, schema=sizes, orient="row")


def _number(value: Any) -> float:
    """A statistic of polars, which may be of any type, as the number it is here."""
    return float(value or 0)


def _bars(axes: Any, names: pl.Series, values: pl.Series, title: str) -> None:
    axes.barh(names.to_list()[::-1], values.to_list()[::-1], color=_COLOR)
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)


def _histogram(axes: Any, values: pl.Series, title: str) -> None:
    axes.hist(values.to_list(), bins=30, color=_COLOR)
    axes.set_title(title, fontsize=10)
