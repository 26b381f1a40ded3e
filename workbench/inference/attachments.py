"""What a person attaches to a question: pictures, pages of a PDF file, frames of a video, told by content.

    report.pdf#page=3    the third page          clip.mp4#t=1.25    what is seen after 1.25 seconds

Knows: how a file becomes references to pictures and a reference a picture, when that is still the same one, which
pages and frames are taken, limits.
Does not know: models, how many pictures one takes (a prompt that is too long says so), conversations.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.conversation import Image
from workbench.data.images import LIMITS, beginning, load_image, read_file
from workbench.errors import ImageError

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
_PART = re.compile(r"(?P<file>.+)#(?P<kind>page|t)=(?P<value>\d+(?:\.\d+)?)", re.DOTALL)
_EXPECTED = "an image, a video or a PDF file"


@dataclass(frozen=True)
class TrackedOpener:
    """What opens pictures and knows when one is still the same. An `open_image` may be one, or any other function."""

    open: Callable[[Image], Picture]
    state: Callable[[Image], Hashable]
    """Equal only while the picture is; None where that cannot be told."""

    def __call__(self, image: Image) -> Picture:
        return self.open(image)


def attached(path: str | Path, *, frames: int = FRAMES, pages: int = PAGES) -> list[Image]:
    """References to the pictures in a file: itself, `frames` of a video, or the first `pages` of a PDF file.

    Raises `ImageError` for a file that is none of these, broken, or too large.
    """
    place = Path(path).expanduser().resolve()
    kind = _kind(place)
    if kind == "image":
        picture = load_image(place)
        return [Image(str(place), width=picture.width, height=picture.height)]
    if kind == "pdf":
        with _document(place) as document:
            return [Image(f"{place}#page={number + 1}") for number in range(min(len(document), pages))]
    return [Image(f"{place}#t={moment:.3f}") for moment in _moments(place, frames)]


def _open(image: Image) -> Picture:
    part = _PART.fullmatch(image.path)
    if part is None or Path(image.path).is_file():
        return load_image(image.path)
    file, value = Path(part["file"]), part["value"]
    return _page(file, int(float(value))) if part["kind"] == "page" else _frame(file, float(value))


def file_state(image: Image) -> Hashable:
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
"""The picture at `image.path`: a file on this disk, a page or a frame of one. Raises `ImageError`."""


def video_frames(source: Path | bytes, frames: int = FRAMES) -> list[Picture]:
    """`frames` pictures of a video, at even distances. Raises `ImageError`."""
    return [_frame(source, moment) for moment in _moments(source, frames)]


def _kind(place: Path) -> str:
    begin = read_file(place)[:1024]
    if b"%PDF-" in begin:
        return "pdf"
    try:
        load_image(place)
        return "image"
    except ImageError as problem:
        if "not an image" not in problem.found and begin[4:8] != b"ftyp":
            raise
    try:
        _moments(place, 1)
        return "video"
    except ImageError:
        raise ImageError(str(place), found=f"a file that begins with {beginning(begin)}", expected=_EXPECTED) from None


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


# --- frames -----------------------------------------------------------------------------------------------------


@contextmanager
def _video(source: Path | bytes) -> Iterator[tuple[Any, Any]]:
    """An open container and its first video stream."""
    import av

    where = "a video" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_file(source)
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.video:
                raise ImageError(where, found="no pictures in it", expected=_EXPECTED)
            stream = container.streams.video[0]
            if stream.width * stream.height > LIMITS.pixels:
                found = f"enormous frames: {stream.width} x {stream.height} pixels"
                raise ImageError(where, found=found, expected=f"at most {LIMITS.pixels:,} pixels")
            yield container, stream
    except (av.FFmpegError, ValueError) as problem:
        raise ImageError(where, found=f"a video that cannot be read ({problem})", expected=_EXPECTED) from None


def _moments(source: Path | bytes, count: int) -> list[float]:
    """Seconds into a video, in the middle of `count` equal parts."""
    with _video(source) as (container, stream):
        if stream.duration is not None:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            seconds = container.duration / 1e6
        else:
            seconds = max((float(frame.time or 0) for frame in container.decode(stream)), default=0.0)
    return [(number + 0.5) * seconds / count for number in range(count)]


def _frame(source: Path | bytes, moment: float) -> Picture:
    """What is seen at a moment: the last frame that begins no later, turned as the file says."""
    with _video(source) as (container, stream):
        begin = float((stream.start_time or 0) * stream.time_base)
        if stream.time_base:
            container.seek(int((moment + begin) / stream.time_base), stream=stream)
        last = None
        for frame in container.decode(stream):
            if last is not None and float(frame.time or 0) > moment + begin:
                break
            last = frame
        if last is None:
            raise ImageError(str(source)[:200], found="no frame that can be read", expected=_EXPECTED)
        picture = last.to_image()
        return picture.rotate(last.rotation, expand=True) if getattr(last, "rotation", 0) else picture
