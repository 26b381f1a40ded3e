"""One thread that writes all the answers of one model: requests join the running batch between two steps, and leave it.

Knows: who waits, whose turn it is to be taken in, the next token of each answer, and that what fails fails alone.
Does not know: how rows run together (`batch`), conversations, templates, images' files, or who reads the answers.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence

import torch

from workbench.errors import BusyError, WorkbenchError
from workbench.inference.batch import Batch
from workbench.inference.decoding import Row
from workbench.inference.failures import explained, short_of_memory
from workbench.inference.requests import EngineState, Request
from workbench.inference.sampling import next_tokens

LINGER = 0.5
"""Seconds that the thread waits for more before it ends and lets the batch rest."""
RECENT = 10.0
"""Seconds over which the speed is measured."""


class Generator:
    """The thread, its queue and its batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.llava, self.prefixes = batch.llava, batch.beginnings.prefixes
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
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
            now, waiting, running = time.monotonic(), len(self._waiting), len(self.batch.requests)
            recent = sum(count for moment, count in list(self._speed) if moment > now - RECENT)
            return EngineState(
                running=running,
                waiting=waiting,
                tokens=self._tokens,
                tokens_per_second=recent / RECENT,
                stalled=now - self._moved if waiting or running else 0.0,
                cache_bytes=self.prefixes.size + self.batch.vision.features.size,
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
        self.batch.release()
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
                    self.batch.rest()
                    return
                self._moved = time.monotonic()
            try:
                self._turn()
            except Exception as problem:  # a fault of ours: whoever waits has to hear of it
                with self._changed:
                    lost = [*self.batch.requests.values(), *self._waiting]
                    self._waiting.clear()
                for request in lost:
                    self._leave(request, problem)

    @property
    def _busy(self) -> bool:
        return bool(self._waiting or self.batch.requests)

    def _turn(self) -> None:
        """What is done between two looks at who came and who left: one piece of prompts, one token of each answer."""
        self._drop_unwanted()
        if not self.batch.on_the_way:
            self._admit()
        if self.batch.on_the_way:
            self._prefill()
        if self.batch.ready:
            self._step()

    def _drop_unwanted(self) -> None:
        with self._changed:
            gone = [one for one in self._waiting if self._closed or one.unwanted]
            for request in gone:
                self._waiting.remove(request)
        gone += [one for one in self.batch.requests.values() if self._closed or one.unwanted]
        for request in gone:
            request.row.finish("cancelled")
            self._leave(request)

    def _admit(self) -> None:
        """Take the next requests into the batch."""
        with self._changed:
            waiting = list(self._waiting)
        if not waiting:
            return
        group = self.batch.pick(waiting)
        with self._changed:
            for request in group:
                self._waiting.remove(request)
            self.batch.enter(group)
        try:
            self.batch.join(group)
        except Exception as problem:
            self._not_together(group, problem)

    def _prefill(self) -> None:
        """A piece of the prompts on the way; those that are through get their first token."""
        rows = self.batch.on_the_way
        try:
            logits = self.batch.prefill()
        except Exception as problem:
            return self._not_together(self.batch.of(rows), problem)
        if logits is not None:
            self._choose(rows, logits)

    def _step(self) -> None:
        """One more token of every answer that runs. Where memory is short, the latest to come goes."""
        rows = self.batch.ready
        try:
            logits = self.batch.step()
        except Exception as problem:
            for request in self.batch.of(rows[-1:] if short_of_memory(problem) else rows):
                self._leave(request, problem)
            return
        self._choose(rows, logits)

    def _choose(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        tokens = next_tokens(logits, rows, self._text_of)
        self._tokens += len(rows)
        now = time.monotonic()
        self._speed.append((now, len(rows)))
        while self._speed[0][0] < now - RECENT:
            self._speed.popleft()
        for place, (row, token, request) in enumerate(zip(rows, tokens, self.batch.of(rows), strict=True)):
            if row.keeps_logits and row.logits is None:
                row.logits = logits[place].cpu()
            if row.fault is not None:
                self._leave(request, row.fault)
                continue
            row.take(token)
            if row.finish_reason is not None:
                self._leave(request)
            else:
                request.tell()

    # --- leaving ------------------------------------------------------------------------------------------------

    def _leave(self, request: Request, problem: Exception | None = None) -> None:
        """Take a request out of the batch, keep what it computed, and tell its reader the end."""
        self.batch.leave(request, whole=problem is None)
        self._failed += problem is not None
        request.end(None if problem is None else explained(problem, len(request.row.ids)))

    def _not_together(self, group: Sequence[Request], problem: Exception) -> None:
        """What failed together is tried one by one; what failed alone has failed."""
        if len(group) == 1:
            return self._leave(group[0], problem)
        with self._changed:
            for request in reversed(group):
                self.batch.leave(request)
                request.row.computed = request.row.cached = 0
                request.alone = True
                self._waiting.appendleft(request)

    def _text_of(self, token: int) -> str:
        return self.llava.tokenizer.decode([token], clean_up_tokenization_spaces=False)


_ALL: weakref.WeakSet[Generator] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """No thread computes while Python goes down."""
    for one in list(_ALL):
        one.close()
