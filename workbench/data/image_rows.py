"""Image and video files to rows of a dataset's table: each opened once, in other processes; a broken one keeps its row.

Knows: how to check many files below one root, and to say in a few lines what came of it.
Does not know: how the files were found or named (`image_folder.py`, `llava_json.py`), or what is looked at in one
(`images.py`, `video_check.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from workbench.conversation import new_id
from workbench.data.batches import map_batches
from workbench.data.checks import Checks, Stamp, stamp
from workbench.data.folder import CARD, CLIMBS, resolve_inside
from workbench.data.images import check_image
from workbench.data.tables import IMAGE_COLUMNS
from workbench.data.video_check import check_video
from workbench.errors import DataError

ROOT = "images"
NO_FILE = "no such file"
"""How the reason of an image or video begins whose file is not there."""
_KEPT = ("width", "height", "hash", "phash", "reason")
"""What a check finds out, in the order in which it is kept for a rerun."""
Checked = tuple[dict[str, Any], Stamp | None]
"""A row, and what tells whether its file is the same when it is asked for again."""


def image_rows(
    folder: Path,
    paths: Sequence[str],
    out: Path | None = None,
    *,
    videos: Collection[str] = (),
    workers: int | None = None,
) -> pl.DataFrame:
    """One row per path below `folder`, in the order given; what cannot be used is quarantined, with the reason.

    `videos`: those of `paths` that are meant as videos, which are checked as `check_video` says. `out` is the dataset
    that is being made of them: what is found is kept there as it comes, and files that an earlier try found to be ok,
    and that did not change since, are not opened again.
    """
    if out is None:
        return _frame(row for row, _ in _checked(folder, paths, videos, 0, workers))
    with Checks(out, folder) as checks:
        known = checks.known(paths)
        rest = [path for path in paths if path not in known]
        rows = {
            path: _row(path, path in videos, **dict(zip(_KEPT, found, strict=True)), status="ok")
            for path, found in known.items()
        }
        for path, (row, seen) in zip(rest, _checked(folder, rest, videos, len(known), workers), strict=True):
            rows[path] = row
            if seen is not None and row["status"] == "ok":
                checks.add(path, seen, [row[key] for key in _KEPT])
    return _frame(rows[path] for path in paths)


def _frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=IMAGE_COLUMNS, orient="row")


def _checked(
    folder: Path, paths: Sequence[str], videos: Collection[str], before: int, workers: int | None
) -> Iterator[Checked]:
    jobs = [(str(folder), path, path in videos) for path in paths]
    told = "checking images and videos" if videos else "checking images"
    return map_batches(_inspect, jobs, told, workers=workers, on_crash=_crashed, before=before)


def _inspect(job: tuple[str, str, bool]) -> Checked:
    folder, path, video = Path(job[0]), job[1], job[2]
    try:
        file = resolve_inside(folder, path)
        before = stamp(file)  # not after: a file that changes while it is read is checked again
        facts = check_video(file) if video else check_image(file)
    except DataError as problem:
        expected = f"; expected {problem.expected}" if problem.expected else ""
        return _row(path, video, status="quarantined", reason=problem.found + expected), None
    known = {key: getattr(facts, key) for key in ("width", "height", "hash", "phash")}
    return _row(path, video, **known, status="ok", reason="; ".join(facts.notes) or None), before


def _crashed(job: tuple[str, str, bool]) -> Checked:
    what = "a video" if job[2] else "an image"
    reason = f"{what} that crashes its decoder, or needs too much memory"
    return _row(job[1], job[2], status="quarantined", reason=reason), None


def _row(path: str, video: bool, **values: Any) -> dict[str, Any]:
    media = "video" if video else "image"
    return {"id": new_id("image", ROOT, path), "root": ROOT, "path": path, "captions": [], "media": media, **values}


def root_for(folder: Path, out: Path) -> str:
    """How the card of a dataset in `out` names `folder`: relative where it lies inside, so that both can move."""
    inside, outside = folder.resolve(), out.resolve()
    return inside.relative_to(outside).as_posix() if inside.is_relative_to(outside) else str(inside)


def refuse_existing(out: Path) -> None:
    """Before the long part: raise `DataError` where `out` is a dataset already."""
    if (out / CARD).exists():
        raise DataError(str(out), found="a dataset", fix="choose another folder, or delete this one to import again")


def refuse_missing(source: str, folder: Path, frame: pl.DataFrame) -> None:
    """Raise `DataError` where not one of the files that `source` names lies below `folder`: it is the wrong folder."""
    reasons = frame["reason"].fill_null("")
    outside = reasons.str.starts_with(CLIMBS)
    if frame.height and (outside | reasons.str.starts_with(NO_FILE)).all():
        found = f"none of its {frame.height} {nouns(frame)} below {folder}; the first: {frame['path'][0]}"
        fix = "name that folder: images=FOLDER, or --images FOLDER"
        if outside.any():
            fix = f"have {source} name them by paths relative to one folder, and {fix}"
        raise DataError(source, found=found, expected="the folder that the image paths start from", fix=fix)


def nouns(frame: pl.DataFrame) -> str:
    """What the rows are, for a person: images, videos, or both."""
    kinds = set(frame["media"]) or {"image"}
    return " and ".join(f"{kind}s" for kind in ("image", "video") if kind in kinds)
