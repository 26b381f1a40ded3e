"""The answers to one request, each written by a thread and all read on the event loop.

Knows: how pieces cross from threads to the loop, that answers nobody waits for are cancelled, and that slots and
pictures are given back when a thread has really ended, not before.
Does not know: HTTP, the shapes of responses, or which model answers.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from workbench.chat_model import Answer, ChatModel, SamplingOptions, TokenLogprob, Usage
from workbench.conversation import Conversation
from workbench.errors import WorkbenchError
from workbench.serving.asking import Asked
from workbench.serving.desk import Desk
from workbench.serving.errors import ApiError
from workbench.serving.pictures import Pictures


@dataclass(frozen=True)
class Piece:
    """Text that was just written, and the log probabilities of the tokens since the piece before."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Written:
    """A whole answer."""

    text: str
    finish_reason: str
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()


class Pulse:
    """When any answer last moved, as seen from outside the model."""

    def __init__(self) -> None:
        self.moved = time.monotonic()
        self.proved = float("-inf")
        """When it last moved without having failed since."""

    def beat(self) -> None:
        self.moved = self.proved = time.monotonic()

    def doubt(self) -> None:
        """The model failed in a way that no request should make it fail."""
        self.proved = float("-inf")


Item = Piece | Written | BaseException


class Writing:
    """An answer that `executor` begins to write at once; `tell` is called on the loop with pieces and with the end.

    `ended` is called on the loop when the thread is done, with the seconds that a whole answer took.
    """

    def __init__(
        self,
        model: ChatModel,
        conversation: Conversation,
        options: SamplingOptions,
        *,
        executor: Executor,
        pulse: Pulse,
        tell: Callable[[Item], None],
        ended: Callable[[float | None], None],
    ) -> None:
        self._model, self._conversation, self._options = model, conversation, options
        self._pulse, self._tell, self._ended = pulse, tell, ended
        self._loop = asyncio.get_running_loop()
        self._left = threading.Event()
        self._answer: Answer | None = None
        executor.submit(self._work)

    def cancel(self) -> None:
        """Nobody waits any more: at most one further token is computed."""
        self._left.set()
        if self._answer is not None:
            self._answer.cancel()

    def _work(self) -> None:
        begun = time.monotonic()
        last: Written | BaseException
        try:
            last = self._write()
        except BaseException as problem:  # raised again on the loop, to whoever waits for this answer
            last = problem
            if not isinstance(problem, WorkbenchError):
                self._pulse.doubt()
        whole = isinstance(last, Written) and last.finish_reason != "cancelled"
        seconds = time.monotonic() - begun if whole else None
        with suppress(RuntimeError):  # the loop is closed: the server has gone, and nobody waits
            self._loop.call_soon_threadsafe(self._ended, seconds)
            self._loop.call_soon_threadsafe(self._tell, last)

    def _write(self) -> Written:
        if self._left.is_set():
            return Written("", "cancelled", Usage())
        self._answer = answer = self._model.reply(self._conversation, self._options)
        if self._left.is_set():
            answer.cancel()
        told = 0
        for text in answer:
            self._pulse.beat()
            probabilities = answer.logprobs
            self._loop.call_soon_threadsafe(self._tell, Piece(text, probabilities[told:]))
            told = len(probabilities)
        return Written(answer.text, answer.finish_reason, answer.usage, answer.logprobs)


class Room:
    """What all requests to one model share: the line, the threads, the pictures."""

    def __init__(self, model: ChatModel, desk: Desk, pictures: Pictures) -> None:
        self.model, self.desk, self.pictures = model, desk, pictures
        self.pulse = Pulse()
        # Some more than slots: a thread still ends its last token when its slot is taken anew, and health asks too.
        self.executor = ThreadPoolExecutor(desk.slots + 8, thread_name_prefix="answer")
        self.open: set[Exchange] = set()

    def cut(self) -> None:
        """End every answer where it is."""
        for exchange in list(self.open):
            exchange.cancel()


class Exchange:
    """The answers to one request. `cancel` may be called at any time, and always at the end."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._writings: list[Writing] = []
        self._items: asyncio.Queue[tuple[int, Item]] = asyncio.Queue()

    async def begin(self, asked: Asked, options: Sequence[SamplingOptions], client: Hashable = None) -> None:
        """Wait for a slot for each of `options`, in the turn of `client`, and have the answers begun. Raises what
        `Desk.enter` raises."""
        room, going = self._room, len(options)
        try:
            await room.desk.enter(going, client)
        except BaseException:
            room.pictures.drop(asked.held)
            raise

        def ended(seconds: float | None) -> None:
            nonlocal going
            going -= 1
            room.desk.leave(seconds)
            if not going:
                room.open.discard(self)
                room.pictures.drop(asked.held)

        room.open.add(self)
        for index, option in enumerate(options):
            tell = partial(self._tell, index)
            held = {"executor": room.executor, "pulse": room.pulse, "tell": tell, "ended": ended}
            self._writings.append(Writing(room.model, asked.conversation, option, **held))  # type: ignore[arg-type]

    async def items(self) -> AsyncIterator[tuple[int, Piece | Written]]:
        """(number of the answer, a piece of it or the whole), until all are whole. Raises what the model raised."""
        going = len(self._writings)
        while going:
            index, item = await self._items.get()
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, Written):
                if item.finish_reason == "cancelled":
                    raise ApiError(503, "The answer was broken off by the server.", code="stopping", retry_after=10)
                going -= 1
            yield index, item

    def cancel(self) -> None:
        for writing in self._writings:
            writing.cancel()

    def _tell(self, index: int, item: Item) -> None:
        self._items.put_nowait((index, item))
