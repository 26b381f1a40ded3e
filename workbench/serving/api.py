"""Chat completions over HTTP for any `ChatModel`, as OpenAI's clients expect them.

Knows: the routes, and the way of a request through them: checked, in line, written, given out; what a client is told of
every failure. Does not know: sockets and signals (`run`), keys and bodies (`guard`), or what a model is made of.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Hashable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from workbench import __version__
from workbench.chat_model import ChatModel
from workbench.errors import ImageError
from workbench.inference.attachments import frames_read
from workbench.serving.answering import Exchange, Piece, Room, Written
from workbench.serving.asking import conversation_of, options_of, validation_error
from workbench.serving.desk import Desk
from workbench.serving.errors import ApiError, as_api_error
from workbench.serving.guard import Guard
from workbench.serving.health import Health, model_state
from workbench.serving.limits import Limits
from workbench.serving.metrics import Metrics
from workbench.serving.pictures import Pictures
from workbench.serving.remote_images import RemoteImages
from workbench.serving.schemas import ChatRequest, Completion, ErrorBody, ModelCard, ModelList
from workbench.serving.schemas import Health as HealthBody
from workbench.serving.shaping import Shape

_T = TypeVar("_T")
_log = logging.getLogger("workbench.serving")
_STATUSES = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)
_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in _STATUSES}
_NO_BUFFER = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""So that proxies hand on every event at once."""


class Api:
    """The routes and what they share. `app` is the ASGI application, guard included.

    temperature: of requests that do not say. remote: fetches images by URL, where that is allowed.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        pictures: Pictures,
        keys: Sequence[str] = (),
        remote: RemoteImages | None = None,
        temperature: float = 0.0,
    ) -> None:
        self.model, self.pictures, self.remote, self.temperature = model, pictures, remote, temperature
        self.limits: Limits = pictures.limits
        self.desk = Desk(self.limits.slots, self.limits.waiting, self.limits.queue_seconds)
        self.room = Room(model, self.desk, pictures)
        self.metrics = Metrics(self.desk, lambda: model_state(model))
        self.health = Health(self.room, self.limits.health_seconds)
        self.card = ModelCard(id=model.name, created=int(time.time()))
        self.app: ASGIApp = Guard(self._routes(), keys=keys, limits=self.limits, answered=self._answered)

    def close(self) -> None:
        """No further request; threads that still write end with their answers."""
        self.desk.close()
        self.room.executor.shutdown(wait=False, cancel_futures=True)

    # --- routes -------------------------------------------------------------------------------------------------

    def _routes(self) -> FastAPI:
        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            yield
            self.close()

        # Without the pages that show a schema: they load scripts from elsewhere.
        app = FastAPI(
            title="workbench", version=__version__, docs_url=None, redoc_url=None, responses=_ERRORS, lifespan=lifespan
        )
        app.get("/v1/models", response_model=ModelList)(self.list_models)
        app.get("/v1/models/{model:path}", response_model=ModelCard)(self.one_model)
        # OpenAPI 3.2's word for what an event of a stream is; in 3.1 it says nothing, and `schema` is read in two ways.
        event = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
        streamed = {"content": {"text/event-stream": {"itemSchema": event}}}
        app.post("/v1/chat/completions", response_model=Completion, responses={200: streamed})(self.chat)
        app.get("/health", response_model=HealthBody, responses={503: {"model": HealthBody}})(self.tell_health)
        app.get("/metrics", response_class=Response)(self.tell_metrics)
        for kind, answer in (
            (ApiError, self._tell_error),
            (RequestValidationError, _tell_invalid),
            (HTTPException, _tell_http),
            (Exception, self._tell_error),
        ):
            app.add_exception_handler(kind, answer)  # type: ignore[arg-type]
        return app

    async def list_models(self) -> ModelList:
        return ModelList(data=[self.card])

    async def one_model(self, model: str) -> ModelCard:
        self._check_model(model)
        return self.card

    async def tell_health(self) -> Response:
        status = await self.health.status()
        body = {"status": status, "running": self.desk.taken, "waiting": self.desk.waiting}
        return JSONResponse(body, 200 if status == "ok" else 503)

    async def tell_metrics(self) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def chat(self, request: Request, asked: ChatRequest) -> Response:
        """One or several answers to a conversation, whole or as server-sent events."""
        self._check_model(asked.model)
        id, begun, client = request.state.id, time.monotonic(), request.state.client
        exchange = Exchange(self.room)
        shape = Shape(id, self.card.id, logprobs=bool(asked.logprobs))
        items = self._items(exchange, asked, id, begun, client)
        streams = False
        try:
            if not asked.stream:
                body = await _unless_gone(request, _whole(items, asked.n or 1))
                return JSONResponse(shape.whole(body).model_dump())
            first = await _unless_gone(request, anext(items))  # what fails up to here has a status of its own
            streams = True
        except _Gone:
            self.metrics.gone.inc()
            return Response(status_code=499)
        except Exception as problem:
            raise self._known(problem, id) from None
        finally:
            if not streams:
                exchange.cancel()
        events = shape.events(
            _again(first, items),
            asked.n or 1,
            include_usage=bool(asked.stream_options and asked.stream_options.include_usage),
            failed=lambda problem: self._known(problem, id),
        )
        return _Events(events, exchange, self.metrics)

    # --- the way of a request -----------------------------------------------------------------------------------

    async def _items(
        self, exchange: Exchange, asked: ChatRequest, id: str, begun: float, client: Hashable
    ) -> AsyncIterator[tuple[int, Piece | Written]]:
        """Everything that is written for a request, measured; raises what goes wrong."""
        options = options_of(asked, self.limits, self.temperature)
        frames = frames_read(self.model)
        taken = await conversation_of(asked, id, self.pictures, self.remote, frames)
        await exchange.begin(taken, options, client)
        deadline = asyncio.get_running_loop().time() + self.limits.answer_seconds
        seen, wholes = False, 0
        items = exchange.items()
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    index, item = await anext(items)
            except StopAsyncIteration:
                break
            except ImageError as problem:
                raise taken.placed(problem) from None
            except TimeoutError:
                told = f"The answer was not whole within {self.limits.answer_seconds:.0f} s."
                raise ApiError(504, told, code="answer_timeout") from None
            if not seen:
                seen = True
                self.metrics.first.observe(time.monotonic() - begun)
            if isinstance(item, Written):
                self.metrics.count(item.usage, prompt=not wholes)
                wholes += 1
            yield index, item
        self.metrics.whole.observe(time.monotonic() - begun)

    def _check_model(self, name: str) -> None:
        if name != self.card.id:
            told = f"The model `{name[:200]}` is not served here; `{self.card.id}` is."
            raise ApiError(404, told, code="model_not_found", param="model")

    def _known(self, problem: BaseException, id: str) -> ApiError:
        error = as_api_error(problem, id)
        if error.status >= 500 and not isinstance(problem, ApiError):
            self.metrics.failed.inc()
            _log.error("%s failed", id, exc_info=problem)
        return error

    async def _tell_error(self, request: Request, problem: Exception) -> Response:
        error = self._known(problem, request.state.id)
        return JSONResponse(error.body, error.status, error.headers)

    def _answered(self, path: str, status: int) -> None:
        known = ("/v1/chat/completions", "/v1/models", "/health", "/metrics")
        self.metrics.requests.labels(path if path in known else "other", str(status)).inc()


class _Events(StreamingResponse):
    """Server-sent events of an exchange that ends with the response, however that ends."""

    def __init__(self, events: AsyncIterator[str], exchange: Exchange, metrics: Metrics) -> None:
        super().__init__(self._counted(events), media_type="text/event-stream", headers=_NO_BUFFER)
        self._exchange, self._metrics = exchange, metrics
        self._whole = False

    async def _counted(self, events: AsyncIterator[str]) -> AsyncIterator[str]:
        async for event in events:
            yield event
        self._whole = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._exchange.cancel()
            if not self._whole:
                self._metrics.gone.inc()


class _Gone(Exception):
    """The client has hung up."""


async def _unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """What `work` gives; raises `_Gone`, and ends it, as soon as the client hangs up."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise _Gone
        return await doing
    finally:
        for task in (doing, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(items: AsyncIterator[tuple[int, Piece | Written]], count: int) -> list[Written]:
    """All answers, in their order."""
    found = {index: item async for index, item in items if isinstance(item, Written)}
    return [found[index] for index in range(count)]


async def _again(first: _T, rest: AsyncIterator[_T]) -> AsyncIterator[_T]:
    yield first
    async for each in rest:
        yield each


async def _tell_invalid(request: Request, problem: RequestValidationError) -> Response:
    faults = list(problem.errors())
    if faults and faults[0]["type"] == "json_invalid":
        error = ApiError(400, f"The body is not JSON: {faults[0]['ctx']['error']}.", code="invalid_json")
    else:
        error = validation_error(faults)
    return JSONResponse(error.body, error.status)


async def _tell_http(request: Request, problem: HTTPException) -> Response:
    """What the framework refuses: unknown routes, wrong methods, bodies that it cannot read."""
    if problem.status_code == 404:
        error = ApiError(404, f"There is no {request.url.path[:200]} here.", code="unknown_url")
    elif problem.status_code == 405:
        error = ApiError(405, f"{request.method} is not allowed here.", code="method_not_allowed")
    elif isinstance(problem.__cause__, RecursionError):
        error = ApiError(400, "The body is nested too deeply.", code="invalid_json")
    else:
        error = ApiError(problem.status_code, "The body cannot be read as JSON.", code="invalid_json")
    return JSONResponse(error.body, error.status, {**(problem.headers or {}), **error.headers})
