"""One page about what training changed: the same sets before and after, what was learned and what was forgotten.

Knows: pairs of results on the same questions, each with its interval and significance, and what went wrong since.
Does not know: which set is private and which general; it is told what they are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from workbench import __version__
from workbench.data.dataset import Dataset
from workbench.errors import DataError
from workbench.evaluation.report import asked_dataset, write_page
from workbench.evaluation.report_parts import examples, in_turn, pictures_of
from workbench.evaluation.slice_scores import Compared, compare_results
from workbench.evaluation.statistics import Interval, holm, interval
from workbench.result_rows import HALF, about, name_of, pictures, rows_of

LOST = 10
"""Questions shown that were right before and are wrong now."""


@dataclass(frozen=True)
class Change:
    """One set before and after."""

    name: str
    before: Interval
    after: Interval
    compared: Compared
    sure: bool
    """Significant among all sets of the page."""
    lost: pl.DataFrame
    """Rows that earned half or more before and less now; the new answer in `answer_after`."""

    @property
    def verdict(self) -> str:
        if not self.sure:
            return "no change shown"
        return "better" if self.compared.whole.difference > 0 else "forgotten"


def changes(before: Sequence[Any], after: Sequence[Any]) -> list[Change]:
    """Each set before and after, in the order given. Raises `DataError` for lists of unequal length."""
    if len(before) != len(after) or not before:
        found = f"{len(before)} results before and {len(after)} after"
        raise DataError("report", found=found, expected="the same sets in the same order")
    compared = [compare_results(one, other) for one, other in zip(before, after, strict=True)]
    adjusted = holm([one.whole.p for one in compared])
    made = []
    for one, other, told, p in zip(before, after, compared, adjusted, strict=True):
        both = _shared(one, other)
        groups = pictures(both)
        then, now = (interval(both[column].to_list(), groups=groups) for column in ("earned", "earned_after"))
        lost = both.filter((pl.col("earned") >= HALF) & (pl.col("earned_after") < HALF))
        made.append(Change(_set_name(one, other), then, now, told, p < 0.05, lost))
    return made


def change_report(
    before: Sequence[Any], after: Sequence[Any], out: str | Path, *, dataset: Dataset | str | Path | None = None
) -> Path:
    """Write the page; `dataset` only helps to find pictures that the results do not say the place of."""
    found = changes(before, after)
    sets = []
    for change, results in zip(found, before, strict=True):
        shown = pictures_of(results, asked_dataset(results, dataset))
        some = in_turn(change.lost, LOST).iter_rows(named=True)
        told = examples(some, shown, [("before", ""), ("after", "_after")])
        sets.append({"change": change, "parts": change.compared.parts, "lost": told, "all_lost": len(change.lost)})
    values = {
        "title": f"{name_of(before[0])} → {name_of(after[0])}: what training changed",
        "subtitle": f"{len(found)} set(s), {sum(one.compared.n for one in found):,} questions asked of both",
        "sets": sets,
        "footer": f"workbench {__version__}",
    }
    return write_page("change.html.jinja", Path(out), values)


def _shared(one: Any, other: Any) -> pl.DataFrame:
    """Questions scored in both, with `answer_after` and `earned_after`."""
    theirs = rows_of(other).select("id", "question", answer_after="answer", earned_after="earned")
    both = rows_of(one).join(theirs, on=["id", "question"], nulls_equal=True)
    return both.filter(pl.col("earned").is_not_null() & pl.col("earned_after").is_not_null())


def _set_name(one: Any, other: Any) -> str:
    """What both were asked: the dataset or benchmark by name, else what the two folders are called."""
    return str(about(one).get("name") or f"{name_of(one)} → {name_of(other)}")
