"""The loop that turns a dataset's images and annotations into conversations.

Knows: which tasks each split gets, ids that are the same in every run, and writing finished work only.
Does not know: how a task words its answers (`tasks.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from workbench.conversation import Conversation, Image, Message, check_conversation, new_id
from workbench.curation.splits import split
from workbench.data.dataset import Dataset
from workbench.data.scene_text import QUESTIONS
from workbench.data.scenes import Scene
from workbench.errors import DataError
from workbench.instruct.tasks import TASKS, WHAT, Material, Turns, which_caption, write_classify
from workbench.progress import track

RULES_VERSION = 2
"""Goes up whenever the rules teacher words anything differently."""

PER_IMAGE: Mapping[str, int] = {"caption": 1, "conversation": 3, "detail": 1, "reasoning": 1}
QUESTION = "question"
"""The task of held-out single questions; `metadata["type"]` is the type they are scored under."""


@dataclass
class Generated:
    """What was made: conversations per task, and images nothing could be made of, with the reason."""

    counts: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{task}: {count:,} conversations" for task, count in self.counts.items()]
        if self.skipped:
            lines.append(f"{len(self.skipped)} images gave none, for example {next(iter(self.skipped.items()))}")
        return "\n".join(lines)


def generate(
    dataset: Dataset,
    *,
    teacher: str = "rules",
    tasks: Sequence[str] | Mapping[str, int] | None = None,
    seed: int = 0,
    questions_per_image: int = 4,
    question: str = WHAT,
) -> Generated:
    """Write conversations about every usable image of `dataset`, by the rule-based teacher.

    `tasks`: names, or names with how many conversations an image gets; default: what the annotations allow. Images of
    the validation and test splits also get single questions, which are scored: `questions_per_image` of different
    types about annotations, else `question` about the class, else which of four captions fits. Where no image has a
    split, all get one first (`curation.splits`). A second run with the same arguments gives the same conversations
    under the same ids, so nothing is doubled; everything is written at once at the end, so an interrupted run leaves
    the conversations as they were. Raises DataError for an unknown teacher or task, and where no image gave one.
    """
    wanted = _wanted(teacher, tasks)
    if dataset.images["split"].is_null().all():
        split(dataset, seed=seed, stratify="label")
    rows = dataset.images.filter(pl.col("status") == "ok")
    classes = sorted(set(rows["label"].drop_nulls().to_list()))
    captions = sorted({text for texts in rows["captions"].to_list() for text in texts or ()})
    made: dict[str, Conversation] = {}
    report = Generated()
    for row in track(list(rows.iter_rows(named=True)), "writing conversations", unit="image"):
        material = _material(row, classes, captions, question)
        written = [*_for_image(dataset, row, material, wanted, seed)]
        if row["split"] in ("val", "test"):
            written += _questions(dataset, row, material, questions_per_image, seed)
        if not written:
            report.skipped[row["path"]] = "no annotation, caption or class"
        made |= {conversation.id: conversation for conversation in written}
    if not made:
        raise DataError(
            str(dataset.path),
            found="no image with annotations, a caption or a class",
            fix="put images in sub-folders named by class, or a captions.csv beside them, and import again",
        )
    dataset.add_conversations(made.values(), operation={"name": "generate", "teacher": teacher, "seed": seed})
    for conversation in made.values():
        task = conversation.task or ""
        report.counts[task] = report.counts.get(task, 0) + 1
    return report


def _wanted(teacher: str, tasks: Sequence[str] | Mapping[str, int] | None) -> Mapping[str, int]:
    if teacher != "rules":
        raise DataError("generate", found=f"teacher {teacher!r}", expected="rules")
    wanted = PER_IMAGE if tasks is None else tasks if isinstance(tasks, Mapping) else dict.fromkeys(tasks, 1)
    for task in wanted:
        if task not in TASKS:
            raise DataError("generate", found=f"task {task!r}", expected=f"one of {', '.join(TASKS)}")
    return wanted


def _material(row: Mapping[str, Any], classes: Sequence[str], captions: Sequence[str], question: str) -> Material:
    scene = Scene.from_json(row["objects"]) if row["objects"] and '"shape"' in row["objects"] else None
    return Material(scene, row["captions"] or (), row["label"], classes, captions, question)


def _for_image(
    dataset: Dataset, row: Mapping[str, Any], material: Material, wanted: Mapping[str, int], seed: int
) -> Iterator[Conversation]:
    for task, count in wanted.items():
        for number in range(count):
            turns = TASKS[task].write(material, _generator(seed, row["path"], task, number))
            if turns:
                yield _conversation(dataset, row, task, number, seed, turns)


def _questions(
    dataset: Dataset, row: Mapping[str, Any], material: Material, count: int, seed: int
) -> Iterator[Conversation]:
    """Held-out single questions: of `count` different types for a scene, else about the class, else the caption."""
    rng = _generator(seed, row["path"], QUESTION, 0)
    if material.scene is None:
        kind = "class" if material.label else "caption"
        turns = write_classify(material, rng) or (which_caption(material, rng) if material.captions else [])
        if turns:
            yield _conversation(dataset, row, QUESTION, 0, seed, turns, type=kind)
        return
    kinds = [list(QUESTIONS)[int(index)] for index in rng.permutation(len(QUESTIONS))]
    asked = [question for kind in kinds if (question := QUESTIONS[kind](material.scene, rng)) is not None]
    for number, question in enumerate(asked[:count]):
        turns = [(question.text, question.answer)]
        yield _conversation(dataset, row, QUESTION, number, seed, turns, type=question.type)


def _conversation(
    dataset: Dataset, row: Mapping[str, Any], task: str, number: int, seed: int, turns: Turns, **metadata: Any
) -> Conversation:
    image = Image(row["path"], row["root"], row["width"], row["height"], row["hash"])
    messages = []
    for index, (question, answer) in enumerate(turns):
        messages += [Message("user", (image, question) if index == 0 else (question,)), Message("assistant", (answer,))]
    source = {"dataset": dataset.name, "teacher": "rules", "version": RULES_VERSION, "seed": seed}
    name = new_id(dataset.name, row["id"], task, number)
    return check_conversation(Conversation(name, tuple(messages), row["split"], task, source, metadata))


def _generator(seed: int, *parts: object) -> np.random.Generator:
    """A generator of its own for each image and task: the order of the work never changes the text."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "big")])
