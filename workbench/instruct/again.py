"""One conversation written anew, by the teacher a person chooses while looking at it.

Knows: which job a conversation of the dataset was, and that every go is another one.
Does not know: who keeps the new text, and what becomes of the old one (`curation/review.py`).
"""

from __future__ import annotations

from dataclasses import replace

from workbench.conversation import Conversation
from workbench.data.dataset import Dataset
from workbench.errors import DataError
from workbench.instruct.checks import CHECKS, Context
from workbench.instruct.generator import REPLIES, RULES_VERSION, read_reply, rejection
from workbench.instruct.limits import Budget
from workbench.instruct.loop import run
from workbench.instruct.plan import Ground, Job
from workbench.instruct.replies import ReplyStore
from workbench.instruct.tasks import TASKS
from workbench.instruct.teacher import RULES, Teacher, TeacherSpec, find_teacher

SECONDS = 180.0
"""A person waits for it."""


def write_again(
    dataset: Dataset, name: str, *, teacher: str | TeacherSpec = RULES, ground: Ground | None = None
) -> tuple[Conversation, str | None]:
    """The conversation `name` as `teacher` writes it now, under its old id, and why a check would reject it, or None.

    Nothing is kept but the teacher's reply. `teacher`: `rules`, `MODEL@URL`, `local:MODEL` or a teacher file. `ground`
    saves reading the images anew. Raises `DataError` where the teacher cannot write this task about this image, or gave
    no answer that can be read; `RecipeError` for a teacher file that is wrong.
    """
    old, _, _ = dataset.find(name)
    ground = ground or Ground(dataset)
    job = _job(ground, old)
    if teacher == RULES:
        return _by_rules(ground, job), None
    found = find_teacher(teacher, dataset)
    if not job.task.prompt or not job.task.fits(job.material, sees=found.sees):
        raise DataError(f"conversation {name}", found=f"too little to ask {found.name} a {job.task.name} about")
    return _by_teacher(dataset, job, found)


def _job(ground: Ground, old: Conversation) -> Job:
    where = f"conversation {old.id}"
    if old.task not in TASKS:
        raise DataError(where, found=f"task {old.task!r}, which no teacher writes", expected=", ".join(TASKS))
    row = ground.row(old.images[0].root, old.images[0].path) if old.images else None
    if row is None:
        raise DataError(where, found="no image of it that is ok", fix="a removed image can be taken back")
    return Job(old.id, row, ground.material(row), TASKS[old.task], 0, old.source.get("attempt", 0) + 1)


def _by_rules(ground: Ground, job: Job) -> Conversation:
    turns = job.task.write(job.material, job.generator(job.attempt)) if job.task.write else []
    if not turns:
        raise DataError(
            f"conversation {job.id}", found=f"too little for rules to write a {job.task.name}", fix="choose a model"
        )
    source = {"dataset": ground.name, "teacher": RULES, "task": job.task.name, "version": RULES_VERSION}
    return job.conversation(turns, {**source, "seed": job.attempt, "attempt": job.attempt})


def _by_teacher(dataset: Dataset, job: Job, teacher: Teacher) -> tuple[Conversation, str | None]:
    asked = teacher.request(job)
    with ReplyStore(dataset.path / REPLIES) as store:
        outcome = run([asked], teacher.endpoints, store, budget=Budget(seconds=SECONDS))
        reply = store.get_many([asked.key]).get(asked.key)
    if reply is None:
        why = next(iter(outcome.failed.values()), None) or outcome.stopped or "no reply"
        raise DataError(f"teacher {teacher.name}", found=why, fix="the conversation is as it was")
    new, problems = read_reply(job, asked, reply, teacher, job.attempt, list(CHECKS.values()), Context())
    unread = next((found for name, found in problems if name == "format"), None)
    if unread:
        raise DataError(f"teacher {teacher.name}", found=f"a reply without turns: {unread}", fix="ask once more")
    return replace(new, id=job.id), rejection(problems) if problems else None
