"""Pictures to pixels and the name of those pixels; one that is known and has not changed since is not opened again.

Knows: the state a picture was opened in, and the names that were found, so many of them.
Does not know: files, models, prompts, or what is kept of a picture (`vision`, `prefix_cache`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import torch

from workbench.conversation import Image
from workbench.errors import ImageError
from workbench.inference.attachments import TrackedOpener
from workbench.inference.prefix_cache import pixel_hash
from workbench.model.images import ImageMode

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

KEPT = 4096
"""Names remembered; the least recently used go first."""


class Pixels:
    """The pixels of pictures under one name each. Several threads may use it."""

    def __init__(self) -> None:
        self._names: OrderedDict[Hashable, str] = OrderedDict()
        self._guard = threading.Lock()

    def of(
        self, image: Image, open_image: Callable[[Image], Picture], mode: ImageMode
    ) -> tuple[str, Callable[[], torch.Tensor]]:
        """The hash of a picture's pixels, and what gives them: (3, H, W). Raises what opening it raises."""
        state = open_image.state(image) if isinstance(open_image, TrackedOpener) else None
        key = open_image, mode, image, state
        with self._guard:
            name = None if state is None else self._names.get(key)
            if name is not None:
                self._names.move_to_end(key)
        if name is not None:
            return name, lambda: _again(image, open_image, mode, name)
        pixels = mode.pixels(open_image(image))
        name = pixel_hash(pixels)
        if state is not None:
            with self._guard:
                self._names[key] = name
                while len(self._names) > KEPT:
                    self._names.popitem(last=False)
        return name, lambda: pixels


def _again(image: Image, open_image: Callable[[Image], Picture], mode: ImageMode, name: str) -> torch.Tensor:
    """The pixels that have this name. It may have been another picture that lies there by now."""
    pixels = mode.pixels(open_image(image))
    if pixel_hash(pixels) != name:
        raise ImageError(image.path, found="a picture that changed while it was asked about", fix="ask again")
    return pixels
