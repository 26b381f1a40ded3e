"""Answers that somebody made elsewhere, scored by a benchmark's own rule.

Knows: the way from files to a score, and how the score is told.
Does not know: models; `workbench evaluate` asks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.display import AsPrinted
from workbench.errors import DataError
from workbench.evaluation import matching
from workbench.evaluation.benchmarks import BENCHMARKS, Benchmark
from workbench.evaluation.score_files import read


@dataclass(frozen=True)
class Score(AsPrinted):
    """What `workbench score` tells: `score` and the parts in percent, `n` questions."""

    benchmark: str
    score: float
    n: int
    parts: dict[str, dict[str, Any]]
    unparsed: int
    """Answers that are empty or that the rule cannot read; most rules count them as wrong."""
    measure: str
    missing: int = 0
    """References without a prediction, which count as wrong."""
    unknown: int = 0
    """Predictions that belong to no reference, which are not scored."""
    duplicates: int = 0
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """What `--json` prints; scores rounded to four places."""
        parts = {name: {key: _rounded(value) for key, value in part.items()} for name, part in self.parts.items()}
        head = {"benchmark": self.benchmark, "score": _rounded(self.score), "n": self.n, "parts": parts}
        rest = {"unparsed": self.unparsed, "measure": self.measure, "missing": self.missing, "unknown": self.unknown}
        return head | rest | {"duplicates": self.duplicates, "notes": self.notes}

    def __str__(self) -> str:
        lines = [f"{self.benchmark}: {self.score:.2f} ({self.measure}) of {self.n:,} questions"]
        width = max(map(len, self.parts), default=0)
        for name, part in self.parts.items():
            more = [f"{key} {value:.2f}" for key, value in part.items() if isinstance(value, float) and key != "score"]
            lines.append("  ".join([f"  {name:<{width}} {part['score']:6.2f}  n {part['n']:<6,}", *more]).rstrip())
        if self.unparsed:
            lines.append(f"note: {self.unparsed} answer(s) are empty or not in a form that the rule reads")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def score(benchmark: str, predictions: Path | str, references: Path | str | Sequence[Path | str] = ()) -> Score:
    """Score a file of answers by the benchmark's own rule; without references the rows must bring them along.

    >>> scored = wb.score("pope", "answers.jsonl", ["coco/", "llava_pope_test.jsonl"])  # doctest: +SKIP

    Raises DataError for an unknown benchmark and for files that are missing, unreadable, or do not belong together.
    """
    if benchmark not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise DataError("score", found=f"benchmark {benchmark!r}", expected=f"one of {known}")
    chosen = BENCHMARKS[benchmark]
    given = read([predictions])
    try:
        if references:
            right = read([references] if isinstance(references, Path | str) else references)
            matched, about = matching.join(given, right, chosen.fields), given.about | right.about
        else:
            matched, about = matching.carried(given, chosen.fields), given.about
    except DataError as error:
        raise _explained(error, chosen, predictions) from error
    tally = chosen.rule(matched.items, about)
    if matched.missing:
        fate = f"are left out, as {chosen.title}'s own script does" if chosen.leaves_out else "count as wrong"
        matched.notes.append(f"{matched.missing:,} reference(s) have no prediction and {fate}")
    return Score(
        benchmark, tally.score, tally.n, tally.parts, tally.unparsed, tally.measure or chosen.measure,
        matched.missing, matched.unknown, matched.duplicates, [*matched.notes, *tally.notes],
    )  # fmt: skip


def _explained(error: DataError, benchmark: Benchmark, predictions: Path | str) -> DataError:
    """The same error with the file's name, and which files the benchmark's references are."""
    where = str(predictions) if error.where == "predictions" else error.where
    told = (
        f"{benchmark.title} needs {benchmark.files} ({benchmark.source})" if "references" in error.fix + where else ""
    )
    return DataError(where, found=error.found, expected=error.expected, fix="; ".join(filter(None, (error.fix, told))))
