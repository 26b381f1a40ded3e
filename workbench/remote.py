"""Models behind an OpenAI-compatible endpoint, by the official client.

Knows: how a conversation with pictures becomes a request, what came back, which failures may pass, and which fields an
endpoint does not take.
Does not know: when to ask again, rates, budgets (`instruct.loop`), or where pictures lie: `open_image` is handed in.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from workbench.chat_model import GREEDY, Answer, Ending, Pieces, SamplingOptions, TokenLogprob, Usage
from workbench.conversation import Conversation, Image
from workbench.errors import ConversationError, ImageError, WorkbenchError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_T = TypeVar("_T")
OpenImage = Callable[[Image], "Path | Picture"]
"""Where the file of an image lies, or the picture itself."""
AT_ONCE = 8
"""Requests of `reply_batch` in flight."""
KEPT_PICTURES, KEPT_CHARACTERS = 256, 128 * 2**20
"""Encoded pictures kept for further questions about them, and their length together; the oldest go first."""
_KINDS = {rb"\x89PNG": "png", rb"\xff\xd8\xff": "jpeg", rb"GIF8": "gif", rb"RIFF....WEBP": "webp"}
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_PASSING = {408, 409, 425, 429}
_BEYOND = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sampling options that OpenAI has not but many servers take, and the value that says nothing."""
_SAMPLING = (
    *("max_tokens", "temperature", "seed", "top_p", "stop", "stream_options", "top_logprobs", "logprobs"),
    *_BEYOND,
)
_REFUSED = re.compile(
    r"(un|not |n't )support|unrecogni[sz]ed|unknown|unexpected|not (permitted|allowed|implemented)|extra_forbid",
    re.IGNORECASE,
)
"""What endpoints say of a field they do not take; of a value that is too large they say something else."""
_SHOWN = 200
_LOOK = 0.05
"""Seconds between two looks whether an answer that is being waited for was cancelled."""


class RemoteError(WorkbenchError):
    """A request that failed. `retry`: it may succeed later; `retry_after`: seconds the endpoint wants to be left alone;
    `status`: of HTTP, None where there was no answer; `broken`: the connection broke off or never was; `sent`: the
    request may have arrived, and may be charged."""

    retry: bool = False
    broken: bool = False
    sent: bool = True
    retry_after: float | None = None
    status: int | None = None

    @classmethod
    def of(
        cls,
        where: str,
        found: str,
        *,
        retry: bool,
        status: int | None = None,
        after: float | None = None,
        broken: bool = False,
        sent: bool = True,
        fix: str = "",
    ) -> RemoteError:
        error = cls(where, found=found, fix=fix)
        error.retry, error.retry_after, error.status, error.broken, error.sent = retry, after, status, broken, sent
        return error


@dataclass(frozen=True)
class RemoteReply:
    """One reply, as it came."""

    text: str
    finish_reason: str
    usage: Usage
    model: str
    """As the endpoint calls it."""
    raw: str
    """The whole response, JSON."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Where they were asked for and the endpoint tells them; endpoints tell texts, so every id is -1."""


class RemoteModel:
    """A `ChatModel` over an OpenAI-compatible endpoint: OpenAI's, vLLM, Ollama, or `workbench serve`.

    `url` up to and including `/v1` (default `$OPENAI_BASE_URL`, else OpenAI's); `api_key` (default `$OPENAI_API_KEY`; a
    local server needs none). `open_image` gives the file of an image, which is sent as it is where it is PNG, JPEG,
    WebP or GIF, or a picture, which is sent as PNG. `timeout`: seconds for a whole reply. Used in a `with` block, it
    closes its connections at the end. Raises `WorkbenchError` for a URL or key that cannot be used.
    """

    def __init__(
        self,
        model: str,
        *,
        url: str | None = None,
        api_key: str | None = None,
        open_image: OpenImage | None = None,
        name: str | None = None,
        timeout: float = 120.0,
    ) -> None:
        self.model, self.name, self.timeout = model, name or model, timeout
        self.url = _checked_url(url or os.environ.get("OPENAI_BASE_URL"))
        self._key = _checked_key(api_key or os.environ.get("OPENAI_API_KEY"))
        self.open_image = open_image
        self._clients: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._refused: set[str] = set()
        self._pictures: OrderedDict[Any, str] = OrderedDict()
        self._guard = threading.Lock()

    def __repr__(self) -> str:
        return f"RemoteModel({self.model!r}, url={_shown_url(self.url)!r})"

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *problem: object) -> None:
        _in_background(self.close()).result()

    # --- asking -------------------------------------------------------------------------------------------------

    async def ask(
        self, conversation: Conversation, options: SamplingOptions = GREEDY, *, schema: Mapping[str, Any] | None = None
    ) -> RemoteReply:
        """One reply, asked for once. `schema`: a JSON schema that the reply shall follow, where the endpoint can.

        A field that the endpoint refuses is left out from then on, and the request repeated at once. Raises
        `RemoteError`; nothing is tried again here for any other reason.
        """
        fields = self._fields(conversation, options, schema)
        with self._failures():
            async with asyncio.timeout(self.timeout):
                got = await self._send(self._client().chat.completions.with_raw_response.create, fields)
        return self._read(got.text)

    def reply(self, conversation: Conversation, options: SamplingOptions = GREEDY) -> Answer:
        """As `ChatModel.reply`: the answer as it is written. Raises `RemoteError` while it is read.

        It is asked for in a thread with an event loop of its own, so that it can be read in a notebook's cell, and
        ended while the endpoint is silent: `Answer.cancel` closes the connection.
        """
        fields = self._fields(conversation, options, None)

        def write(cancelled: threading.Event) -> Pieces:
            pieces: SimpleQueue[str | None] = SimpleQueue()
            writing = _in_background(self._stream(fields, pieces.put))
            writing.add_done_callback(lambda _: pieces.put(None))
            try:
                while not cancelled.is_set():
                    with suppress(Empty):
                        piece = pieces.get(timeout=_LOOK)
                        if piece is None:
                            return writing.result()
                        yield piece
                return Ending("cancelled")
            finally:
                writing.cancel()

        return Answer(write)

    def reply_batch(self, conversations: Sequence[Conversation], options: SamplingOptions = GREEDY) -> list[Answer]:
        """As `ChatModel.reply_batch`, several requests at once. Raises the first `RemoteError`, and ends the others."""
        answering = _in_background(self._batch(conversations, options))
        try:
            return answering.result()
        finally:
            answering.cancel()

    async def close(self) -> None:
        """Close the connections of this event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    async def _batch(self, conversations: Sequence[Conversation], options: SamplingOptions) -> list[Answer]:
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(row: int, conversation: Conversation) -> Answer:
            seed = None if options.seed is None else options.seed + row
            async with slots:
                got = await self.ask(conversation, replace(options, seed=seed))
            return Answer.finished(got.text, Ending(got.finish_reason, got.usage, logprobs=got.logprobs))

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(row, asked)) for row, asked in enumerate(conversations)]
        except BaseExceptionGroup as problems:
            raise problems.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _stream(self, fields: dict[str, Any], put: Callable[[str], None]) -> Ending:
        """Hand on the pieces of a reply as they come. One that breaks off is an error, never an answer."""
        reason, usage = "", Usage()
        logprobs: list[TokenLogprob] = []
        fields |= {"stream": True}
        if "stream_options" not in self._refused:
            fields["stream_options"] = {"include_usage": True}
        with self._failures():
            async with (
                asyncio.timeout(self.timeout),
                await self._send(self._client().chat.completions.create, fields) as chunks,
            ):
                async for chunk in chunks:
                    if chunk.usage is not None:
                        usage = _usage(chunk.usage.model_dump())
                    for choice in (chunk.choices or [])[:1]:
                        reason = choice.finish_reason or reason
                        if choice.logprobs is not None:
                            logprobs += _logprobs(choice.logprobs.model_dump())
                        if choice.delta is not None and choice.delta.content:
                            put(choice.delta.content)
        if not reason:
            raise self._error("an answer that breaks off", retry=True, status=200, fix=_SEE_URL)
        return Ending(_reason(reason), usage, logprobs=tuple(logprobs))

    async def _send(self, create: Callable[..., Any], fields: dict[str, Any]) -> Any:
        """What comes back for a request, without the fields that the endpoint refuses."""
        import openai

        while True:
            try:
                return await create(**fields)
            except openai.NotFoundError as problem:
                raise self._refusal(problem, fix=await self._models()) from None
            except (openai.BadRequestError, openai.UnprocessableEntityError) as problem:
                if not self._leave_out(problem.response.text, fields):
                    raise

    def _client(self) -> Any:
        """A client of this event loop: connections belong to the loop that opened them."""
        from openai import AsyncOpenAI

        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            made = AsyncOpenAI(api_key=self._key, base_url=self.url, max_retries=0, timeout=self.timeout)
            self._clients[loop] = made
        return self._clients[loop]

    async def _models(self) -> str:
        """What to do about a model that is not there: the names that are, where the endpoint tells them."""
        import openai

        with suppress(openai.OpenAIError, TimeoutError, ValueError, TypeError, LookupError):
            async with asyncio.timeout(5):
                got = await self._client().models.with_raw_response.list()
            names = [str(one["id"]) for one in json.loads(got.text)["data"]]
            more = f" and {len(names) - 10} more" if len(names) > 10 else ""
            return f"it has {', '.join(names[:10]) or 'no model'}{more}"
        return f"see the name of the model; {_SEE_URL}"

    # --- the request --------------------------------------------------------------------------------------------

    def _fields(
        self, conversation: Conversation, options: SamplingOptions, schema: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        limit = "max_completion_tokens" if "max_tokens" in self._refused else "max_tokens"
        fields: dict[str, Any] = {"temperature": options.temperature, limit: options.max_tokens}
        if options.top_p < 1:
            fields["top_p"] = options.top_p
        if options.seed is not None:
            fields["seed"] = options.seed
        if options.stop:
            fields["stop"] = list(options.stop)
        if options.logprobs is not None:
            fields |= {"logprobs": True, "top_logprobs": options.logprobs}
        beyond = {name: getattr(options, name) for name in _BEYOND}
        asked = {name: value for name, value in beyond.items() if value != _BEYOND[name] and name not in self._refused}
        if asked:
            fields["extra_body"] = asked
        if schema is None and options.json_schema is not None:
            schema = json.loads(options.json_schema)
        if schema is not None:
            shape = {"name": "reply", "schema": dict(schema), "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": shape}
        kept = {name: value for name, value in fields.items() if name not in self._refused}
        return {"model": self.model, "messages": self._messages(conversation), **kept}

    def _leave_out(self, told: str, fields: dict[str, Any]) -> bool:
        """Whether the endpoint refused a field that can be left out; it is, from then on.

        A value that is too large, or a prompt that happens to speak of a temperature, is not a field that is refused.
        """
        names = [name for name in _SAMPLING if re.search(rf"\b{name}\b", told)] if _REFUSED.search(told) else []
        if re.search("response_format|json_schema|guided", told):
            names.insert(0, "response_format")
        beyond = fields.get("extra_body", {})
        for name in names:
            if name in beyond:
                self._refused.add(name)
                fields["extra_body"] = {key: value for key, value in beyond.items() if key != name}
                return True
            if name in fields:
                self._refused.add(name)
                value = fields.pop(name)
                if name == "max_tokens":
                    fields["max_completion_tokens"] = value
                return True
        return False

    def _messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        for message in conversation.messages:
            parts = [self._part(part, conversation.id) for part in message.content] if message.media else message.text
            made.append({"role": message.role, "content": parts})
        return made

    def _part(self, part: Any, where: str) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if not isinstance(part, Image):
            raise ConversationError(
                where, found="a video", expected="text and images, which is all that endpoints take"
            )
        return {"type": "image_url", "image_url": {"url": self._picture(part)}}

    def _picture(self, image: Image) -> str:
        """A data URI. Encoded once for all questions about the image."""
        key = image.hash or (image.root, image.path)
        with self._guard:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        if self.open_image is None:
            raise WorkbenchError(f"model {self.name}", found="an image", expected="open_image to be given")
        uri = data_uri(self.open_image(image))
        with self._guard:
            self._pictures[key] = uri
            kept = self._pictures
            while len(kept) > KEPT_PICTURES or sum(map(len, kept.values())) > KEPT_CHARACTERS:
                kept.popitem(last=False)
        return uri

    # --- what came back -----------------------------------------------------------------------------------------

    def _read(self, raw: str) -> RemoteReply:
        """The reply in the body of a response with status 200, whatever the endpoint takes for one."""
        try:
            body = json.loads(raw)
            choice = body["choices"][0]
            text = choice["message"].get("content") or ""
            if not isinstance(text, str):  # parts, as some servers answer
                text = "".join(part.get("text", "") for part in text)
            usage, logprobs = _usage(body.get("usage") or {}), tuple(_logprobs(choice.get("logprobs") or {}))
            reason = _reason(choice.get("finish_reason") or "stop")
            return RemoteReply(text, reason, usage, str(body.get("model") or self.model), raw, logprobs)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            found = "no reply in what it sent"
            raise self._error(found, raw or "nothing", retry=True, status=200, fix=_SEE_URL) from None

    def _error(self, found: str, told: str = "", **more: Any) -> RemoteError:
        """`told`: what endpoint or client said; its first words are shown, and never the key."""
        if self._key != NO_KEY:
            told = told.replace(self._key, "***")
        where = f"{self.model} at {_shown_url(self.url) or 'OpenAI'}"
        return RemoteError.of(where, f"{found} ({_words(told)})" if told else found, **more)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Every failure of client and connection as a `RemoteError`."""
        import openai

        try:
            yield
        except openai.APIStatusError as problem:
            raise self._refusal(problem) from None
        except (openai.APITimeoutError, TimeoutError):
            raise self._error(f"no whole reply within {self.timeout:g} seconds", retry=True) from None
        except openai.APIConnectionError as problem:
            cause = problem.__cause__ or problem
            told = f"{type(cause).__name__}: {cause}"
            fix = "see that it runs and the URL is right"
            sent = type(cause).__name__ != "ConnectError"  # httpx's, of whichever generation the client has
            raise self._error("a broken connection", told, retry=True, broken=True, sent=sent, fix=fix) from None
        except (openai.OpenAIError, ValueError) as problem:  # ValueError: a stream that is no JSON
            raise self._error(type(problem).__name__, str(problem), retry=True) from None

    def _refusal(self, problem: Any, fix: str = "") -> RemoteError:
        status = problem.status_code
        quota = "insufficient_quota" in str(problem.body)
        retry = (status in _PASSING or status >= 500) and not quota
        fixes = {
            401: "set the API key (OPENAI_API_KEY, unless another is named)",
            403: "see what the API key may do",
        }
        after = retry_after(problem.response.headers)
        told, fix = problem.response.text, fix or fixes.get(status, "")
        return self._error(f"status {status}", told, retry=retry, status=status, after=after, fix=fix)


NO_KEY = "none"
"""What is sent to an endpoint that needs no key."""
_SEE_URL = "see that the URL is that of the endpoint, up to and including /v1"


def _usage(told: Mapping[str, Any]) -> Usage:
    """Tokens, as an endpoint tells them."""
    details = told.get("prompt_tokens_details") or {}
    counts = told.get("prompt_tokens"), told.get("completion_tokens")
    of_prompt = details.get("cached_tokens"), details.get("image_tokens")
    return Usage(*(int(count or 0) for count in (*counts, *of_prompt)))


def _logprobs(told: Mapping[str, Any]) -> Iterator[TokenLogprob]:
    """Log probabilities in the shape of OpenAI."""
    for one in told.get("content") or []:
        top = tuple((-1, str(other["token"]), float(other["logprob"])) for other in one.get("top_logprobs") or [])
        yield TokenLogprob(-1, str(one["token"]), float(one["logprob"]), top)


def _checked_url(url: str | None) -> str | None:
    url = (url or "").strip()
    if not url:
        return None
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        found, expected = repr(_shown_url(url)), "http://HOST:PORT/v1 or https://..."
        raise WorkbenchError("the URL of an endpoint", found=found, expected=expected)
    return url


def _checked_key(key: str | None) -> str:
    key = (key or "").strip() or NO_KEY  # a key from a file ends with a newline
    if not re.fullmatch(r"[!-~]+", key):
        raise WorkbenchError("the API key", found="spaces or letters outside ASCII in it", fix="copy it again")
    return key


def _shown_url(url: str | None) -> str | None:
    """Without a user and password."""
    return re.sub(r"//[^/]*@", "//", url) if url else None


# --- pictures, headers, words ---------------------------------------------------------------------------------


def data_uri(source: Path | Picture) -> str:
    """A picture for a request: the bytes of a PNG, JPEG, GIF or WebP file as they are, anything else as PNG.

    Raises `ImageError` for a file that cannot be read or is no picture.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _uri("png", _png(source))
    try:
        data = Path(source).read_bytes()
        kind = next((kind for magic, kind in _KINDS.items() if re.match(magic, data, re.DOTALL)), None)
        if kind is not None:
            return _uri(kind, data)
        from PIL import Image as PILImage
        from PIL import ImageOps

        with PILImage.open(io.BytesIO(data)) as opened:
            return _uri("png", _png(ImageOps.exif_transpose(opened)))
    except OSError as problem:
        found = problem.strerror if problem.strerror else "no picture, or a broken one"
        raise ImageError(str(source), found=found, expected="an image file") from problem


def _png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    (picture if picture.mode in _PNG_MODES else picture.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of `retry-after-ms` or `Retry-After` (seconds or a date, RFC 9110 section 10.2.3); None without one."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif re.fullmatch(r"\s*\d+(\.\d+)?\s*", headers.get("retry-after", "")):
            seconds = float(headers["retry-after"])
        else:
            seconds = (parsedate_to_datetime(headers["retry-after"]) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, KeyError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _reason(told: str) -> str:
    return "stop" if told in ("eos", "end_turn") else str(told)


def _words(text: str) -> str:
    """The first words of a body or message, tags left out."""
    words = " ".join(re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE).split())
    return words if len(words) <= _SHOWN else f"{words[: _SHOWN - 3]}..."


# --- asking without an event loop -----------------------------------------------------------------------------


@cache
def _background() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="remote", daemon=True).start()
    return loop


def _in_background(work: Coroutine[Any, Any, _T]) -> Future[_T]:
    """Work in the event loop of a thread; cancelling it ends the work."""
    return asyncio.run_coroutine_threadsafe(work, _background())
