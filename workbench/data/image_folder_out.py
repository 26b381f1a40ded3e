"""A dataset as a plain folder of images with a captions.jsonl, which `import_folder` reads back equal.

Knows: what such a folder holds. Does not know: how it is read (`image_folder.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.data.captions_file import CAPTION_FILES, write_lines
from workbench.data.dataset import Dataset
from workbench.data.folder import resolve_inside
from workbench.data.outgoing import new_folder, outgoing_images, own_id, root_of
from workbench.errors import DataError
from workbench.progress import progress
from workbench.resources import write_atomic


def export_folder(dataset: Dataset, out: str | Path, *, split: str | None = None) -> int:
    """Copy the images and videos that are ok into the new folder `out`, with a captions.jsonl; return how many.

    It holds paths, captions, labels, splits and ids. It cannot hold annotated objects and conversations. Raises
    `DataError` where roots differ, an image has gone, or `out` is not empty.
    """
    out, rows = Path(out), outgoing_images(dataset, split, videos=True)
    root = root_of(dataset, rows)
    with new_folder(out) as building, progress("copying images", total=rows.height) as bar:
        lines = []
        for row in rows.select("id", "path", "captions", "label", "split").iter_rows(named=True):
            lines.append(_copy(root, building, row))
            bar.advance()
        write_atomic(building / CAPTION_FILES[1], write_lines(lines))
    return rows.height


def _copy(root: Path, out: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """One picture copied; returns what captions.jsonl says of it."""
    path = row["path"]
    source, target = resolve_inside(root, path), out / path
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise DataError(str(source), found="no such file", fix="restore it, or leave this image out") from None
    return {"file": path, "caption": row["captions"], "label": row["label"], "split": row["split"], **own_id(row)}
