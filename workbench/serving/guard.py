"""What every request passes before a route sees it: its host, its key, and its whole body within bytes and seconds.

Knows: ASGI, keys compared in constant time, and that a page in a browser must not reach a server on this machine.
Does not know: routes (but for the one that needs no key), schemas, models.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workbench.serving.errors import ApiError
from workbench.serving.limits import Limits

OPEN = ("/health",)
"""Routes that need no key: they tell whether the server lives, and no more."""
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_DRAIN = 2.0
"""Seconds for which a body that is refused is read on, so that its sender gets to read why."""


class Guard:
    """`keys`: any of them opens every route; without one only requests that name this machine as host pass.

    Every response carries an `x-request-id`; `answered` is told path and status of each.
    """

    def __init__(
        self, app: ASGIApp, *, keys: Collection[str], limits: Limits, answered: Callable[[str, int], None]
    ) -> None:
        self.app, self.limits, self._answered = app, limits, answered
        self._digests = [_digest(key.encode()) for key in keys]
        self._held = 0
        """Bytes of bodies of all requests that are being answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope["state"]["id"] = id = f"chatcmpl-{uuid.uuid4().hex}"
        headers = {name.lower(): value for name, value in scope["headers"]}
        body = _Body(self, receive)

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", id.encode())]
                self._answered(scope["path"], message["status"])
            await send(message)

        try:
            self._check(scope, headers)
            await body.read(headers)
            await self.app(scope, body.replay, told)
        except ApiError as error:  # of this guard: the app answers its own
            if error.status != 408 and b"expect" not in headers:
                await _drained(receive)
            answer = JSONResponse(error.body, error.status, error.headers | {"connection": "close"})
            await answer(scope, receive, told)
        except ConnectionError:
            pass  # the client left before its request was whole
        finally:
            body.release()

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raise `ApiError` for what may not pass, and say in `state.client` who it is: by key where there are several,
        else by address."""
        # The server library bounds headers that come in parts, not those that come at once.
        if sum(map(len, itertools.chain(*scope["headers"]))) + len(scope["raw_path"]) > self.limits.header_bytes:
            told = f"The headers are larger than {self.limits.header_bytes:,} bytes."
            raise ApiError(431, told, code="invalid_http")
        key = self._check_key(scope["path"], headers)
        scope["state"]["client"] = (scope.get("client") or ("",))[0] if len(self._digests) < 2 else key
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":
            # Also what keeps pages of other origins out: a browser asks first before it sends this type.
            raise ApiError(415, "The body has to be application/json.", code="unsupported_media_type")

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> bytes | None:
        """What a key is known by here; None without one. Raises `ApiError` 401 or 403."""
        if not self._digests:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name.lower() not in _LOCAL:
                # A page elsewhere whose name was made to lead to this machine would say its own name here.
                raise ApiError(403, "Without an API key only localhost is answered.", code="host_not_allowed")
            return None
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = _digest(key.strip()) if kind.lower() == b"bearer" else _digest(b"")
        known = [hmac.compare_digest(given, each) for each in self._digests]
        if path not in OPEN and not any(known):
            told = "The API key is wrong." if key else "An API key is needed: Authorization: Bearer KEY."
            raise ApiError(401, told, code="invalid_api_key")
        return given

    def hold(self, count: int) -> None:
        self._held += count
        if self._held > self.limits.bodies_bytes:
            raise ApiError(503, "Too many large requests at once; try again later.", code="overloaded", retry_after=5)

    def release(self, count: int) -> None:
        self._held -= count


class _Body:
    """The body of one request, read whole and then handed on in one piece."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self.guard, self.receive = guard, receive
        self.data = bytearray()
        self.counted = 0
        self.whole = False
        self.given = False

    async def read(self, headers: dict[bytes, bytes]) -> None:
        """Raises `ApiError` 408 or 413, 503 where all bodies together are too much, `ConnectionError` at a hang-up."""
        limits = self.guard.limits
        with suppress(ValueError):
            if int(headers.get(b"content-length", b"0")) > limits.body_bytes:
                raise _too_large(limits)
        try:
            async with asyncio.timeout(limits.body_seconds):
                while not self.whole:
                    async with asyncio.timeout(limits.gap_seconds):
                        self._take(await self.receive())
        except TimeoutError:
            told = f"The body did not arrive: at most {limits.gap_seconds:g} s between two parts, "
            raise ApiError(408, f"{told}{limits.body_seconds:g} s in all.", code="body_timeout") from None

    def _take(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            raise ConnectionError
        part = message.get("body", b"")
        self.counted += len(part)
        self.guard.hold(len(part))
        self.data += part
        if len(self.data) > self.guard.limits.body_bytes:
            raise _too_large(self.guard.limits)
        self.whole = not message.get("more_body", False)

    async def replay(self) -> Message:
        if self.given:
            return await self.receive()
        self.given = True
        data, self.data = bytes(self.data), bytearray()
        return {"type": "http.request", "body": data, "more_body": False}

    def release(self) -> None:
        self.guard.release(self.counted)
        self.counted = 0


async def _drained(receive: Receive) -> None:
    """Read what is still coming, for a moment, and forget it: a connection that is cut loses the reply too."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"The body is larger than {limits.body_bytes:,} bytes.", code="body_too_large")


def _digest(key: bytes) -> bytes:
    """Of equal length for every key, so that comparing takes equally long."""
    return hashlib.sha256(key).digest()
