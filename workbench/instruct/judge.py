"""A model as judge of conversations, and how far it agrees with people.

Knows: the rubric (`prompts/judge.jinja`, with a version), scores, and agreement with verdicts.
Does not know: who the judge is, or what happens to what it rejects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from workbench.chat_model import ChatModel, SamplingOptions
from workbench.conversation import Conversation, Message
from workbench.errors import DataError, WorkbenchError
from workbench.instruct.material import Material
from workbench.instruct.tasks import Task, shipped_prompt
from workbench.progress import progress

ACCEPT_FROM = 7
"""A score from which on a conversation is accepted."""
_SCHEMA: dict[str, Any] = {"score": pl.Int64, "verdict": pl.String, "reason": pl.String, "failed": pl.String}
_BATCH = 16


def judge(
    conversations: Sequence[Conversation],
    model: ChatModel,
    *,
    material: Mapping[str, Material] | None = None,
    rubric: str | None = None,
    sees: bool = True,
    accept_from: int = ACCEPT_FROM,
) -> pl.DataFrame:
    """Ask `model` for a score from 1 to 10 of every conversation.

    `material`, by conversation id, is what is known about its image; `rubric` the text of a prompt file of your own
    with `{{ conversation }}` in it; `sees`: whether the judge is given the picture. Columns: id, score, verdict (accept
    or reject), reason, failed. A reply without a score is in `failed` and has no score: it counts to no average.
    """
    task = Task("judge", ("pixels",), prompt=rubric if rubric is not None else shipped_prompt("judge"))
    rows: list[tuple[Any, ...]] = []
    with progress(f"judging with {model.name}", total=len(conversations), unit="conversation") as bar:
        for start in range(0, len(conversations), _BATCH):
            part = conversations[start : start + _BATCH]
            asked = [_ask(task, one, (material or {}).get(one.id, Material()), sees) for one in part]
            for one, text in zip(part, _replies(model, asked), strict=True):
                rows.append((one.id, *_read(text, accept_from)))
            bar.advance(len(part))
    return pl.DataFrame(rows, schema={"id": pl.String, **_SCHEMA}, orient="row")


def _ask(task: Task, conversation: Conversation, material: Material, sees: bool) -> Conversation:
    lines = [f"{message.role.upper()}: {message.text}" for message in conversation.messages]
    asked = task.ask(material, id=conversation.id, more={"conversation": "\n".join(lines)})
    if not sees or not conversation.images:
        return asked
    *before, last = asked.messages
    return Conversation(asked.id, (*before, Message("user", (*conversation.images, *last.content))))


def _replies(model: ChatModel, asked: Sequence[Conversation]) -> list[str]:
    """The texts; one question that fails takes no other along."""
    options = SamplingOptions(max_tokens=200)
    try:
        return [answer.text for answer in model.reply_batch(asked, options)]
    except WorkbenchError as problem:
        return [f"({problem})"] if len(asked) == 1 else [_replies(model, [one])[0] for one in asked]


def _read(text: str, accept_from: int) -> tuple[int | None, str | None, str | None, str | None]:
    """score, verdict, reason, failed"""
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        said = json.loads(found[0]) if found else {}
        score = round(float(said["score"]))
    except (ValueError, KeyError, TypeError):
        plain = re.search(r"\b(?:score|rating)\W{1,4}(\d+)\b", text, re.IGNORECASE)
        said, score = {}, int(plain[1]) if plain else 0
    if not 1 <= score <= 10:
        return None, None, None, f"no score from 1 to 10 in {' '.join(text.split())[:120]!r}"
    return score, "accept" if score >= accept_from else "reject", str(said.get("reason", "")) or None, None


@dataclass(frozen=True)
class Agreement:
    """How far a judge agrees with people, over the conversations that both judged."""

    n: int
    accuracy: float
    kappa: float | None
    """Cohen's: 1 is perfect, 0 is chance. None where one of the two says the same of all."""
    table: pl.DataFrame
    """Columns: human, judge, count."""

    def __str__(self) -> str:
        kappa = "not defined: one side says the same of all" if self.kappa is None else f"{self.kappa:.2f}"
        return f"{self.n} judged by both: {self.accuracy:.3f} agree, Cohen's kappa {kappa}\n{self.table}"


def agreement(judged: pl.DataFrame, human: pl.DataFrame) -> Agreement:
    """Compare a judge's verdicts with people's (columns id and verdict, as `curation.table.verdicts` gives them).

    Raises `DataError` where nothing was judged by both.
    """
    said = human.select("id", human="verdict").drop_nulls()
    both = judged.select("id", judge="verdict").drop_nulls().join(said, on="id")
    if both.is_empty():
        raise DataError("agreement", found="no conversation that both judged", expected="verdicts about the same ids")
    from sklearn.metrics import cohen_kappa_score

    two = both["human"].n_unique() > 1 and both["judge"].n_unique() > 1
    kappa = float(cohen_kappa_score(both["human"], both["judge"])) if two else None
    table = both.group_by("human", "judge").len("count").sort("human", "judge")
    return Agreement(both.height, (both["human"] == both["judge"]).sum() / both.height, kappa, table)
