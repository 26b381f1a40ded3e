"""A request as the house has it: a `Conversation`, its pictures, and `SamplingOptions`.

Knows: how roles, parts and options of chat completions become ours, and where a mistake lies in the request.
Does not know: HTTP, queues, models, or what a picture shows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any, TypeVar

from pydantic import BaseModel

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Media, Video, check_conversation
from workbench.errors import ImageError
from workbench.serving import schemas
from workbench.serving.errors import ApiError, scrubbed
from workbench.serving.limits import Limits
from workbench.serving.pictures import Pictures, checked_film, checked_pixels, decoded, video_pictures
from workbench.serving.remote_images import RemoteImages

_ANY_OBJECT = '{"type": "object"}'
_SMALL = 2**18
"""Characters of a data URI up to which decoding takes less time than handing it to a thread."""
T = TypeVar("T")
_VIDEOS = ThreadPoolExecutor(1, thread_name_prefix="video")


@dataclass
class Asked:
    """One request, ready to be answered. `images` are held in `Pictures` until they are dropped."""

    conversation: Conversation
    images: list[tuple[str, Media]] = field(default_factory=list)
    """Each with its place in the request; a video is several, or one for a model that reads videos."""

    @property
    def held(self) -> list[Media]:
        return [image for _, image in self.images]

    def placed(self, error: ImageError) -> ApiError:
        """An error about one of the images, under its place in the request."""
        held = ((where, image) for where, image in self.images if image.path == error.where)
        where, image = next(held, ("an image", None))
        told = scrubbed(str(error)).replace(error.where, where)
        code = "invalid_video" if isinstance(image, Video) else "invalid_image"
        return ApiError(400, f"{told}.", code=code, param=where)


async def conversation_of(
    request: schemas.ChatRequest, id: str, pictures: Pictures, remote: RemoteImages | None, frames: int = 0
) -> Asked:
    """The conversation of a request, its pictures kept in `pictures`. Raises `ApiError` 400; then nothing is kept.

    frames: of a video that the model reads as one; 0: it is given frames as pictures.

    Messages of one role that follow each other are one message, as clients that put a picture and its question into
    two messages mean it.
    """
    asked = Asked(Conversation(id, ()))
    try:
        pixels = 0
        for role, group in groupby(enumerate(request.messages), key=lambda item: _role(item[1])):
            parts: list[str | Media] = []
            for number, message in group:
                if parts and isinstance(parts[-1], str):
                    parts.append("\n\n")
                for where, part in _parts(message, number):
                    if isinstance(part, str):
                        parts.append(part)
                        continue
                    for data, size, film in await _checked(part, where, pictures.limits, remote, frames):
                        pixels += size
                        if pixels > pictures.limits.pixels or len(asked.images) >= pictures.limits.images:
                            raise _too_much(pictures.limits, where)
                        asked.images.append((where, pictures.keep(data, film=film)))
                        parts.append(asked.images[-1][1])
            asked.conversation = asked.conversation.add(role, *parts)
        if request.messages[-1].role != "user":
            raise ApiError(400, "The last message has to be the user's.", code="invalid_messages", param="messages")
        check_conversation(asked.conversation)
    except BaseException:
        pictures.drop(asked.held)
        raise
    return asked


def _role(message: schemas.Message) -> str:
    return "system" if message.role == "developer" else message.role


def _parts(message: schemas.Message, number: int) -> Iterable[tuple[str, str | schemas.ImagePart | schemas.VideoPart]]:
    content = message.content
    if isinstance(content, str):
        yield f"messages[{number}].content", content
        return
    for index, part in enumerate(content):
        where = f"messages[{number}].content[{index}]"
        yield (where, part.text) if isinstance(part, schemas.TextPart) else (f"{where}.{part.type}.url", part)


async def _checked(
    part: Any, where: str, limits: Limits, remote: RemoteImages | None, frames: int
) -> list[tuple[bytes, int, bool]]:
    """(bytes, pixels that are looked at, whether it is a film) of each picture of a part, or of its film."""
    if isinstance(part, schemas.VideoPart):
        film = await asyncio.to_thread(decoded, part.video_url.url.strip(), where, limits.image.bytes, "video")
        if frames:
            return [(film, await _in_time(checked_film, film, where, limits, frames), True)]
        held = await _in_time(video_pictures, film, where, limits)
    else:
        held = await _bytes(part, where, limits, remote)
    return [(data, checked_pixels(data, where, limits), False) for data in held]


async def _bytes(part: schemas.ImagePart, where: str, limits: Limits, remote: RemoteImages | None) -> list[bytes]:
    """The picture of an image part."""
    url = part.image_url.url.strip()
    if url[:5].lower() == "data:":
        if len(url) < _SMALL:
            return [decoded(url, where, limits.image.bytes)]
        return [await asyncio.to_thread(decoded, url, where, limits.image.bytes)]
    if remote is None:
        told = f"{where} is no data URI; this server takes images as data:image/...;base64,... only."
        raise ApiError(400, told, code="invalid_image_url", param=where)
    return [await remote.fetch(url, where)]


async def _in_time(read: Callable[..., T], data: bytes, where: str, limits: Limits, *more: int) -> T:
    """One video at a time: decoding cannot be stopped from outside, so that many could take the whole machine."""
    try:
        async with asyncio.timeout(limits.video_seconds):
            return await asyncio.get_running_loop().run_in_executor(_VIDEOS, read, data, where, limits, *more)
    except TimeoutError:
        told = f"{where} was not read within {limits.video_seconds:.0f} s."
        raise ApiError(400, told, code="invalid_video", param=where) from None


def _too_much(limits: Limits, where: str) -> ApiError:
    told = f"Too many images: at most {limits.images} in one request, with {limits.pixels:,} pixels together."
    return ApiError(400, told, code="too_many_images", param=where)


# --- options --------------------------------------------------------------------------------------------------


def options_of(request: schemas.ChatRequest, limits: Limits, temperature: float = 0.0) -> list[SamplingOptions]:
    """The options of each of the `n` answers. Raises `ApiError` 400 for what one server cannot do."""
    count, most = request.n or 1, min(limits.choices, limits.slots)
    if count > most:
        raise ApiError(400, f"n is {count}; this server gives at most {most}.", code="invalid_value", param="n")
    given = {
        "temperature": temperature if request.temperature is None else request.temperature,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "top_k": max(0, request.top_k or 0),
        "min_p": request.min_p or 0.0,
        "repetition_penalty": request.repetition_penalty or 1.0,
        "max_tokens": request.max_completion_tokens or request.max_tokens or limits.max_tokens,
        "stop": request.stops,
        "logprobs": (request.top_logprobs or 0) if request.logprobs else None,
        "json_schema": _schema(request.response_format, limits),
    }
    seeds = [None if request.seed is None else request.seed % 2**63 + index for index in range(count)]
    return [SamplingOptions(seed=seed, **given) for seed in seeds]  # type: ignore[arg-type]


def _schema(form: Any, limits: Limits) -> str | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return _ANY_OBJECT
    where = "response_format.json_schema.schema"
    try:
        text = json.dumps(form.json_schema.json_schema, allow_nan=False, ensure_ascii=False)
        text.encode()
        if len(text) > limits.schema_characters or _depth(form.json_schema.json_schema) > limits.schema_depth:
            raise RecursionError
    except RecursionError:
        most = f"{limits.schema_characters:,} characters and {limits.schema_depth} levels"
        raise ApiError(400, f"{where} has more than {most}.", code="invalid_value", param=where) from None
    except ValueError:
        raise ApiError(400, f"{where} is not JSON.", code="invalid_value", param=where) from None
    return text


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


# --- what a validation says -----------------------------------------------------------------------------------


def validation_error(faults: list[dict[str, Any]]) -> ApiError:
    """The first fault that pydantic found, as OpenAI words it: the field by its path, and what is wrong with it."""
    first = min(faults, key=lambda fault: -len(_path(fault["loc"])))
    context = first.get("ctx") or {}
    path = ".".join(filter(None, (_path(first["loc"]), context.get("param", ""))))
    code = {"missing": "missing_required_parameter", "unsupported": "unsupported_parameter"}.get(first["type"])
    told = first["msg"] if "param" in context else f"is not valid: {first['msg'][0].lower()}{first['msg'][1:]}"
    message = f"{path or 'The body'} {told}."
    return ApiError(400, message, code=code or "invalid_value", param=path or None)


def _path(location: Iterable[Any]) -> str:
    """`messages[0].content`, without what pydantic adds to it to tell the members of a union apart.

    Some of that is named as the field that follows it: `video_url`, the kind of a part and its field.
    """
    path, before = "", None
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step in _names() and step != before:
            path += f".{step}" if path else step
        before = step
    return path


@cache
def _names() -> set[str]:
    shapes = [each for each in vars(schemas).values() if isinstance(each, type) and issubclass(each, BaseModel)]
    return {field.alias or name for each in shapes for name, field in each.model_fields.items()}
