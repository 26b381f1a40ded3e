"""From a dataset's images to conversations about them: asked, checked, kept.

Knows: which tasks are wanted, what becomes of every reply, and that nothing a person changed is overwritten.
Does not know: how a task is worded (`tasks.py`), how teachers are asked (`loop.py`), or what is wrong with an answer
(`checks.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from workbench.chat_model import ChatModel
from workbench.conversation import Conversation
from workbench.curation.splits import split
from workbench.data.dataset import Dataset
from workbench.data.outgoing import pictures_of
from workbench.data.scene_text import QUESTIONS
from workbench.errors import ConversationError, DataError
from workbench.instruct.checks import CHECKS, Check, Context, check
from workbench.instruct.cost import estimate_requests
from workbench.instruct.diversity import describe_conversations
from workbench.instruct.endpoints import Request
from workbench.instruct.estimate import Estimate, prompt_text
from workbench.instruct.generated import Generated
from workbench.instruct.limits import Budget
from workbench.instruct.loop import run
from workbench.instruct.material import WHAT, Material, Turns
from workbench.instruct.parse import ReplyError
from workbench.instruct.plan import Ground, Job, Row, about, generator, job_id, jobs, parameters
from workbench.instruct.replies import Reply, ReplyStore
from workbench.instruct.rules import which_caption, write_classify
from workbench.instruct.tasks import Task, find_task
from workbench.instruct.teacher import RULES, Teacher, TeacherSpec, find_teacher
from workbench.progress import track

RULES_VERSION = 2
"""Goes up whenever the rules teacher words anything differently."""

PER_IMAGE: Mapping[str, int] = {"caption": 1, "conversation": 3, "detail": 1, "reasoning": 1}
QUESTION = "question"
"""The task of held-out single questions; `metadata["type"]` is the type they are scored under."""
REPLIES = "replies.sqlite"
"""Every reply a teacher ever gave about the dataset, in its folder: a second run asks for nothing twice."""
VIDEOS = "about which nothing is written: a teacher sees pictures, and what is known is not about what moves"
"""Why videos are left out."""
REJECTED = "check "
"""What the reason of a conversation begins with that a check rejected; a person's reasons do not."""


def generate(
    dataset: Dataset | str | Path,
    *,
    teacher: str | Path | TeacherSpec | ChatModel = RULES,
    tasks: Sequence[str | Task] | Mapping[str, int] | None = None,
    seed: int = 0,
    questions_per_image: int = 4,
    question: str = WHAT,
    checks: Sequence[Check] | None = None,
    budget: Budget | None = None,
    prices: str | Path | None = None,
    limit: int | None = None,
    again: bool = False,
    script: str = "latin",
) -> Generated:
    """Write conversations about every usable image of `dataset`; how many videos are left out is printed.

    `teacher`: `rules` (exact, from annotations, captions or classes), `MODEL@URL` for an OpenAI-compatible endpoint,
    `local:MODEL`, a teacher file, or any `ChatModel`. `tasks`: names, prompt files or `Task`s, or names with how many
    conversations an image gets; by default what is known about the images allows.

    Rules: images of the validation and test splits also get single questions, which are scored: `questions_per_image`
    of different types about annotations, else `question` about the class, else which of four captions fits. Everything
    is written at once at the end.

    Other teachers: every reply is on the disk before the next step, so that a run that was ended in any way goes on
    where it was and never pays twice; `budget` and Ctrl-C end it cleanly. `checks` (default `CHECKS`) reject replies;
    the rejected are kept in the dataset with status removed and the reason, and `again` asks for those anew. `script`:
    what answers are to be written in (`checks.SCRIPTS`). `limit`: the first so many images. What a person edited or
    rejected stays as it is. The dataset's card gets a section `conversations`: how many, how long, how varied.

    Where no image has a split, all get one first (`curation.splits`). A second run with the same arguments gives the
    same conversations under the same ids, so nothing is doubled. Raises DataError for an unknown teacher or task, and
    where no image gave a conversation; RecipeError for a teacher file that is wrong.

    >>> wb.generate("data", tasks=["caption"], questions_per_image=0).counts
    {'caption': 24}
    """
    dataset = Dataset.open(dataset)
    wanted = _wanted(tasks)
    if dataset.images["split"].is_null().all():
        split(dataset, seed=seed, stratify="label")
    pictures_of(dataset.images.filter(pl.col("status") == "ok"), VIDEOS)
    ground = Ground(dataset, question, limit=limit)
    if teacher == RULES:
        return _by_rules(dataset, ground, wanted, seed, questions_per_image)
    found = find_teacher(teacher, dataset, prices=prices)
    looks = _Checks(list(CHECKS.values() if checks is None else checks), script)
    return _by_teacher(dataset, ground, wanted, seed, found, looks, budget, again)


def estimate(
    dataset: Dataset | str | Path,
    *,
    teacher: str | Path | TeacherSpec | ChatModel,
    tasks: Sequence[str | Task] | Mapping[str, int] | None = None,
    question: str = WHAT,
    prices: str | Path | None = None,
    limit: int | None = None,
    again: bool = False,
) -> Estimate:
    """What `generate` with the same arguments would ask for, and about what it would cost; nothing is asked.

    Three of the prompts are shown as they would be sent. Replies that are there already are counted apart.
    """
    dataset = Dataset.open(dataset)
    if teacher == RULES:
        raise DataError("estimate", found="teacher rules", expected="another: rules ask nobody and cost nothing")
    found = find_teacher(teacher, dataset, prices=prices)
    pictures_of(dataset.images.filter(pl.col("status") == "ok"), VIDEOS)
    ground = Ground(dataset, question, limit=limit)
    planned = _planned(dataset, ground, _wanted(tasks), found, again)
    asked = [(job.task.name, found.request(job)) for job in planned]
    path = dataset.path / REPLIES
    known: dict[str, Reply] = {}
    if path.exists():
        with ReplyStore(path) as store:
            known = store.get_many([one.key for _, one in asked])
    waiting = [(task, one.conversation, one.options.max_tokens) for task, one in asked if one.key not in known]
    lengths: dict[str, list[int]] = {}
    for task, one in asked:
        if one.key in known:
            lengths.setdefault(task, []).append(known[one.key].completion_tokens)
    return estimate_requests(
        waiting,
        found.price,
        model=found.model,
        stored=len(known),
        reply_tokens={task: sum(counts) / len(counts) for task, counts in lengths.items()},
        requests_per_minute=_together(one.requests_per_minute for one in found.endpoints),
        tokens_per_minute=_together(one.tokens_per_minute for one in found.endpoints),
    )


def _together(rates: Iterable[float | None]) -> float | None:
    """The rate of all endpoints; None where one has no limit."""
    known = list(rates)
    return sum(rate for rate in known if rate) if all(known) else None


def show_prompt(
    dataset: Dataset | str | Path,
    task: str | Task,
    *,
    image: str | None = None,
    sees: bool = True,
    structured: bool = True,
) -> str:
    """The exact prompt of a task for one image: the first it can be asked of, or the one with this id or path.

    Raises `DataError` where there is no such image, or too little is known about it.

    >>> wb.show_prompt("data", "detail").splitlines()[0]
    '[system] You ...'
    """
    dataset = Dataset.open(dataset)
    found, ground = find_task(task), Ground(dataset)
    if not found.prompt:
        raise DataError("prompt", found=f"task {found.name!r}, which has none", expected="a task with a prompt")
    for row in ground.rows:
        material = ground.material(row)
        if image in (None, row["id"], row["path"]) and found.fits(material, sees=sees):
            asked = found.ask(material, id=row["id"], sees=sees, json=structured and found.schema is not None)
            return prompt_text(asked)
    needs = ", ".join(found.needs)
    raise DataError(f"prompt of task {found.name}", found=f"no image {image or ''} to ask it of", expected=f"{needs}")


def _wanted(tasks: Sequence[str | Task] | Mapping[str, int] | None) -> dict[Task, int]:
    counts = PER_IMAGE if tasks is None else tasks if isinstance(tasks, Mapping) else dict.fromkeys(tasks, 1)
    wanted = {find_task(task): count for task, count in counts.items()}
    for task, count in wanted.items():
        if count < 1:
            raise DataError("generate", found=f"{task.name}={count}", expected="1 or more, or leave the task out")
    return wanted


# --- rules ----------------------------------------------------------------------------------------------------


def _by_rules(
    dataset: Dataset, ground: Ground, wanted: Mapping[Task, int], seed: int, questions_per_image: int
) -> Generated:
    untold = [task.name for task in wanted if task.write is None]
    if untold:
        fix = "choose another teacher for it"
        raise DataError(
            "generate", found=f"task {untold[0]!r} with teacher rules", expected="a task with rules", fix=fix
        )
    made: dict[str, Conversation] = {}
    report = Generated()
    for row in track(ground.rows, "writing conversations", unit="image"):
        material = ground.material(row)
        written = [*_rules_for(ground, row, material, wanted, seed)]
        if row["split"] in ("val", "test"):
            written += _questions(ground, row, material, questions_per_image, seed)
        if not written:
            names = ", ".join(task.name for task in wanted)
            report.skipped[row["path"]] = f"no annotation, caption or class that {names} can be written from"
        made |= {conversation.id: conversation for conversation in written}
    if not made:
        raise DataError(
            str(dataset.path),
            found=f"no image with what rules write {', '.join(task.name for task in wanted)} from",
            expected="annotations, captions or classes",
            fix="put images in sub-folders named by class, or a captions.csv beside them, and import again; "
            "or choose another task or teacher",
        )
    own = touched(dataset)
    dataset.add_conversations(
        [one for one in made.values() if one.id not in own],
        operation={"name": "generate", "teacher": RULES, "seed": seed},
    )
    report.count(made.values())
    _describe(dataset)
    return report


def _describe(dataset: Dataset) -> None:
    """Facts about all conversations that are good, for the card."""
    dataset.describe(conversations=describe_conversations(dataset.iter_conversations()).card())


def _rules_for(
    ground: Ground, row: Row, material: Material, wanted: Mapping[Task, int], seed: int
) -> Iterator[Conversation]:
    for task, count in wanted.items():
        for number in range(count):
            turns = task.write(material, generator(seed, row["path"], task.name, number)) if task.write else []
            if turns:
                source = _rules_source(ground, task.name, seed)
                yield about(row, job_id(ground.name, row, task.name, number), task.name, turns, source)


def _questions(ground: Ground, row: Row, material: Material, count: int, seed: int) -> Iterator[Conversation]:
    """Held-out single questions: of `count` different types for a scene, else about the class, else the caption."""
    rng = generator(seed, row["path"], QUESTION, 0)
    asked: list[tuple[Turns, str]] = []
    if material.scene is None:
        turns = write_classify(material, rng) or (which_caption(material, rng) if material.captions else [])
        asked = [(turns, "class" if material.label else "caption")] if turns else []
    else:
        kinds = [list(QUESTIONS)[int(index)] for index in rng.permutation(len(QUESTIONS))]
        found = [question for kind in kinds if (question := QUESTIONS[kind](material.scene, rng)) is not None]
        asked = [([(question.text, question.answer)], question.type) for question in found[:count]]
    for number, (turns, kind) in enumerate(asked):
        source = _rules_source(ground, QUESTION, seed)
        yield about(row, job_id(ground.name, row, QUESTION, number), QUESTION, turns, source, type=kind)


def _rules_source(ground: Ground, task: str, seed: int) -> dict[str, Any]:
    return {"dataset": ground.name, "teacher": RULES, "task": task, "version": RULES_VERSION, "seed": seed}


# --- other teachers -------------------------------------------------------------------------------------------


def _by_teacher(
    dataset: Dataset,
    ground: Ground,
    wanted: Mapping[Task, int],
    seed: int,
    teacher: Teacher,
    checks: _Checks,
    budget: Budget | None,
    again: bool,
) -> Generated:
    planned = _planned(dataset, ground, wanted, teacher, again)
    with ReplyStore(dataset.path / REPLIES) as store:
        asked = (teacher.request(job) for job in planned)
        outcome = run(
            asked, teacher.endpoints, store, budget=budget, total=len(planned), description=f"asking {teacher.name}"
        )
        report = Generated(outcome=outcome, failed=dict(outcome.failed))
        kept, rejected = _read_replies(planned, teacher, store, seed, checks, report)
    operation = {"name": "generate", "teacher": teacher.name, "model": teacher.model, "seed": seed}
    own = touched(dataset)
    dataset.add_conversations([one for one in kept if one.id not in own], rejected=rejected, operation=operation)
    report.count(one for one in kept if one.id not in rejected)
    _describe(dataset)
    return report


class _Checks(NamedTuple):
    """What replies are looked at for."""

    checks: list[Check]
    script: str


def _planned(dataset: Dataset, ground: Ground, wanted: Mapping[Task, int], teacher: Teacher, again: bool) -> list[Job]:
    """The jobs of a teacher. Raises `DataError` for a task that it cannot do, and where there is no job."""
    untold = [task.name for task in wanted if not task.prompt]
    if untold:
        raise DataError("generate", found=f"task {untold[0]!r}, which has no prompt", expected="a task with one")
    attempts = _attempts(dataset, again=again)
    planned = list(jobs(ground, wanted, teacher=teacher.name, sees=teacher.sees, attempts=attempts))
    if not planned:
        needs = ", ".join(sorted({need for task in wanted for need in task.needs}))
        raise DataError(str(dataset.path), found="no image with what the tasks need", expected=f"one of {needs}")
    return planned


def _read_replies(
    planned: Sequence[Job],
    teacher: Teacher,
    store: ReplyStore,
    seed: int,
    checks: _Checks,
    report: Generated,
) -> tuple[list[Conversation], dict[str, str]]:
    """Every conversation there is a reply for, and why some of them are rejected, by id."""
    kept: list[Conversation] = []
    rejected: dict[str, str] = {}
    for _, group in groupby(planned, key=lambda job: job.row["id"]):
        others: list[Conversation] = []
        asked = [(job, teacher.request(job)) for job in group]
        replies = store.get_many([one.key for _, one in asked])
        for job, one in asked:
            reply = replies.get(one.key)
            report.asked(job)
            if reply is None:
                continue
            context = Context(others, checks.script)
            conversation, problems = read_reply(job, one, reply, teacher, seed, checks.checks, context)
            report.answered(job, [name for name, _ in problems])
            kept.append(conversation)
            if problems:
                rejected[conversation.id] = rejection(problems)
            else:
                others.append(conversation)
    return kept, rejected


def rejection(problems: Sequence[tuple[str, str]]) -> str:
    """The reason to keep with a conversation that checks rejected: each with what it found."""
    return REJECTED + "; ".join(f"{name}: {found}" for name, found in problems)


def read_reply(
    job: Job,
    asked: Request,
    reply: Reply,
    teacher: Teacher,
    seed: int,
    checks: Sequence[Check],
    context: Context,
) -> tuple[Conversation, list[tuple[str, str]]]:
    """The conversation in a reply, with what is wrong with it."""
    source = _source(job, asked, reply, teacher, seed)
    try:
        turns = job.task.parse(reply.text, job.material, job.generator(seed))
        conversation = job.conversation(turns, source)
    except (ReplyError, ConversationError) as problem:
        problems = [("format", problem.found or str(problem))]
        turns = [(f"({job.task.name})", reply.text if reply.text.strip() else "(an empty reply)")]
        conversation = job.conversation(turns, source)
    else:
        found = check(conversation, job.material, context, checks=checks)
        problems = [(rejection.name, rejection.found) for rejection in found]
    passed = [one.name for one in checks if one.name not in dict(problems)]
    noted = [{"check": name, "found": found} for name, found in problems]
    source |= {"checks": passed, **({"rejected": noted} if noted else {})}
    return replace(conversation, source=source), problems


def _source(job: Job, asked: Request, reply: Reply, teacher: Teacher, seed: int) -> dict[str, Any]:
    """Provenance, as `explain` prints it."""
    return {
        "teacher": teacher.name,
        "model": reply.model,
        "task": job.task.name,
        "prompt_version": job.task.version,
        "prompt_hash": job.task.prompt_hash,
        "parameters": parameters(asked.options),
        "reply": hashlib.sha256((reply.raw or reply.text).encode()).hexdigest(),
        "key": asked.key,
        "attempt": job.attempt,
        "seed": seed,
    }


def _attempts(dataset: Dataset, *, again: bool) -> dict[str, int]:
    """Which go every conversation is at, by id; one more for those that a check rejected, where `again` is wanted."""
    rows = dataset.conversation_rows.select("id", "source", "reason").iter_rows()
    found = {}
    for name, source, reason in rows:
        attempt = json.loads(source).get("attempt", 0) + (again and (reason or "").startswith(REJECTED))
        if attempt:
            found[name] = attempt
    return found


def touched(dataset: Dataset) -> set[str]:
    """Ids of the conversations that a person edited or rejected."""
    rows = dataset.conversation_rows
    edited = pl.col("source").str.contains('"edits"', literal=True)
    rejected = (pl.col("status") != "ok") & ~pl.col("reason").fill_null("").str.starts_with(REJECTED)
    return set(rows.filter(edited | rejected)["id"])
