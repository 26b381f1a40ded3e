"""What a person's own evaluation has beyond right and wrong: a judge's scores, slices, and where both are kept.

Knows: that a judge comes after the answers and its word is kept with each row, and how slices stand in `scores.json`.
Does not know: how answers come (`running.py`) or slices are counted (`slice_scores.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.data.dataset import Dataset
from workbench.errors import DataError
from workbench.evaluation import reading
from workbench.evaluation.judges import Judge, judge_answers
from workbench.evaluation.results import ROWS, SCORES, SETTINGS, Results, kept_rows, table
from workbench.evaluation.scores import scores
from workbench.evaluation.slice_scores import slices
from workbench.resources import write_atomic
from workbench.result_rows import about


def judged(
    results: Results, judge: Judge, dataset: Dataset | str | Path | None = None, *, rubric: str | Path | None = None
) -> Results:
    """The same answers with what a judge says they earn, kept in their folder where they have one.

    What the judge fails at earns nothing and has a null: it is told in the scores' notes, and in no average. Raises
    `DataError` where it failed at all of them.
    """
    data = dataset if dataset is not None else about(results).get("dataset")
    told = judge_answers(results, judge, data, rubric=rubric)
    said = {row["id"]: row for row in told.rows.iter_rows(named=True)}
    kept = kept_rows(results.path) if results.path else results.rows.to_dicts()
    rows = [{**row, **{name: said[row["id"]][name] for name in ("earned", "rule", "error")}} for row in kept]
    scored = [row for row in rows if row["earned"] is not None]
    if not scored:
        why = next(row["error"] for row in rows)
        raise DataError(f"judge {told.judge}", found=f"no score for any answer: {why}", expected="a model that judges")
    found = scores(reading.JudgeRules(), scored, {})
    if told.failed:
        found["notes"] = [*found["notes"], f"the judge failed at {told.failed:,} answer(s); they are in no average"]
    settings = {
        **results.settings,
        "scorer": reading.JudgeRules.name,
        "judge": {"name": told.judge, "rubric": told.rubric},
    }
    made = replace(results, rows=table(rows), settings=settings, scores=found)
    if results.path:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        _write(results.path, {ROWS: lines, SETTINGS: settings, SCORES: found})
    return made


def sliced(results: Results, by: Sequence[str], dataset: Dataset | str | Path | None = None) -> Results:
    """The same results with the score of each slice in `scores["slices"]`, kept in their folder where they have one."""
    data = dataset if dataset is not None else about(results).get("dataset")
    found = {**results.scores, "slices": slices(results, data, by).summary()["slices"], "by": list(by)}
    if results.path:
        _write(results.path, {SCORES: found})
    return replace(results, scores=found)


def _write(folder: Path, files: Mapping[str, Any]) -> None:
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1) + "\n"
        write_atomic(folder / name, text)
