"""The value that flows: a conversation about images, and its legal shape.

Knows: messages, media references, ids, and the exchange shapes (`to_chat`, `to_llava`, `to_record`) as pure functions.
Does not know: pixels, tokens, templates, where roots lie on this disk, or who produced the text.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workbench.errors import ConversationError, kind_of

ROLES = ("system", "user", "assistant")
SPLITS = ("train", "val", "test")
LLAVA_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"


@dataclass(frozen=True)
class Image:
    """A reference to one image file: a named root and a POSIX path below it. Never holds pixels."""

    path: str
    root: str = "images"
    width: int | None = field(default=None, compare=False)
    """Pixels, after EXIF rotation; None until the file was opened."""
    height: int | None = field(default=None, compare=False)
    hash: str | None = field(default=None, compare=False)
    """SHA-256 of the file's bytes, hexadecimal."""


@dataclass(frozen=True)
class Video:
    """A reference to one video file, as `Image` is to an image."""

    path: str
    root: str = "videos"
    hash: str | None = field(default=None, compare=False)


Media = Image | Video
Part = str | Media
_CONTENT = "a text, an Image, a Video, or a list of them"
_MESSAGES = 'a list of Messages, such as [wb.Message("user", "What is it?")]'


def _all(values: Any, kinds: tuple[type, ...], where: str, expected: str) -> tuple[Any, ...]:
    """The values as a tuple, all of these kinds. A mapping or a text has parts too, but those are never meant."""
    if not isinstance(values, tuple):
        if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
            raise ConversationError(where, found=kind_of(values), expected=expected)
        values = tuple(values)
    for value in values:
        if not isinstance(value, kinds):
            raise ConversationError(where, found=kind_of(value), expected=expected)
    return values


@dataclass(frozen=True)
class Message:
    """One turn. `content` keeps text and media in order; a plain string is one text part.

    Raises `ConversationError` for content of another kind.
    """

    role: str
    content: tuple[Part, ...]

    def __post_init__(self) -> None:
        if isinstance(self.content, (str, Image, Video)):
            object.__setattr__(self, "content", (self.content,))
        object.__setattr__(self, "content", _all(self.content, (str, Image, Video), "message", _CONTENT))

    @property
    def text(self) -> str:
        """The text parts, joined with nothing between them."""
        content = self.content
        if len(content) == 1 and isinstance(content[0], str):  # nearly every message, asked for all the time
            return content[0]
        return "".join([part for part in content if isinstance(part, str)])

    @property
    def media(self) -> tuple[Media, ...]:
        return tuple([part for part in self.content if not isinstance(part, str)])


@dataclass(frozen=True)
class Conversation:
    """A frozen conversation. The same value trains, is scored, is reviewed and grows in a chat.

    `id` is assigned once and kept for ever; a foreign file's own id goes to `source["foreign_id"]`. Raises
    `ConversationError` for messages that are not a list of `Message`; `check_conversation` looks at their order.

    >>> asked = wb.Message("user", (wb.Image("a.png"), "What is it?"))
    >>> said = wb.Conversation("1", (asked, wb.Message("assistant", "A cat.")))
    >>> said.prompt.messages[-1].text, said.reference
    ('What is it?', 'A cat.')
    """

    id: str
    messages: tuple[Message, ...]
    split: str | None = None
    task: str | None = None
    source: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Where it came from: dataset, teacher, prompt version, parents."""
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", _all(self.messages, (Message,), f"conversation {self.id}", _MESSAGES))

    def _repr_html_(self) -> str:
        """Its turns; pictures by name, because a conversation does not know where they lie. `wb.gallery` shows them."""
        from workbench.display import block, turns

        said = ((one.role, one.text, [media.path for media in one.media]) for one in self.messages)
        told = (self.task, self.split, str(self.source.get("teacher") or ""))
        note = ", ".join(dict.fromkeys(filter(None, told)))
        return block(self.id, more=turns(said), note=note)

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple([part for part in self.media if isinstance(part, Image)])

    @property
    def media(self) -> tuple[Media, ...]:
        """Images and videos in their order."""
        return tuple([part for message in self.messages for part in message.content if not isinstance(part, str)])

    @property
    def prompt(self) -> Conversation:
        """The conversation up to the last user turn: what a model is asked."""
        return replace(self, messages=self.messages[: self._last("user") + 1])

    @property
    def reference(self) -> str | None:
        """The text of the last assistant turn, if it answers the last user turn."""
        last = self.messages[-1]
        return last.text if last.role == "assistant" else None

    def add(self, role: str, *content: Part) -> Conversation:
        """The conversation with one more message."""
        return replace(self, messages=(*self.messages, Message(role, content)))

    def _last(self, role: str) -> int:
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == role:
                return index
        raise ConversationError(self.id, found=f"no {role} message", expected="at least one")


def as_conversation(value: Conversation) -> Conversation:
    """The conversation, if it is one. Raises `ConversationError` for anything else."""
    if not isinstance(value, Conversation):
        fix = "dataset.conversations() gives those of a dataset"
        raise ConversationError("conversation", found=kind_of(value), expected="a Conversation", fix=fix)
    return value


def placed(conversation: Conversation, resolve: Callable[[Any], Path]) -> Conversation:
    """The same conversation with pictures and videos by their path on this disk: for a model that opens files."""

    def place(part: Part) -> Part:
        return part if isinstance(part, str) else replace(part, path=str(resolve(part)), root="")

    turns = tuple(Message(turn.role, tuple(map(place, turn.content))) for turn in conversation.messages)
    return replace(conversation, messages=turns)


def new_id(*parts: object) -> str:
    """A new id: stable for the same parts, random without any. 20 hexadecimal digits."""
    if not parts:
        return uuid.uuid4().hex[:20]
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def check_conversation(conversation: Conversation) -> Conversation:
    """Return the conversation if its shape is legal, else raise `ConversationError` naming the message.

    Legal: known roles; one system message at most, and first; user and assistant alternate, a user first;
    no empty message; media in user messages only; a known split.
    """
    name = conversation.id or "(no id)"
    if not isinstance(conversation.id, str) or not conversation.id:
        raise ConversationError("a conversation", found=f"id {conversation.id!r}", expected="a text that is not empty")
    if conversation.split not in (None, *SPLITS):
        raise ConversationError(name, found=f"split {conversation.split!r}", expected="train, val, test or none")
    turns = conversation.messages
    if not turns or all(message.role == "system" for message in turns):
        raise ConversationError(name, found="no user message", expected="at least one question")
    expected = "user"
    for number, message in enumerate(turns):
        fault = _fault(message, number, expected)
        if fault:
            raise ConversationError(f"{name}, message {number}", found=fault[0], expected=fault[1])
        if message.role != "system":
            expected = "assistant" if expected == "user" else "user"
    return conversation


def _fault(message: Message, number: int, role: str) -> tuple[str, str] | None:
    """(found, expected) of what is wrong with a message where one of `role` would be next."""
    if message.role not in ROLES:
        return f"role {message.role!r}", "system, user or assistant"
    if message.role == "system" and number:
        return "a system message", "it only as the first message"
    if message.role not in ("system", role):
        return message.role, f"{role}: user and assistant alternate"
    media = message.media
    if not media and not message.text.strip():
        return f"an empty {message.role} message", "text"
    if media and message.role != "user":
        return f"media in a {message.role} message", "media in questions"
    return None


# --- exchange shapes ------------------------------------------------------------------------------------------


def to_chat(conversation: Conversation) -> list[dict[str, Any]]:
    """The message shape of Hugging Face and OpenAI: `[{"role", "content": [{"type": "text", "text"}, ...]}, ...]`."""
    return [
        {"role": message.role, "content": [_part_to_dict(part) for part in message.content]}
        for message in conversation.messages
    ]


def from_chat(messages: Iterable[Mapping[str, Any]], *, id: str, **fields: Any) -> Conversation:
    """The inverse of `to_chat`; a plain string as content is text."""
    made = []
    for message in messages:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [_part_from_dict(part, id) for part in content]
        made.append(Message(message["role"], tuple(parts)))
    return Conversation(id, tuple(made), **fields)


def to_record(conversation: Conversation) -> dict[str, Any]:
    """A JSON-able record with every field, as the dataset folder keeps it."""
    return {
        "id": conversation.id,
        "messages": to_chat(conversation),
        "split": conversation.split,
        "task": conversation.task,
        "source": dict(conversation.source),
        "metadata": dict(conversation.metadata),
    }


def from_record(record: Mapping[str, Any]) -> Conversation:
    """The inverse of `to_record`."""
    fields = {key: record.get(key) for key in ("split", "task")}
    maps = {key: record.get(key) or {} for key in ("source", "metadata")}
    return from_chat(record["messages"], id=record["id"], **fields, **maps)


def to_llava(conversation: Conversation) -> dict[str, Any]:
    """A LLaVA JSON record: `id`, `image` or `video` (a text, or a list of several), `conversations` with marks.

    The mark of a video is `<image>`, as LLaVA's own code reads it; beside images it is `<video>`. The id is the foreign
    one where there is one, so that a file that came in goes out equal.
    """
    names = {role: name for name, role in LLAVA_ROLES.items()}
    record: dict[str, Any] = {"id": conversation.source.get("foreign_id", conversation.id)}
    for key, kind in (("image", Image), ("video", Video)):
        paths = [part.path for part in conversation.media if isinstance(part, kind)]
        if paths:
            record[key] = paths[0] if len(paths) == 1 else paths
    marks = {Image: IMAGE_MARK, Video: VIDEO_MARK if "image" in record else IMAGE_MARK}
    record["conversations"] = [
        {"from": names[message.role], "value": _llava_value(message, marks)} for message in conversation.messages
    ]
    return record


def from_llava(record: Mapping[str, Any], *, root: str = "images", id: str | None = None) -> Conversation:
    """A conversation from a LLaVA JSON record (both the 558K and the 665K shapes), its files below `root`.

    `<image>` and `<video>` marks become media parts; as in LLaVA a mark moves to the front of its message. Where a
    record has videos and no `<video>`, each `<image>` is one. Raises `ConversationError` when marks and files differ in
    number or a speaker is unknown.
    """
    foreign = str(record.get("id", ""))
    told = record.get("image"), record.get("conversations"), *filter(None, [record.get("video")])
    name = id or new_id("llava", foreign, *told)
    turns = record.get("conversations")
    if not isinstance(turns, list):
        raise ConversationError(f"record {foreign!r}", found="no 'conversations' list", expected="LLaVA's shape")
    waiting = _files_by_mark(record, turns, foreign, root)
    messages = []
    for number, turn in enumerate(turns):
        role = LLAVA_ROLES.get(turn.get("from"))
        if role is None:
            raise ConversationError(
                f"record {foreign!r}, message {number}", found=f"from {turn.get('from')!r}", expected="human or gpt"
            )
        value = str(turn.get("value", ""))
        media = [next(waiting[mark]) for mark in _marks(value, waiting)]
        text = _without_marks(value, waiting).strip("\n") if media else value
        messages.append(Message(role, (*media, text) if text or not media else tuple(media)))
    source = {"foreign_id": record["id"]} if "id" in record else {}
    return Conversation(name, tuple(messages), source=source)


def _files_by_mark(
    record: Mapping[str, Any], turns: Iterable[Mapping[str, Any]], foreign: str, root: str
) -> dict[str, Iterator[Media]]:
    """Mark -> the files that it stands for, one after the other. A mark that stands for none is text."""
    images, videos = (_listed(record.get(key)) for key in ("image", "video"))
    text = "".join(str(turn.get("value", "")) for turn in turns)
    files: dict[str, list[Media]] = {IMAGE_MARK: [Image(path, root) for path in images]}
    if videos and VIDEO_MARK in text:
        files[VIDEO_MARK] = [Video(path, root) for path in videos]
    else:
        files[IMAGE_MARK] += [Video(path, root) for path in videos]
    for mark, held in files.items():
        marks = text.count(mark)
        if marks != len(held):
            kind = "videos" if videos and not (images and mark == IMAGE_MARK) else "images"
            found = f"{marks} {mark} marks and {len(held)} {kind}"
            raise ConversationError(f"record {foreign!r}", found=found, expected="as many of each")
    return {mark: iter(held) for mark, held in files.items()}


def _listed(paths: Any) -> list[str]:
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def _marks(text: str, known: Iterable[str]) -> list[str]:
    return re.findall("|".join(known), text)


def _without_marks(text: str, known: Iterable[str]) -> str:
    return re.sub("|".join(known), "", text)


def _llava_value(message: Message, marks: Mapping[type, str]) -> str:
    text, written = message.text, [marks[type(part)] for part in message.media]
    return "\n".join([*written, text] if text or not written else written)


def _part_to_dict(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Video):
        return {"type": "video", "path": part.path, "root": part.root, "hash": part.hash}
    keys = ("path", "root", "width", "height", "hash")
    return {"type": "image", **{key: getattr(part, key) for key in keys}}


def _part_from_dict(part: Mapping[str, Any], name: str) -> Part:
    kind = part.get("type")
    if kind == "text":
        return part["text"]
    if kind == "image":
        sizes = part.get("width"), part.get("height")
        return Image(part["path"], part.get("root") or "images", *sizes, part.get("hash"))
    if kind == "video":
        return Video(part["path"], part.get("root") or "videos", part.get("hash"))
    raise ConversationError(name, found=f"a part of type {kind!r}", expected="text, image or video")
