"""Rows to scores: the benchmark's own measure, its parts, and how sure each is.

Knows: intervals over pictures (questions about one picture stand or fall together), failed rows, how scores are told.
Does not know: rules (`reading`), files (`results`), models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import DataError
from workbench.evaluation.reading import Rules, rules
from workbench.evaluation.results import SCORES, SETTINGS, Results, Row, kept_rows, table
from workbench.evaluation.statistics import interval
from workbench.evaluation.tally import Part


def scores(by: Rules, rows: Sequence[Row], about: Mapping[str, Any], remarks: Sequence[str] = ()) -> dict[str, Any]:
    """What `scores.json` says of these rows: `score` and parts in percent, `low` and `high` at 95%.

    `remarks`: notes of how the questions were read, kept among those of how they were scored.

    Where a score is no mean (F1, points), `low` and `high` stand with `accuracy`, the mean of what rows earned.
    """
    unscored = sum(row["earned"] is None for row in rows)  # a judge failed
    rows = [row for row in rows if row["earned"] is not None]
    counted = by.count(rows, about)
    pictures = {_published_id(row): (row["root"], row["image"]) for row in rows}
    failed = sum(bool(row["error"]) for row in rows)
    parts = {name: _with_bounds(name, part, rows, pictures) for name, part in counted.parts.items()}
    told = {"name": by.name, "score": _round(counted.score), "measure": counted.measure or by.measure, "n": counted.n}
    marks = [(earned, pictures.get(item.identity)) for item, earned in counted.marked]
    if marks:
        told |= _bounds(marks)
    else:
        told["accuracy"] = _accuracy([row for row in rows if row["rule"] or row["error"]])
    notes = [*remarks, *counted.notes]
    if unseen := sum(map(_unseen, rows)):
        told_of = "the model's template leaves questions out, as `plain` does"
        notes.append(f"{unseen} prompt(s) do not hold their question: {told_of}; what it says answers none")
    if unscored:
        notes.append(f"the judge failed at {unscored} answer(s); they are in no average")
    if failed:
        notes.append(f"{failed} row(s) failed and count as wrong")
    return told | {"unparsed": counted.unparsed, "errors": failed, "parts": parts, "notes": notes}


def _unseen(row: Row) -> bool:
    """Whether a question did not reach the model."""
    words, prompt = str(row.get("question") or "").split(), row.get("prompt")
    return bool(words) and isinstance(prompt, str) and max(words, key=len) not in prompt


def _published_id(row: Row) -> str | None:
    from workbench.evaluation.fields import identity

    return identity({"id": row["id"], **(row.get("about") or {})})


def _with_bounds(
    name: str, part: Mapping[str, Any], rows: Sequence[Row], pictures: Mapping[str | None, Any]
) -> dict[str, Any]:
    plain = {key: _round(value) for key, value in part.items()}
    if isinstance(part, Part) and part.marked:
        return plain | _bounds([(earned, pictures.get(item.identity)) for item, earned in part.marked])
    own = [row for row in rows if row["type"] == name]
    return plain | ({f"accuracy_{key}": value for key, value in _bounds(_marks(own)).items()} if own else {})


def _marks(rows: Sequence[Row]) -> list[tuple[float, Any]]:
    return [(float(row["earned"]), (row["root"], row["image"])) for row in rows]


def _accuracy(rows: Sequence[Row]) -> dict[str, Any]:
    marks = _marks(rows)
    return {"score": _round(100 * sum(earned for earned, _ in marks) / len(marks)), **_bounds(marks)} if marks else {}


def _bounds(marks: Sequence[tuple[float, Any]]) -> dict[str, float]:
    found = interval([earned for earned, _ in marks], groups=[picture for _, picture in marks])
    return {"low": _round(100 * found.low), "high": _round(100 * found.high)}


def _round(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def told(scored: Mapping[str, Any]) -> str:
    """Scores as lines for a person."""
    measure = f" ({scored['measure']})" if scored["measure"] else ""
    lines = [f"{scored['name']} {scored['score']:.2f}{_between(scored)}{measure} of {scored['n']:,} questions"]
    if scored.get("accuracy"):
        lines.append(f"  accuracy {scored['accuracy']['score']:.2f}{_between(scored['accuracy'])}")
    width = max(map(len, scored["parts"]), default=0)
    for name, part in scored["parts"].items():
        more = [
            f"{key} {value:.2f}"
            for key, value in part.items()
            if isinstance(value, float) and key not in ("score", "low", "high") and not key.startswith("accuracy_")
        ]
        head = f"  {name:<{width}} {part['score']:6.2f}{_between(part)}  n {part['n']:<6,}"
        lines.append("  ".join([head, *more]).rstrip())
    if scored["unparsed"]:
        many = 2 * scored["unparsed"] > scored["n"]
        hint = "; the score says little: --likelihood takes the likeliest of the known answers" if many else ""
        lines.append(f"note: {scored['unparsed']} answer(s) are empty or not in a form that the rule reads{hint}")
    return "\n".join(lines + [f"note: {note}" for note in scored["notes"]])


def _between(part: Mapping[str, Any]) -> str:
    return f" [{part['low']:.1f}, {part['high']:.1f}]" if "low" in part else ""


def score_again(path: Path | str, scorer: str | None = None) -> Results:
    """A result folder read and counted anew, without a model, and kept; also one that was stopped half-way.

    scorer: another one for a person's own questions. Raises `DataError` for what is no result folder, or has no row.
    """
    import json

    from workbench.resources import write_atomic

    held = Results.open(path)
    rows = kept_rows(Path(path))
    if not rows:
        raise DataError(str(path), found="no row", fix="run the evaluation again, it goes on where it was")
    by = rules(scorer or held.scorer)
    if by.name == "judge" or (scorer is None and held.settings.get("judge")):
        fix = "--scorer names one, or run the evaluation again with its judge: kept replies cost nothing"
        raise DataError(str(path), found="scores by a judge", expected="a scorer that needs no model", fix=fix)
    again = [read_again(by, row) for row in rows]
    settings = {**held.settings, "scorer": by.name}
    scored = scores(by, again, held.settings.get("around", {}), held.settings.get("notes", ()))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in again)
    write_atomic(Path(path) / "rows.jsonl", lines)
    write_atomic(Path(path) / SCORES, json.dumps(scored, ensure_ascii=False, indent=1) + "\n")
    write_atomic(Path(path) / SETTINGS, json.dumps(settings, ensure_ascii=False, indent=1) + "\n")
    return Results(table(again), settings, scored, Path(path))


def read_again(by: Rules, row: Row) -> Row:
    """A row with what `by` reads in its answer now; one that failed or was not asked stays."""
    if row["answer"] is None:
        return row
    read = by.read(row["answer"], row)
    return {**row, "said": read.said, "rule": read.rule, "earned": read.earned}
