"""Asking teachers: many requests in flight, each reply on the disk before anything else happens to it.

Knows: endpoints that share the load, waiting and asking again, budgets, interruption.
Does not know: what is asked, what becomes of a reply, or what an endpoint is (`endpoints.py`).

Every endpoint has as many workers as it takes requests at once. A worker waits until its endpoint allows a request,
takes the next one that nobody has asked yet, asks, hands the reply to the writer, and goes on when the writer has
committed it. The writer commits whatever replies are waiting in one transaction. What fails for now comes back later,
to whichever endpoint is free. An endpoint that is down is tried by one call at a time.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from workbench.chat_model import Usage
from workbench.errors import WorkbenchError
from workbench.instruct.endpoints import Endpoint, Request
from workbench.instruct.limits import Budget, Meter, backoff
from workbench.instruct.replies import Reply, ReplyStore
from workbench.progress import Progress
from workbench.progress import progress as make_bar
from workbench.remote import RemoteError, RemoteReply

TRIES = 8
"""Times one request is asked before it is given up."""
_READ_AHEAD = 128


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
    lost: int = 0
    """Calls whose reply did not arrive whole, and that may be charged all the same."""
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
        lost = f" ({self.lost:,} brought no whole reply and may be charged)" if self.lost else ""
        failed = f", {len(self.failed):,} given up" if self.failed else ""
        stopped = f"; stopped: {self.stopped}" if self.stopped else ""
        replies = f"{self.asked:,} replies in {self.calls:,} calls{lost}{before}{failed}"
        return f"{replies}, {tokens}, {money}, {self.seconds:.0f} s{stopped}"


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
    arrived is kept, and the outcome says so; a second Ctrl-C does not wait for that. Works inside a running event loop
    too: everything runs in a thread. Raises `WorkbenchError` for a budget of money where a price is not known.
    """
    _check(endpoints, budget)
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
            if stop.is_set():
                raise
            stop.set()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _check(endpoints: Sequence[Endpoint], budget: Budget | None) -> None:
    if not any(one.concurrency > 0 for one in endpoints):
        raise WorkbenchError("teacher", found="no endpoint that takes requests", expected="at least one")
    unpriced = [one.name for one in endpoints if one.cost is None]
    if unpriced and budget is not None and budget.money is not None:
        fix = "name a file of prices, or give a budget of tokens"
        raise WorkbenchError("budget money", found=f"no known price for {unpriced[0]}", expected="a price", fix=fix)


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
        self.endpoints, self.store, self.meter = endpoints, store, meter
        self.on_reply, self.stop, self.bar = on_reply, stop, bar
        self.outcome = Outcome()
        self._source, self._seen = iter(requests), set[str]()
        self._ahead: deque[Request] = deque()
        self._exhausted = False
        self._later: list[tuple[float, int, float, Request]] = []  # when, order, tries so far, request
        self._order = count()
        self._flying = 0
        self._change, self._ended = asyncio.Event(), asyncio.Event()  # ended: nothing more is asked
        self._written: asyncio.Queue[tuple[Reply, asyncio.Future[None]] | None] = asyncio.Queue()
        self._jitter = random.Random(0)

    async def all(self) -> Outcome:
        writer = asyncio.create_task(self._write())
        workers = {asyncio.create_task(self._work(one)): one for one in self.endpoints for _ in range(one.concurrency)}
        watch = asyncio.create_task(self._watch(workers))
        try:
            await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in (*workers, watch):
                task.cancel()
            ends = await asyncio.gather(*workers, watch, return_exceptions=True)
            await self._written.put(None)
            await writer
            for endpoint in self.endpoints:
                await endpoint.close()
        for end in ends:
            if isinstance(end, Exception):
                raise end
        self._account()
        return self.outcome

    def _account(self) -> None:
        outcome, meter = self.outcome, self.meter
        outcome.calls, outcome.lost, outcome.seconds = meter.calls, meter.lost, meter.seconds
        outcome.prompt_tokens, outcome.completion_tokens = meter.prompt_tokens, meter.completion_tokens
        outcome.money = None if any(one.cost is None for one in self.endpoints) else meter.money
        if outcome.stopped is None and self._later:
            shut = next(one.health.closed for one in self.endpoints if one.health.closed)
            outcome.stopped = f"no endpoint is left: {shut}"

    # --- what is asked next -------------------------------------------------------------------------------------

    async def _next(self) -> tuple[Request, float] | None:
        """The next request and how often it was tried; None when nothing more is to be asked."""
        while not self._ended.is_set():
            now = time.monotonic()
            if self._later and self._later[0][0] <= now:
                _, _, tries, request = heapq.heappop(self._later)
                return request, tries
            fresh = await self._fresh()
            if fresh is not None:
                return fresh, 0.0
            if self._all_done:
                self._end()
            else:
                await self._changed(self._later[0][0] - now if self._later else None)
        return None

    async def _fresh(self) -> Request | None:
        """The next request that was not asked yet; None after the last one."""
        while not self._ahead and not self._exhausted and not self._ended.is_set():
            self._read_on()
            await asyncio.sleep(0)  # many that are stored already must not hold up those in flight
        return self._ahead.popleft() if self._ahead else None

    def _read_on(self) -> None:
        """Look up the next some requests, each key once."""
        part = list(islice(self._source, _READ_AHEAD))
        self._exhausted = len(part) < _READ_AHEAD
        known = self.store.get_many([one.key for one in part])
        for request in part:
            if request.key in known and request.key not in self._seen:
                self.outcome.stored += 1
                if self.on_reply is not None:
                    self.on_reply(request, known[request.key])
            elif request.key not in self._seen:
                self._ahead.append(request)
            if request.key in self._seen or request.key in known:
                self.bar.advance()
            self._seen.add(request.key)

    @property
    def _all_done(self) -> bool:
        return self._exhausted and not self._ahead and not self._later and not self._flying

    async def _changed(self, timeout: float | None = None) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._change.wait(), timeout)

    def _wake(self) -> None:
        """Everybody who waits for a request, or for room in the budget, looks again."""
        self._change.set()
        self._change = asyncio.Event()

    # --- asking -------------------------------------------------------------------------------------------------

    async def _work(self, endpoint: Endpoint) -> None:
        while not endpoint.health.closed and not self._ended.is_set():
            if endpoint.rests:  # takes nothing that another endpoint could answer meanwhile
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), endpoint.rests)
                continue
            item = await self._next()
            if item is None:
                break
            request, tries = item
            if endpoint.rests or endpoint.health.closed:  # since it began to wait for a request
                self._put_back(request, tries)
                continue
            await self._take(endpoint, request, tries)

    async def _take(self, endpoint: Endpoint, request: Request, tries: float) -> None:
        endpoint.take(request)
        self._flying += 1
        try:
            await self._one(endpoint, request, tries)
        finally:
            self._flying -= 1
            endpoint.flying -= 1
            self._end() if self._all_done else self._wake()

    async def _one(self, endpoint: Endpoint, request: Request, tries: float) -> None:
        while self.meter.learns and not self._ended.is_set():
            await self._changed()
        prompt = self.meter.expect(request.prompt_tokens)
        most = prompt + request.options.max_tokens, endpoint.money(prompt, request.options.max_tokens)
        if not await self._afford(*most):
            self._put_back(request, tries)
        elif endpoint.health.rests or endpoint.health.closed or self._ended.is_set():  # since it waited for room
            self.meter.withdraw(*most)
            self._put_back(request, tries)
        else:
            began = time.monotonic()
            got = await self._ask(endpoint, request, tries, most)
            if got is not None:
                endpoint.health.replied()
                await self._keep(endpoint, request, got, time.monotonic() - began)

    async def _afford(self, tokens: int, money: float) -> bool:
        """Reserve what a call may use at most. While others in flight may use less than reserved, wait for them."""
        while (limit := self.meter.reserve(tokens, money)) is not None:
            if not self.meter.reserved or self._ended.is_set():
                self._finish(limit)
                return False
            await self._changed()
        return True

    async def _ask(
        self, endpoint: Endpoint, request: Request, tries: float, most: tuple[int, float]
    ) -> RemoteReply | None:
        """The reply, what it used counted; or None, and the request comes back or is given up."""
        used, lost = (0, 0, 0.0), False
        try:
            got = await endpoint.ask(request)
            used = self._used(endpoint, request, got)
            return got
        except RemoteError as error:
            lost = _may_be_charged(error)
            self._try_failed(endpoint, request, tries, error)
        except Exception as error:  # a picture that is gone, a model that breaks: the others are asked all the same
            known = isinstance(error, WorkbenchError)
            self._give_up(request, str(error) if known else f"{type(error).__name__}: {error}")
        finally:
            self.meter.lose() if lost else self.meter.settle(*most, used)
        return None

    def _used(self, endpoint: Endpoint, request: Request, got: RemoteReply) -> tuple[int, int, float]:
        usage = got.usage if got.usage != Usage() else Usage(request.prompt_tokens, request.options.max_tokens)
        self.meter.compare(request.prompt_tokens, usage.prompt_tokens)
        money = endpoint.money(usage.prompt_tokens, usage.completion_tokens)
        return usage.prompt_tokens, usage.completion_tokens, money

    def _try_failed(self, endpoint: Endpoint, request: Request, tries: float, error: RemoteError) -> None:
        tried = tries + endpoint.failed(error)
        if endpoint.health.closed:
            self._put_back(request, tries)
            if all(one.health.closed for one in self.endpoints):
                self._end()
        elif error.retry and tried < TRIES:
            self._put_back(request, tried, backoff(tries, self._jitter))
        else:
            self._give_up(request, str(error))
        self.bar.advance(0, note=self._note())

    def _put_back(self, request: Request, tries: float, wait: float = 0.0) -> None:
        heapq.heappush(self._later, (time.monotonic() + wait, next(self._order), tries, request))
        self._wake()

    def _give_up(self, request: Request, reason: str) -> None:
        self.outcome.failed[request.key] = reason
        self.bar.advance(note=self._note())

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
        self.bar.advance(note=self._note())

    def _note(self) -> str:
        """What a person who waits wants to know: cost, what was given up, and why nothing happens."""
        notes = [f"{self.meter.money:,.2f} USD"] if self.meter.money else []
        notes += [f"{len(self.outcome.failed):,} given up"] if self.outcome.failed else []
        for one in self.endpoints:
            if (wait := one.health.rests) > 1:
                notes.append(f"{one.name} rests {wait:.0f} s: {one.health.why[:100]}")
        return ", ".join(notes)

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

    def _end(self) -> None:
        self._ended.set()
        self._wake()

    def _finish(self, why: str) -> None:
        self.outcome.stopped = self.outcome.stopped or why
        self._end()

    async def _watch(self, workers: Mapping[asyncio.Task[None], Endpoint]) -> None:
        """Look for the wish to stop, and for a budget of seconds that is used up."""
        limit = self.meter.budget.seconds
        while True:
            await asyncio.sleep(0.1)
            if self.stop.is_set():
                self._finish("interrupted")
                for worker, endpoint in workers.items():
                    if endpoint.stops_at_once:
                        worker.cancel()
                return
            if limit is not None and self.meter.seconds > limit:
                self._finish(f"budget of {limit:g} seconds")


def _may_be_charged(error: RemoteError) -> bool:
    """Whether the endpoint may have answered although no whole reply arrived."""
    return error.status in (None, 200) and error.sent
