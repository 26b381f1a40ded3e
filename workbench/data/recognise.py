"""Which format a file or folder has, told by what is in it and never by what it is called.

Knows: the signs of each format, and that a folder that could be read in two ways is for the person to decide.
Does not know: how any of them is read (`formats.py` says which module does).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from workbench.data.folder import CARD
from workbench.data.hf_rows import NAME, is_saved
from workbench.data.images import beginning, is_video
from workbench.data.json_records import BadRecord, json_records
from workbench.data.video import SUFFIXES as VIDEO_SUFFIXES
from workbench.errors import DataError
from workbench.resources import expanded

_HEAD = 2**16
_RECORDS = 50
"""Records of a file that are looked at."""
_EACH = 3
"""Files of one ending that are looked at, in a folder: its other files are taken to be alike."""
_COCO = re.compile(r'"(?:images|annotations)"\s*:\s*\[\s*(?:\{|\])')
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"BM", b"GIF8")
_NOUNS = {
    "images": "pictures", "pdf": "PDF documents", "llava": "LLaVA conversations", "sharegpt": "ShareGPT conversations",
    "coco": "COCO annotations", "hf-dataset": "Hugging Face rows",
}  # fmt: skip


def recognise(source: str | Path) -> str:
    """One of `formats.IN`. Raises `DataError` with what was seen where it is none of them, or could be two."""
    path = expanded(source)
    if not path.exists():
        if NAME.fullmatch(str(source)):
            return "hf-dataset"
        fix = "check the path; --format fiftyone takes the name of a FiftyOne dataset"
        raise DataError(str(source), found="no such file or folder", expected="something to import", fix=fix)
    return _folder(path) if path.is_dir() else _file(path)


def kind_of(path: Path) -> str | None:
    """The format of one file, or None. Raises `DataError` for JSON that is broken or could be two."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as problem:
        raise DataError(str(path), found=str(problem.strerror or problem), expected="a file to read") from problem
    if head.startswith(_PICTURES) or head[8:12] == b"WEBP" or head[4:8] == b"ftyp" or is_video(head):
        return "images"
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head.startswith(b"PAR1"):
        return "hf-dataset"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return _json(path, start) if start.startswith((b"{", b"[")) else None


# --- a file -----------------------------------------------------------------------------------------------------


def _file(path: Path) -> str:
    kind = kind_of(path)
    if kind == "images":
        what = "video" if path.suffix.lower() in VIDEO_SUFFIXES else "picture"
        raise DataError(str(path), found=f"a single {what}", expected="a folder of them", fix=f"import {path.parent}")
    if kind is not None:
        return kind
    with open(path, "rb") as file:
        start = file.read(24)
    found = f"a file that begins with {beginning(start)}" if start else "an empty file"
    keys = _keys(path) if start.lstrip()[:1] in (b"{", b"[") else []
    found = f"JSON with the keys {', '.join(keys[:8])}" if keys else found
    expected = "a LLaVA, ShareGPT or COCO file, a PDF, Parquet, or a folder of pictures"
    fix = "name the folder instead, if these are its captions" if _are_captions(keys) else ""
    raise DataError(str(path), found=found, expected=expected, fix=fix)


def _json(path: Path, start: bytes) -> str | None:
    if start.startswith(b"{") and _COCO.search(start.decode("utf-8", "ignore")) and not _is_line(start):
        return "coco"
    kinds = {_record_kind(record) for _, record in _records(path)} - {None}
    if {"llava", "sharegpt"} <= kinds:
        found = "records with image (LLaVA) and with images, messages or system (ShareGPT)"
        raise DataError(str(path), found=found, expected="one of them", fix="say which: --format llava or sharegpt")
    return "sharegpt" if "sharegpt" in kinds else "llava" if kinds else None


def _is_line(start: bytes) -> bool:
    """Whether the first line is a conversation of its own, whatever keys it has."""
    try:
        return _record_kind(json.loads(start.splitlines()[0])) is not None
    except ValueError:
        return False


def _record_kind(record: Any) -> str | None:
    """`either` for turns without any image: both readers say the same of them."""
    keys = record if isinstance(record, dict) else {}
    if isinstance(keys.get("messages"), list):
        return "sharegpt"
    if not isinstance(keys.get("conversations"), list):
        return None
    if {"image", "video"} & set(keys):
        return "llava"
    return "sharegpt" if {"images", "videos", "system"} & set(keys) else "either"


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """The first records, without broken ones; a file that breaks off before is told by whoever reads it."""
    for place, record in islice(json_records(path), _RECORDS):
        if not isinstance(record, BadRecord):
            yield place, record


def _keys(path: Path) -> list[str]:
    for _, record in _records(path):
        return list(record) if isinstance(record, dict) else []
    return []


def _are_captions(keys: list[str]) -> bool:
    return bool({"file", "file_name", "filename"} & set(keys))


# --- a folder ---------------------------------------------------------------------------------------------------


def _folder(path: Path) -> str:
    if (path / CARD).is_file():
        raise DataError(str(path), found="a dataset already", fix="use it as it is: nothing has to be imported")
    if is_saved(path):
        return "hf-dataset"
    seen = _seen(path)
    if not seen:
        return "images"  # whose reader says what lies there instead
    if len(seen) == 1 and next(iter(seen)) in ("images", "pdf", "hf-dataset"):
        return next(iter(seen))
    listed = "; ".join(f"{_NOUNS[kind]} ({', '.join(names)})" for kind, names in seen.items())
    ways = [f"--format {kind}" for kind in ("images", "pdf", "hf-dataset") if kind in seen]
    files = [names[0] for kind, names in seen.items() if kind in ("llava", "sharegpt", "coco")]
    ways += [f"the file {path / files[0]} with --images FOLDER"] if files else []
    raise DataError(str(path), found=listed, expected="one kind", fix=f"say what to import: {' or '.join(ways)}")


def _seen(path: Path) -> dict[str, list[str]]:
    """Formats and the first files of each, from a look into a few files of every ending."""
    seen: dict[str, list[str]] = {}
    looked: dict[str, int] = {}
    for name in _files(path):
        ending = PurePosixPath(name).suffix.lower()
        looked[ending] = looked.get(ending, 0) + 1
        if looked[ending] > _EACH:
            continue
        try:
            kind = kind_of(path / name)
        except DataError:
            continue  # a file that cannot be read, or is none of ours
        if kind:
            seen.setdefault(kind, []).append(name)
    return seen


def _files(path: Path) -> Iterator[str]:
    for place, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield (Path(place) / name).relative_to(path).as_posix()
