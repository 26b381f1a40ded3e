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
from workbench.evaluation.benchmarks import JUDGED
from workbench.evaluation.judges import Judge, judge_answers
from workbench.evaluation.results import ROWS, SCORES, SETTINGS, Results, Row, kept_rows, table
from workbench.evaluation.scores import scores
from workbench.evaluation.slice_scores import slices
from workbench.resources import write_atomic
from workbench.result_rows import about


def finished(results: Results, judge: Judge | None, by: Sequence[str], *, rubric: str | Path | None = None) -> Results:
    """Judged where there is a judge, then sliced."""
    if judge is not None and results.settings.get("name") in JUDGED:
        from workbench.evaluation.judged import judged_results

        results = judged_results(results, judge)
    elif judge is not None:
        results = judged(results, judge, rubric=rubric)
    return sliced(results, by) if by else results


def judged(
    results: Results, judge: Judge, dataset: Dataset | str | Path | None = None, *, rubric: str | Path | None = None
) -> Results:
    """The same answers with what a judge says they earn, kept in their folder where they have one.

    What the judge fails at has no `earned`: it is told in the scores' notes, and in no average. Raises `DataError`
    where it failed at all of them.
    """
    data = dataset if dataset is not None else about(results).get("dataset")
    told = judge_answers(results, judge, data, rubric=rubric)
    said = {row["id"]: {"earned": row["earned"], "rule": row["rule"]} for row in told.rows.iter_rows(named=True)}
    if told.failed == told.rows.height:
        why = next(iter(said.values()))["rule"]
        raise DataError(f"judge {told.judge}", found=f"no score for any answer: {why}", expected="a model that judges")
    found = scores(reading.JudgeRules(), _changed(results, said), {})
    return kept_anew(results, said, found, judge={"name": told.judge, "rubric": told.rubric})


def kept_anew(results: Results, said: Mapping[str, Row], found: Mapping[str, Any], **settings: Any) -> Results:
    """The same results with what is `said` of each row, by id, in them and in their folder."""
    rows = _changed(results, said)
    told = {**results.settings, **settings}
    if results.path:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        _write(results.path, {ROWS: lines, SETTINGS: told, SCORES: found})
    return replace(results, rows=table(rows), settings=told, scores=found)


def _changed(results: Results, said: Mapping[str, Row]) -> list[Row]:
    kept = kept_rows(results.path) if results.path else results.rows.to_dicts()
    return [{**row, **said.get(row["id"], {})} for row in kept]


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
