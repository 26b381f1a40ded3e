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
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from workbench.chat_model import GREEDY, Answer, Ending, Pieces, SamplingOptions, Usage
from workbench.conversation import Conversation, Image
from workbench.errors import ConversationError, WorkbenchError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

OpenImage = Callable[[Image], "Path | Picture"]
"""Where the file of an image lies, or the picture itself."""
AT_ONCE = 8
"""Requests of `reply_batch` in flight."""
KEPT_PICTURES = 256
"""Encoded pictures kept for further questions about them."""
_MAGIC = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
_PASSING = {408, 409, 425, 429}
_SHOWN = 200


class RemoteError(WorkbenchError):
    """A request that failed. `retry`: it may succeed later; `retry_after`: seconds the endpoint wants to be left alone;
    `status`: of HTTP, None where there was no answer."""

    retry: bool = False
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
        fix: str = "",
    ) -> RemoteError:
        error = cls(where, found=found, fix=fix)
        error.retry, error.retry_after, error.status = retry, after, status
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


class RemoteModel:
    """A `ChatModel` over an OpenAI-compatible endpoint: OpenAI's, vLLM, Ollama, or `workbench serve`.

    `url` up to and including `/v1` (default `$OPENAI_BASE_URL`, else OpenAI's); `api_key` (default `$OPENAI_API_KEY`; a
    local server needs none). `open_image` gives the file of an image, which is sent as it is where it is PNG, JPEG,
    WebP or GIF, or a picture, which is sent as PNG. `timeout`: seconds for a whole reply.
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
        import os

        self.model, self.name, self.timeout = model, name or model, timeout
        self.url = url or os.environ.get("OPENAI_BASE_URL") or None
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._open_image = open_image
        self._clients: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._sync: Any = None
        self._refused: set[str] = set()
        self._pictures: OrderedDict[Any, str] = OrderedDict()
        self._guard = threading.Lock()

    def __repr__(self) -> str:
        return f"RemoteModel({self.model!r}, url={self.url!r})"

    # --- asking -------------------------------------------------------------------------------------------------

    async def ask(
        self, conversation: Conversation, options: SamplingOptions = GREEDY, *, schema: Mapping[str, Any] | None = None
    ) -> RemoteReply:
        """One reply, asked for once. `schema`: a JSON schema that the reply shall follow, where the endpoint can.

        A field that the endpoint refuses is left out from then on, and the request repeated at once. Raises
        `RemoteError`; nothing is tried again here for any other reason.
        """
        client = self._client()
        while True:
            fields = self._fields(conversation, options, schema)
            try:
                with self._failures():
                    async with asyncio.timeout(self.timeout):
                        got = await client.chat.completions.with_raw_response.create(**fields)
                    return self._read(got.text)
            except RemoteError as error:
                if not self._leave_out(error, fields):
                    raise

    def reply(self, conversation: Conversation, options: SamplingOptions = GREEDY) -> Answer:
        """As `ChatModel.reply`: the answer as it is written. Raises `RemoteError` while it is read."""
        fields = self._fields(conversation, options, None)

        def write(cancelled: threading.Event) -> Pieces:
            reason, usage = "stop", Usage()
            with self._failures(), self._stream(fields) as chunks:
                for chunk in chunks:
                    if cancelled.is_set():
                        return Ending("cancelled", usage)
                    if chunk.usage is not None:
                        usage = Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                    for choice in chunk.choices[:1]:
                        reason = choice.finish_reason or reason
                        if choice.delta.content:
                            yield choice.delta.content
            return Ending(_reason(reason), usage)

        return Answer(write)

    def reply_batch(self, conversations: Sequence[Conversation], options: SamplingOptions = GREEDY) -> list[Answer]:
        """As `ChatModel.reply_batch`, several requests at once."""
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="remote") as pool:
            return list(pool.map(lambda one: self._whole(one, options), conversations))

    def _whole(self, conversation: Conversation, options: SamplingOptions) -> Answer:
        answer = self.reply(conversation, options)
        _ = answer.text
        return answer

    @contextmanager
    def _stream(self, fields: dict[str, Any]) -> Iterator[Any]:
        """The chunks of a streamed reply; leaving the block closes the connection."""
        if self._sync is None:
            from openai import OpenAI

            self._sync = OpenAI(api_key=self._key, base_url=self.url, max_retries=0, timeout=self.timeout)
        while True:
            try:
                with self._failures():
                    stream = self._sync.chat.completions.create(
                        **fields, stream=True, stream_options={"include_usage": True}
                    )
                break
            except RemoteError as error:
                if not self._leave_out(error, fields):
                    raise
        with stream:
            yield stream

    def _client(self) -> Any:
        """A client of this event loop: connections belong to the loop that opened them."""
        from openai import AsyncOpenAI

        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            made = AsyncOpenAI(api_key=self._key, base_url=self.url, max_retries=0, timeout=self.timeout)
            self._clients[loop] = made
        return self._clients[loop]

    async def close(self) -> None:
        """Close the connections of this event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

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
        if schema is not None:
            shape = {"name": "reply", "schema": dict(schema), "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": shape}
        kept = {name: value for name, value in fields.items() if name not in self._refused}
        return {"model": self.model, "messages": self._messages(conversation), **kept}

    def _leave_out(self, error: RemoteError, fields: Mapping[str, Any]) -> bool:
        """Whether the endpoint refused a field that can be left out; it is, from then on."""
        if error.status not in (400, 422):
            return False
        for name in ("response_format", "max_tokens", "temperature", "seed", "top_p", "stop"):
            words = (name, "json_schema", "guided") if name == "response_format" else (name,)
            if name in fields and any(word in str(error) for word in words):
                self._refused.add(name)
                if name == "max_tokens" and isinstance(fields, dict):
                    fields["max_completion_tokens"] = fields["max_tokens"]
                if isinstance(fields, dict):
                    del fields[name]
                return True
        return False

    def _messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        made = []
        for message in conversation.messages:
            if message.media:
                made.append(
                    {"role": message.role, "content": [self._part(part, conversation.id) for part in message.content]}
                )
            else:
                made.append({"role": message.role, "content": message.text})
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
        if self._open_image is None:
            raise WorkbenchError(f"model {self.name}", found="an image", expected="open_image to be given")
        uri = data_uri(self._open_image(image))
        with self._guard:
            self._pictures[key] = uri
            while len(self._pictures) > KEPT_PICTURES:
                self._pictures.popitem(last=False)
        return uri

    # --- what came back -----------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return f"{self.model} at {self.url or 'OpenAI'}"

    def _read(self, raw: str) -> RemoteReply:
        """The reply in the body of a response with status 200, whatever the endpoint takes for one."""
        try:
            body = json.loads(raw)
            choice = body["choices"][0]
            text = choice["message"].get("content") or ""
            if not isinstance(text, str):  # parts, as some servers answer
                text = "".join(part.get("text", "") for part in text)
            told = body.get("usage") or {}
            usage = Usage(int(told.get("prompt_tokens") or 0), int(told.get("completion_tokens") or 0))
            reason = _reason(choice.get("finish_reason") or "stop")
            return RemoteReply(text, reason, usage, str(body.get("model") or self.model), raw)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            found = f"no reply in what it sent ({_words(raw)})"
            raise RemoteError.of(self._where, found, retry=True, status=200) from None

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Every failure of client and connection as a `RemoteError`. The key is in none of them."""
        import openai

        try:
            yield
        except openai.APIStatusError as problem:
            raise self._refusal(problem) from None
        except (openai.APITimeoutError, TimeoutError):
            found = f"no whole reply within {self.timeout:g} seconds"
            raise RemoteError.of(self._where, found, retry=True) from None
        except openai.APIConnectionError as problem:
            cause = problem.__cause__ or problem
            found = f"a broken connection ({type(cause).__name__}: {_words(str(cause))})"
            raise RemoteError.of(self._where, found, retry=True, fix="see that it runs and the URL is right") from None
        except openai.OpenAIError as problem:
            found = f"{type(problem).__name__}: {_words(str(problem))}".replace(self._key, "***")
            raise RemoteError.of(self._where, found, retry=True) from None
        except (ValueError, OSError) as problem:  # a body that is no JSON in a stream, a socket that breaks in it
            raise RemoteError.of(self._where, f"{type(problem).__name__}: {_words(str(problem))}", retry=True) from None

    def _refusal(self, problem: Any) -> RemoteError:
        status = problem.status_code
        quota = "insufficient_quota" in str(problem.body)
        retry = (status in _PASSING or status >= 500) and not quota
        found = f"status {status}: {_words(problem.response.text)}".replace(self._key, "***")
        fixes = {
            401: "set the API key",
            403: "see what the API key may do",
            404: "see the name of the model and the URL",
        }
        after = retry_after(problem.response.headers)
        return RemoteError.of(self._where, found, retry=retry, status=status, after=after, fix=fixes.get(status, ""))


def data_uri(source: Path | Picture) -> str:
    """A picture for a request: the bytes of a PNG, JPEG, GIF or WebP file as they are, anything else as PNG."""
    if isinstance(source, Path):
        data = source.read_bytes()
        kind = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
        if kind is not None:
            return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        from PIL import Image as PILImage

        source = PILImage.open(io.BytesIO(data)).convert("RGB")
    buffer = io.BytesIO()
    source.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of `retry-after-ms` or `Retry-After` (seconds or a date, RFC 9110 section 10.2.3); None without one."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        told = headers.get("retry-after")
        if told is None:
            return None
        if re.fullmatch(r"\s*\d+(\.\d+)?\s*", told):
            return float(told)
        return max(0.0, (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _reason(told: str) -> str:
    return told if told in ("stop", "length") else "stop" if told in ("eos", "end_turn") else str(told)


def _words(text: str) -> str:
    """The first words of a body or message, tags left out."""
    words = " ".join(re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE).split())
    return words if len(words) <= _SHOWN else f"{words[: _SHOWN - 3]}..."
