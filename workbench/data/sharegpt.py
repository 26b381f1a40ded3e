"""ShareGPT files, in and out: records of turns with lists of images and videos, as LLaMA-Factory and ms-swift have it.

    {"conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cat."}],
     "images": ["cat/1.jpg"], "system": "Be brief."}
    {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}],
     "images": ["cat/1.jpg"]}
    {"messages": [{"role": "user", "content": "<video>What?"}, ...], "videos": ["cat/1.mp4"]}

Knows: both shapes, content as text with marks or as a list of parts, and records that break them.
Does not know: how a file is streamed (`json_records.py`), or how images are checked (`image_rows.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from workbench.conversation import (
    IMAGE_MARK,
    SPLITS,
    VIDEO_MARK,
    Conversation,
    Image,
    Message,
    Part,
    Video,
    check_conversation,
)
from workbench.data.conversation_file import (
    check_holds,
    import_conversations,
    own_or_foreign,
    splits_of,
    told,
    unique_ids,
    write_records,
)
from workbench.data.dataset import Dataset
from workbench.data.image_rows import ROOT
from workbench.data.json_records import BadRecord, bad_name, json_records
from workbench.data.marked_text import marked, parts_of
from workbench.errors import ConversationError, DataError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SHAPES = {"conversations": ("from", "value"), "messages": ("role", "content")}
_NAMES: dict[str, dict[str, str]] = {"conversations": {"user": "human", "assistant": "gpt"}, "messages": {}}
DEFAULT = "conversations"
_ORIGINAL = "sharegpt"
"""Key of the metadata: the record where it would not be written back equal, or the shape where it is not `DEFAULT`."""


class Waiting(NamedTuple):
    """Files of a record that no mark has taken yet."""

    images: Iterator[Image]
    videos: Iterator[Video]
    any_video: bool
    """Whether the record names a video: else `<video>` is text."""


def read_sharegpt(path: str | Path) -> Iterator[Conversation | BadRecord]:
    """The records of a ShareGPT JSON or JSONL file in order, read as they are asked for.

    The record's own id is `source["foreign_id"]`, unless it is one that we gave it; a record that would not be written
    back equal is kept whole in `metadata["sharegpt"]`. Raises `DataError` where the file cannot be read on.
    """
    return unique_ids(_conversation(record, place) for place, record in json_records(Path(path)))


def import_sharegpt(file: str | Path, images_root: str | Path, out: str | Path, **options: Any) -> Dataset:
    """Make the dataset `out` of a ShareGPT file and the images below `images_root`, as `import_llava` does."""
    return import_conversations(read_sharegpt(file), file, images_root, out, "ShareGPT", **options)


def export_sharegpt(dataset: Dataset, out: str | Path, *, split: str | None = None, shape: str | None = None) -> int:
    """Write the conversations that are ok as a ShareGPT list, or JSONL where `out` ends in .jsonl; return how many.

    `shape` is `conversations` or `messages`; without it a record goes out as it came in, a new one as `conversations`.
    The file holds turns, images and videos at their place, ids, splits and tasks; not what is known about them beside.
    Raises `DataError` naming a conversation with files of two roots, or a text that contains `<image>`.
    """
    if shape not in (None, *_SHAPES):
        raise DataError(f"shape {shape!r}", found="one that is not known", expected=" or ".join(_SHAPES))
    split_of = splits_of(dataset)
    chosen = (replace(one, split=split_of(one)) for one in dataset.iter_conversations(split))
    return write_records(out, (_record(one, shape) for one in chosen))


def from_turns(
    turns: Sequence[Mapping[str, Any]],
    paths: Sequence[str],
    *,
    id: str,
    shape: str,
    system: str | None = None,
    videos: Sequence[str] = (),
) -> Conversation:
    """A conversation from turns of either shape and the paths of its images and videos.

    Raises `ConversationError` where marks and files differ in number, or a speaker is unknown.
    """
    speaker, said = _SHAPES[shape]
    waiting = Waiting(iter([Image(path) for path in paths]), iter([Video(path, ROOT) for path in videos]), bool(videos))
    messages = [Message("system", (str(system),))] if system else []
    for number, turn in enumerate(turns):
        role = ROLES.get(str(turn.get(speaker)))
        if role is None:
            found, expected = f"{speaker} {turn.get(speaker)!r}", " or ".join(_speakers(shape))
            raise ConversationError(f"{id}, message {number}", found=found, expected=expected)
        messages.append(Message(role, _content(turn.get(said), waiting, f"{id}, message {number}")))
    for kind, mark, held in (("images", IMAGE_MARK, waiting.images), ("videos", VIDEO_MARK, waiting.videos)):
        if left := len(list(held)):
            raise ConversationError(id, found=f"{left} {kind} without an {mark} mark", expected="as many of each")
    return check_conversation(Conversation(id, tuple(messages)))


# --- in ---------------------------------------------------------------------------------------------------------


def _conversation(record: Any, place: str) -> Conversation | BadRecord:
    if isinstance(record, BadRecord):
        return record
    try:
        made = _from_record(record)
    except (ConversationError, DataError) as problem:
        return BadRecord(bad_name(record, place), told(problem))
    shape = _shape_of(record)
    if _to_record(made, shape) != record:
        return replace(made, metadata={_ORIGINAL: record})
    return made if shape == DEFAULT else replace(made, metadata={_ORIGINAL: shape})


def _from_record(record: Any) -> Conversation:
    if not isinstance(record, dict) or not record.keys() & _SHAPES.keys():
        raise DataError("record", found=str(record)[:60], expected='{"conversations": [...]} or {"messages": [...]}')
    shape = _shape_of(record)
    turns, images, videos = record[shape], _files(record, "image"), _files(record, "video")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError("record", found=f"{shape} {str(turns)[:60]!r}", expected=f"a list of {_SHAPES[shape]}")
    id, source = own_or_foreign(record, "sharegpt", record.get("images"), turns, *([videos] if videos else []))
    made = from_turns(turns, images, id=id, shape=shape, system=record.get("system"), videos=videos)
    split, task = record.get("split"), record.get("task")
    task = task if isinstance(task, str) else None
    return replace(made, split=split if split in SPLITS else None, task=task, source=source)


def _files(record: Mapping[str, Any], kind: str) -> list[str]:
    """The paths of a record's images or videos, a list or a single one."""
    files = record.get(f"{kind}s") or record.get(kind) or []
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(path, str) for path in files):
        raise DataError("record", found=f"{kind}s {str(files)[:60]!r}", expected="a list of paths")
    return files


def _shape_of(record: Mapping[str, Any]) -> str:
    return next(shape for shape in _SHAPES if shape in record)


def _content(content: Any, waiting: Waiting, where: str) -> tuple[Part, ...]:
    """Text with marks, or a list of parts as OpenAI and Hugging Face have it."""
    try:
        if isinstance(content, str):
            return parts_of(content, waiting.images, waiting.videos if waiting.any_video else None)
        if isinstance(content, list) and all(isinstance(part, dict) for part in content):
            return tuple(_part(part, waiting, where) for part in content)
    except StopIteration:
        found = f"more {IMAGE_MARK} marks than images" + (f", or {VIDEO_MARK} than videos" if waiting.any_video else "")
        raise ConversationError(where, found=found, expected="as many of each") from None
    raise ConversationError(where, found=f"content {str(content)[:40]!r}", expected="a text, or a list of parts")


def _part(part: Mapping[str, Any], waiting: Waiting, where: str) -> Part:
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image":
        named = part.get("image") or part.get("path")
        return Image(named) if isinstance(named, str) else next(waiting.images)
    if kind == "video":
        named = part.get("video") or part.get("path")
        return Video(named, ROOT) if isinstance(named, str) else next(waiting.videos)
    raise ConversationError(where, found=f"a part {str(part)[:60]}", expected="type text, image or video")


def _speakers(shape: str) -> list[str]:
    return [_NAMES[shape].get(role, role) for role in ("user", "assistant", "system")]


# --- out --------------------------------------------------------------------------------------------------------


def _record(conversation: Conversation, shape: str | None) -> dict[str, Any]:
    original = conversation.metadata.get(_ORIGINAL, DEFAULT)
    came = original if isinstance(original, str) else _shape_of(original)
    shape = shape or came
    if shape == came and original != came and _from_record(original).messages == conversation.messages:
        return dict(original)
    check_holds(conversation, videos=True)
    return _to_record(conversation, shape)


def _to_record(conversation: Conversation, shape: str) -> dict[str, Any]:
    speaker, said = _SHAPES[shape]
    record: dict[str, Any] = {"id": conversation.source.get("foreign_id", conversation.id)}
    record[shape] = [
        {speaker: _NAMES[shape].get(message.role, message.role), said: marked(message.content, VIDEO_MARK)}
        for message in conversation.messages
    ]
    record["images"] = [image.path for image in conversation.images]
    if videos := [part.path for part in conversation.media if isinstance(part, Video)]:
        record["videos"] = videos
    told = {"split": conversation.split, "task": conversation.task}
    return record | {key: value for key, value in told.items() if value is not None}
