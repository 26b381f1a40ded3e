"""The answers that were given here, as the very tokens they were written in.

Knows: which tokens stand for an answer at its place in a conversation, and how they take the place of those that its
text would become: the two may differ, and then nothing that was computed for the answer could be found again.
Does not know: models, or what is kept of an answer besides its tokens.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from workbench.chat_model import Ending
from workbench.conversation import Conversation, Message
from workbench.errors import WorkbenchError
from workbench.model.renderer import IGNORE_INDEX, Rendered, Renderer

KEPT = 4096
"""Answers remembered; the oldest go first."""


@dataclass
class _Said:
    ids: tuple[int, ...]
    """As written, without an end token."""
    retold: tuple[int, int, tuple[int, ...]] | None = None
    """Where the answer stands in a rendering of its conversation, and the tokens of its text there."""


class Spoken:
    """The answers of one model, under one renderer. Several threads may use it."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self._said: OrderedDict[tuple[Message, ...], _Said] = OrderedDict()
        self._guard = threading.Lock()

    def keep(self, asked: Conversation, text: str, ending: Ending) -> None:
        """Remember what was answered to `asked`, if it is all that was written."""
        ids = ending.ids[:-1] if ending.ids and ending.ids[-1] in self.renderer.end_ids else ending.ids
        if not ids or ending.finish_reason == "cancelled" or not text:
            return
        with self._guard:
            self._said[(*asked.messages, Message("assistant", (text,)))] = _Said(ids)
            while len(self._said) > KEPT:
                self._said.popitem(last=False)

    def restored(self, conversation: Conversation, rendered: Rendered) -> Rendered:
        """The prompt with each answer that was given here as it was written."""
        ids: list[int] = list(rendered.ids)
        shift = 0
        for end, message in enumerate(conversation.messages, 1):
            if message.role != "assistant":
                continue
            with self._guard:
                said = self._said.get(conversation.messages[:end])
            place = (
                None if said is None else self._place(replace(conversation, messages=conversation.messages[:end]), said)
            )
            if said is None or place is None:
                continue
            first, last, retold = place
            if rendered.ids[first:last] == retold and self._same(said.ids, retold):
                ids[first + shift : last + shift] = said.ids
                shift += len(said.ids) - len(retold)
        if ids == list(rendered.ids):
            return rendered
        return replace(rendered, ids=tuple(ids), labels=(IGNORE_INDEX,) * len(ids))

    def _place(self, told: Conversation, said: _Said) -> tuple[int, int, tuple[int, ...]] | None:
        """Where the last answer of `told` stands, without its end, and its tokens there."""
        if said.retold is None:
            try:
                whole = self.renderer.render(told)
            except WorkbenchError:  # an answer that could not be trained on can still be talked about
                return None
            first = len(self.renderer.prompt(replace(told, messages=told.messages[:-1])).ids)
            last = max(place for place, label in enumerate(whole.labels) if label != IGNORE_INDEX) + 1
            while last > first and whole.ids[last - 1] in self.renderer.end_ids:
                last -= 1
            said.retold = first, last, whole.ids[first:last]
        return said.retold

    def _same(self, written: Sequence[int], retold: Sequence[int]) -> bool:
        """Whether both read alike: an answer that was cut by a stop text, or stripped, is not what was written."""
        decode = self.renderer.tokenizer.decode
        return written != retold and decode(written).strip() == decode(retold).strip()
