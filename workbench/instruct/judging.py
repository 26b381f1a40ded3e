"""Judge the conversations of a dataset folder: asked as a teacher is, every reply kept, held against people's verdicts.

Knows: which conversations are judged, the replies beside those of the teachers, what becomes of the low scores.
Does not know: the rubric or how a score is read (`judge.py`), or how a judge is asked (`loop.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from workbench.chat_model import ChatModel
from workbench.conversation import Conversation
from workbench.data.dataset import Dataset
from workbench.data.tables import frame_to_conversations
from workbench.display import AsPrinted
from workbench.errors import DataError, WorkbenchError
from workbench.instruct.cost import prompt_tokens
from workbench.instruct.endpoints import Request
from workbench.instruct.generator import REPLIES, rejection, touched
from workbench.instruct.judge import (
    ACCEPT_FROM,
    COLUMNS,
    OPTIONS,
    SCHEMA,
    VERDICTS,
    Agreement,
    agreement,
    ask,
    find_rubric,
    read,
)
from workbench.instruct.limits import Budget
from workbench.instruct.loop import Outcome, run
from workbench.instruct.material import Material
from workbench.instruct.plan import Ground, content_address
from workbench.instruct.replies import ReplyStore
from workbench.instruct.tasks import Task
from workbench.instruct.teacher import RULES, Teacher, TeacherSpec, find_teacher


@dataclass(frozen=True)
class Judged(AsPrinted):
    """What a judge said of a dataset's conversations."""

    table: pl.DataFrame
    """Columns as of `judge`: id, score, verdict, reason, failed, judge, rubric."""
    outcome: Outcome
    agreement: Agreement | None
    """With people's verdicts; None where there are none about the same conversations."""
    rejected: int = 0
    """Conversations that were rejected for their score."""

    def summary(self) -> dict[str, Any]:
        """The figures, in JSON."""
        agreed = self.agreement
        return {
            "judged": self.table["score"].drop_nulls().len(),
            "failed": self.table["failed"].drop_nulls().len(),
            "mean score": self.table["score"].mean(),
            "accepted": self.table.filter(pl.col("verdict") == "accept").height,
            "rejected": self.rejected,
            "agreement": {"n": agreed.n, "accuracy": agreed.accuracy, "kappa": agreed.kappa} if agreed else None,
            "run": self.outcome.summary(),
        }

    def __str__(self) -> str:
        said = self.summary()
        mean = f", mean score {said['mean score']:.1f} of 10" if said["judged"] else ""
        lines = [str(self.outcome), f"{said['judged']:,} judged{mean}, {said['accepted']:,} accepted"]
        if said["failed"]:
            lines.append(f"{said['failed']:,} without a score: {self.table['failed'].drop_nulls()[0][:200]}")
        if self.rejected:
            lines.append(f"{self.rejected:,} rejected; `generate --again` asks the teacher for them anew")
        lines.append(f"people: {self.agreement}" if self.agreement else "people: no verdict yet to compare with")
        return "\n".join(lines)


def judge_dataset(
    dataset: Dataset | str | Path,
    judge: str | Path | TeacherSpec | ChatModel,
    *,
    rubric: str | Path | None = None,
    accept_from: int = ACCEPT_FROM,
    limit: int | None = None,
    reject: bool = False,
    prices: str | Path | None = None,
    budget: Budget | None = None,
) -> Judged:
    """Ask `judge` (as a teacher is named) for a score from 1 to 10 of the conversations that are ok, and of those that
    a person gave a verdict on.

    A judge is asked as a teacher is: many at once, within `budget`, every reply on the disk before the next step, so
    that a second run goes on and pays for nothing twice. `limit`: the first so many. `reject`: conversations under
    `accept_from` are kept with status removed and the score as reason; what a person accepted or edited stays as it
    is. Raises `DataError` where there is nothing to judge, `RecipeError` for a judge's file that is wrong.
    """
    dataset = Dataset.open(dataset)
    if judge == RULES:
        raise DataError("judge", found="rules", expected="a model: MODEL@URL, local:MODEL or a YAML file")
    task, who = find_rubric(rubric), find_teacher(judge, dataset, prices=prices)
    known = _to_judge(dataset, limit)
    requests = {one.id: request for one, request in _requests(dataset, known, task, who)}
    with ReplyStore(dataset.path / REPLIES) as store:
        title = f"judging with {who.name}"
        outcome = run(requests.values(), who.endpoints, store, budget=budget, total=len(requests), description=title)
        replies = store.get_many([one.key for one in requests.values()])
    rows = []
    for name, request in requests.items():
        reply = replies.get(request.key)
        why = outcome.failed.get(request.key, outcome.stopped or "no reply")
        said = reply.text if reply is not None else WorkbenchError("judge", found=why)
        rows.append((name, *read(said, accept_from), who.name, f"version {task.version}, {task.prompt_hash}"))
    table = pl.DataFrame(rows, schema=COLUMNS, orient="row")
    rejected = _reject(dataset, table, known) if reject else 0
    return Judged(table, outcome, _agreement(table, known), rejected)


def _to_judge(dataset: Dataset, limit: int | None) -> list[Conversation]:
    good = list(dataset.iter_conversations())
    names = {one.id for one in good}
    rows = dataset.conversation_rows.filter(pl.col("metadata").str.contains('"verdict"', literal=True))
    known = good + [one for one in frame_to_conversations(rows) if one.id not in names and _verdict(one)]
    about_pictures = [one for one in known if len(one.images) == len(one.media)]
    if left := len(known) - len(about_pictures):
        print(f"left out: {left:,} about videos, which a judge does not see")
    known = about_pictures
    if not known:
        fix = f"run `workbench generate {dataset.path}` first"
        raise DataError(str(dataset.path), found="no conversation", expected="some to judge", fix=fix)
    return known[:limit]


def _verdict(one: Conversation) -> str | None:
    verdict = one.metadata.get("verdict")
    return verdict if verdict in VERDICTS else None


def _requests(
    dataset: Dataset, known: list[Conversation], task: Task, who: Teacher
) -> Iterator[tuple[Conversation, Request]]:
    ground = Ground(dataset)
    options = replace(who.options, temperature=0.0, max_tokens=min(who.options.max_tokens, OPTIONS.max_tokens))
    schema = SCHEMA if who.structured else None
    for one in known:
        row = ground.row(one.images[0].root, one.images[0].path) if one.images else None
        asked = ask(task, one, ground.material(row) if row is not None else Material(), who.sees)
        key = content_address(asked, who.model, options, schema, "judge", one.id)
        yield one, Request(key, asked, options, schema, prompt_tokens(asked, who.price.image if who.price else None))


def _agreement(table: pl.DataFrame, known: list[Conversation]) -> Agreement | None:
    said = [(one.id, _verdict(one)) for one in known if _verdict(one)]
    human = pl.DataFrame(said, schema={"id": pl.String, "verdict": pl.String}, orient="row")
    both = table.filter(pl.col("verdict").is_not_null() & pl.col("id").is_in(human["id"].implode()))
    return agreement(table, human) if both.height else None


def _reject(dataset: Dataset, table: pl.DataFrame, known: list[Conversation]) -> int:
    """Keep what is under the bar as rejected, as a check does; a person's word counts more."""
    low: Mapping[str, Any] = {row["id"]: row for row in table.filter(pl.col("verdict") == "reject").to_dicts()}
    own = touched(dataset)
    mine = [one for one in known if one.id in low and not _verdict(one) and one.id not in own]
    reasons = {one.id: rejection([_said(low[one.id])]) for one in mine}
    if reasons:
        name = table["judge"][0]
        dataset.add_conversations(mine, rejected=reasons, operation={"name": "judge", "judge": name})
    return len(reasons)


def _said(row: Mapping[str, Any]) -> tuple[str, str]:
    return f"judge {row['judge']}", f"{row['score']} of 10. {row['reason'] or ''}"
