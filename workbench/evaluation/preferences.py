"""Whose answers a judge prefers: two models on the same questions, each pair of answers shown in both orders.

Knows: that a preference counts only if it stays when the two change places, and the sign test.
Does not know: how a judge is asked (`judges.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from workbench.data.dataset import Dataset
from workbench.display import AsPrinted
from workbench.errors import DataError, WorkbenchError
from workbench.evaluation.judges import Judge, Reply, ask, asked_of, prompt, store_of
from workbench.instruct.judge import last_object
from workbench.instruct.limits import Budget
from workbench.instruct.loop import Outcome
from workbench.result_rows import name_of, rows_of

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "better": {"type": "string", "enum": ["1", "2", "equal"]}},
    "required": ["reason", "better"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Preferred(AsPrinted):
    """Whose answers a judge prefers. A preference counts only if it stays when the two change places."""

    first: str
    second: str
    table: pl.DataFrame
    """Columns: id, better (first, second, equal, order, or null where the judge failed), failed (why)."""
    outcome: Outcome

    def count(self, better: str) -> int:
        return self.table.filter(pl.col("better") == better).height

    @property
    def p(self) -> float:
        """Two-sided sign test over the questions on which one is preferred."""
        from scipy.stats import binomtest

        first, both = self.count("first"), self.count("first") + self.count("second")
        return float(binomtest(first, both).pvalue) if both else 1.0

    def summary(self) -> dict[str, Any]:
        counts = {name: self.count(name) for name in ("first", "second", "equal", "order")}
        return {"names": [self.first, self.second], **counts, "failed": self.table["better"].null_count(), "p": self.p}

    def __str__(self) -> str:
        said = self.summary()
        lines = [
            f"{self.first} preferred on {said['first']:,}, {self.second} on {said['second']:,}, neither on "
            f"{said['equal']:,} (sign test p = {self.p:.3g})",
            f"{said['order']:,} were decided by which stood first and count for none",
        ]
        if said["failed"]:
            lines.append(f"{said['failed']:,} without a verdict: {self.table['failed'].drop_nulls()[0][:200]}")
        return "\n".join(lines)


def prefer(
    first: Any,
    second: Any,
    judge: Judge,
    dataset: Dataset | str | Path | None = None,
    *,
    store: str | Path | None = None,
    budget: Budget | None = None,
    prices: str | Path | None = None,
) -> Preferred:
    """Have a model choose between the answers of two models to the same questions, each pair in both orders.

    Raises `DataError` where the two have no question in common.
    """
    data = None if dataset is None else Dataset.open(dataset)
    theirs = rows_of(second).select("id", "question", other="answer")
    both = rows_of(first).join(theirs, on=["id", "question"], nulls_equal=True).drop_nulls(["answer", "other"])
    names = name_of(first), name_of(second)
    if not both.height:
        raise DataError(f"{names[0]} and {names[1]}", found="no question that both answered", expected="the same ones")
    task, questions = prompt("pair"), {}
    for row in both.iter_rows(named=True):
        for order, (one, two) in (("12", ("answer", "other")), ("21", ("other", "answer"))):
            more = {"reference": row["reference"] or "", "first": row[one], "second": row[two]}
            asked = asked_of(task, row, data, **more)
            questions[f"{row['id']} {order}"] = replace(asked, id=f"{row['id']} {order}")
    kept = store_of(store, first, data)
    replies, outcome = ask(judge, questions, kept, schema=SCHEMA, dataset=data, budget=budget, prices=prices)
    found = [(name, *_verdict(replies[f"{name} 12"], replies[f"{name} 21"])) for name in both["id"]]
    schema = {"id": pl.String, "better": pl.String, "failed": pl.String}
    return Preferred(*names, pl.DataFrame(found, schema=schema, orient="row"), outcome)


def _verdict(straight: Reply, swapped: Reply) -> tuple[str | None, str | None]:
    said = [_better(straight, {"1": "first", "2": "second"}), _better(swapped, {"1": "second", "2": "first"})]
    for one, reply in zip(said, (straight, swapped), strict=True):
        if one is None:
            return None, f"no verdict in {' '.join(str(reply).split())[:120]!r}"
    return (said[0] if said[0] == said[1] else "order"), None


def _better(reply: Reply, names: Mapping[str, str]) -> str | None:
    found = None if isinstance(reply, WorkbenchError) else last_object(reply, "better")
    return {**names, "equal": "equal"}.get(str(found["better"]).strip().lower()) if found else None
