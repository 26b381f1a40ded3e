"""What is said in place of what: references against answers, for every type of question with few of them.

Knows: how answers and references become short names that can be counted, and which are too rare for a row of their own.
Does not know: pictures, or how a table is drawn.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import polars as pl

from workbench.display import AsPrinted
from workbench.evaluation.scorers import normalise
from workbench.result_rows import rows_of

MOST = 12
"""Different references of a type that are shown; a type with more has no table."""
OTHER, NOTHING = "(other)", "(nothing)"
_LONGEST = 24


@dataclass(frozen=True)
class Confusion(AsPrinted):
    """How often each reference of one type of question was answered with what."""

    type: str
    references: tuple[str, ...]
    said: tuple[str, ...]
    """The references first, then what else was said often, then `OTHER`."""
    counts: tuple[tuple[int, ...], ...]
    """(references, said)."""

    @property
    def table(self) -> pl.DataFrame:
        """Columns: reference, then one per answer."""
        columns = {name: [row[place] for row in self.counts] for place, name in enumerate(self.said)}
        return pl.DataFrame({"reference": self.references, **columns})

    def __str__(self) -> str:
        with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
            return f"{self.type}\n{self.table}"


def confusion(results: Any) -> list[Confusion]:
    """A table for every type with 2 to 12 different references, in the order of their names.

    `results`: a `Results`, its folder, or rows.

    >>> [one.type for one in wb.confusion(results)]
    ['relation', 'shape']
    """
    rows = rows_of(results).filter(pl.col("earned").is_not_null() & pl.col("reference").is_not_null())
    found = []
    for (kind,), group in rows.group_by("type", maintain_order=True):
        pairs = [
            (_short(reference), _short(said if said is not None else answer or ""))
            for reference, said, answer in group.select("reference", "said", "answer").iter_rows()
        ]
        if 2 <= len({reference for reference, _ in pairs}) <= MOST:
            found.append(_counted(str(kind), pairs))
    return sorted(found, key=lambda one: one.type)


def _counted(kind: str, pairs: list[tuple[str, str]]) -> Confusion:
    references = sorted({reference for reference, _ in pairs}, key=_natural)
    others = Counter(said for _, said in pairs if said not in references)
    often = [said for said, _ in others.most_common(max(0, MOST - len(references)))]
    columns = [*references, *sorted(often)] + ([OTHER] if len(others) > len(often) else [])
    counted = Counter((reference, said if said in columns else OTHER) for reference, said in pairs)
    counts = tuple(tuple(counted[reference, said] for said in columns) for reference in references)
    return Confusion(kind, tuple(references), tuple(columns), counts)


def _short(text: str) -> str:
    named = normalise(text) or NOTHING
    return named if len(named) <= _LONGEST else named[: _LONGEST - 1] + "…"


def _natural(name: str) -> tuple[int, str]:
    """Numbers by size, then words."""
    return (int(name), "") if name.isdigit() else (10**9, name)
