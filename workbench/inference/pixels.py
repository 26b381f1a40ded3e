"""Pictures and videos to pixels and the name of those; one that is known and has not changed is not opened again.

Knows: the state a picture was opened in, and the names that were found, so many of them.
Does not know: files, models, prompts, or what is kept of a picture (`vision`, `prefix_cache`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.conversation import Image, Media, Video
from workbench.data.video import Film
from workbench.errors import ImageError
from workbench.inference.attachments import TrackedOpener
from workbench.inference.prefix_cache import pixel_hash
from workbench.model.llava import Llava
from workbench.model.tiling import Shown, Size

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

KEPT = 4096
"""Names remembered; the least recently used go first."""


@dataclass(frozen=True)
class Known:
    """A picture by the name of what a model sees of it."""

    name: str
    size: Size
    open: Callable[[], Shown]
    """Raises `ImageError` where another picture lies there by now."""


class Pixels:
    """The pixels of pictures under one name each. Several threads may use it."""

    def __init__(self) -> None:
        self._names: OrderedDict[Hashable, tuple[str, Size]] = OrderedDict()
        self._guard = threading.Lock()

    def of(self, image: Media, open_image: Callable[[Image], Picture], llava: Llava, among: int = 1) -> Known:
        """What a model sees of a picture, one of so many of its conversation. Raises what opening it raises."""
        state = open_image.state(image) if isinstance(open_image, TrackedOpener) else None
        key = open_image, llava.mode_among(among), image, state
        with self._guard:
            found = None if state is None else self._names.get(key)
            if found is not None:
                self._names.move_to_end(key)
        if found is not None:
            return Known(*found, lambda: _again(image, open_image, llava, among, found[0]))
        shown = shown_of(image, open_image, llava, among)
        name = _name(shown, llava)
        if state is not None:
            with self._guard:
                self._names[key] = name, shown.size
                while len(self._names) > KEPT:
                    self._names.popitem(last=False)
        return Known(name, shown.size, lambda: shown)


def shown_of(image: Media, open_image: Callable[[Image], Picture], llava: Llava, among: int) -> Shown:
    """What a model sees of a picture or a video, one of so many of its conversation. Raises as `open_media` does."""
    return llava.show(open_media(image, open_image), among)


def open_media(image: Media, open_image: Callable[[Any], Any]) -> Picture | Film:
    """The picture, or the film. Raises `ImageError` for a video where `open_image` opens pictures only, and what
    opening raises."""
    opened: Picture | Film = open_image(image)
    if isinstance(image, Video) and not isinstance(opened, Film):
        fix = "open files by their path, or give the frames as images"
        raise ImageError(image.path, found="a video, where only pictures are opened", fix=fix)
    return opened


def _name(shown: Shown, llava: Llava) -> str:
    """Pictures with the same tiles may keep different tokens of them where that depends on their size."""
    return pixel_hash(shown.tiles, shown.size if llava.tiling.varies else "")


def _again(image: Media, open_image: Callable[[Image], Picture], llava: Llava, among: int, name: str) -> Shown:
    """What has this name. It may have been another picture that lies there by now."""
    shown = shown_of(image, open_image, llava, among)
    if _name(shown, llava) != name:
        raise ImageError(image.path, found="a picture that changed while it was asked about", fix="ask again")
    return shown
