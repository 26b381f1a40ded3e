"""What is to be written about which image: the jobs of a generation, and what a teacher is asked for each.

Knows: the dataset's images as material, ids that are the same in every run, the content address of a request; that
nothing is written about videos, in which nobody here has seen what moves.
Does not know: who answers (`teacher.py`, `rules.py`), the loop, or what becomes of a reply (`generator.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Message, check_conversation, new_id
from workbench.data.dataset import Dataset
from workbench.data.tables import media_of
from workbench.instruct.cost import Price, prompt_tokens
from workbench.instruct.endpoints import Request
from workbench.instruct.material import WHAT, Material, Turns, material_of, things_of
from workbench.instruct.tasks import Task

Row = Mapping[str, Any]


class Ground:
    """Everything that is known about the usable images of a dataset, one by one; videos are left out."""

    def __init__(self, dataset: Dataset, question: str = WHAT, *, limit: int | None = None) -> None:
        self.name = dataset.name
        rows = dataset.images.filter(pl.col("status") == "ok", pl.col("media") == "image")
        self.rows: list[Row] = (
            list(rows.head(limit).iter_rows(named=True)) if limit else list(rows.iter_rows(named=True))
        )
        self._places: dict[tuple[str, str], Row] = {}
        self._shared: dict[str, Any] = {
            "classes": sorted(set(rows["label"].drop_nulls().to_list())),
            "all_captions": sorted({text for texts in rows["captions"].to_list() for text in texts or ()}),
            "labels": sorted({thing.label for text in rows["objects"].drop_nulls() for thing in things_of(text)}),
            "question": question,
        }

    def row(self, root: str, path: str) -> Row | None:
        """The image that lies there, if it is usable."""
        if not self._places:
            self._places = {(row["root"], row["path"]): row for row in self.rows}
        return self._places.get((root, path))

    def material(self, row: Row) -> Material:
        return material_of(row, **self._shared)


@dataclass(frozen=True)
class Job:
    """One conversation to write: about an image, of a task, the `number`-th of its kind, at the `attempt`-th go."""

    id: str
    row: Row
    material: Material
    task: Task
    number: int
    attempt: int = 0

    def conversation(self, turns: Turns, source: Mapping[str, Any], **metadata: Any) -> Conversation:
        """The turns as a conversation about the image. Raises `ConversationError` for an illegal shape."""
        return about(self.row, self.id, self.task.name, turns, source, **metadata)

    def generator(self, seed: int) -> np.random.Generator:
        """Of its own for each job, so that the order of the work never changes a text."""
        return generator(seed, self.row["path"], self.task.name, self.number)


def jobs(
    ground: Ground,
    wanted: Mapping[Task, int],
    *,
    teacher: str | None = None,
    sees: bool = False,
    attempts: Mapping[str, int] | None = None,
) -> Iterator[Job]:
    """A job for every image, task and number that what is known allows, in the order of the images.

    `teacher` (None: rules) is part of the ids, so that two teachers do not overwrite each other. `attempts`: which go
    it is, by id.
    """
    for row in ground.rows:
        material = ground.material(row)
        for task, count in wanted.items():
            if not task.fits(material, sees=sees):
                continue
            for number in range(count):
                name = job_id(ground.name, row, task.name, number, teacher)
                yield Job(name, row, material, task, number, (attempts or {}).get(name, 0))


def job_id(dataset: str, row: Row, task: str, number: int, teacher: str | None = None) -> str:
    return new_id(dataset, row["id"], task, number, *([teacher] if teacher else []))


def request(
    job: Job, *, model: str, options: SamplingOptions, sees: bool, structured: bool, price: Price | None = None
) -> Request:
    """What a teacher is asked for a job, under its content address: words, picture, model, parameters and go.

    The same question to the same model about the same picture has the same address wherever the picture lies; several
    conversations of one task, and a further go, have addresses of their own.
    """
    schema = job.task.schema if structured else None
    asked = job.task.ask(job.material, id=job.id, number=job.number, sees=sees, json=schema is not None)
    options = replace(options, max_tokens=min(options.max_tokens, job.task.max_tokens))
    if options.seed is not None:
        options = replace(options, seed=options.seed + job.number + 1000 * job.attempt)
    key = content_address(asked, model, options, schema, job.number, job.attempt)
    return Request(key, asked, options, schema, prompt_tokens(asked, price.image if price else None))


def content_address(
    asked: Conversation, model: str, options: SamplingOptions, schema: Mapping[str, Any] | None, *more: Any
) -> str:
    """The key under which the reply to a question is kept; `more` tells apart what is asked several times."""
    said = [asked_part(message, part) for message in asked.messages for part in message.content]
    address = [said, model, parameters(options), schema, *more]
    return hashlib.sha256(json.dumps(address, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def asked_part(message: Message, part: Any) -> list[Any]:
    return [message.role, part if isinstance(part, str) else {"image": part.hash or f"{part.root}/{part.path}"}]


def parameters(options: SamplingOptions) -> dict[str, Any]:
    """What is kept of the sampling options, in JSON."""
    names = ("temperature", "top_p", "top_k", "max_tokens", "seed")
    return {name: getattr(options, name) for name in names} | {"stop": list(options.stop)}


def about(
    row: Row, id: str, task: str, turns: Sequence[tuple[str, str]], source: Mapping[str, Any], **metadata: Any
) -> Conversation:
    """A conversation about the image of `row`; the picture stands before the first question."""
    image = media_of(row)
    messages = []
    for index, (question, answer) in enumerate(turns):
        messages += [Message("user", (image, question) if index == 0 else (question,)), Message("assistant", (answer,))]
    return check_conversation(Conversation(id, tuple(messages), row["split"], task, source, metadata))


def generator(seed: int, *parts: object) -> np.random.Generator:
    """A generator that follows from the seed and the parts alone."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "big")])
