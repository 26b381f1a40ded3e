"""One thread that writes all the answers of one model: requests join the running batch between two steps, and leave it.

Knows: who waits and who runs, who comes next, how much runs together, beginnings that were computed before, and that
what fails fails alone.
Does not know: conversations, templates, images' files, or who reads the answers.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import torch

from workbench.chat_model import Ending
from workbench.errors import BusyError, ModelError, WorkbenchError
from workbench.inference.adapters import Adapters
from workbench.inference.decoding import Decoding, Row
from workbench.inference.prefix_cache import BLOCK, PrefixCache, block_keys, weights_state
from workbench.inference.sampling import next_tokens
from workbench.inference.vision import Vision
from workbench.model.llava import Llava
from workbench.model.tiling import Shown

CHUNK = 256, 4096
"""Tokens of prompts that are computed between two steps of the answers that run: at least and at most on a CPU (the
smaller the model, the more), and on other devices half of the most."""
LINGER = 0.5
"""Seconds that the thread waits for more before it ends and gives the rows' memory back."""
RECENT = 10.0
"""Seconds over which the speed is measured."""
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")

Event = tuple["Request", tuple[str, int] | Ending | Exception]
"""A piece of an answer's text and how many tokens there are with it; its end; or why there is none."""


@dataclass(eq=False)
class Request:
    """A row that waits or runs, and where its pieces go."""

    row: Row
    images: list[tuple[int, int, str]]
    """(first slot, the one after the last, hash of the pixels) of each image."""
    shown: dict[str, Shown]
    """Hash -> the image."""
    events: SimpleQueue[Event] = field(default_factory=SimpleQueue)
    streams: bool = True
    """Whether pieces are told of as they come, or the end only."""
    adapter: str | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    reader: Callable[[], object | None] = lambda: True
    """None once nobody can read the answer any more."""
    read: int = 0
    """Tokens of the answer whose text was read."""
    alone: bool = False
    """It did not fit beside others."""
    keys: list[bytes] = field(default_factory=list)

    @property
    def columns(self) -> int:
        """Tokens it may come to."""
        return len(self.row.ids) + self.row.limit

    @property
    def unwanted(self) -> bool:
        return self.cancelled.is_set() or self.reader() is None


@dataclass(frozen=True)
class EngineState:
    """How an engine is doing, at one moment."""

    running: int
    """Answers being written."""
    waiting: int
    """Requests that have not begun."""
    tokens: int
    """Written so far, of all answers."""
    tokens_per_second: float
    """Over the last ten seconds."""
    stalled: float
    """Seconds since the generator last moved, while it has work; 0 when it has none."""
    cache_bytes: int
    """Kept beginnings and features of images."""
    cache_hits: int
    cache_misses: int
    """Prompts that began with something kept, and those that did not."""
    failed: int
    """Requests that ended with an error."""


class Generator:
    """The thread, its queue and its batch, of which all rows have one adapter."""

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
        self.llava, self.vision, self.prefixes, self.rows, self.adapters = llava, vision, prefixes, rows, adapters
        self._kv_bytes, self._token_bytes = kv_bytes, _bytes_per_token(llava)
        self._chunk = _chunk(llava)
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}  # by the identity of its row
        self._decoding = Decoding(llava)
        self._adapter: str | None = None
        self._weights: dict[str | None, object] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self._tokens = self._failed = 0
        self._moved = time.monotonic()
        self._speed: deque[tuple[float, int]] = deque()
        _ALL.add(self)

    # --- asked from any thread ----------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], most: int | None = None) -> None:
        """Let them be written. Raises `BusyError` if more than `most` would wait, `WorkbenchError` once closed."""
        with self._changed:
            if self._closed:
                raise WorkbenchError("this engine", found="closed", fix="open the model again")
            if most is not None and len(self._waiting) + len(requests) > most:
                found = f"{len(self._waiting)} requests that wait already"
                raise BusyError("this model", found=found, expected=f"at most {most}", fix="ask again later")
            self._waiting.extend(requests)
            if self._thread is None:
                self._moved = time.monotonic()
                self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def state(self) -> EngineState:
        with self._changed:
            now, waiting, running = time.monotonic(), len(self._waiting), len(self._running)
            recent = sum(count for moment, count in list(self._speed) if moment > now - RECENT)
            features = self.vision.features
            return EngineState(
                running=running,
                waiting=waiting,
                tokens=self._tokens,
                tokens_per_second=recent / RECENT,
                stalled=now - self._moved if waiting or running else 0.0,
                cache_bytes=self.prefixes.size + features.size,
                cache_hits=self.prefixes.hits,
                cache_misses=self.prefixes.misses,
                failed=self._failed,
            )

    @property
    def idle(self) -> bool:
        """Whether nobody waits and nothing runs."""
        with self._changed:
            return not self._busy

    def close(self) -> None:
        """Cancel all that waits and runs, end the thread, and forget what was kept. Nothing can be asked any more."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.prefixes.clear()

    # --- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self.llava.device.type == "cuda":
            torch.cuda.set_device(self.llava.device)
        while True:
            with self._changed:
                if not self._busy and not self._closed:
                    self._changed.wait(LINGER)
                if not self._busy:
                    self._thread = None
                    self._decoding.slots.release()
                    return
                self._moved = time.monotonic()
            try:
                self._turn()
            except Exception as problem:  # a fault of ours: whoever waits has to hear of it
                with self._changed:
                    lost = [*self._running.values(), *self._waiting]
                    self._waiting.clear()
                for request in lost:
                    self._leave(request, problem)

    @property
    def _busy(self) -> bool:
        return bool(self._waiting or self._running)

    def _turn(self) -> None:
        """What is done between two looks at who came and who left: one piece of prompts, one token of each answer."""
        self._drop_unwanted()
        if self._decoding.ready == len(self._decoding.rows):
            self._admit()
        if self._decoding.ready < len(self._decoding.rows):
            self._prefill()
        if self._decoding.ready:
            self._step()

    def _drop_unwanted(self) -> None:
        with self._changed:
            gone = [one for one in self._waiting if self._closed or one.unwanted]
            for request in gone:
                self._waiting.remove(request)
        gone += [one for one in self._running.values() if self._closed or one.unwanted]
        for request in gone:
            request.row.finish("cancelled")
            self._leave(request)

    # --- joining ------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Take the next requests into the batch: their features, and what is known of how their prompts begin."""
        with self._changed:
            waiting = list(self._waiting)
        if not waiting:
            return
        if not self._running:
            self._begin(waiting[0])
        group = self._pick(waiting)
        with self._changed:
            for request in group:
                self._waiting.remove(request)
                self._running[id(request.row)] = request
        try:
            self._join(group)
        except Exception as problem:
            self._not_together(group, problem)

    def _begin(self, request: Request) -> None:
        """Before a batch: the adapter that is asked for, and nothing kept that the weights have outgrown."""
        if request.adapter != self._adapter:
            self.adapters.use(request.adapter)
            self._adapter = request.adapter
        now = weights_state(self.llava.model)
        if self._weights.setdefault(self._adapter, now) != now:
            self.prefixes.clear()
            self._weights = {self._adapter: now}

    def _pick(self, waiting: Sequence[Request]) -> list[Request]:
        """The first that waits, and others that cost little beside it. Nobody overtakes one that does not fit."""
        group: list[Request] = []
        fresh: set[bytes] = set()
        rests: list[int] = []
        for request in waiting:
            if request.adapter != self._adapter or not self._fits([*self._running.values(), *group, request]):
                break
            begun = self._known(request)
            new = request.keys[begun] if begun < len(request.keys) else None
            rest = [*rests, len(request.row.ids) - begun * BLOCK]
            padded = max(rest) * len(rest)
            if group and (new in fresh or padded > self._chunk or padded > 1.5 * sum(rest)):
                continue  # soon: with what the group computes now, or with others of its length
            group.append(request)
            rests = rest
            if new is not None:
                fresh.add(new)
            if request.alone:
                break
        return group

    def _known(self, request: Request) -> int:
        """How many blocks of its prompt are kept; its last token is always its own."""
        if self.prefixes.budget and not request.keys:
            request.keys = block_keys(request.adapter, request.row.ids, request.images)
        most = min(len(request.keys), (len(request.row.ids) - 1) // BLOCK)
        return next((number for number in range(most) if request.keys[number] not in self.prefixes), most)

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

    def _join(self, group: Sequence[Request]) -> None:
        begun = [self.prefixes.find(one.keys[: (len(one.row.ids) - 1) // BLOCK]) for one in group]
        shown = {
            name: request.shown[name]
            for request, blocks in zip(group, begun, strict=True)
            for _, last, name in request.images
            if last > len(blocks) * BLOCK
        }
        through = self._adapter if self.adapters.seen_through else None
        seen = self.vision.look(shown, through) if shown else {}
        self._make_room(group)
        for request, blocks in zip(group, begun, strict=True):
            empty = next(iter(seen.values()))[:0] if seen else None
            parts = [seen.get(name) for _, _, name in request.images]
            request.row.features = _joined(parts, request.images, empty)
            self._decoding.add(request.row, blocks)

    def _make_room(self, group: Sequence[Request]) -> None:
        """Room for the group beside the rows that run, and for as many again where the budget allows."""
        held = self._decoding.rows
        count = len(held) + len(group)
        columns = max(request.columns for request in self._running.values())
        most = max(count, min(self.rows, 2 * count, self._budget // (columns * self._token_bytes)))
        slots = self._decoding.slots
        if count > slots.room[0] or columns > slots.room[1]:
            slots.reserve(most, columns, keep=len(held))

    # --- passes -------------------------------------------------------------------------------------------------

    def _prefill(self) -> None:
        """A piece of the prompts on the way; those that are through get their first token."""
        decoding = self._decoding
        rows = decoding.rows[decoding.ready :]
        piece = self._chunk if decoding.ready else 8 * self._chunk
        most = piece if len(rows) == 1 else max(len(row.ids) for row in rows)  # groups are small enough for one pass
        ends = [min(len(row.ids), row.computed + most) for row in rows]
        try:
            logits = decoding.advance(ends)
        except Exception as problem:
            return self._not_together([self._running[id(row)] for row in rows], problem)
        if ends[0] < len(rows[0].ids):
            return
        for slot, row in enumerate(rows, decoding.ready):
            self._keep(slot, self._running[id(row)])
        decoding.ready = len(decoding.rows)
        self._choose(rows, logits)

    def _step(self) -> None:
        """One more token of every answer that runs. Where memory is short, the latest to come goes."""
        rows = self._decoding.rows[: self._decoding.ready]
        try:
            logits = self._decoding.step()
        except Exception as problem:
            gone = rows[-1:] if _short_of_memory(problem) else rows
            for row in gone:
                self._leave(self._running[id(row)], problem)
            return
        self._choose(rows, logits)

    def _choose(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        tokens = next_tokens(logits, rows, self._text_of)
        self._tokens += len(rows)
        now = time.monotonic()
        self._speed.append((now, len(rows)))
        while self._speed[0][0] < now - RECENT:
            self._speed.popleft()
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row.keeps_logits and row.logits is None:
                row.logits = logits[place].cpu()
            request = self._running[id(row)]
            if row.fault is not None:
                self._leave(request, row.fault)
                continue
            row.take(token)
            if row.finish_reason is not None:
                self._leave(request)
            elif request.streams and (text := row.new_text()):
                request.events.put((request, (text, len(row.written))))

    # --- leaving ------------------------------------------------------------------------------------------------

    def _leave(self, request: Request, problem: Exception | None = None) -> None:
        """Take a request out of the batch, keep what it computed, and tell its reader the end."""
        row, decoding = request.row, self._decoding
        slot = next((place for place, one in enumerate(decoding.rows) if one is row), None)
        if slot is not None:
            if problem is None and slot < decoding.ready:
                self._keep(slot, request)
            decoding.remove(slot)
        with self._changed:
            self._running.pop(id(row), None)
            self._failed += problem is not None
        if problem is not None:
            request.events.put((request, self._told(problem, row)))
            return
        if request.streams and (text := row.new_text()):
            request.events.put((request, (text, len(row.written))))
        request.events.put((request, row.ending))

    def _keep(self, slot: int, request: Request) -> None:
        """Keep the whole blocks of what lies in a slot."""
        if not self.prefixes.budget:
            return
        row = request.row
        ids = [*row.ids, *row.written][: row.computed]
        request.keys = block_keys(request.adapter, ids, request.images, request.keys)
        whole = row.computed // BLOCK
        slots = self._decoding.slots
        self.prefixes.keep(request.keys[:whole], lambda n: slots.block(slot, n * BLOCK, (n + 1) * BLOCK))

    def _not_together(self, group: Sequence[Request], problem: Exception) -> None:
        """What failed together is tried one by one; what failed alone has failed."""
        if len(group) == 1:
            return self._leave(group[0], problem)
        for request in group:
            for place, row in enumerate(self._decoding.rows):
                if row is request.row:
                    self._decoding.remove(place)
                    break
            request.row.computed = request.row.cached = 0
            request.alone = True
        with self._changed:
            for request in reversed(group):
                self._running.pop(id(request.row), None)
                self._waiting.appendleft(request)

    def _told(self, problem: Exception, row: Row) -> Exception:
        if not _short_of_memory(problem):
            return problem
        if self.llava.device.type == "cuda":
            torch.cuda.empty_cache()
        told = ModelError(
            "this answer",
            found=f"no memory left for a prompt of {len(row.ids):,} tokens",
            fix="ask fewer at once, shorten it, give smaller or fewer images, or load the model in 4bit",
        )
        told.__cause__ = problem
        return told

    def _text_of(self, token: int) -> str:
        return self.llava.tokenizer.decode([token], clean_up_tokenization_spaces=False)


def _joined(parts: Sequence[Any], images: Sequence[tuple[int, int, str]], empty: Any) -> torch.Tensor | None:
    """The features of a row's images in order. Those in a beginning that is kept are never read: zeros stand there."""
    if empty is None:
        return None
    made = [empty.new_zeros(last - first, empty.shape[1]) for first, last, _ in images]
    return torch.cat([zeros if part is None else part for part, zeros in zip(parts, made, strict=True)] or [empty])


def _short_of_memory(problem: Exception) -> bool:
    told = str(problem).lower()
    return isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or any(one in told for one in _NO_MEMORY)


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


_ALL: weakref.WeakSet[Generator] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """No thread computes while Python goes down."""
    for one in list(_ALL):
        one.close()
