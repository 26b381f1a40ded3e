"""A model as judge of conversations, and how far it agrees with people.

Knows: the rubric (`prompts/judge.jinja`, with a version), scores, and agreement with verdicts.
Does not know: who the judge is, or what happens to what it rejects.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from workbench.chat_model import ChatModel, SamplingOptions
from workbench.conversation import Conversation, Message
from workbench.display import AsPrinted
from workbench.errors import DataError, ModelError, WorkbenchError, kind_of
from workbench.instruct.material import Material
from workbench.instruct.tasks import Task, shipped_prompt
from workbench.progress import progress

ACCEPT_FROM = 7
"""A score from which on a conversation is accepted."""
VERDICTS = ("accept", "reject")
OPTIONS = SamplingOptions(max_tokens=400)
"""Greedy: a judge that is asked again says the same."""
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "score": {"type": "integer"}},
    "required": ["reason", "score"],
    "additionalProperties": False,
}
"""Of a reply, for judges that take one; the reason is written before the score that it is for."""
COLUMNS: dict[str, Any] = {
    "id": pl.String, "score": pl.Int64, "verdict": pl.String, "reason": pl.String, "failed": pl.String,
    "judge": pl.String, "rubric": pl.String,
}  # fmt: skip
_BATCH = 16
_SAID = re.compile(r"\b(?:score|rating)\b[\"'*_ ]*(?:\([^)]*\)[\"'*_ ]*)?[:=][\"'*_ ]*(\d+(?:\.\d+)?)(?![\d-])", re.I)
"""`Score: 7`, `**Score (1-10):** 7/10`."""


def judge(
    conversations: Sequence[Conversation],
    model: ChatModel,
    *,
    material: Mapping[str, Material] | None = None,
    rubric: str | Path | None = None,
    sees: bool = True,
    accept_from: int = ACCEPT_FROM,
) -> pl.DataFrame:
    """Ask `model` for a score from 1 to 10 of every conversation.

    `material`, by conversation id, is what is known about its image; `rubric` a prompt file of your own, or its text,
    with `{{ conversation }}` in it; `sees`: whether the judge is given the picture. Columns: id, score, verdict (accept
    or reject), reason, failed, judge, rubric (version and hash). A question that was not answered, or answered without
    a score, has the reason in `failed` and neither score nor verdict: it counts to no average. Raises `DataError` for
    a rubric that cannot be used.
    """
    if not hasattr(model, "reply_batch"):
        raise ModelError("judge", found=kind_of(model), expected="a model that answers: wb.open_model opens one")
    task = find_rubric(rubric)
    shared = (model.name, f"version {task.version}, {task.prompt_hash}")
    rows: list[tuple[Any, ...]] = []
    with progress(f"judging with {model.name}", total=len(conversations), unit="conversation") as bar:
        for start in range(0, len(conversations), _BATCH):
            part = conversations[start : start + _BATCH]
            asked = [ask(task, one, (material or {}).get(one.id, Material()), sees) for one in part]
            for one, reply in zip(part, _replies(model, asked), strict=True):
                rows.append((one.id, *read(reply, accept_from), *shared))
            bar.advance(len(part))
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def find_rubric(given: str | Path | None) -> Task:
    """The shipped rubric, a prompt file, or its text. Raises `DataError` for one that cannot be used."""
    if given is None:
        text = shipped_prompt("judge")
    elif isinstance(given, Path) or given.endswith(".jinja"):
        if not Path(given).is_file():
            raise DataError(str(given), found="no such file", expected="a rubric in a Jinja file")
        text = Path(given).read_text(encoding="utf-8")
    else:
        text = given
    if not re.search(r"\{\{-?\s*conversation\b", text):
        raise DataError("rubric", found="no {{ conversation }} in it", expected="what is to be judged")
    return Task("judge", ("pixels",), prompt=text)


def ask(task: Task, conversation: Conversation, material: Material, sees: bool) -> Conversation:
    """What a judge is asked about a conversation."""
    lines = [f"{message.role.upper()}: {message.text}" for message in conversation.messages]
    asked = task.ask(material, id=conversation.id, more={"conversation": "\n".join(lines)})
    if not sees or not conversation.images:
        return asked
    *before, last = asked.messages
    return Conversation(asked.id, (*before, Message("user", (*conversation.images, *last.content))))


def _replies(model: ChatModel, asked: Sequence[Conversation]) -> list[str | WorkbenchError]:
    """The texts; one question that fails takes no other along."""
    try:
        return [answer.text for answer in model.reply_batch(asked, OPTIONS)]
    except WorkbenchError as problem:
        return [problem] if len(asked) == 1 else [_replies(model, [one])[0] for one in asked]


def read(reply: str | WorkbenchError, accept_from: int) -> tuple[int | None, str | None, str | None, str | None]:
    """score, verdict, reason, failed: what a reply says, or why it says nothing."""
    if isinstance(reply, WorkbenchError):
        return None, None, None, f"not answered: {reply}"
    said = last_object(reply, "score")
    plain = _SAID.findall(reply)
    score = _score(said["score"] if said else plain[-1] if plain else None)
    if score is None:
        return None, None, None, f"no score from 1 to 10 in {' '.join(reply.split())[:120]!r}"
    reason = str(said.get("reason") or "").strip() if said else ""
    return score, "accept" if score >= accept_from else "reject", reason or None, None


def last_object(text: str, name: str) -> dict[str, Any] | None:
    """The last JSON object with this name; a judge may think aloud, or quote the form it is asked for, before it."""
    for match in reversed(list(re.finditer(r"\{", text))):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, match.start())
        except ValueError:
            continue
        if isinstance(value, dict) and name in value:
            return value
    return None


def _score(said: Any) -> int | None:
    """A whole number from 1 to 10: 7, 7.0, "7" or "7/10"; halves are rounded down, so that no doubt is in favour."""
    if isinstance(said, str):
        said = said.strip().removesuffix("/10").strip()
    try:
        value = float("nan") if isinstance(said, bool) else float(said)
    except (TypeError, ValueError):
        return None
    return math.floor(value) if 1 <= value <= 10 else None


# --- agreement with people --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement(AsPrinted):
    """How far a judge agrees with people, over the conversations that both judged."""

    n: int
    accuracy: float
    kappa: float | None
    """Cohen's: 1 is perfect, 0 is chance. None where one of the two says the same of all."""
    table: pl.DataFrame
    """Columns: human, judge, count."""
    failed: int = 0
    """Conversations that people judged and the judge failed at; they are in none of the figures."""

    def __str__(self) -> str:
        kappa = "not defined: one side says the same of all" if self.kappa is None else f"{self.kappa:.2f}"
        failed = f"; the judge failed at {self.failed} more" if self.failed else ""
        rows = [f"  people {human}, judge {said}: {count:,}" for human, said, count in self.table.iter_rows()]
        first = f"{self.n:,} judged by both: {self.accuracy:.1%} agree, Cohen's kappa {kappa}{failed}"
        return "\n".join([first, *rows])


def agreement(judged: pl.DataFrame, human: pl.DataFrame) -> Agreement:
    """Compare a judge's verdicts with people's: two tables with the columns id and verdict (accept, reject or null), as
    `judge` and `curation.table.verdicts` give them.

    Raises `DataError` for a table of another form, and where nothing was judged by both.
    """
    said, theirs = _verdicts(judged, "judge"), _verdicts(human, "human")
    both = theirs.join(said, on="id")
    failed = theirs.join(judged, on="id", how="semi").height - both.height
    if both.is_empty():
        raise DataError("agreement", found="no conversation that both judged", expected="verdicts about the same ids")
    from sklearn.metrics import cohen_kappa_score

    two = both["human"].n_unique() > 1 and both["judge"].n_unique() > 1
    kappa = float(cohen_kappa_score(both["human"].to_list(), both["judge"].to_list())) if two else None
    table = both.group_by("human", "judge").len("count").sort("human", "judge")
    return Agreement(both.height, int((both["human"] == both["judge"]).sum()) / both.height, kappa, table, failed)


def _verdicts(frame: pl.DataFrame, who: str) -> pl.DataFrame:
    where = f"agreement, table {who}"
    missing = {"id", "verdict"} - set(frame.columns)
    if missing:
        raise DataError(where, found=f"columns {', '.join(frame.columns)}", expected="id and verdict")
    said = frame.select("id", pl.col("verdict").cast(pl.String).alias(who)).drop_nulls().unique(maintain_order=True)
    other = set(said[who]) - set(VERDICTS)
    if other:
        raise DataError(where, found=f"verdict {min(other)!r}", expected=" or ".join(VERDICTS))
    twice = said.filter(pl.col("id").is_duplicated())["id"]
    if not twice.is_empty():
        raise DataError(where, found=f"both verdicts for {twice[0]!r}", expected="one verdict a conversation")
    return said
