"""Image files to rows of a dataset's table: each file opened once, in other processes; a broken one keeps its row.

Knows: how to check many files below one root, and to say in a few lines what came of it.
Does not know: how the files were found or named (`image_folder.py`, `llava_json.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from workbench.conversation import new_id
from workbench.data.batches import map_batches
from workbench.data.checks import Checks, Stamp, stamp
from workbench.data.folder import CARD, resolve_inside
from workbench.data.images import check_image
from workbench.data.tables import IMAGE_COLUMNS
from workbench.errors import DataError

ROOT = "images"
NO_FILE = "no such file"
"""How the reason of an image begins whose file is not there."""
_KEPT = ("width", "height", "hash", "phash", "reason")
"""What a check finds out, in the order in which it is kept for a rerun."""
Checked = tuple[dict[str, Any], Stamp | None]
"""A row, and what tells whether its file is the same when it is asked for again."""


def image_rows(
    folder: Path, paths: Sequence[str], out: Path | None = None, *, workers: int | None = None
) -> pl.DataFrame:
    """One row per path below `folder`, in the order given; what cannot be used is quarantined, with the reason.

    `out` is the dataset that is being made of them: what is found is kept there as it comes, and images that an earlier
    try found to be ok, and that did not change since, are not opened again.
    """
    if out is None:
        return _frame(row for row, _ in _checked(folder, paths, 0, workers))
    with Checks(out, folder) as checks:
        known = checks.known(paths)
        rest = [path for path in paths if path not in known]
        rows = {path: _row(path, **dict(zip(_KEPT, found, strict=True)), status="ok") for path, found in known.items()}
        for path, (row, seen) in zip(rest, _checked(folder, rest, len(paths) - len(rest), workers), strict=True):
            rows[path] = row
            if seen is not None and row["status"] == "ok":
                checks.add(path, seen, [row[key] for key in _KEPT])
    return _frame(rows[path] for path in paths)


def _frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=IMAGE_COLUMNS, orient="row")


def _checked(folder: Path, paths: Sequence[str], before: int, workers: int | None) -> Iterator[Checked]:
    jobs = [(str(folder), path) for path in paths]
    return map_batches(_inspect, jobs, "checking images", workers=workers, on_crash=_crashed, before=before)


def _inspect(job: tuple[str, str]) -> Checked:
    folder, path = Path(job[0]), job[1]
    try:
        file = resolve_inside(folder, path)
        before = stamp(file)  # not after: a file that changes while it is read is checked again
        facts = check_image(file)
    except DataError as problem:
        expected = f"; expected {problem.expected}" if problem.expected else ""
        return _row(path, status="quarantined", reason=problem.found + expected), None
    known = {key: getattr(facts, key) for key in ("width", "height", "hash", "phash")}
    return _row(path, **known, status="ok", reason="; ".join(facts.notes) or None), before


def _crashed(job: tuple[str, str]) -> Checked:
    reason = "an image that crashes its decoder, or needs too much memory"
    return _row(job[1], status="quarantined", reason=reason), None


def _row(path: str, **values: Any) -> dict[str, Any]:
    return {"id": new_id("image", ROOT, path), "root": ROOT, "path": path, "captions": [], **values}


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
    missing = frame["reason"].str.starts_with(NO_FILE).fill_null(False)
    if frame.height and missing.all():
        found = f"none of its {frame.height} images below {folder}; the first: {frame['path'][0]}"
        fix = "name that folder: images=FOLDER, or --images FOLDER"
        raise DataError(source, found=found, expected="the folder that the image paths start from", fix=fix)
