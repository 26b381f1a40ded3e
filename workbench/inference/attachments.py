"""What a person attaches to a question: pictures, pages of a PDF file, a video or frames of one, told by content.

    report.pdf#page=3    the third page          clip.mp4#t=1.25    what is seen after 1.25 seconds

Knows: how a file becomes references to pictures and a reference a picture, when that is still the same one, which
pages and frames are taken; that a model which reads videos gets the video and takes its frames itself
(`data/video.py`), and any other frames of it as pictures: in a chat, behind a server and in an evaluation alike.
Does not know: how models answer, how many pictures one takes (a prompt that is too long says so).
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from workbench.conversation import Conversation, Image, Media, Part, Video
from workbench.data.images import LIMITS, beginning, is_video, load_image, read_file, to_png
from workbench.data.video import EXPECTED, Film, frame_at, moments
from workbench.errors import ImageError, kind_of
from workbench.resources import expanded, state_folder, write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FRAMES = 8
"""Of a video, at even distances."""
PAGES = 16
"""Of a PDF file at most, its first ones."""
DPI = 150
"""Dots per inch of a page: of A4 1240 x 1754 pixels."""
SETTLED = 0.1
"""Seconds after which a file that is written once more has another time: clocks of file systems are coarse."""
_ADDRESS = re.compile(r"https?:/", re.IGNORECASE)
"""With one slash too, as `Path` writes it."""
_PART = re.compile(r"(?P<file>.+)#(?P<kind>page|t)=(?P<value>\d+(?:\.\d+)?)", re.DOTALL)


Attached = Union[str, Path, "Picture"]
"""What can be attached: a path, or a PIL image."""


@dataclass(frozen=True)
class TrackedOpener:
    """What opens pictures and knows when one is still the same. An `open_image` may be one, or any other function."""

    open: Callable[[Any], Any]
    """`Image` -> picture; `Video` -> `Film`, for models that read videos."""
    state: Callable[[Any], Hashable]
    """Equal only while the picture or video is; None where that cannot be told."""

    def __call__(self, media: Any) -> Any:
        return self.open(media)


def frames_read(model: Any) -> int:
    """Frames that a model itself takes of a video at most; 0: it reads pictures, and is shown `FRAMES` of one."""
    return int(getattr(model, "frames", 0))


def attached_for(path: Attached, *models: Any) -> Sequence[Media]:
    """As `attached`; where all these models read videos, a video is itself. Raises as `attached` does."""
    place = _place(path)
    if all(map(frames_read, models)) and _kind(place) == "video":
        return [Video(str(place), root="")]
    return attached(place)


def seen_by(model: Any, conversation: Conversation) -> Conversation:
    """The conversation as `model` can be asked it: where it reads pictures only, each video is frames of it.

    Videos are files at their paths; one with a root is left to who knows that (`conversation.placed`, or the model).
    Raises `ImageError` for one that cannot be read.
    """
    if frames_read(model) or not any(map(_is_file, conversation.media)):
        return conversation
    turns = [
        replace(turn, content=tuple(chain.from_iterable(map(_pictures_of, turn.content))))
        for turn in conversation.messages
    ]
    return replace(conversation, messages=tuple(turns))


def told_of_frames(videos: int) -> str:
    """What a person is told where so many videos were asked about by `seen_by`."""
    return f"{'1 video was' if videos == 1 else f'{videos:,} videos were'} seen as {FRAMES} frames each"


def _is_file(media: Media) -> bool:
    return isinstance(media, Video) and not media.root


def _pictures_of(part: Part) -> Sequence[Part]:
    if isinstance(part, str) or not _is_file(part):
        return [part]
    return [Image(f"{part.path}#t={moment:.3f}", part.root) for moment in moments(Path(part.path), FRAMES)]


def attached(path: Attached, *, frames: int = FRAMES, pages: int = PAGES) -> list[Image]:
    """References to the pictures in a file: itself, `frames` of a video, or the first `pages` of a PDF file.

    A PIL image becomes a file in the state folder. Raises `ImageError` for a web address, and for a file that is none
    of these, broken, or too large.
    """
    place = _place(path)
    kind = _kind(place)
    if kind == "image":
        picture = load_image(place)
        return [Image(str(place), width=picture.width, height=picture.height)]
    if kind == "pdf":
        with _document(place) as document:
            return [Image(f"{place}#page={number + 1}") for number in range(min(len(document), pages))]
    return [Image(f"{place}#t={moment:.3f}") for moment in moments(place, frames)]


def listed(given: Attached | Sequence[Attached] | None) -> list[Attached]:
    """What a caller gives as nothing, one or several to attach. Raises `ImageError` for what cannot be attached."""
    several: Any = [] if given is None else given if isinstance(given, (list, tuple)) else [given]
    return [one if isinstance(one, (str, Path)) else _picture(one) for one in several]


def uploaded(data: bytes, name: str) -> Path:
    """A file of bytes that came without one, kept by content in the state folder's `uploads`."""
    place = state_folder() / "uploads" / hashlib.sha256(data).hexdigest()[:20] / name
    if not place.is_file():
        write_atomic(place, data)
    return place


def _picture(given: Any) -> Picture:
    """The PIL image, if it is one."""
    from PIL import Image as PILImage

    if not isinstance(given, PILImage.Image):
        expected = "a path of an image, a video or a PDF file, or a PIL image"
        fix = "PIL.Image.fromarray makes one of an array" if hasattr(given, "__array__") else ""
        raise ImageError("image", found=" ".join(kind_of(given).split()), expected=expected, fix=fix)
    return given


def _place(path: Attached) -> Path:
    if not isinstance(path, (str, Path)):
        return uploaded(to_png(_picture(path)), "picture.png").resolve()
    if _ADDRESS.match(str(path)):
        fix = "download the picture and give its path"
        raise ImageError(str(path), found="a web address", expected="a file of this machine", fix=fix)
    place = expanded(path, ImageError).resolve()
    if place.is_dir():
        fix = "name a file in it; of many pictures asks `workbench compare-models --images FOLDER`"
        raise ImageError(str(path), found="a folder", expected=EXPECTED, fix=fix)
    return place


def _open(image: Media) -> Picture | Film:
    if isinstance(image, Video):
        return Film(Path(image.path))
    part = _PART.fullmatch(image.path)
    if part is None or Path(image.path).is_file():
        return load_image(image.path)
    file, value = Path(part["file"]), part["value"]
    return _page(file, int(float(value))) if part["kind"] == "page" else frame_at(file, float(value))


def file_state(image: Media) -> Hashable:
    """Of the file that `image.path` is, or is a part of; None for one that is not there, or was written just now."""
    part = _PART.fullmatch(image.path)
    try:
        held = os.stat(image.path if part is None or Path(image.path).is_file() else part["file"])
    except (OSError, ValueError):
        return None
    if time.time() - max(held.st_mtime, held.st_ctime) < SETTLED:
        return None
    return held.st_dev, held.st_ino, held.st_size, held.st_mtime_ns, held.st_ctime_ns


open_file = TrackedOpener(_open, file_state)
"""The picture at `image.path`, or the film: a file on this disk, a page or a frame of one. Raises `ImageError`."""


def video_frames(source: Path | bytes, frames: int = FRAMES) -> list[Picture]:
    """`frames` pictures of a video, at even distances. Raises `ImageError`."""
    return [frame_at(source, moment) for moment in moments(source, frames)]


def _kind(place: Path) -> str:
    begin = read_file(place)[:1024]
    if b"%PDF-" in begin:
        return "pdf"
    try:
        load_image(place)
        return "image"
    except ImageError as problem:
        if "not an image" not in problem.found:
            raise
    try:
        Film(place).first()
        return "video"
    except ImageError as problem:
        if is_video(begin) or "cannot be read" not in problem.found:  # a video, or a sound, by its beginning
            raise
        raise ImageError(str(place), found=f"a file that begins with {beginning(begin)}", expected=EXPECTED) from None


# --- pages ------------------------------------------------------------------------------------------------------


@contextmanager
def _document(place: Path) -> Iterator[Any]:
    import pypdfium2 as pdfium

    try:
        with pdfium.PdfDocument(place) as document:
            if not len(document):
                raise ImageError(str(place), found="a PDF file without pages", expected="some")
            yield document
    except (pdfium.PdfiumError, OSError) as problem:
        found = f"a PDF file that cannot be read ({problem})"
        raise ImageError(str(place), found=found, fix="save it again, without a password") from None


def _page(place: Path, number: int) -> Picture:
    with _document(place) as document:
        if not 1 <= number <= len(document):
            raise ImageError(f"{place}#page={number}", found=f"{len(document)} pages", expected=f"at least {number}")
        page = document[number - 1]
        width, height = (side * DPI / 72 for side in page.get_size())
        if width * height > LIMITS.pixels:
            found = f"an enormous page: {width:.0f} x {height:.0f} pixels"
            raise ImageError(f"{place}#page={number}", found=found, expected=f"at most {LIMITS.pixels:,} pixels")
        return page.render(scale=DPI / 72).to_pil().convert("RGB")
