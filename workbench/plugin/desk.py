"""What a person reviews: the queue of a view's conversations, and everything to see about one of them, as JSON.

Knows: the order of the queue and its progress, what is marked in a text, what the teacher said where a person changed
it.
Does not know: panels, browsers, or how anything is kept (`curation/review.py`).
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.conversation import Conversation, to_chat
from workbench.curation.documents import LABELS
from workbench.curation.posters import posters
from workbench.curation.review import dataset_of
from workbench.curation.turns import Chat, shown_text, teachers_text
from workbench.data.tables import frame_to_conversations
from workbench.errors import DataError
from workbench.instruct.checks import contradictions
from workbench.instruct.plan import Ground

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

Shown = dict[str, Any]


class Desk:
    """The queue of one view. Verdicts given elsewhere are seen when the panel is opened anew."""

    def __init__(self, view: SampleCollection, current: str | None = None) -> None:
        self.dataset = dataset_of(view)
        self.current = current
        """The conversation that is shown."""
        self.samples: dict[str, str] = {}
        """The sample of each conversation, by id, in the order of the queue."""
        self._about: dict[str, list[str]] = {}
        self.labels: dict[str, str] = {}
        """The conversation of each label, by the label's id."""
        self.verdicts: dict[str, str | None] = {}
        fields = ["id", *(f"{LABELS}.{key}" for key in ("conversation_id", "id", "verdict"))]
        for sample, *found in zip(*view.values(fields), strict=True):
            for name, label, verdict in zip(*(part or [] for part in found), strict=True):
                self.samples[name], self.labels[label], self.verdicts[name] = sample, name, verdict
                self._about.setdefault(sample, []).append(name)
        self.order = list(self.samples)
        self._places = {name: place for place, name in enumerate(self.order)}
        self._ground: Ground | None = None
        self._lock = threading.Lock()

    # --- the queue ----------------------------------------------------------------------------------------------

    def neighbour(self, name: str | None, step: int) -> str | None:
        """The next (1) or previous (-1) one in the queue, round and round; None in an empty queue."""
        if not self.order:
            return None
        place = self._places.get(name or "", -1 if step > 0 else 0)
        return self.order[(place + step) % len(self.order)]

    def undecided(self, name: str | None) -> str | None:
        """The next one without a verdict; `name` itself where there is no other."""
        place = self._places.get(name or "", -1)
        following = (self.order[(place + step) % len(self.order)] for step in range(1, len(self.order) + 1))
        return next((one for one in following if not self.verdicts[one]), name)

    def of_sample(self, sample: str, current: str | None = None) -> str | None:
        """The conversation to open with an image: the current one if it is about it, else its first undecided."""
        about = self.about(sample)
        if current in about:
            return current
        return next((one for one in about if not self.verdicts[one]), about[0] if about else None)

    def about(self, sample: str | None) -> list[str]:
        """The conversations of one image, in the order of the queue."""
        return self._about.get(sample or "", [])

    def progress(self, name: str | None) -> Shown:
        said = list(self.verdicts.values())
        counts = {"accepted": said.count("accept"), "rejected": said.count("reject"), "total": len(said)}
        return {**counts, "place": self._places[name] + 1 if name in self._places else 0}

    def messages(self, name: str) -> Chat:
        """The turns as they are now. Raises `DataError` for an unknown id."""
        return to_chat(self.dataset.find(name)[0])

    # --- one conversation ---------------------------------------------------------------------------------------

    def show(self, name: str | None) -> Shown:
        """Everything to see about one conversation, or that there is none. Raises `DataError` for an unknown id."""
        shown: Shown = {"serial": time.time_ns() // 1000, "queue": self.progress(name), "current": name}
        if name is None:
            return shown
        names = self.about(self.samples.get(name)) or [name]
        rows = self.dataset.conversation_rows.filter(pl.col("id").is_in(names))
        states = {row: (status, reason) for row, status, reason in rows.select("id", "status", "reason").iter_rows()}
        found = {one.id: one for one in frame_to_conversations(rows)}
        if name not in found:
            raise DataError(f"conversation {name}", found="no such id in the dataset folder", fix="open the App anew")
        one, (status, reason) = found[name], states[name]
        others = [self._chip(found[other], states[other][0]) for other in names if other in found]
        return {
            **shown,
            "sample": self.samples.get(name),
            "images": self._pictures(one),
            "others": others,
            **{"id": one.id, "task": one.task or "conversation", "split": one.split, "status": status},
            **{"reason": reason, "verdict": one.metadata.get("verdict")},
            "teacher": one.source.get("model") or one.source.get("teacher"),
            "messages": self._messages(one),
        }

    def _pictures(self, one: Conversation) -> list[str]:
        """Files to show of it; of a video its poster."""
        if len(one.images) == len(one.media):
            return [str(self.dataset.resolve(image)) for image in one.images]
        rows = self.dataset.images.filter(pl.col("path").is_in([media.path for media in one.media]))
        shown = posters(self.dataset, rows)
        known = {(root, path): shown.get(name) for name, root, path in rows.select("id", "root", "path").iter_rows()}
        return [str(known.get((media.root, media.path)) or self.dataset.resolve(media)) for media in one.media]

    def _chip(self, one: Conversation, status: str) -> Shown:
        return {
            "id": one.id,
            "task": one.task or "conversation",
            "verdict": one.metadata.get("verdict"),
            "ok": status == "ok",
        }

    def _messages(self, one: Conversation) -> list[Shown]:
        marks, was = self._marks(one), teachers_text(one)
        shown = []
        for number, message in enumerate(one.messages):
            turn: Shown = {"role": message.role, "text": shown_text(message), "media": len(message.media)}
            turn["marks"] = [mark for mark in marks.get(number, []) if turn["text"] == message.text]
            if number in was:
                turn |= {"changed": True, "was": was[number]}
            shown.append(turn)
        return shown

    def _marks(self, one: Conversation) -> dict[int, list[Shown]]:
        """Words that contradict the annotations, by message: from, to, and what they say."""
        row = self.ground.row(*((one.images[0].root, one.images[0].path) if one.images else ("", "")))
        found: dict[int, list[Shown]] = {}
        for wrong in contradictions(one, self.ground.material(row)) if row else ():
            start, end = wrong.claim.span
            mark = {"from": start, "to": end, "kind": wrong.claim.kind}
            found.setdefault(wrong.message, []).append(mark)
        return {number: sorted(marks, key=lambda mark: mark["from"]) for number, marks in found.items()}

    @property
    def ground(self) -> Ground:
        """What is known about the images, read once."""
        with self._lock:
            self._ground = self._ground or Ground(self.dataset)
            return self._ground
