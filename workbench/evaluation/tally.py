"""Scores and their parts, which every rule builds alike.

Knows: a question with what it earned, means, parts by kind.
Does not know: which benchmark asks (`rules_choice`, `rules_yes_no`, `rules_free`). Under every rule a question without
an answer is wrong.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.evaluation import fields
from workbench.evaluation.matching import Item

Parts = dict[str, dict[str, Any]]
"""Name to `score` in percent, `n` questions and what else the benchmark measures."""
Marked = tuple[Item, float]
"""A question and what it earned, from 0 to 1."""


@dataclass(frozen=True)
class Tally:
    """A score in percent, of how many questions, its parts, and how many answers the rule could not read."""

    score: float
    n: int
    parts: Parts
    unparsed: int
    notes: tuple[str, ...] = ()
    measure: str = ""
    """What the score is, where that depends on the questions there are; else the benchmark says it."""
    marked: Sequence[Marked] = ()
    """What each question earned, where the score is the mean of that."""


Rule = Callable[[Sequence[Item], Mapping[str, Any]], Tally]
"""Takes the questions and what their files tell around the rows, such as the names of question types."""


def tally(marked: Sequence[Marked], parts: Parts, unparsed: int, notes: tuple[str, ...] = ()) -> Tally:
    """The mean over all questions, with its parts."""
    whole = part(marked)
    return Tally(whole["score"], whole["n"], parts, unparsed, notes, marked=whole.marked)


class Part(dict[str, Any]):
    """`score` in percent and `n`; `marked` keeps the questions, for who wants an interval."""

    def __init__(self, marked: Sequence[Marked], **more: Any) -> None:
        super().__init__(score=100 * mean(earned for _, earned in marked), n=len(marked), **more)
        self.marked = tuple(marked)


def part(marked: Sequence[Marked]) -> Part:
    """`score` in percent and `n`."""
    return Part(marked)


def by_kind(marked: Iterable[Marked], kind: Callable[[Item], str | None]) -> Parts:
    """One part for each kind, in the order of their names; a question that has none is in no part."""
    groups: dict[str, list[Marked]] = defaultdict(list)
    for pair in marked:
        name = kind(pair[0])
        if name is not None:
            groups[name].append(pair)
    return {name: part(groups[name]) for name in sorted(groups, key=_natural)}


def _natural(name: str) -> list[tuple[str, int]]:
    """So that type 2 stands before type 10."""
    return [(word, int(digits or 0)) for word, digits in re.findall(r"(\D*)(\d*)", name)]


def told(name: str) -> Callable[[Item], str | None]:
    """A kind that stands in one field."""
    return lambda item: fields.plain(item.about.get(name))


def mean(values: Iterable[float]) -> float:
    """0 where there is nothing."""
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def as_dict(value: Any) -> dict[str, Any]:
    """The value if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def texts(reference: Any) -> list[str]:
    """A reference as texts: one, several, VQA's list of {"answer": ...}, or a list written as Python would."""
    reference = fields.listed(reference)  # VLMEvalKit's tables hold the ten answers so
    if isinstance(reference, list | tuple):
        return [text for text in map(fields.plain, reference) if text is not None]
    text = fields.plain(reference)
    return [] if text is None else [text]
