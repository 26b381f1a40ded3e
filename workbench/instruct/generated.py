"""What a generation gave: counts, the funnel from asked to kept, and what it cost.

Knows: how replies are counted on their way.
Does not know: how they were asked for or why they are rejected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.conversation import Conversation
from workbench.display import AsPrinted

if TYPE_CHECKING:
    from workbench.instruct.loop import Outcome
    from workbench.instruct.plan import Job


@dataclass
class Generated(AsPrinted):
    """What was made, what was not, and why."""

    counts: dict[str, int] = field(default_factory=dict)
    """Good conversations per task."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Images that nothing could be made of, with the reason."""
    failed: dict[str, str] = field(default_factory=dict)
    """Requests a teacher did not answer, with the reason; the next run asks again."""
    outcome: Outcome | None = None
    """Calls, tokens, money and seconds; None for the rules teacher."""
    _asked: Counter[str] = field(default_factory=Counter)
    _answered: Counter[str] = field(default_factory=Counter)
    _rejected: Counter[str] = field(default_factory=Counter)

    def asked(self, job: Job) -> None:
        self._asked[job.task.name] += 1

    def answered(self, job: Job, problems: Sequence[str]) -> None:
        """A reply came; it counts to the first check that rejects it."""
        self._answered[job.task.name] += 1
        if problems:
            self._rejected[problems[0]] += 1

    def count(self, conversations: Iterable[Conversation]) -> None:
        for conversation in conversations:
            task = conversation.task or ""
            self.counts[task] = self.counts.get(task, 0) + 1

    @property
    def rejected(self) -> dict[str, int]:
        """Conversations by the first check that rejected them."""
        return dict(self._rejected)

    @property
    def funnel(self) -> pl.DataFrame:
        """How many were left after every step, the last of which is `kept`. Columns: step, removed, left."""
        left = self._asked.total()
        rows: list[tuple[str, int, int]] = [("wanted", 0, left)]
        checked = {f"passed the check {name}": count for name, count in self._rejected.items()}
        for step, removed in {"answered": left - self._answered.total(), **checked, "kept": 0}.items():
            left -= removed
            rows.append((step, removed, left))
        return pl.DataFrame(rows, schema=["step", "removed", "left"], orient="row")

    def summary(self) -> dict[str, Any]:
        """The same for a program to read."""
        made: dict[str, Any] = {"counts": self.counts, "skipped": self.skipped}
        if self.outcome is not None:
            made |= {"rejected": self.rejected, "failed": self.failed, "outcome": self.outcome.summary()}
            made["funnel"] = self.funnel.to_dicts()
        return made

    def __str__(self) -> str:
        lines = [f"{task}: {count:,} conversations" for task, count in self.counts.items()]
        if self.skipped:
            path, reason = next(iter(self.skipped.items()))
            lines.append(f"{len(self.skipped)} images gave none, for example {path}: {reason}")
        if self.outcome is not None:
            lines += [str(self.outcome), *(_told(*row) for row in self.funnel.iter_rows())]
        if self.failed:
            lines.append(f"{len(self.failed)} were not answered, for example {next(iter(self.failed.values()))}")
        return "\n".join(lines)


def _told(step: str, removed: int, left: int) -> str:
    """A line of the funnel."""
    lost = "without an answer" if step == "answered" else "rejected"
    return f"  {step}: {left:,}" + (f" ({removed:,} {lost})" if removed else "")
