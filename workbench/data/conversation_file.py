"""A file of conversations about images and videos as a dataset, whatever its records look like, and records as a file.

Knows: ids of the file and our own, bad records, which images and videos are asked for, what any such file cannot hold.
Does not know: the shapes (`llava_json.py`, `sharegpt.py`), or how images and videos are checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from workbench.conversation import IMAGE_MARK, VIDEO_MARK, Conversation, Media, Video, new_id
from workbench.data.dataset import Dataset, new_card
from workbench.data.folder import Folder
from workbench.data.image_rows import ROOT, image_rows, refuse_existing, refuse_missing, root_for
from workbench.data.imported import BAD, numbers, quarantined, summary, write_report
from workbench.data.json_records import BadRecord
from workbench.data.tables import as_images, conversation_frames, with_rejected
from workbench.errors import DataError, WorkbenchError
from workbench.resources import write_atomic

_OWN = re.compile(r"[0-9a-f]{20}")
_OWN_FIRST = re.compile(r"^[0-9a-f]{20}(, |: )")


def import_conversations(
    records: Iterable[Conversation | BadRecord],
    source: str | Path,
    images_root: str | Path,
    out: str | Path,
    kind: str,
    *,
    name: str | None = None,
    workers: int | None = None,
    card: Mapping[str, Any] | None = None,
    rejected: Mapping[str, str] | None = None,
    noted: Mapping[str, Any] | None = None,
) -> Dataset:
    """Make the dataset `out` of conversations and the images below `images_root`, and print what came of it.

    Images and videos are checked, and bad records and what is quarantined listed in `out/import.json`, beside what else
    is `noted`.
    rejected: ids of conversations that are kept but not used, with the reason. Raises `DataError` where
    the folder is missing or has none of the images, no record is a conversation, or `out` is a dataset already.
    """
    source, folder, out = Path(source), Path(images_root), Path(out)
    refuse_existing(out)
    if not folder.is_dir():
        raise DataError(str(folder), found="no such folder", expected="the folder that the image paths start from")
    dataset = Folder(out)
    named: dict[str, type[Media]] = {}
    bad: list[str] = []
    good = _good(records, named, bad)
    first = next(good, None)
    if first is None:
        found = f"no conversation among {len(bad)} records; the first: {bad[0]}" if bad else "no record"
        raise DataError(str(source), found=found, expected=f"{kind} records")
    with dataset.begin():
        frames = conversation_frames(chain([first], good))
        frames = (with_rejected(frame, rejected) for frame in frames) if rejected else frames
        count = dataset.fill("conversations", frames)
        videos = {path for path, kind in named.items() if kind is Video}
        images = image_rows(folder, list(named), out, videos=videos, workers=workers)
        refuse_missing(str(source), folder, images)
        dataset.fill("images", [as_images(images)])
        shown = {"videos": len(videos)} if videos else {}
        report = {"conversations": count, **shown, **(noted or {}), **quarantined(images), BAD: bad}
        write_report(out, report)
        name = name or source.stem
        sections = {"made": f"imported from {kind}: {source.name}", **(card or {}), "import": numbers(report)}
        dataset.write_card(new_card(name, {ROOT: root_for(folder, out)}, sections))
    about = f"{len(named) - len(videos)} images" + (f" and {len(videos)} videos" if videos else "")
    print(summary(f"{name}: {count} conversations about {about} in {out}", report, out))
    return Dataset(out)


def _good(
    records: Iterable[Conversation | BadRecord], named: dict[str, type[Media]], bad: list[str]
) -> Iterator[Conversation]:
    """The conversations, one by one; paths of their images and videos, and bad records, are noted on the way.

    A file has one row, so that it cannot be an image in one record and a video in another.
    """
    for record in records:
        if isinstance(record, BadRecord):
            bad.append(f"{record.id}: {record.error}")
            continue
        kinds = {part.path: type(part) for part in record.media}
        clash = [part.path for part in record.media if named.get(part.path, kinds[part.path]) is not type(part)]
        if clash:
            id = record.source.get("foreign_id", record.id)
            bad.append(f"{id}: {clash[0]}: named as an image and as a video")
            continue
        named.update(kinds)
        yield record


# --- ids --------------------------------------------------------------------------------------------------------


def is_own_id(id: Any) -> bool:
    """Whether an id in a file looks like one that we gave: such a conversation comes back as the one it was."""
    return isinstance(id, str) and _OWN.fullmatch(id) is not None


def own_or_foreign(record: Mapping[str, Any], *parts: object) -> tuple[str, dict[str, Any]]:
    """The id of a conversation, and a source that keeps the file's own; `parts` make the id where it is not ours."""
    if is_own_id(record.get("id")):
        return record["id"], {}
    return new_id(*parts, record.get("id")), {"foreign_id": record["id"]} if "id" in record else {}


def told(problem: WorkbenchError) -> str:
    """What is wrong with a record, without the id that we gave it, which is nowhere in the file."""
    return _OWN_FIRST.sub("", str(problem))


def named(records: Iterable[Conversation | BadRecord]) -> Iterator[tuple[str, Conversation | BadRecord]]:
    """Each record of a file with the name that a person finds it by there: its own id, or its number if it has none.

    The second of one id is `ID#2`.
    """
    seen: dict[str, int] = {}
    for number, record in enumerate(records, 1):
        name = _name(record, number)
        repeats = seen[name] = seen.get(name, 0) + 1
        while repeats > 1 and (again := f"{name}#{repeats}") in seen:
            repeats += 1
        if repeats > 1:
            seen[again] = 1
        yield (name if repeats == 1 else again), record


def _name(record: Conversation | BadRecord, number: int) -> str:
    if isinstance(record, BadRecord):
        return str(record.id)
    foreign, original = record.source.get("foreign_id"), record.metadata.get("llava", {"id": record.id})
    if foreign not in (None, ""):
        return str(foreign)
    return f"record {number}" if "foreign_id" in record.source or "id" not in original else record.id


def unique_ids(records: Iterable[Conversation | BadRecord]) -> Iterator[Conversation | BadRecord]:
    """The records, with another id for a conversation that has that of an earlier one."""
    seen: dict[str, int] = {}
    for made in records:
        if isinstance(made, Conversation):
            repeats = seen[made.id] = seen.get(made.id, 0) + 1
            made = made if repeats == 1 else replace(made, id=new_id(made.id, repeats))
        yield made


# --- out --------------------------------------------------------------------------------------------------------


def check_holds(conversation: Conversation, *, videos: bool = False) -> None:
    """Raise `DataError` for what a record with marks and paths cannot hold; `videos`: it can hold these."""
    where, media = f"conversation {conversation.id}", conversation.media
    films = len(media) > len(conversation.images)
    if films and not videos:
        raise DataError(where, found="a video", expected="images only", fix="leave it out of this format")
    if len({part.root for part in media}) > 1:
        raise DataError(where, found="images of two roots", expected="one root: paths in this format have no root")
    for mark in (IMAGE_MARK, VIDEO_MARK) if films else (IMAGE_MARK,):
        if any(mark in message.text for message in conversation.messages):
            raise DataError(where, found=f"the text {mark}", expected=f"{mark} for files only", fix="edit it")


def splits_of(dataset: Dataset) -> Callable[[Conversation], str | None]:
    """A function that tells the split a conversation counts to: its own, else that of its first image or video."""
    rows = dataset.images.select("root", "path", "split").iter_rows()
    known = {(root, path): split for root, path, split in rows if split is not None}

    def split_of(conversation: Conversation) -> str | None:
        first = conversation.media[:1]
        return conversation.split or (known.get((first[0].root, first[0].path)) if first else None)

    return split_of


def write_records(out: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write a JSON list, or JSONL where `out` ends in .jsonl, whole or not at all; return how many records."""
    made = list(records)
    if Path(out).suffix.lower() == ".jsonl":
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in made)
    else:
        text = json.dumps(made, ensure_ascii=False, indent=1)
    write_atomic(out, text)
    return len(made)
