"""Pictures as widgets show them.

Knows: how a reference is opened with or without its dataset.
Does not know: files' formats (`data/images.py`), pages and frames (`inference/attachments.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.data.dataset import Dataset
from workbench.data.video import load_media
from workbench.inference.attachments import open_file

Opener = Callable[[Any], Any]
"""`Image` -> picture, `Video` -> film."""


def opener(dataset: Dataset | str | Path | None) -> Opener:
    """What opens media of a dataset's conversations; without one a reference's path is a path on this disk."""
    if dataset is None:
        return open_file
    resolve = Dataset.open(dataset).resolver()
    return lambda media: load_media(media, resolve(media))
