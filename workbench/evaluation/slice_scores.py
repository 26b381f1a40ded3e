"""Which kinds of pictures and questions a model fails on, and whether another model does better on them.

Knows: intervals and paired tests by slice, whole pictures drawn together; what is too few to say.
Does not know: which question is in which slice (`slices.py`), or how an answer was scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from workbench.data.dataset import Dataset
from workbench.display import AsPrinted
from workbench.errors import DataError
from workbench.evaluation.slices import labelled
from workbench.evaluation.statistics import Comparison, Interval, compare, holm, interval
from workbench.result_rows import name_of, pictures, rows_of

FEW_QUESTIONS, FEW_IMAGES = 20, 5
"""Below these a slice is flagged: its interval is no guide."""


_SHOWN = 40
"""Lines of slices that are printed; the table and the page have all."""


@dataclass(frozen=True)
class Slice:
    """One slice: what its questions earned, and on how many pictures that stands."""

    name: str
    earned: Interval
    images: int
    below: bool
    """Whether the whole interval lies under the score of all questions."""

    @property
    def few(self) -> bool:
        return self.earned.n < FEW_QUESTIONS or self.images < FEW_IMAGES

    def summary(self) -> dict[str, Any]:
        bounds = {"score": self.earned.mean, "low": self.earned.low, "high": self.earned.high}
        numbers = {name: round(value, 4) for name, value in bounds.items()}
        return {"slice": self.name, "n": self.earned.n, "images": self.images, **numbers} | {
            "few": self.few, "below": self.below,
        }  # fmt: skip


@dataclass(frozen=True)
class Slices(AsPrinted):
    """The score of all questions and of every slice, the worst first; those of too few questions last."""

    name: str
    whole: Interval
    unscored: int
    """Questions that could not be scored; they are in no figure."""
    parts: tuple[Slice, ...]

    @property
    def table(self) -> pl.DataFrame:
        """Columns: slice, n, images, score, low, high (0 to 1), few, below."""
        return pl.DataFrame([part.summary() for part in self.parts])

    def summary(self) -> dict[str, Any]:
        whole = {"score": self.whole.mean, "low": self.whole.low, "high": self.whole.high}
        told = {key: round(value, 4) for key, value in whole.items()} | {"n": self.whole.n, "unscored": self.unscored}
        return {"name": self.name, **told, "slices": [part.summary() for part in self.parts]}

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.whole} of {self.whole.n:,} questions (95 % interval, by picture)"]
        if self.unscored:
            lines.append(f"  {self.unscored:,} more could not be scored and are in no figure")
        width = max((len(part.name) for part in self.parts), default=0)
        for part in self.parts[:_SHOWN]:
            flag = "  too few to say" if part.few else "  below the whole" if part.below else ""
            shown = f"{part.earned!s:<20} n {part.earned.n:<6,} images {part.images:<6,}"
            lines.append(f"  {part.name:<{width}}  {shown}{flag}".rstrip())
        if len(self.parts) > _SHOWN:
            lines.append(f"  and {len(self.parts) - _SHOWN:,} more slices")
        return "\n".join(lines)


def slices(
    results: Any, dataset: Dataset | str | Path | None = None, by: Sequence[str] = ("type",), *, seed: int = 0
) -> Slices:
    """The score of each slice with its interval, whole pictures drawn together, worst first.

    `results`: a `Results`, its folder, or rows. `by`: `type`, `task`, `split`, `tag` or `tag:night`, `class` or
    `class:star` (a picture's label or annotated objects), `measure:brightness` (four parts of equal size). All but
    `type` need the `dataset` that was asked about. Raises `DataError` for a slice that is not known or is empty.

    >>> wb.slices(results, "data", by=["type"]).table.columns
    ['slice', 'n', 'images', 'score', 'low', 'high', 'few', 'below']
    """
    rows = rows_of(results)
    scored = rows.filter(rows["earned"].is_not_null())
    if not scored.height:
        raise DataError(name_of(results), found="no answer that could be scored", expected="one at least")
    whole = interval(scored["earned"].to_list(), groups=pictures(scored), seed=seed)
    labels = labelled(scored, dataset, by)
    parts = []
    for (name,), group in labels.join(scored, on="id").group_by("slice", maintain_order=True):
        earned = interval(group["earned"].to_list(), groups=pictures(group), seed=seed)
        parts.append(Slice(str(name), earned, len(set(pictures(group))), earned.high < whole.mean))
    parts.sort(key=lambda part: (part.few, part.earned.mean, part.name))
    return Slices(name_of(results), whole, rows.height - scored.height, tuple(parts))


# --- two models ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared(AsPrinted):
    """Two models on the same questions: all of them, and per slice, the largest loss first."""

    first: str
    second: str
    whole: Comparison
    n: int
    left_out: int
    """Questions that only one of the two was asked or scored on."""
    parts: tuple[tuple[str, int, Comparison, bool], ...]
    """Name, questions, comparison, and whether it is significant among so many slices (Holm)."""

    def summary(self) -> dict[str, Any]:
        parts = [{"slice": name, "n": n, **_told(found), "significant": sure} for name, n, found, sure in self.parts]
        head = {"first": self.first, "second": self.second, "n": self.n, "left_out": self.left_out}
        return head | _told(self.whole) | {"significant": self.whole.significant(), "slices": parts}

    def __str__(self) -> str:
        lines = [f"{self.first} -> {self.second}, {self.n:,} questions: {self.whole}"]
        if self.left_out:
            lines.append(f"  {self.left_out:,} questions are not in both and are left out")
        width = max((len(name) for name, *_ in self.parts), default=0)
        for name, n, found, sure in self.parts:
            bounds = f"{100 * found.difference:+6.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
            told = "significant" if sure else "not significant"
            lines.append(f"  {name:<{width}}  {bounds:<24} n {n:<6,} p = {found.p:.3g} ({told} among these slices)")
        return "\n".join(lines)


def _told(found: Comparison) -> dict[str, Any]:
    numbers = {"difference": found.difference, "low": found.low, "high": found.high, "p": found.p}
    return {name: round(value, 6) for name, value in numbers.items()} | {"better": found.better, "worse": found.worse}


def compare_results(
    first: Any,
    second: Any,
    dataset: Dataset | str | Path | None = None,
    by: Sequence[str] = ("type",),
    *,
    seed: int = 0,
) -> Compared:
    """What the second model earned more than the first on the questions that both were asked, and per slice.

    Rows belong together by id, and must ask the same. Significance is by a paired test over pictures; among slices it
    is Holm's, so that one of twenty is not called better by chance. Raises `DataError` where no question is shared.

    >>> wb.compare_results(results, results).whole.difference
    0.0
    """
    ours, theirs = rows_of(first), rows_of(second)
    names = (name_of(first), name_of(second))
    same = ours.join(theirs.select("id", "question", other="earned"), on=["id", "question"], nulls_equal=True)
    both = same.filter(pl.col("earned").is_not_null() & pl.col("other").is_not_null())
    if not both.height:
        raise DataError(f"{names[0]} and {names[1]}", found="no question that both answered", expected="the same ones")
    labels = labelled(both, dataset, by)
    found = []
    for (name,), group in labels.join(both, on="id").group_by("slice", maintain_order=True):
        found.append((str(name), group.height, _paired(group, seed)))
    sure = [value < 0.05 for value in holm([one.p for *_, one in found])]
    parts = [(*one, flag) for one, flag in zip(found, sure, strict=True)]
    parts.sort(key=lambda part: part[2].difference)
    left_out = ours.height + theirs.height - 2 * both.height
    return Compared(*names, _paired(both, seed), both.height, left_out, tuple(parts))


def _paired(rows: pl.DataFrame, seed: int) -> Comparison:
    groups = pictures(rows)
    alone = len(set(groups)) == len(groups)  # then McNemar's exact test can be used
    return compare(rows["earned"].to_list(), rows["other"].to_list(), groups=None if alone else groups, seed=seed)
