"""LLaVA's JSON and JSONL files: streamed in record by record, and written out equal.

Knows: both shapes (558K: one image and two turns; 665K: several turns, some without image), and records that break
them.
Does not know: tokens (the renderer's), or how images are checked (`image_rows.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.conversation import IMAGE_MARK, Conversation, check_conversation, from_llava, new_id, to_llava
from workbench.data.dataset import Dataset
from workbench.data.image_rows import ROOT, by_reason, image_rows, numbers, refuse_existing, root_for, summary
from workbench.data.tables import conversations_to_frame
from workbench.errors import ConversationError, DataError
from workbench.resources import write_atomic

REPORT = "import.json"
_BETWEEN = re.compile(r"[\s,]*")
_CHUNK = 2**20
_LARGEST = 2**26
"""Characters of the largest record that a JSON list may hold; beyond it the JSON is taken to be broken."""


@dataclass(frozen=True)
class BadRecord:
    """A record that is no conversation, and what is wrong with it."""

    id: Any
    """Its own id as the file has it, or its number or line in the file."""
    error: str


def read_conversations(path: str | Path) -> Iterator[Conversation | BadRecord]:
    """The records of a LLaVA JSON or JSONL file in order, read as they are asked for.

    The record's own id is `source["foreign_id"]`; a record that would not be written back equal (a mark behind its
    text, further keys) is kept whole in `metadata["llava"]`. Raises `DataError` where the file cannot be read on.
    """
    seen: dict[str, int] = {}
    for place, record in _records(Path(path)):
        made = record if isinstance(record, BadRecord) else _conversation(record, place)
        if isinstance(made, Conversation):
            repeats = seen[made.id] = seen.get(made.id, 0) + 1
            made = made if repeats == 1 else replace(made, id=new_id(made.id, repeats))
        yield made


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

    Every image is opened once; one that is missing or broken is a quarantined row, which keeps its conversations out of
    `Dataset.conversations()`. Records that break the shape are listed in `out/import.json`, with the missing files.
    """
    file, folder, out = Path(file), Path(images_root), Path(out)
    refuse_existing(out)
    if not folder.is_dir():
        raise DataError(str(folder), found="no such folder", expected="the folder that the image paths start from")
    paths: dict[str, None] = {}
    bad: list[str] = []
    conversations = conversations_to_frame(_good(read_conversations(file), paths, bad))
    frame = image_rows(folder, list(paths), workers=workers)
    report = {"conversations": conversations.height, "quarantined images": by_reason(frame), "bad records": bad}
    write_atomic(out / REPORT, json.dumps(report, indent=1, ensure_ascii=False))
    name = name or file.stem
    dataset = Dataset.create(
        out,
        name=name,
        roots={ROOT: root_for(folder, out)},
        card={"made": f"imported from the LLaVA file {file.name}", **(card or {}), "import": numbers(report)},
        images=frame,
        conversations=conversations,
    )
    print(summary(f"{name}: {conversations.height} conversations about {frame.height} images in {out}", report))
    return dataset


def _good(
    records: Iterator[Conversation | BadRecord], paths: dict[str, None], bad: list[str]
) -> Iterator[Conversation]:
    """The conversations, one by one; their image paths and the bad records are noted on the way."""
    for record in records:
        if isinstance(record, BadRecord):
            bad.append(f"{record.id}: {record.error}")
        else:
            paths.update((image.path, None) for image in record.images)
            yield record


def export_llava(dataset: Dataset, out: str | Path, *, split: str | None = None) -> int:
    """Write the conversations that are ok as a LLaVA JSON list, or JSONL where `out` ends in .jsonl; return how many.

    Raises `DataError` naming a conversation that the shape cannot hold: a video, images of two roots, or a text that
    contains `<image>`.
    """
    records = [_record(conversation) for conversation in dataset.iter_conversations(split)]
    if Path(out).suffix.lower() == ".jsonl":
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    else:
        text = json.dumps(records, ensure_ascii=False, indent=1)
    write_atomic(out, text)
    return len(records)


def _record(conversation: Conversation) -> dict[str, Any]:
    original = conversation.metadata.get("llava")
    if original is not None and from_llava(original, id=conversation.id).messages == conversation.messages:
        return dict(original)
    where = f"conversation {conversation.id}"
    media = [part for message in conversation.messages for part in message.media]
    if len(media) > len(conversation.images):
        raise DataError(where, found="a video", expected="images only", fix="leave it out of this format")
    if len({part.root for part in media}) > 1:
        raise DataError(where, found="images of two roots", expected="one root: LLaVA's paths have no root")
    if any(IMAGE_MARK in message.text for message in conversation.messages):
        raise DataError(where, found=f"the text {IMAGE_MARK}", expected=f"{IMAGE_MARK} for images only", fix="edit it")
    return to_llava(conversation)


# --- reading ----------------------------------------------------------------------------------------------------


def _conversation(record: Any, place: str) -> Conversation | BadRecord:
    name = record["id"] if isinstance(record, dict) and record.get("id") not in (None, "") else place
    try:
        _check_types(record)
        conversation = check_conversation(from_llava(record))
    except (ConversationError, DataError) as problem:
        return BadRecord(name, str(problem))
    if to_llava(conversation) == record:
        return conversation
    return replace(conversation, metadata={"llava": record})


def _check_types(record: Any) -> None:
    """The types that `from_llava` counts on."""
    where = "record"
    if not isinstance(record, dict):
        raise DataError(where, found=type(record).__name__, expected='{"id", "image", "conversations"}')
    image = record.get("image")
    if not (image is None or isinstance(image, str) or _all_are(image, str)):
        raise DataError(where, found=f"image {image!r}", expected="a path, or a list of paths")
    turns = record.get("conversations")
    if not _all_are(turns, dict):
        raise DataError(where, found=f"conversations {str(turns)[:60]!r}", expected='a list of {"from", "value"}')
    for number, turn in enumerate(turns or []):
        if not isinstance(turn.get("value"), str):
            raise DataError(f"{where}, message {number}", found=f"value {turn.get('value')!r}", expected="a text")


def _all_are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it is, record) pairs; broken JSON in a line is a `BadRecord`, in a list it ends the file."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            start = file.read(_CHUNK).lstrip()[:1]
            file.seek(0)
            if start == "[":
                yield from _list(path, file)
            elif start == "{":
                yield from _lines(file)
            else:
                expected = "a LLaVA JSON list, or one object per line"
                raise DataError(str(path), found=f"a file that begins with {start!r}", expected=expected)
    except UnicodeDecodeError as problem:
        raise DataError(str(path), found=f"bytes that are not UTF-8 ({problem})", fix="save it as UTF-8") from problem
    except OSError as problem:
        raise DataError(str(path), found=str(problem.strerror or problem), expected="a file to read") from problem


def _lines(file: Any) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except ValueError as problem:
            yield f"line {number}", BadRecord(f"line {number}", f"broken JSON: {problem}")


def _list(path: Path, file: Any) -> Iterator[tuple[str, Any]]:
    """The elements of one JSON list, with little more of the file in memory than the present element needs."""
    decoder = json.JSONDecoder()
    buffer = file.read(_CHUNK)
    at, number = buffer.index("[") + 1, 0
    while True:
        at = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]  # it matches nothing at all, too
        if buffer.startswith("]", at):
            return
        try:
            record, at = decoder.raw_decode(buffer, at)
        except ValueError as problem:
            buffer, at = buffer[at:], 0
            more = file.read(max(_CHUNK, len(buffer))) if len(buffer) < _LARGEST else ""
            if not more:
                found = f"broken or cut-off JSON behind record {number} ({problem})"
                fix = "get the file again"
                raise DataError(str(path), found=found, expected="a whole JSON list", fix=fix) from None
            buffer += more
            continue
        number += 1
        yield f"record {number}", record
