"""Every failure as OpenAI's error object with the right status, and nothing in it that tells about this machine.

Knows: statuses, the shape `{"error": {message, type, param, code}}`, whose fault an error of the other rooms is, and
how paths and addresses are taken out of a text. Does not know: HTTP frameworks, models, or requests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from workbench.errors import BusyError, ContextError, ConversationError, ImageError, RenderError, WorkbenchError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_OBJECT = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>|\b0x[0-9a-fA-F]{6,}\b")
_PATH = re.compile(r"(?<![\w:/.])(?:~|[A-Za-z]:)?[/\\](?:[\w.@+-]+[/\\])*[\w.@+-]+")
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")


class ApiError(WorkbenchError):
    """A request that is not answered. `status` of HTTP, `code` for a program, `param`: the field that is meant,
    `retry_after`: seconds after which it is worth trying again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        told = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return told if self.retry_after is None else told | {"retry-after": str(max(1, math.ceil(self.retry_after)))}


def as_api_error(error: BaseException, request_id: str) -> ApiError:
    """What a client is told of `error`: its own mistakes in full, ours by the number under which the log has them."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextError):
        # In these words, since clients look for them to tell this from other mistakes.
        message = f"This model's maximum context length is {error.limit} tokens. However, the prompt has {error.tokens}"
        fix = "tokens, those of its images included. Shorten the conversation or send fewer images."
        return ApiError(400, f"{message} {fix}", code="context_length_exceeded", param="messages")
    if isinstance(error, (ImageError, RenderError, ConversationError)):
        code = "invalid_image" if isinstance(error, ImageError) else "invalid_messages"
        told = scrubbed(str(error)).replace(f"{request_id}, ", "").replace(f"{request_id}: ", "").rstrip(".")
        return ApiError(400, f"{told}.", code=code, param="messages")
    if isinstance(error, BusyError):
        return ApiError(429, f"{scrubbed(str(error))}.", code="rate_limit_exceeded", retry_after=5)
    if isinstance(error, WorkbenchError) and (option := error.where.removeprefix("sampling option ")) != error.where:
        param = "response_format" if option == "json_schema" else option
        return ApiError(400, f"{param}: found {scrubbed(error.found)}; expected {error.expected}.", param=param)
    if any(_no_memory(each) for each in _chain(error)):
        message = "There was no memory left for this request. Send fewer or smaller images, or try again later."
        return ApiError(503, message, code="out_of_memory", retry_after=5)
    return ApiError(500, f"The model failed on this request; the server's log has it as {request_id}.", code="failed")


def scrubbed(text: str) -> str:
    """`text` without paths, network addresses, and places in memory."""
    for pattern, instead in ((_OBJECT, "the data"), (_PATH, "(a path)"), (_ADDRESS, "(an address)")):
        text = pattern.sub(instead, text)
    return text


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _no_memory(error: BaseException) -> bool:
    """torch's own class by its name, since not every model is made of torch; on a CPU torch raises a plain one."""
    told = str(error)
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or isinstance(error, RuntimeError) and "can't allocate memory" in told
