"""Two result folders side by side: which is better, how surely, on which questions, and what was asked differently.

Knows: rows of the same question, paired comparison with its significance, settings that differ, letters that flipped.
Does not know: how rows came to be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from workbench.display import AsPrinted
from workbench.errors import DataError
from workbench.evaluation.results import NOT_ASKED, Results
from workbench.evaluation.statistics import Comparison, compare

SHOWN = 10
"""Rows of each kind that a person is shown; all are in the tables."""


@dataclass(frozen=True)
class ResultDiff(AsPrinted):
    """The second against the first, on the questions that both have."""

    first: Results
    second: Results
    overall: Comparison
    by_type: dict[str, Comparison]
    rows: pl.DataFrame
    """`id`, `type`, `image`, `question`, `reference` of each common question, and of both `said_`, `answer_`,
    `rule_`, `earned_` and `margin_`, ending in `a` or `b`."""
    settings: dict[str, str]
    """What was asked differently, in words."""
    alone: tuple[int, int]
    """Rows that only the first, and only the second has."""

    @property
    def asked(self) -> pl.DataFrame:
        """The rows that both were asked: a rotation after a wrong one may have been left out."""
        left_out = (pl.col(name).fill_null("") == NOT_ASKED for name in ("rule_a", "rule_b"))
        return self.rows.filter(~pl.any_horizontal(*left_out))

    @property
    def gained(self) -> pl.DataFrame:
        """Wrong in the first, right in the second."""
        return self.asked.filter((pl.col("earned_a") < 1) & (pl.col("earned_b") >= 1))

    @property
    def lost(self) -> pl.DataFrame:
        """Right in the first, wrong in the second."""
        return self.asked.filter((pl.col("earned_a") >= 1) & (pl.col("earned_b") < 1))

    @property
    def flips(self) -> pl.DataFrame:
        """What is read differently in the two answers, the least sure first."""
        margin = pl.min_horizontal("margin_a", "margin_b").alias("margin")
        return self.asked.filter(pl.col("said_a").ne_missing(pl.col("said_b"))).with_columns(margin).sort("margin")

    def summary(self) -> dict[str, Any]:
        """What `--json` prints; differences from -1 to 1."""
        rows = {"gained": self.gained["id"].to_list(), "lost": self.lost["id"].to_list()}
        flips = [[row["id"], row["said_a"], row["said_b"], row["margin"]] for row in self.flips.iter_rows(named=True)]
        return {
            "models": [self.first.model, self.second.model],
            "scores": [self.first.scores.get("score"), self.second.scores.get("score")],
            "difference": _plain(self.overall),
            "by_type": {name: _plain(found) for name, found in self.by_type.items()},
            "settings": self.settings,
            "common": len(self.rows),
            "alone": list(self.alone),
            "flips": flips,
            **rows,
        }

    def __str__(self) -> str:
        scores = [result.scores.get("score") for result in (self.first, self.second)]
        lines = [f"{self.first.model} -> {self.second.model}: {self.overall}"]
        if None not in scores:
            lines.append(f"  score {scores[0]:.2f} -> {scores[1]:.2f} of all questions of each")
        width = max(map(len, self.by_type), default=0)
        lines += [f"  {name:<{width}} {found}" for name, found in self.by_type.items()]
        lines += [f"differs: {name}: {what}" for name, what in self.settings.items()]
        if any(self.alone):
            only = f"{self.alone[0]:,} only in the first, {self.alone[1]:,} only in the second"
            lines.append(f"note: compared on the {len(self.rows):,} questions that both have; {only}")
        lines += _listed("wrong -> right", self.gained) + _listed("right -> wrong", self.lost)
        flips = self.flips.filter((pl.col("earned_a") >= 1) == (pl.col("earned_b") >= 1))
        return "\n".join(lines + _listed("read differently, worth the same", flips))


def diff(first: Results | Path | str, second: Results | Path | str) -> ResultDiff:
    """Compare two result folders on the questions that both have.

    A question that comes in several forms (CircularEval) counts once, with the worst of them. Raises `DataError` where
    they have no question in common, or ask the same id different things.
    """
    a, b = (one if isinstance(one, Results) else Results.open(one) for one in (first, second))
    rows = _joined(a, b)
    items = _items(rows)
    types = {name[0]: part for name, part in items.group_by(["type"], maintain_order=True)}
    parts = {str(name): _compared(part) for name, part in sorted(types.items(), key=str)} if len(types) > 1 else {}
    return ResultDiff(
        a, b, _compared(items), parts, rows, _settings(a, b), (len(a.rows) - len(rows), len(b.rows) - len(rows))
    )


def _joined(a: Results, b: Results) -> pl.DataFrame:
    own = ("said", "answer", "rule", "earned", "margin")
    left = a.rows.rename({name: f"{name}_a" for name in own})
    right = b.rows.select("id", "question", "reference", *own).rename({name: f"{name}_b" for name in own})
    rows = left.join(right, on="id", suffix="_other", maintain_order="left")
    names = [_named(a), _named(b)]
    if not len(rows):
        found = f"no question in common ({a.settings.get('name')} and {b.settings.get('name')})"
        raise DataError(" and ".join(names), found=found, expected="results of the same questions")
    other = rows.filter(
        pl.col("question").ne_missing(pl.col("question_other"))
        | pl.col("reference").ne_missing(pl.col("reference_other"))
    )
    if 2 * len(other) > len(rows):
        row = other.row(0, named=True)
        found = f"another question under the id {row['id']}: {row['question']!r} and {row['question_other']!r}"
        raise DataError(" and ".join(names), found=found, expected="results of the same questions")
    same = rows.join(other.select("id"), on="id", how="anti", maintain_order="left")
    return same.drop("question_other", "reference_other")


def _items(rows: pl.DataFrame) -> pl.DataFrame:
    """One row for each question: the worst of its forms."""
    firsts = [pl.col(name).first() for name in ("type", "image", "root")]
    worst = [pl.col("earned_a").min(), pl.col("earned_b").min()]
    return rows.group_by("item", maintain_order=True).agg(*firsts, *worst)


def _compared(items: pl.DataFrame) -> Comparison:
    pictures = list(zip(items["root"], items["image"], strict=True))
    alone = len(set(pictures)) == len(pictures)
    return compare(items["earned_a"].to_list(), items["earned_b"].to_list(), groups=None if alone else pictures)


def _settings(a: Results, b: Results) -> dict[str, str]:
    """The settings that differ, each in a few words."""
    told = {}
    for name in ("name", "scorer", "questions", "model", "asked", "versions"):
        before, now = a.settings.get(name), b.settings.get(name)
        keys: list[str | None] = list(dict.fromkeys((*_keys(before), *_keys(now)))) or [None]
        for key in keys:
            one, two = (before, now) if key is None else ((before or {}).get(key), (now or {}).get(key))
            if one != two:
                told[name if key is None else f"{name}.{key}"] = f"{_short(one)} -> {_short(two)}"
    return told


def _keys(value: Any) -> list[str]:
    return list(value) if isinstance(value, Mapping) else []


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _named(results: Results) -> str:
    return str(results.path or results.model)


def _plain(found: Comparison) -> dict[str, Any]:
    numbers = {"difference": found.difference, "low": found.low, "high": found.high, "p": found.p}
    return {name: round(value, 6) for name, value in numbers.items()} | {
        "better": found.better, "worse": found.worse, "significant": found.significant(),
    }  # fmt: skip


def _listed(title: str, rows: pl.DataFrame) -> list[str]:
    if not len(rows):
        return []
    lines = [f"{title}: {len(rows):,}"]
    for row in rows.head(SHOWN).iter_rows(named=True):
        margin = next((row[name] for name in ("margin_b", "margin_a") if row[name] is not None), None)
        sure = "" if margin is None else f"  margin {margin:.3f}"
        said = f"{row['said_a']!r} -> {row['said_b']!r}, right is {row['reference']!r}"
        question = " ".join(row["question"].split())
        lines.append(f"  {row['id']}  {question[:60]}  {said}{sure}")
    return lines
