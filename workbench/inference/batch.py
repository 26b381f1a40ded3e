"""The rows of one model that run together, all with one adapter: who joins them, and their passes.

Knows: who fits beside whom, room, features, beginnings that were computed before, and how much of long prompts is
computed at a time.
Does not know: threads, who asks, which token is chosen, or what is done about a pass that fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from workbench.inference.adapters import Adapters
from workbench.inference.beginnings import Beginnings
from workbench.inference.decoding import Decoding, Row
from workbench.inference.prefix_cache import BLOCK, PrefixCache
from workbench.inference.requests import Request
from workbench.inference.vision import Vision
from workbench.model.llava import Llava

CHUNK = 256, 4096
"""Tokens of prompts that are computed between two steps of the answers that run: at least and at most on a CPU (the
smaller the model, the more), and on other devices half of the most."""
SPARE = 256
"""Columns beyond those that one row alone asks for, so that the next turns of its talk find room."""
RESTING = 0.25
"""What share of the budget for kept beginnings the slots of one talk may have while nobody asks."""


class Batch:
    """Requests in slots. Used by one thread."""

    def __init__(
        self,
        llava: Llava,
        vision: Vision,
        prefixes: PrefixCache,
        *,
        rows: int,
        kv_bytes: int | None,
        adapters: Adapters,
    ) -> None:
        self.llava, self.vision, self.rows, self.adapters = llava, vision, rows, adapters
        self.requests: dict[int, Request] = {}
        """By the identity of their rows."""
        self.decoding = Decoding(llava)
        self.beginnings = Beginnings(llava.model, prefixes, self.decoding.slots)
        self.chunk = _chunk(llava)
        self._kv_bytes, self._token_bytes = kv_bytes, _bytes_per_token(llava)
        self._adapter: str | None = None

    @property
    def ready(self) -> list[Row]:
        """Rows that are being written."""
        return self.decoding.rows[: self.decoding.ready]

    @property
    def on_the_way(self) -> list[Row]:
        """Rows whose prompt is being computed."""
        return self.decoding.rows[self.decoding.ready :]

    def of(self, rows: Sequence[Row]) -> list[Request]:
        return [self.requests[id(row)] for row in rows]

    # --- joining and leaving ------------------------------------------------------------------------------------

    def pick(self, waiting: Sequence[Request]) -> list[Request]:
        """The first that waits, and others that cost little beside it. Nobody overtakes one that does not fit."""
        if not self.requests:
            self._begin(waiting[0].adapter)
        group: list[Request] = []
        fresh: set[bytes] = set()
        rests: list[int] = []
        for request in waiting:
            if request.adapter != self._adapter or not self._fits([*self.requests.values(), *group, request]):
                break
            begun = self.beginnings.known(request)
            new = request.keys[begun] if begun < len(request.keys) else None
            rest = [*rests, len(request.row.ids) - begun * BLOCK]
            padded = max(rest) * len(rest)
            if group and (new in fresh or padded > self.chunk or padded > 1.5 * sum(rest)):
                continue  # soon: with what the group computes now, or with others of its length
            group.append(request)
            rests = rest
            if new is not None:
                fresh.add(new)
            if request.alone:
                break
        return group

    def enter(self, group: Sequence[Request]) -> None:
        """From now on these run."""
        self.requests |= {id(request.row): request for request in group}

    def join(self, group: Sequence[Request]) -> None:
        """Give those that entered their slots, their images' features, and what is known of how they begin."""
        free = not self.decoding.rows
        begun = [self.beginnings.find(one, first=free and not number) for number, one in enumerate(group)]
        self.beginnings.rest = None
        shown = {
            name: request.shown[name]
            for request, (there, blocks) in zip(group, begun, strict=True)
            for _, last, name in request.images
            if last > there + len(blocks) * BLOCK
        }
        through = self._adapter if self.adapters.seen_through else None
        seen = self.vision.look(shown, through) if shown else {}
        self._make_room(len(group), left=any(there for there, _ in begun))
        for request, (there, blocks) in zip(group, begun, strict=True):
            empty = next(iter(seen.values()))[:0] if seen else None
            parts = [seen.get(name) for _, _, name in request.images]
            request.row.features = _joined(parts, request.images, empty)
            self.decoding.add(request.row, blocks, there)

    def leave(self, request: Request, *, whole: bool = False) -> None:
        """Take a request out; keep what it computed if it is `whole`."""
        slot = next((place for place, row in enumerate(self.decoding.rows) if row is request.row), None)
        if slot is not None:
            whole = whole and slot < self.decoding.ready
            if whole:
                self.beginnings.keep(request, slot)
            self.decoding.remove(slot)
            if whole and not self.decoding.rows:
                self.beginnings.leave(request)
        self.requests.pop(id(request.row), None)

    def rest(self) -> None:
        """Nobody runs: give the rows' memory back, but for the slot of a talk that may go on if it is not large."""
        slots, beginnings = self.decoding.slots, self.beginnings
        if beginnings.rest is None or slots.nbytes > RESTING * beginnings.prefixes.budget:
            self.release()

    def release(self) -> None:
        """Give all of the rows' memory back."""
        self.decoding.slots.release()
        self.beginnings.rest = None

    # --- passes -------------------------------------------------------------------------------------------------

    def prefill(self) -> torch.Tensor | None:
        """A piece of the prompts on the way; the logits after them, (rows, vocabulary), once they are through."""
        decoding, rows = self.decoding, self.on_the_way
        piece = self.chunk if decoding.ready else 8 * self.chunk
        most = piece if len(rows) == 1 else max(len(row.ids) for row in rows)  # groups are small enough for one pass
        ends = [min(len(row.ids), row.computed + most) for row in rows]
        logits = decoding.advance(ends)
        if ends[0] < len(rows[0].ids):
            return None
        for slot, request in enumerate(self.of(rows), decoding.ready):
            self.beginnings.keep(request, slot)
            request.row.features = None  # in keys and values now
        decoding.ready = len(decoding.rows)
        return logits

    def step(self) -> torch.Tensor:
        """The logits after the last token of every answer that is being written: (rows, vocabulary)."""
        return self.decoding.step()

    # --- room ---------------------------------------------------------------------------------------------------

    def _begin(self, adapter: str | None) -> None:
        """Before a batch: the adapter that is asked for, and nothing kept that the weights have outgrown."""
        if adapter != self._adapter:
            self.adapters.use(adapter)
            self._adapter = adapter
        self.beginnings.check(adapter)

    def _fits(self, requests: Sequence[Request]) -> bool:
        """Whether their keys and values stay within the budget; one alone always may."""
        if len(requests) == 1:
            return True
        columns = max(request.columns for request in requests)
        return len(requests) <= self.rows and len(requests) * columns * self._token_bytes <= self._budget

    @property
    def _budget(self) -> int:
        if self._kv_bytes is None:
            place = self.llava.device
            self._kv_bytes = torch.cuda.mem_get_info(place)[0] // 2 if place.type == "cuda" else 1 << 30
        return self._kv_bytes

    def _make_room(self, more: int, *, left: bool) -> None:
        """Room for so many beside the rows that run, and for as many again where the budget allows. `left`: what lies
        in the first slot stays there."""
        held = len(self.decoding.rows)
        count = held + more
        columns = max(request.columns for request in self.requests.values())
        most = max(count, min(self.rows, 2 * count, self._budget // (columns * self._token_bytes)))
        slots = self.decoding.slots
        if count > slots.room[0] or columns > slots.room[1]:
            if count == 1 and 2 * (columns + SPARE) * self._token_bytes <= self._budget:
                columns += SPARE
            slots.reserve(most, columns, keep=max(held, int(left)))


def _joined(parts: Sequence[Any], images: Sequence[tuple[int, int, str]], empty: Any) -> torch.Tensor | None:
    """The features of a row's images in order. Those in a beginning that is kept are never read: zeros stand there."""
    if empty is None:
        return None
    made = [empty.new_zeros(last - first, empty.shape[1]) for first, last, _ in images]
    return torch.cat([zeros if part is None else part for part, zeros in zip(parts, made, strict=True)] or [empty])


def _chunk(llava: Llava) -> int:
    least, most = CHUNK
    if llava.device.type != "cpu":
        return most // 2
    weights = sum(weight.numel() for weight in llava.model.get_decoder().parameters())
    return min(most, max(least, 8_000_000_000 // max(1, weights)))


def _bytes_per_token(llava: Llava) -> int:
    """Of keys and values."""
    text = llava.model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width * llava.dtype.itemsize
