"""ShareGPT files, in and out: records of turns with a list of images, as LLaMA-Factory and ms-swift read them.

    {"conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cat."}],
     "images": ["cat/1.jpg"], "system": "Be brief."}
    {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}],
     "images": ["cat/1.jpg"]}

Knows: both shapes, content as text with marks or as a list of parts, and records that break them.
Does not know: how a file is streamed (`json_records.py`), or how images are checked (`image_rows.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.conversation import IMAGE_MARK, SPLITS, Conversation, Image, Message, Part, check_conversation
from workbench.data.conversation_file import (
    bad_name,
    check_holds,
    import_conversations,
    own_or_foreign,
    splits_of,
    unique_ids,
    write_records,
)
from workbench.data.dataset import Dataset
from workbench.data.json_records import BadRecord, json_records
from workbench.data.marked_text import marked, parts_of
from workbench.errors import ConversationError, DataError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SHAPES = {"conversations": ("from", "value"), "messages": ("role", "content")}
_NAMES: dict[str, dict[str, str]] = {"conversations": {"user": "human", "assistant": "gpt"}, "messages": {}}
DEFAULT = "conversations"
_ORIGINAL = "sharegpt"
"""Key of the metadata: the record where it would not be written back equal, or the shape where it is not `DEFAULT`."""


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
    The file holds turns, images at their place, ids, splits and tasks; not what is known about images beside. Raises
    `DataError` naming a conversation with a video, images of two roots, or a text that contains `<image>`.
    """
    if shape not in (None, *_SHAPES):
        raise DataError(f"shape {shape!r}", found="one that is not known", expected=" or ".join(_SHAPES))
    split_of = splits_of(dataset)
    chosen = (replace(one, split=split_of(one)) for one in dataset.iter_conversations(split))
    return write_records(out, (_record(one, shape) for one in chosen))


def from_turns(
    turns: Sequence[Mapping[str, Any]], paths: Sequence[str], *, id: str, shape: str, system: str | None = None
) -> Conversation:
    """A conversation from turns of either shape and the paths of its images.

    Raises `ConversationError` where marks and images differ in number, or a speaker is unknown.
    """
    speaker, said = _SHAPES[shape]
    waiting = iter([Image(path) for path in paths])
    messages = [Message("system", (str(system),))] if system else []
    for number, turn in enumerate(turns):
        role = ROLES.get(str(turn.get(speaker)))
        if role is None:
            found, expected = f"{speaker} {turn.get(speaker)!r}", " or ".join(_speakers(shape))
            raise ConversationError(f"{id}, message {number}", found=found, expected=expected)
        messages.append(Message(role, _content(turn.get(said), waiting, f"{id}, message {number}")))
    left = len(list(waiting))
    if left:
        raise ConversationError(id, found=f"{left} images without an {IMAGE_MARK} mark", expected="as many of each")
    return check_conversation(Conversation(id, tuple(messages)))


# --- in ---------------------------------------------------------------------------------------------------------


def _conversation(record: Any, place: str) -> Conversation | BadRecord:
    if isinstance(record, BadRecord):
        return record
    try:
        made = _from_record(record)
    except (ConversationError, DataError) as problem:
        return BadRecord(bad_name(record, place), str(problem))
    shape = _shape_of(record)
    if _to_record(made, shape) != record:
        return replace(made, metadata={_ORIGINAL: record})
    return made if shape == DEFAULT else replace(made, metadata={_ORIGINAL: shape})


def _from_record(record: Any) -> Conversation:
    if not isinstance(record, dict) or not record.keys() & _SHAPES.keys():
        raise DataError("record", found=str(record)[:60], expected='{"conversations": [...]} or {"messages": [...]}')
    shape = _shape_of(record)
    turns, images = record[shape], record.get("images") or record.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError("record", found=f"{shape} {str(turns)[:60]!r}", expected=f"a list of {_SHAPES[shape]}")
    if not isinstance(images, list) or not all(isinstance(path, str) for path in images):
        raise DataError("record", found=f"images {str(images)[:60]!r}", expected="a list of paths")
    id, source = own_or_foreign(record, "sharegpt", record.get("images"), turns)
    made = from_turns(turns, images, id=id, shape=shape, system=record.get("system"))
    split, task = record.get("split"), record.get("task")
    task = task if isinstance(task, str) else None
    return replace(made, split=split if split in SPLITS else None, task=task, source=source)


def _shape_of(record: Mapping[str, Any]) -> str:
    return next(shape for shape in _SHAPES if shape in record)


def _content(content: Any, images: Iterator[Image], where: str) -> tuple[Part, ...]:
    """Text with marks, or a list of parts as OpenAI and Hugging Face have it."""
    try:
        if isinstance(content, str):
            return parts_of(content, images)
        if isinstance(content, list) and all(isinstance(part, dict) for part in content):
            return tuple(_part(part, images, where) for part in content)
    except StopIteration:
        found = f"more {IMAGE_MARK} marks than images"
        raise ConversationError(where, found=found, expected="as many of each") from None
    raise ConversationError(where, found=f"content {str(content)[:40]!r}", expected="a text, or a list of parts")


def _part(part: Mapping[str, Any], images: Iterator[Image], where: str) -> Part:
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image":
        named = part.get("image") or part.get("path")
        return Image(named) if isinstance(named, str) else next(images)
    raise ConversationError(where, found=f"a part {str(part)[:60]}", expected="type text or image")


def _speakers(shape: str) -> list[str]:
    return [_NAMES[shape].get(role, role) for role in ("user", "assistant", "system")]


# --- out --------------------------------------------------------------------------------------------------------


def _record(conversation: Conversation, shape: str | None) -> dict[str, Any]:
    original = conversation.metadata.get(_ORIGINAL, DEFAULT)
    came = original if isinstance(original, str) else _shape_of(original)
    shape = shape or came
    if shape == came and original != came and _from_record(original).messages == conversation.messages:
        return dict(original)
    check_holds(conversation)
    return _to_record(conversation, shape)


def _to_record(conversation: Conversation, shape: str) -> dict[str, Any]:
    speaker, said = _SHAPES[shape]
    record: dict[str, Any] = {"id": conversation.source.get("foreign_id", conversation.id)}
    record[shape] = [
        {speaker: _NAMES[shape].get(message.role, message.role), said: marked(message.content)}
        for message in conversation.messages
    ]
    record["images"] = [image.path for image in conversation.images]
    told = {"split": conversation.split, "task": conversation.task}
    return record | {key: value for key, value in told.items() if value is not None}
