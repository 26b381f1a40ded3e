"""A model as scorer: it is asked about each answer, with the reference; what it fails at is told and in no average.

Knows: the rubric (`prompts/answer.jinja`), what a reply says, and that every reply is kept.
Does not know: how endpoints are asked (`instruct`), pairs of answers (`preferences.py`), or the rules of published
benchmarks (`judged.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from workbench.chat_model import ChatModel, SamplingOptions
from workbench.conversation import Conversation, Image
from workbench.data.dataset import Dataset
from workbench.data.video import Film, by_content
from workbench.display import AsPrinted
from workbench.errors import DataError, WorkbenchError
from workbench.instruct.cost import prompt_tokens
from workbench.instruct.endpoints import Request
from workbench.instruct.generator import REPLIES
from workbench.instruct.judge import OPTIONS, SCHEMA, read
from workbench.instruct.limits import Budget
from workbench.instruct.loop import Outcome, run
from workbench.instruct.material import Material
from workbench.instruct.plan import content_address
from workbench.instruct.replies import ReplyStore
from workbench.instruct.tasks import Task
from workbench.instruct.teacher import RULES, TeacherSpec, find_teacher
from workbench.result_rows import folder_of, name_of, rows_of

Judge = str | Path | TeacherSpec | ChatModel
"""`MODEL@URL`, `local:MODEL`, a YAML file, its description, or anything that answers."""
Reply = str | WorkbenchError


def ask(
    judge: Judge,
    questions: Mapping[str, Conversation],
    store: str | Path,
    *,
    options: SamplingOptions = OPTIONS,
    schema: Mapping[str, Any] | None = None,
    dataset: Dataset | None = None,
    budget: Budget | None = None,
    prices: str | Path | None = None,
) -> tuple[dict[str, Reply], Outcome]:
    """What a judge says to each question, or why it says nothing; every reply is kept in the file `store`.

    Asked as a teacher is: many at once, within `budget`, none paid for twice. Raises `DataError` for rules as judge.
    """
    if judge == RULES:
        raise DataError("judge", found="rules", expected="a model: MODEL@URL, local:MODEL or a YAML file")
    who = find_teacher(judge, dataset, prices=prices)
    asked = schema if who.structured else None
    image = who.price.image if who.price else None
    requests = {
        name: Request(
            content_address(one, who.model, options, asked, "judge", name),
            one,
            options,
            asked,
            prompt_tokens(one, image),
        )
        for name, one in questions.items()
    }
    Path(store).parent.mkdir(parents=True, exist_ok=True)
    with ReplyStore(store) as kept:
        told = f"judging with {who.name}"
        outcome = run(requests.values(), who.endpoints, kept, budget=budget, total=len(requests), description=told)
        replies = kept.get_many([one.key for one in requests.values()])
    found: dict[str, Reply] = {}
    for name, request in requests.items():
        why = outcome.failed.get(request.key, outcome.stopped or "no reply")
        found[name] = replies[request.key].text if request.key in replies else WorkbenchError("judge", found=str(why))
    return found, outcome


@dataclass(frozen=True)
class Judged(AsPrinted):
    """Rows whose `earned` a judge said, and `rule` why; where it failed there is no `earned`."""

    rows: pl.DataFrame
    model: str
    judge: str
    rubric: str
    outcome: Outcome

    @property
    def failed(self) -> int:
        return self.rows["earned"].null_count()

    def __str__(self) -> str:
        scored = self.rows.height - self.failed
        mean = f", mean {float(self.rows['earned'].mean()):.3f}" if scored else ""  # type: ignore[arg-type]
        lines = [f"{self.model}, judged by {self.judge}: {scored:,} answers scored{mean}", str(self.outcome)]
        if self.failed:
            why = self.rows.filter(pl.col("earned").is_null())["rule"][0]
            lines.append(f"{self.failed:,} without a score, in no average; the first: {why[:200]}")
        return "\n".join(lines)


def judge_answers(
    results: Any,
    judge: Judge,
    dataset: Dataset | str | Path | None = None,
    *,
    rubric: str | Path | None = None,
    store: str | Path | None = None,
    budget: Budget | None = None,
    prices: str | Path | None = None,
) -> Judged:
    """Have a model score every answer against its reference, from 1 (earns 0) to 10 (earns 1).

    With the `dataset` that was asked about, a judge that sees is shown the picture. `rubric`: a Jinja file of your own
    with `{{ question }}`, `{{ reference }}` and `{{ answer }}`. Replies are kept in `store`, by default beside the
    results, else the dataset. Raises `DataError` for a rubric without the answer, and without a place for replies.
    """
    rows = rows_of(results)
    data = None if dataset is None else Dataset.open(dataset)
    task = _rubric(rubric)
    questions = {
        row["id"]: asked_of(task, row, data, reference=row["reference"] or "", answer=row["answer"] or "")
        for row in rows.iter_rows(named=True)
        if row["answer"] is not None  # what the model did not answer has an error of its own
    }
    kept = store_of(store, results, data)
    replies, outcome = ask(judge, questions, kept, schema=SCHEMA, dataset=data, budget=budget, prices=prices)
    known = [_scored(row, replies) for row in rows.iter_rows(named=True)]
    version = f"version {task.version}, {task.prompt_hash}"
    return Judged(pl.DataFrame(known, schema=rows.schema), name_of(results), judge_name(judge), version, outcome)


def judge_name(judge: Judge) -> str:
    return str(judge.model) if isinstance(judge, TeacherSpec) else str(getattr(judge, "name", judge))


def _scored(row: dict[str, Any], replies: Mapping[str, Reply]) -> dict[str, Any]:
    if row["id"] not in replies:
        return {**row, "earned": None, "rule": f"no answer to judge: {row['error']}"}
    score, _, reason, failed = read(replies[row["id"]], 1)
    if score is None:
        return {**row, "earned": None, "rule": f"judge failed: {failed}"}
    return {**row, "earned": (score - 1) / 9, "rule": f"judge: {score} of 10. {reason or ''}".strip()}


def _rubric(given: str | Path | None) -> Task:
    if given is None:
        return prompt("answer")
    if not Path(given).is_file():
        raise DataError(str(given), found="no such file", expected="a rubric in a Jinja file")
    text = Path(given).read_text(encoding="utf-8")
    if "answer" not in text:
        raise DataError(str(given), found="no {{ answer }} in it", expected="what is to be scored")
    return Task("judge", ("pixels",), prompt=text)


@cache
def prompt(name: str) -> Task:
    text = (Path(__file__).parent / "prompts" / f"{name}.jinja").read_text(encoding="utf-8")
    return Task("judge", ("pixels",), prompt=text)


def asked_of(task: Task, row: Mapping[str, Any], dataset: Dataset | None, **more: str) -> Conversation:
    """The question to the judge, with the picture where it can be shown; about a video it is told the words alone."""
    seen = _picture(row, dataset)
    told = {"question": row["question"] or "", **more}
    return task.ask(Material(image=seen), id=row["id"], sees=seen is not None, more=told)


def _picture(row: Mapping[str, Any], dataset: Dataset | None) -> Image | None:
    if dataset is None or not row["image"]:
        return None
    image = Image(row["image"], row["root"] or "")
    try:
        return None if isinstance(by_content(dataset.resolve(image)), Film) else image
    except DataError:  # of another root: the judge says of this row that it cannot be shown
        return image


def store_of(given: str | Path | None, results: Any, dataset: Dataset | None) -> Path:
    folder = folder_of(results)
    if given is not None:
        return Path(given)
    if folder is not None:
        return folder / REPLIES
    if dataset is None:
        raise DataError(
            "judge", found="no place for its replies", expected="store=FILE, a folder of results or a dataset"
        )
    return dataset.path / REPLIES
