"""A person's folder of images and videos as a dataset, with class folders, a captions file, sidecar texts, or nothing.

    folder/cat/1.png                               the sub-folder's name is the label
    folder/1.png + folder/captions.csv             columns file and caption, label, split (or captions.jsonl)
    folder/1.png + folder/1.txt                    the text is the caption
    folder/train/cat/1.png, folder/test/cat/2.png  split folders around any of these

Knows: these layouts, in which a video counts as a picture does; every file is a row, a caption, or listed as something
else. Does not know: how images and videos are checked (`image_rows.py`) or what is asked about them (`instruct/`).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from workbench.data.captions_file import CAPTION_FILES, SPLITS, Line, read_lines
from workbench.data.dataset import Dataset
from workbench.data.folder import CHECKS
from workbench.data.image_rows import ROOT, image_rows, nouns, refuse_existing, root_for
from workbench.data.images import SUFFIXES, is_picture, open_file
from workbench.data.imported import by_reason, keep
from workbench.data.video import SUFFIXES as VIDEO_SUFFIXES
from workbench.errors import DataError, ImageError
from workbench.resources import as_path

_HIDDEN = {"thumbs.db", "desktop.ini", "__macosx"}


@dataclass
class Found:
    """What lies in a folder; all paths POSIX and relative to it."""

    images: list[str] = field(default_factory=list)
    """And videos."""
    texts: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """Folders that could not be listed, linked folders (not followed), names that are not Unicode."""


@dataclass
class Said:
    """What a captions file, or the texts beside the images, say; by path."""

    captions: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    has: frozenset[str] = frozenset()
    """Which of caption, label and split are said, if only for some."""


def import_folder(
    folder: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    workers: int | None = None,
    text_column: str | None = None,
    card: Mapping[str, Any] | None = None,
    annotate: Callable[[pl.DataFrame], pl.DataFrame] = lambda rows: rows,
) -> Dataset:
    """Make the dataset `out` of the images and videos in `folder`, which stay there, and print what came of it.

    A captions file beats sidecar texts, which beat class folders; its columns label and split beat folders as well.
    `text_column` names the column of captions where it is none of caption, text, captions. `annotate` adds to the rows
    what the caller knows. Broken images are rows with status quarantined and a reason; captions without a file and
    files of other kinds are listed, in full in `out/import.json`. Raises `DataError` where there is no image, the
    captions file cannot be read, or `out` is a dataset already.
    """
    folder, out = as_path(folder, "folder of images"), Path(out)
    refuse_existing(out)
    found = _scan(folder)
    said, report = _said(folder, found, text_column)
    folder_labels, splits = _folders(found.images, with_labels=not said.captions)
    labels = said.labels if "label" in said.has else folder_labels
    told_splits = said.splits if "split" in said.has else splits
    frame = image_rows(folder, found.images, out, videos=videos_among(folder, found.images), workers=workers)
    frame = frame.with_columns(
        pl.Series("id", [said.ids.get(path, known) for path, known in frame.select("path", "id").iter_rows()]),
        pl.Series("label", [labels.get(path) for path in found.images], dtype=pl.String),
        pl.Series("split", [told_splits.get(path) for path in found.images], dtype=pl.String),
        pl.Series("captions", [said.captions.get(path, []) for path in found.images], dtype=pl.List(pl.String)),
    )
    report = _report(frame, found, report)
    if splits and "split" not in said.has:
        report["in no split folder"] = [path for path in found.images if path not in splits]
    name, roots = name or folder.resolve().name, {ROOT: root_for(folder, out)}
    made = {"made": f"imported from the folder {folder.name}"}
    return keep(out, annotate(frame), report, name=name, roots=roots, made=made, card=card, noun=nouns(frame))


def videos_among(folder: Path, paths: Iterable[str]) -> set[str]:
    """Those files below `folder` that are named as videos and hold no picture: nobody else said what they are."""
    return {path for path in paths if _is_video(path) and not _holds_picture(folder / path)}


def _report(frame: pl.DataFrame, found: Found, captions: dict[str, Any]) -> dict[str, Any]:
    others: defaultdict[str, list[str]] = defaultdict(list)
    for path in found.others:
        others[PurePosixPath(path).suffix.lower() or "no extension"].append(path)
    odd = frame.filter(pl.col("status") == "ok", pl.col("reason").is_not_null())
    classes = frame["label"].drop_nulls().value_counts(sort=True)
    return {
        "ok": int((frame["status"] == "ok").sum()),
        "quarantined": by_reason(frame),
        "accepted though odd": [f"{path} ({reason})" for path, reason in odd.select("path", "reason").iter_rows()],
        "classes": [f"{label} ({count})" for label, count in classes.iter_rows()],
        **captions,
        "other files": dict(others),
        "hidden files": found.hidden,
        "could not be read": found.unreadable,
    }


# --- what lies there --------------------------------------------------------------------------------------------


def _scan(folder: Path) -> Found:
    if not folder.is_dir():
        what = "a file" if folder.is_file() else "no such folder"
        fix = "name the folder it is in; conversations are .json or .jsonl" if folder.is_file() else "check the path"
        raise DataError(str(folder), found=what, expected="a folder of images", fix=fix)
    found = Found()
    for path, kind in sorted(_walk(folder, found)):
        getattr(found, kind).append(path)
    if not found.images:
        raise DataError(str(folder), **_nothing(found))
    stems = {_stem(path) for path in found.images}
    found.others = sorted([*found.others, *(path for path in found.texts if _stem(path) not in stems)])
    found.texts = [path for path in found.texts if _stem(path) in stems]
    return found


def _nothing(found: Found) -> dict[str, str]:
    """What to say of a folder without an image."""
    expected = "pictures: JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC or AVIF, or videos: MP4, MOV, WebM, MKV or AVI"
    others = [*found.others, *found.texts, *found.captions, *found.unreadable]
    if not others:
        return {"found": "an empty folder", "expected": expected, "fix": "check the path"}
    listed = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    return {"found": f"no picture or video, but {listed}", "expected": f"{expected}, by the endings of their names"}


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _walk(folder: Path, found: Found) -> Iterator[tuple[str, str]]:
    """Every file below `folder` with its kind; what cannot be walked goes to `found.unreadable`."""
    for place, folders, names in os.walk(folder, onerror=lambda problem: found.unreadable.append(str(problem))):
        inside = Path(place).relative_to(folder).as_posix()
        for name in list(folders):
            if _is_hidden(name):
                folders.remove(name)
                found.hidden.append(f"{_join(inside, name)}/")
            elif os.path.islink(os.path.join(place, name)):
                found.unreadable.append(f"{_join(inside, name)}/ (a link; import what it leads to by itself)")
        for name in names:
            if name == CHECKS:  # of an interrupted import into this folder
                continue
            path = _join(inside, name)
            try:
                path.encode()
            except UnicodeEncodeError:
                shown = path.encode(errors="surrogateescape").decode(errors="backslashreplace")
                found.unreadable.append(f"{shown} (a name that is not Unicode; rename it)")
                continue
            yield path, _kind(inside, name)


def _join(inside: str, name: str) -> str:
    return name if inside == "." else f"{inside}/{name}"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HIDDEN


def _kind(inside: str, name: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    if _is_hidden(name):
        return "hidden"
    if inside == "." and name.lower() in CAPTION_FILES:
        return "captions"
    return "images" if suffix in SUFFIXES or _is_video(name) else "texts" if suffix == ".txt" else "others"


def _is_video(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES


def _holds_picture(file: Path) -> bool:
    """Whether a file is a picture, whatever its name."""
    try:
        with open_file(file) as opened:
            return is_picture(opened.read(24))
    except ImageError:  # its check says what is wrong with it
        return False


def _folders(paths: list[str], *, with_labels: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Label and split of each path from its folders: `split/label/...`, `label/...`, or neither."""
    parts = {path: PurePosixPath(path).parts[:-1] for path in paths}
    tops = {folders[0].lower() for folders in parts.values() if folders}
    has_splits = "train" in tops and tops <= set(SPLITS)
    splits = {path: SPLITS[folders[0].lower()] for path, folders in parts.items() if folders and has_splits}
    below = {path: folders[1:] if has_splits else folders for path, folders in parts.items()}
    return {path: folders[0] for path, folders in below.items() if folders and with_labels}, splits


# --- captions ---------------------------------------------------------------------------------------------------


def _said(folder: Path, found: Found, column: str | None) -> tuple[Said, dict[str, Any]]:
    """What is said about the images, and what to report about it."""
    if len(found.captions) > 1:
        names = " and ".join(found.captions)
        raise DataError(str(folder), found=names, expected="one captions file", fix="move one of them away")
    if found.captions:
        lines, has = read_lines(folder / found.captions[0], column)
    else:
        texts = {_stem(path): text for path in found.texts for text in _sidecar(folder, path, found)}
        lines = [Line(path, (texts[_stem(path)],)) for path in found.images if _stem(path) in texts]
        has = frozenset({"caption"} if lines else ())
    said, missing, empty = Said(has=has), [], []
    match = _matcher(found)
    for line in lines:
        path = match(line.file)
        if path is None:
            missing.append(line.file)
            continue
        _note(said, path, line)
        empty += [line.file for text in line.texts if not text.strip()]
    if not lines:
        return said, {}
    listed = {"captions that name a missing file": missing, "empty captions": empty}
    without = [path for path in found.images if path not in said.captions] if "caption" in has else []
    return said, {"with captions": len(said.captions), **listed, "without caption": without}


def _note(said: Said, path: str, line: Line) -> None:
    """A later line adds captions; of the other things the first word counts."""
    texts = [text.strip() for text in line.texts if text.strip()]
    if texts:
        said.captions.setdefault(path, []).extend(texts)
    for known, value in ((said.labels, line.label), (said.splits, line.split), (said.ids, line.id)):
        if value is not None:
            known.setdefault(path, value)


def _matcher(found: Found) -> Callable[[str], str | None]:
    """A function from the name in a captions file to the image's path: exact, else the only file of that name."""
    exact = set(found.images)
    names: defaultdict[str, list[str]] = defaultdict(list)
    for path in found.images:
        names[PurePosixPath(path).name].append(path)

    def match(file: str) -> str | None:
        path = file.strip().replace("\\", "/").removeprefix("./")
        same = names.get(PurePosixPath(path).name, [])
        return path if path in exact else same[0] if len(same) == 1 else None

    return match


def _sidecar(folder: Path, text_path: str, found: Found) -> list[str]:
    try:
        return [(folder / text_path).read_text(encoding="utf-8-sig")]
    except (UnicodeDecodeError, OSError) as problem:
        found.unreadable.append(f"{text_path} ({problem})")
        return []
