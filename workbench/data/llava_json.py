"""LLaVA's JSON and JSONL files: streamed in record by record, and written out equal.

Knows: both shapes (558K: one image and two turns; 665K: several turns, some without image), videos as the data of
LLaVA-NeXT-Video has them (`video` instead of `image`), and records that break them.
Does not know: tokens (the renderer's), or how images are checked (`image_rows.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.conversation import Conversation, check_conversation, from_llava, to_llava
from workbench.data.conversation_file import (
    check_holds,
    import_conversations,
    is_own_id,
    told,
    unique_ids,
    write_records,
)
from workbench.data.dataset import Dataset
from workbench.data.json_records import BadRecord, bad_name, json_records
from workbench.data.votes import is_vote, voted
from workbench.errors import ConversationError, DataError
from workbench.resources import as_path


def read_conversations(path: str | Path) -> Iterator[Conversation | BadRecord]:
    """The records of a LLaVA JSON or JSONL file in order, read as they are asked for.

    The record's own id is `source["foreign_id"]`, unless it is one that we gave it; a record that would not be written
    back equal (a mark behind its text, further keys) is kept whole in `metadata["llava"]`. Raises `DataError` where the
    file cannot be read on.
    """
    return unique_ids(_conversation(record, place) for place, record in json_records(Path(path)))


def import_llava(
    file: str | Path,
    images_root: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    workers: int | None = None,
    card: Mapping[str, Any] | None = None,
) -> Dataset:
    """Make the dataset `out` of a LLaVA file and the images below `images_root`, and print what came of it.

    Every image and video is opened once; one that is missing or broken is a quarantined row, which keeps its
    conversations out of `Dataset.conversations()`. Records that break the shape are listed in `out/import.json`, with
    the missing files.
    Of a demo's `feedback.jsonl` the last vote on an answer counts: one that is not up keeps it out, with the reason.
    """
    options: dict[str, Any] = {"name": name, "workers": workers, "card": card}
    file, images_root = as_path(file, "LLaVA file"), as_path(images_root, "folder of images")
    records: Iterable[Conversation | BadRecord] = read_conversations(file)
    if is_vote(next(json_records(file), ("", None))[1]):
        said = voted(records)
        records = said.records
        options |= {"rejected": said.rejected, "noted": {"votes": said.counts}}
    return import_conversations(records, file, images_root, out, "LLaVA", **options)


def export_llava(dataset: Dataset | str | Path, out: str | Path, *, split: str | None = None) -> int:
    """Write the conversations that are ok as a LLaVA JSON list, or JSONL where `out` ends in .jsonl; return how many.

    It cannot hold splits, tasks, sources, or what else is known about images; marks go to the front of their message.
    Raises `DataError` naming a conversation with files of two roots, or a text that contains `<image>`.
    """
    dataset = Dataset.open(dataset)
    return write_records(out, (_record(conversation) for conversation in dataset.iter_conversations(split)))


def _record(conversation: Conversation) -> dict[str, Any]:
    original = conversation.metadata.get("llava")
    if original is not None and from_llava(original, id=conversation.id).messages == conversation.messages:
        return dict(original)
    check_holds(conversation, videos=True)
    return to_llava(conversation)


# --- reading ----------------------------------------------------------------------------------------------------


def _conversation(record: Any, place: str) -> Conversation | BadRecord:
    if isinstance(record, BadRecord):
        return record
    try:
        _check_types(record)
        conversation = check_conversation(_from_llava(record))
    except (ConversationError, DataError) as problem:
        return BadRecord(bad_name(record, place), told(problem))
    if to_llava(conversation) == record:
        return conversation
    return replace(conversation, metadata={"llava": record})


def _from_llava(record: Mapping[str, Any]) -> Conversation:
    if is_own_id(record.get("id")):
        return replace(from_llava(record, id=record["id"]), source={})
    return from_llava(record)


def _check_types(record: Any) -> None:
    """The types that `from_llava` counts on."""
    where = "record"
    if not isinstance(record, dict):
        raise DataError(where, found=type(record).__name__, expected='{"id", "image", "conversations"}')
    for key in ("image", "video"):
        named = record.get(key)
        if not (named is None or isinstance(named, str) or _all_are(named, str)):
            raise DataError(where, found=f"{key} {named!r}", expected="a path, or a list of paths")
        if named is None and record.get(f"{key}s"):
            raise DataError(where, found=f"files under {key}s", expected=f'"{key}": a path, or a list of paths')
    turns = record.get("conversations")
    if not _all_are(turns, dict):
        raise DataError(where, found=f"conversations {str(turns)[:60]!r}", expected='a list of {"from", "value"}')
    for number, turn in enumerate(turns or []):
        if not isinstance(turn.get("value"), str):
            raise DataError(f"{where}, message {number}", found=f"value {turn.get('value')!r}", expected="a text")


def _all_are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
