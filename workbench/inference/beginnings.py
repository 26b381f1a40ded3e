"""What is known of how a prompt begins: kept blocks, and what the last answer left in its slot.

Knows: names of blocks, when a slot's tokens are another request's own, and that weights outgrow what was computed.
Does not know: who waits or runs, pixels, or how anything is computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from workbench.inference.prefix_cache import BLOCK, PrefixCache, block_keys, weights_state
from workbench.inference.requests import Request
from workbench.inference.slots import Slots


@dataclass(frozen=True)
class Rest:
    """What the last answer left in the first slot when nobody else was there: the next turn of its talk goes on from
    its very last token, and nothing is copied."""

    ids: Sequence[int]
    images: Sequence[tuple[int, int, str]]
    adapter: str | None

    def shared(self, request: Request) -> int:
        """How many of its tokens a request begins with; the last token of a request is always its own."""
        if request.adapter != self.adapter:
            return 0
        most = min(len(self.ids), len(request.row.ids) - 1)
        same = next((n for n in range(most) if self.ids[n] != request.row.ids[n]), most)
        others = zip(self.images, request.images, strict=False)
        return min([same, *(mine[0] for mine, other in others if mine != other)])


class Beginnings:
    """What was computed with one model, whose rows lie in `slots`, and what of it a request begins with."""

    def __init__(self, model: torch.nn.Module, prefixes: PrefixCache, slots: Slots) -> None:
        self.model, self.prefixes, self.slots = model, prefixes, slots
        self.rest: Rest | None = None
        self._weights: dict[str | None, Hashable] = {}

    def check(self, adapter: str | None) -> None:
        """Forget everything where the weights with this adapter are not what they were."""
        now = weights_state(self.model)
        if self._weights.setdefault(adapter, now) != now:
            self.prefixes.clear()
            self.rest = None
            self._weights = {adapter: now}

    def known(self, request: Request) -> int:
        """How many blocks of its prompt are kept; its last token is always its own."""
        if self.prefixes.budget and not request.keys:
            request.keys = block_keys(request.adapter, request.row.ids, request.images)
        most = min(len(request.keys), (len(request.row.ids) - 1) // BLOCK)
        return next((number for number in range(most) if request.keys[number] not in self.prefixes), most)

    def find(self, request: Request, *, first: bool) -> tuple[int, list[torch.Tensor]]:
        """How many of its tokens lie in its slot already, and the blocks that are kept of those after them.

        first: it gets the first slot, and nobody is in any.
        """
        blocks = self.prefixes.find(request.keys[: (len(request.row.ids) - 1) // BLOCK])
        there = self.rest.shared(request) if first and self.rest is not None else 0
        if there < len(blocks) * BLOCK:
            there = there // BLOCK * BLOCK
        return there, blocks[-(-there // BLOCK) :]

    def keep(self, request: Request, slot: int) -> None:
        """Keep the whole blocks of what lies in its slot."""
        if not self.prefixes.budget:
            return
        request.keys = block_keys(request.adapter, _computed(request), request.images, request.keys)
        whole = request.row.computed // BLOCK
        self.prefixes.keep(request.keys[:whole], lambda n: self.slots.block(slot, n * BLOCK, (n + 1) * BLOCK))

    def leave(self, request: Request) -> None:
        """The last of all has left the first slot."""
        if self.prefixes.budget:
            self.rest = Rest(_computed(request), request.images, request.adapter)


def _computed(request: Request) -> list[int]:
    row = request.row
    return [*row.ids, *row.written][: row.computed]
