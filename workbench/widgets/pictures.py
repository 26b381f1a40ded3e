"""Pictures as widgets show them.

Knows: how a reference is opened with or without its dataset.
Does not know: files' formats (`data/images.py`), pages and frames (`inference/attachments.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.conversation import Image
from workbench.data.dataset import Dataset
from workbench.data.images import load_image
from workbench.inference.attachments import open_file

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Opener = Callable[[Image], "Picture"]


def opener(dataset: Dataset | str | Path | None) -> Opener:
    """What opens the pictures of a dataset's conversations; without one a reference's path is a path on this disk."""
    if dataset is None:
        return open_file
    resolve = Dataset.open(dataset).resolver()
    return lambda image: load_image(resolve(image))
