"""Asking teachers: many requests in flight, each reply on the disk before anything else happens to it.

Knows: endpoints that share the load, rates, waiting and asking again, budgets, interruption.
Does not know: what is asked, or what becomes of a reply. HTTP is the model's business (`workbench.remote`).

Every endpoint has as many workers as it takes requests at once. A worker takes the next request that nobody has asked
yet, waits until its endpoint allows one, asks, hands the reply to the writer, and goes on when the writer has committed
it. The writer commits whatever replies are waiting in one transaction. What fails for now comes back later, to
whichever endpoint is free.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from workbench.chat_model import ChatModel, SamplingOptions, Usage
from workbench.conversation import Conversation
from workbench.errors import WorkbenchError
from workbench.instruct.limits import Bucket, Budget, Meter
from workbench.instruct.replies import Reply, ReplyStore
from workbench.progress import Progress
from workbench.progress import progress as make_bar
from workbench.remote import RemoteError, RemoteModel, RemoteReply

TRIES = 8
"""Times one request is asked before it is given up."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before a second try, at most; doubled with every further one."""
GIVE_UP, GIVE_UP_UNSEEN = 6, 2
"""Waits in a row after which an endpoint that cannot be reached is given up: one that answered once, one that never."""
_READ_AHEAD = 128
_CLOSING = (401, 403, 404)


@dataclass(frozen=True)
class Request:
    """One question to a teacher."""

    key: str
    """Content address: equal requests have equal keys."""
    conversation: Conversation
    options: SamplingOptions
    schema: Mapping[str, Any] | None = field(default=None, hash=False)
    """JSON schema of the reply, where one is wanted."""
    prompt_tokens: int = 0
    """Estimated, for rates and budgets."""

    @property
    def most_tokens(self) -> int:
        return self.prompt_tokens + self.options.max_tokens


Cost = Callable[[int, int], float]
"""Tokens of a prompt and of its reply -> US dollars."""


class Endpoint:
    """One place that answers, with what it takes at once and per minute."""

    def __init__(
        self,
        model: RemoteModel,
        *,
        concurrency: int = 16,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        cost: Cost | None = None,
    ) -> None:
        self.model, self.name, self.concurrency, self.cost = model, repr(model), concurrency, cost
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        self._requests = Bucket(requests_per_minute) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute) if tokens_per_minute else None
        self._resumes = 0.0
        self._waits = 0
        self._answered = False
        self.closed: str | None = None
        """Why it is asked no more."""

    async def ask(self, request: Request) -> RemoteReply:
        return await self.model.ask(request.conversation, request.options, schema=request.schema)

    async def close(self) -> None:
        await self.model.close()

    @property
    def rests(self) -> float:
        """Seconds until it wants to be asked again."""
        return max(0.0, self._resumes - time.monotonic())

    async def allowed(self, request: Request) -> None:
        """Wait until its rates allow the request."""
        wait = self._requests.take() if self._requests else 0.0
        wait = max(wait, self._tokens.take(request.most_tokens) if self._tokens else 0.0)
        if wait:
            await asyncio.sleep(wait)

    def succeeded(self) -> None:
        self._waits, self._answered = 0, True

    def failed(self, error: RemoteError, wait: float) -> None:
        """Leave it alone where it says so, is overrun or cannot be reached; close it where that is for good."""
        now = time.monotonic()
        if error.status in _CLOSING or (error.status == 429 and not error.retry):
            self.closed = str(error)
        elif error.retry_after is not None:
            self._resumes = max(self._resumes, now + error.retry_after)
        elif error.status == 429:
            self._resumes = max(self._resumes, now + wait)
        elif error.status is None and now >= self._resumes and "connection" in str(error):
            self._waits += 1
            self._resumes = now + min(LONGEST_WAIT, FIRST_WAIT * 2**self._waits)
            if self._waits > (GIVE_UP if self._answered else GIVE_UP_UNSEEN):
                self.closed = str(error)


class LocalEndpoint(Endpoint):
    """A `ChatModel` of this process. Requests that wait together are answered as one batch, one batch at a time."""

    def __init__(self, model: ChatModel, *, batch: int = 8) -> None:
        self.chat_model, self.name, self.concurrency, self.cost = model, model.name, batch, lambda prompt, reply: 0.0
        self.requests_per_minute = self.tokens_per_minute = None
        self._requests = self._tokens = None
        self._resumes, self._waits, self._answered, self.closed = 0.0, 0, False, None
        self._waiting: list[tuple[Request, asyncio.Future[RemoteReply]]] = []
        self._busy = False

    async def ask(self, request: Request) -> RemoteReply:
        future: asyncio.Future[RemoteReply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._answer()))
        return await future

    async def close(self) -> None: ...

    async def _answer(self) -> None:
        await asyncio.sleep(0)  # so that all workers that are ready have put theirs down
        while self._waiting:
            options = self._waiting[0][0].options
            group = [item for item in self._waiting if item[0].options == options]
            self._waiting = [item for item in self._waiting if item[0].options != options]
            for (_, future), reply in zip(group, await asyncio.to_thread(self._batch, group, options), strict=True):
                if not future.done():
                    future.set_exception(reply) if isinstance(reply, Exception) else future.set_result(reply)
            await asyncio.sleep(0)
        self._busy = False

    def _batch(self, group: Sequence[tuple[Request, Any]], options: SamplingOptions) -> list[RemoteReply | Exception]:
        asked = [request.conversation for request, _ in group]
        try:
            answers = self.chat_model.reply_batch(asked, options)
            return [self._reply(answer) for answer in answers]
        except Exception as problem:  # one bad question must not take its neighbours along
            return [problem] if len(group) == 1 else [self._batch([one], options)[0] for one in group]

    def _reply(self, answer: Any) -> RemoteReply:
        return RemoteReply(answer.text, answer.finish_reason, answer.usage, self.name, answer.text)


@dataclass
class Outcome:
    """What a run did."""

    asked: int = 0
    """Replies that were asked for and kept."""
    stored: int = 0
    """Replies that were there before."""
    failed: dict[str, str] = field(default_factory=dict)
    """Requests given up, by key, with the reason."""
    calls: int = 0
    """Requests sent, those that failed too."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float | None = 0.0
    """US dollars; None where a price is not known."""
    seconds: float = 0.0
    stopped: str | None = None
    """Why it ended before all was asked."""

    def summary(self) -> dict[str, Any]:
        return {**self.__dict__, "failed": len(self.failed)}

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        money = "cost unknown" if self.money is None else f"{self.money:,.2f} USD"
        before = f", {self.stored:,} from before" if self.stored else ""
        stopped = f"; stopped: {self.stopped}" if self.stopped else ""
        return (
            f"{self.asked:,} replies in {self.calls:,} calls{before}, {tokens}, {money}, {self.seconds:.0f} s{stopped}"
        )


def run(
    requests: Iterable[Request],
    endpoints: Sequence[Endpoint],
    store: ReplyStore,
    *,
    budget: Budget | None = None,
    on_reply: Callable[[Request, Reply], None] | None = None,
    stop: threading.Event | None = None,
    total: int | None = None,
    description: str = "asking",
) -> Outcome:
    """Ask all requests that the store has no reply to, and keep every reply in it.

    `on_reply` is called when a reply is on the disk. A first Ctrl-C, or `stop`, ends it: nothing new is asked, what has
    arrived is kept, and the outcome says so. Works inside a running event loop too: everything runs in a thread.
    """
    stop = stop or threading.Event()
    found: list[Outcome | BaseException] = []
    ended = threading.Event()

    def work() -> None:
        try:
            with make_bar(description, total=total, unit="reply") as bar:
                found.append(
                    asyncio.run(_Run(requests, endpoints, store, Meter(budget or Budget()), on_reply, stop, bar).all())
                )
        except BaseException as problem:  # raised again in the caller's thread
            found.append(problem)
        finally:
            ended.set()

    threading.Thread(target=work, name="teacher", daemon=True).start()
    while not ended.is_set():  # not `join`: a thread whose join was interrupted counts as ended
        try:
            ended.wait(0.2)
        except KeyboardInterrupt:
            stop.set()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


class _Run:
    def __init__(
        self,
        requests: Iterable[Request],
        endpoints: Sequence[Endpoint],
        store: ReplyStore,
        meter: Meter,
        on_reply: Callable[[Request, Reply], None] | None,
        stop: threading.Event,
        bar: Progress,
    ) -> None:
        self.endpoints, self.store, self.meter, self.on_reply, self.stop, self.bar = (
            endpoints,
            store,
            meter,
            on_reply,
            stop,
            bar,
        )
        self.outcome = Outcome()
        self._source = self._unasked(iter(requests))
        self._later: list[tuple[float, int, int, Request]] = []  # when, order, tries so far, request
        self._order = count()
        self._flying = 0
        self._change = asyncio.Event()
        self._written: asyncio.Queue[tuple[Reply, asyncio.Future[None]] | None] = asyncio.Queue()
        self._jitter = random.Random(0)
        self._over = self._done = False

    async def all(self) -> Outcome:
        writer = asyncio.create_task(self._write())
        workers = [asyncio.create_task(self._work(one)) for one in self.endpoints for _ in range(one.concurrency)]
        watch = asyncio.create_task(self._watch(workers))
        try:
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*workers)
        finally:
            for task in (*workers, watch):
                task.cancel()
            await asyncio.gather(*workers, watch, return_exceptions=True)
            await self._written.put(None)
            await writer
            for endpoint in self.endpoints:
                await endpoint.close()
        self._account()
        return self.outcome

    def _account(self) -> None:
        outcome, meter = self.outcome, self.meter
        outcome.calls, outcome.seconds = meter.calls, meter.seconds
        outcome.prompt_tokens, outcome.completion_tokens = meter.prompt_tokens, meter.completion_tokens
        outcome.money = None if any(one.cost is None for one in self.endpoints) else meter.money
        shut = [one.closed for one in self.endpoints if one.closed]
        if outcome.stopped is None and len(shut) == len(self.endpoints):
            outcome.stopped = f"no endpoint is left: {shut[0]}"

    # --- what is asked next -------------------------------------------------------------------------------------

    def _unasked(self, requests: Iterator[Request]) -> Iterator[Request]:
        """Requests without a reply, each key once, looked up some at a time."""
        seen: set[str] = set()
        while part := list(islice(requests, _READ_AHEAD)):
            known = self.store.get_many([one.key for one in part])
            for request in part:
                if request.key in seen:
                    self.bar.advance()
                    continue
                seen.add(request.key)
                if request.key in known:
                    self.outcome.stored += 1
                    self.bar.advance()
                    if self.on_reply is not None:
                        self.on_reply(request, known[request.key])
                else:
                    yield request

    async def _next(self) -> tuple[Request, int] | None:
        """The next request and how often it was tried; None when all are done or the run is over."""
        while not self._over:
            now = time.monotonic()
            if self._later and self._later[0][0] <= now:
                _, _, tries, request = heapq.heappop(self._later)
                return request, tries
            fresh = next(self._source, None)
            if fresh is not None:
                return fresh, 0
            if self._done or (not self._later and not self._flying):
                self._done = True
                self._wake()
                return None
            wait = self._later[0][0] - now if self._later else None
            await self._changed(wait)
        return None

    async def _changed(self, timeout: float | None = None) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._change.wait(), timeout)

    def _wake(self) -> None:
        """Everybody who waits looks again."""
        self._change.set()
        self._change = asyncio.Event()

    # --- asking -------------------------------------------------------------------------------------------------

    async def _work(self, endpoint: Endpoint) -> None:
        while not endpoint.closed:
            if endpoint.rests and not self._over:  # takes nothing that another endpoint could answer meanwhile
                await self._changed(endpoint.rests)
                if self._done:
                    break
                continue
            item = await self._next()
            if item is None:
                break
            request, tries = item
            self._flying += 1
            try:
                await self._one(endpoint, request, tries)
            finally:
                self._flying -= 1
                self._wake()
        self._wake()

    async def _one(self, endpoint: Endpoint, request: Request, tries: int) -> None:
        await endpoint.allowed(request)
        most = endpoint.cost(request.prompt_tokens, request.options.max_tokens) if endpoint.cost else 0.0
        if endpoint.closed or endpoint.rests or self._over or not await self._afford(request, most):
            self._put_back(request, tries, 0.0)
            return
        began, used = time.monotonic(), (0, 0, 0.0)
        try:
            got = await endpoint.ask(request)
            used = self._used(endpoint, request, got)
        except RemoteError as error:
            self._try_failed(endpoint, request, tries, error)
            return
        except WorkbenchError as error:
            self._give_up(request, str(error))
            return
        finally:
            self.meter.settle(request.most_tokens, most, used)
        endpoint.succeeded()
        await self._keep(endpoint, request, got, time.monotonic() - began)

    async def _afford(self, request: Request, most: float) -> bool:
        """Reserve what a call may use at most. While others in flight may use less than reserved, wait for them."""
        while (limit := self.meter.reserve(request.most_tokens, most)) is not None:
            others = self.meter.reserved
            if not others or self._over:
                self._finish(limit)
                return False
            await self._changed()
        return True

    def _used(self, endpoint: Endpoint, request: Request, got: RemoteReply) -> tuple[int, int, float]:
        usage = got.usage if got.usage != Usage() else Usage(request.prompt_tokens, request.options.max_tokens)
        money = endpoint.cost(usage.prompt_tokens, usage.completion_tokens) if endpoint.cost else 0.0
        return usage.prompt_tokens, usage.completion_tokens, money

    def _try_failed(self, endpoint: Endpoint, request: Request, tries: int, error: RemoteError) -> None:
        wait = self._jitter.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**tries))
        endpoint.failed(error, wait)
        if endpoint.closed:
            self._put_back(request, tries, 0.0)
        elif error.retry and tries + 1 < TRIES:
            self._put_back(request, tries + (error.retry_after is None), wait)
        else:
            self._give_up(request, str(error))

    def _put_back(self, request: Request, tries: int, wait: float) -> None:
        heapq.heappush(self._later, (time.monotonic() + wait, next(self._order), tries, request))

    def _give_up(self, request: Request, reason: str) -> None:
        self.outcome.failed[request.key] = reason
        self.bar.advance()

    # --- keeping ------------------------------------------------------------------------------------------------

    async def _keep(self, endpoint: Endpoint, request: Request, got: RemoteReply, seconds: float) -> None:
        """Hand the reply to the writer and wait until it is on the disk."""
        usage = got.usage
        reply = Reply(
            request.key, got.text, got.finish_reason, got.model, endpoint.name,
            usage.prompt_tokens, usage.completion_tokens, seconds, got.raw,
        )  # fmt: skip
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._written.put((reply, future))
        await asyncio.shield(future)
        if self.on_reply is not None:
            self.on_reply(request, reply)
        money = None if endpoint.cost is None else f"{self.meter.money:.2f} USD"
        self.bar.advance(note=money if self.meter.money else None)

    async def _write(self) -> None:
        """Commit whatever is waiting together, until None comes."""
        last = False
        while not last:
            group = [await self._written.get()]
            while not self._written.empty():
                group.append(self._written.get_nowait())
            last = None in group
            kept = [item for item in group if item is not None]
            if not kept:
                continue
            try:
                await asyncio.to_thread(self.store.put_many, [reply for reply, _ in kept])
            except Exception as problem:  # whoever waits for it raises it
                for _, future in kept:
                    if not future.done():
                        future.set_exception(problem)
            else:
                self.outcome.asked += len(kept)
                for _, future in kept:
                    if not future.done():
                        future.set_result(None)

    # --- ending -------------------------------------------------------------------------------------------------

    def _finish(self, why: str) -> None:
        self._over = True
        self.outcome.stopped = self.outcome.stopped or why
        self._wake()

    async def _watch(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """Look for the wish to stop, and for a budget of seconds that is used up."""
        while True:
            await asyncio.sleep(0.1)
            limit = self.meter.budget.seconds
            if self.stop.is_set():
                self._finish("interrupted")
                for worker in workers:
                    worker.cancel()
                return
            if limit is not None and self.meter.seconds > limit:
                self._finish(f"budget of {limit:g} seconds")
            if self._over:
                self._wake()
