"""One TCP connection: what HTTP servers leave open and strangers use, closed.

Knows: uvicorn's protocol class, deadlines for headers and for answers that nobody reads, a bound on connections, and
that even a request which is no HTTP gets an error object. Does not know: the application behind it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from workbench.serving.errors import ApiError
from workbench.serving.limits import Limits

_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Unavailable"}


def protocol(limits: Limits) -> type[H11Protocol]:
    """The protocol class for these limits, as uvicorn wants it."""

    class Connection(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                return self._refuse(ApiError(503, "Too many connections.", code="overloaded", retry_after=5))
            self._expect_headers()

        def connection_lost(self, problem: Exception | None) -> None:
            _cancel(self._waiting)
            _cancel(self._unread)
            super().connection_lost(problem)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            if (before is None or before.response_complete) and not (self._waiting and not self._waiting.cancelled()):
                self._expect_headers()
            super().data_received(data)
            if self.cycle is not before:
                _cancel(self._waiting)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            _cancel(self._unread)

        def send_400_response(self, msg: str) -> None:
            """uvicorn calls it for what is no HTTP; the reason is the exception that it is handling."""
            problem = sys.exc_info()[1]
            status = getattr(problem, "error_status_hint", 400)
            told = (
                f"The headers are larger than {limits.header_bytes:,} bytes." if status == 431 else f"{msg} {problem}."
            )
            self._refuse(ApiError(status if status in _REASONS else 400, told, code="invalid_http"))

        def _expect_headers(self) -> None:
            told = ApiError(408, f"No request within {limits.header_seconds:g} s.", code="header_timeout")
            self._waiting = self.loop.call_later(limits.header_seconds, self._refuse, told)

        def _refuse(self, error: ApiError) -> None:
            _cancel(self._waiting)
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
                body = json.dumps(error.body).encode()
                told = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
                headers = list((told | error.headers).items())
                reason = _REASONS[error.status]
                answer = h11.Response(status_code=error.status, headers=headers, reason=reason)
                for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Connection


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
