"""A chat as a file of LLaVA's JSON, with its pictures beside it.

Knows: that both have to be new, or of this chat, and how pages and frames become files.
Does not know: who talked, or how the file is read again (`data/llava_json.py`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from workbench.conversation import Conversation, Media, Message, to_llava
from workbench.data.images import read_file
from workbench.errors import DataError
from workbench.inference.attachments import open_file
from workbench.resources import disk_errors, expanded, write_atomic


def save_chat(conversations: Sequence[Conversation], path: str | Path, ours: set[Path]) -> Path:
    """Write the conversations to `path`, their pictures to a folder beside it; returns where.

    ours: what this chat has written, which it may write again; what is written now is added. Raises `DataError` where
    something else of that name is there, `ImageError` for a picture that is gone, and `DiskError`.
    """
    place = expanded(path)
    with disk_errors(place):
        if place.is_dir():
            example = place / "chat.json"
            raise DataError(str(place), found="a folder", expected=f"the name of a file, for example {example}")
        written = [place, _pictures(place)] if any(one.media for one in conversations) else [place]
        _refuse_others([one for one in written if one.resolve() not in ours])
    ours.update(one.resolve() for one in written)
    told = _with_files(conversations, place)
    write_atomic(place, json.dumps([to_llava(one) for one in told], indent=2, ensure_ascii=False) + "\n")
    return place


def _refuse_others(written: Sequence[Path]) -> None:
    for one in written:
        if one.exists():
            what = "a folder" if one.is_dir() else "a file"
            fix = "choose another name, or remove it yourself"
            raise DataError(str(one), found=f"{what} that this chat did not write", fix=fix)


def _pictures(place: Path) -> Path:
    return place.with_name(f"{place.stem}-pictures")


def _with_files(conversations: Sequence[Conversation], place: Path) -> list[Conversation]:
    """The conversations with all their pictures and videos copied beside `place`, and named from its folder on.

    A page or a frame becomes a PNG file. Raises `ImageError` for one that is no longer there.
    """
    folder = _pictures(place)
    known: dict[Media, Media] = {}
    for image in dict.fromkeys(image for one in conversations for image in one.media):
        data, suffix = _bytes_of(image)
        file = folder / f"{len(known) + 1:04}{suffix}"
        write_atomic(file, data)
        known[image] = type(image)(f"{folder.name}/{file.name}")
    return [replace(one, messages=tuple(_renamed(message, known) for message in one.messages)) for one in conversations]


def _renamed(message: Message, known: Mapping[Media, Media]) -> Message:
    return replace(message, content=tuple(part if isinstance(part, str) else known[part] for part in message.content))


def _bytes_of(image: Media) -> tuple[bytes, str]:
    """A picture or video as a file: its bytes, and how its name ends."""
    if Path(image.path).is_file():
        return read_file(Path(image.path)), Path(image.path).suffix
    written = io.BytesIO()
    open_file(image).save(written, "PNG")
    return written.getvalue(), ".png"
