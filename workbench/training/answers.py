"""The same few held-out questions, answered again and again while a model learns.

Knows: which ones (tasks in turn, each about another image), and the files of a run folder that keep them: a line per
time in `answers.jsonl`, and the pictures, small, as `answers/0.jpg` and so on.
Does not know: when to ask, or who looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Media
from workbench.data.video import load_media, still
from workbench.inference.engine import Engine
from workbench.inference.prefix_cache import FeatureCache
from workbench.json_lines import JsonLines
from workbench.model.llava import Llava

COUNT = 5
LONGEST = 48
"""Tokens of an answer at most."""
SIDE = 160
"""Pixels of the kept pictures at most."""


class Answers:
    """Asks one model the questions of one run. `keeps`: this process writes them down; of several only one does."""

    def __init__(
        self,
        folder: Path,
        llava: Llava,
        conversations: Iterable[Conversation],
        resolve: Callable[[Any], Path],
        *,
        keeps: bool = True,
    ) -> None:
        self.folder, self.keeps, self._resolve = folder, keeps, resolve
        self.chosen = choose(conversations, COUNT)
        self._llava, self._features = llava, FeatureCache()
        self._lines = JsonLines(folder / "answers.jsonl")

    def ask(self, step: int) -> None:
        """Answer greedily and keep it as what the model says after `step`."""
        began = time.perf_counter()
        asked = [first_question(conversation) for conversation in self.chosen]
        with Engine(self._llava, open_image=self._open, features=self._features) as engine:
            given = engine.reply_batch([one.prompt for one in asked], SamplingOptions(max_tokens=LONGEST))
        texts = [answer.text.strip() for answer in given]
        if not self.keeps:
            return
        self._keep_pictures()
        rows = [self._row(number, one, text) for number, (one, text) in enumerate(zip(asked, texts, strict=True))]
        seconds = round(time.perf_counter() - began, 4)
        self._lines.append({"step": step, "answers": rows, "seconds": seconds})

    def rewind(self, step: int) -> None:
        """Drop what was said after `step`."""
        if self.keeps:
            self._lines.rewind(step)

    def asked_at(self, step: int) -> bool:
        """Whether the answers after `step` are there already, as in a run that goes on from it."""
        return any(row.get("step") == step for row in self._lines.rows())

    def close(self) -> None:
        self._lines.close()

    def _row(self, number: int, asked: Conversation, answer: str) -> dict[str, Any]:
        return {
            "id": asked.id,
            "task": asked.task,
            "picture": f"answers/{number}.jpg" if asked.media else None,
            "question": asked.prompt.messages[-1].text,
            "reference": asked.reference,
            "answer": answer,
        }

    def _open(self, media: Media) -> Any:
        return load_media(media, self._resolve(media))

    def _keep_pictures(self) -> None:
        for number, conversation in enumerate(self.chosen):
            path = self.folder / "answers" / f"{number}.jpg"
            if conversation.media and not path.is_file():
                path.parent.mkdir(exist_ok=True)
                picture = still(self._open(conversation.media[0])).convert("RGB")
                picture.thumbnail((SIDE, SIDE))
                picture.save(path, quality=88)


def choose(conversations: Iterable[Conversation], count: int) -> list[Conversation]:
    """`count` of them, the same ones for the same conversations: tasks in turn, no image twice if it can be helped."""
    ordered = sorted((one for one in conversations if _has_answer(one)), key=lambda one: one.id)
    tasks: dict[str, list[Conversation]] = {}
    for one in ordered:
        tasks.setdefault(one.task or "", []).append(one)
    chosen: list[Conversation] = []
    seen: set[object] = set()
    for again in (False, True):
        for one in _in_turn(list(tasks.values())):
            image = one.media[0] if one.media else one.id
            if len(chosen) < count and one not in chosen and (again or image not in seen):
                chosen.append(one)
                seen.add(image)
    return chosen


def first_question(conversation: Conversation) -> Conversation:
    """The conversation up to its first answer."""
    messages = conversation.messages
    end = next(place for place, message in enumerate(messages) if message.role == "assistant") + 1
    return Conversation(conversation.id, messages[:end], conversation.split, conversation.task)


def _has_answer(conversation: Conversation) -> bool:
    return any(message.role == "assistant" for message in conversation.messages)


def _in_turn(lists: Sequence[Sequence[Conversation]]) -> Iterator[Conversation]:
    return (one for one in chain.from_iterable(zip_longest(*lists)) if one is not None)
