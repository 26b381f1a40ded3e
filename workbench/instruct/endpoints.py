"""Whom a run asks: requests, and the places that answer them, each with what it takes at once and per minute.

Knows: what a failed call says of its endpoint, and that requests to a model of this process go in batches.
Does not know: which request goes where, what is tried again, budgets (`loop.py`), or HTTP (`workbench.remote`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.chat_model import ChatModel, SamplingOptions
from workbench.conversation import Conversation
from workbench.errors import WorkbenchError
from workbench.instruct.limits import PROBE_SECONDS, Bucket, Health
from workbench.remote import RemoteError, RemoteModel, RemoteReply

_BLAMELESS = 1 / 8
"""What a call counts as a try when it failed by the endpoint and not by the request."""
_UNAVAILABLE = (502, 503, 504, 529)


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

    stops_at_once = True
    """Whether calls in flight are given up at an interrupt."""

    def __init__(
        self,
        model: RemoteModel,
        *,
        concurrency: int = 16,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        cost: Cost | None = None,
    ) -> None:
        self.model = model
        self._begin(repr(model), concurrency, cost, requests_per_minute, tokens_per_minute)

    def _begin(
        self, name: str, concurrency: int, cost: Cost | None, requests: float | None, tokens: float | None
    ) -> None:
        self.name, self.concurrency, self.cost = name, concurrency, cost
        self.requests_per_minute, self.tokens_per_minute = requests, tokens
        self._requests = Bucket(requests) if requests else None
        self._tokens = Bucket(tokens) if tokens else None
        self.health = Health()
        self.flying = 0

    async def ask(self, request: Request) -> RemoteReply:
        return await self.model.ask(request.conversation, request.options, schema=request.schema)

    async def close(self) -> None:
        await self.model.close()

    @property
    def rests(self) -> float:
        """Seconds until it may be asked: as it wants, as its rates allow, and while one call tries whether it is up."""
        trying = PROBE_SECONDS if self.health.down and self.flying else 0.0
        return max(self.health.rests, trying, *(one.wait for one in (self._requests, self._tokens) if one))

    def take(self, request: Request) -> None:
        """Count a request that is about to be asked."""
        self.flying += 1
        if self._requests:
            self._requests.take()
        if self._tokens:
            self._tokens.take(request.most_tokens)

    def money(self, prompt_tokens: int, completion_tokens: int) -> float:
        return self.cost(prompt_tokens, completion_tokens) if self.cost else 0.0

    def failed(self, error: RemoteError) -> float:
        """Take note of a failed call. Returns how much of a try it was: little where the request is not to blame."""
        health, status, why = self.health, error.status, str(error)
        if status in (401, 404) or (status == 429 and not error.retry) or (status == 403 and not health.replies):
            health.closed = why  # a 403 after replies is about this request: some providers moderate
        elif status == 429 or error.retry_after is not None:
            health.refused(error.retry_after, why)
            return _BLAMELESS
        elif status in _UNAVAILABLE or status is None:
            health.missed(why, seen=status is not None)
            if health.down and (status is not None or error.broken):
                return _BLAMELESS
        else:
            health.reached()
        return 1.0


class LocalEndpoint(Endpoint):
    """A `ChatModel` of this process. Requests that wait together are answered as one batch, one batch at a time."""

    stops_at_once = False  # a batch cannot be ended half way; its answers are kept

    def __init__(self, model: ChatModel, *, batch: int = 8) -> None:
        self.chat_model = model
        self._begin(model.name, batch, lambda prompt, reply: 0.0, None, None)
        self._waiting: list[tuple[Request, asyncio.Future[RemoteReply]]] = []
        self._answering: asyncio.Task[None] | None = None

    async def ask(self, request: Request) -> RemoteReply:
        future: asyncio.Future[RemoteReply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer())
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

    def _batch(self, group: Sequence[tuple[Request, Any]], options: SamplingOptions) -> list[RemoteReply | Exception]:
        asked = [request.conversation for request, _ in group]
        try:
            answers = self.chat_model.reply_batch(asked, options)
            if len(answers) != len(asked):
                raise WorkbenchError(self.name, found=f"{len(answers)} answers", expected=f"{len(asked)}")
            return [self._reply(answer) for answer in answers]
        except Exception as problem:  # one bad question must not take its neighbours along
            return [problem] if len(group) == 1 else [self._batch([one], options)[0] for one in group]

    def _reply(self, answer: Any) -> RemoteReply:
        return RemoteReply(answer.text, answer.finish_reason, answer.usage, self.name, answer.text)
