"""One video file: which of its frames are taken, and those frames as upright pictures.

Knows: containers and streams (PyAV), how many frames a file has, the frame at a moment, frames by their number, limits.
Does not know: what a model makes of frames (`model/film.py`), datasets, where a video was named.

`Film` takes frames as transformers samples them: of `total` frames the numbers `arange(0, total, total / count)`, so
that the first is always one of them (`BaseVideoProcessor.sample_frames`). A file with fewer frames gives those it has.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.conversation import Media, Video
from workbench.data.containers import LOOKED_AT, container_of
from workbench.data.images import LIMITS, beginning, is_picture, is_video, load_image, open_file
from workbench.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

EXPECTED = "an image, a video or a PDF file"
SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"))
"""How files of videos are named."""


@dataclass(frozen=True)
class Film:
    """A video that was named and is read when somebody asks for its frames. `where` names bytes in errors."""

    source: Path | bytes
    where: str = ""

    def count(self, most: int) -> int:
        """How many pictures `frames(most)` gives; nothing is decoded. Raises `ImageError`."""
        return min(most, self.total)

    def frames(self, most: int) -> list[Picture]:
        """At most so many frames at even distances, upright, RGB. Raises `ImageError` where one cannot be read."""
        return self.at(numbers(self.total, most))

    @property
    def total(self) -> int:
        """How many frames there are, told by their packets; nothing is decoded. Raises `ImageError`."""
        return len(self._index.shown)

    def at(self, wanted: Sequence[int]) -> list[Picture]:
        """The frames of these numbers, ascending from 0, upright, RGB. Raises `ImageError` where one cannot be read."""
        index = self._index
        with opened(self.source, self.where) as (container, stream):
            found = index.seek(container, stream, wanted) or _in_order(container, stream, wanted)
            if len(found) < len(wanted):
                have = f"{len(found)} of {len(wanted)} frames that can be read"
                raise ImageError(self._told, found=have, expected="all of them", fix="download or copy it again")
            return [_upright(frame) for frame in found]

    def first(self) -> Picture:
        """The first frame, upright, RGB: nothing behind it is read. Raises `ImageError`."""
        with opened(self.source, self.where) as (container, stream):
            frame = next(container.decode(stream), None)
            if frame is None:
                raise ImageError(self._told, found="no frame that can be read", expected=EXPECTED)
            return _upright(frame)

    @cached_property
    def _index(self) -> _Index:
        with opened(self.source, self.where) as (container, stream):
            packets = [packet for packet in container.demux(stream) if packet.size]
        if not packets:
            raise ImageError(self._told, found="no frame that can be read", expected=EXPECTED)
        keys = [packet.pts for packet in packets if packet.is_keyframe]
        return _Index(_sorted([packet.pts for packet in packets]), _sorted(keys))

    @property
    def _told(self) -> str:
        return self.where or ("a video" if isinstance(self.source, bytes) else str(self.source))


def numbers(total: int, most: int) -> list[int]:
    """Of `total` frames the numbers of those that are taken: `most` at even distances from the first on, or all."""
    count = min(total, most)
    return [number * total // count for number in range(count)]


def load_media(media: Media, path: Path) -> Picture | Film:
    """The picture at a path, or the film, as a message names it. Raises `ImageError` as `load_image` does."""
    return Film(path) if isinstance(media, Video) else load_image(path)


def still(opened: Picture | Film) -> Picture:
    """What is seen of it where a picture is wanted: itself, or a film's first frame. Raises `ImageError`."""
    return opened.first() if isinstance(opened, Film) else opened


def seen(file: Path | Film) -> Picture:
    """As `still`, of a picture's file or a film. Raises `ImageError`."""
    return still(file if isinstance(file, Film) else load_image(file))


def by_content(path: Path) -> Path | Film:
    """What `seen` opens of a file that nobody called an image or a video: a film where it begins as one."""
    try:
        with open_file(path) as file:
            return Film(path) if is_video(file.read(24)) else path
    except ImageError:  # a page or a frame of a file, or one that has gone: who opens it says so
        return path


# --- files ------------------------------------------------------------------------------------------------------


@contextmanager
def opened(source: Path | bytes, where: str = "") -> Iterator[tuple[Any, Any]]:
    """An open container and its first video stream, read as what it begins as (`containers.py`) and nothing else.

    Raises `ImageError`, for a picture too, which FFmpeg would open.
    """
    import av

    where = where or ("a video" if isinstance(source, bytes) else str(source))
    with io.BytesIO(source) if isinstance(source, bytes) else open_file(source) as file:
        begin = file.read(LOOKED_AT)
        file.seek(0)
        if not begin:
            raise ImageError(where, found="an empty file", expected=EXPECTED, fix="download or copy it again")
        kind = _container(begin, where)
        with _reading(begin, where), av.open(file, format=kind) as container:
            if not container.streams.video:
                cut = "a video that cannot be read (there is nothing in it; it may be cut off)"
                found = "sound and no pictures" if container.streams.audio else cut
                raise ImageError(where, found=found, expected=EXPECTED)
            stream = container.streams.video[0]
            if stream.codec_context is None:  # of a codec that FFmpeg does not know, or cut off before it is named
                found = "a video that cannot be read (no decoder for its frames)"
                raise ImageError(where, found=found, expected="one of a usual codec, whole", fix="save it again as MP4")
            if stream.width * stream.height > LIMITS.pixels:
                found = f"enormous frames: {stream.width} x {stream.height} pixels"
                raise ImageError(where, found=found, expected=f"at most {LIMITS.pixels:,} pixels")
            yield container, stream


def _container(begin: bytes, where: str) -> str:
    """FFmpeg's name of what a file with this beginning is. Raises `ImageError` where that is no video."""
    kind = container_of(begin)
    if kind is None and is_picture(begin) or begin[4:8] == b"ftyp" and not is_video(begin):
        expected = 'a video; a picture is named as one: "image" in LLaVA\'s JSON, wb.Image in a message'
        raise ImageError(where, found="not a video but a picture", expected=expected)
    if kind is None:
        found = f"a video that cannot be read (it begins with {beginning(begin)})"
        raise ImageError(where, found=found, expected=EXPECTED)
    return kind


@contextmanager
def _reading(begin: bytes, where: str) -> Iterator[None]:
    """While a file that begins so is read: what goes wrong is an `ImageError`."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or problem
        why = why if is_video(begin) else f"it begins with {beginning(begin)}"
        raise ImageError(where, found=f"a video that cannot be read ({why})", expected=EXPECTED) from None


def moments(source: Path | bytes, count: int) -> list[float]:
    """Seconds into a video, in the middle of `count` equal parts."""
    with opened(source) as (container, stream):
        if stream.duration is not None:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            seconds = container.duration / 1e6
        else:
            seconds = max((float(frame.time or 0) for frame in container.decode(stream)), default=0.0)
    return [(number + 0.5) * seconds / count for number in range(count)]


def frame_at(source: Path | bytes, moment: float) -> Picture:
    """What is seen after so many seconds: the last frame that begins no later, turned as the file says."""
    with opened(source) as (container, stream):
        begin = float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0
        frame = _shown_at(container, stream, begin, moment + begin)
        if frame is None:
            raise ImageError(str(source)[:200], found="no frame that can be read", expected=EXPECTED)
        return _upright(frame)


def _shown_at(container: Any, stream: Any, begin: float, moment: float) -> Any:
    """The last frame that begins no later than `moment`, else the first one; None where none can be read.

    Seeking goes by when frames are decoded, which a key frame may be long before it is shown: where the first frame
    found is later than asked for, it is sought further and further back, to the beginning at last.
    """
    back = 0.0
    while True:
        if stream.time_base:
            container.seek(int(max(begin, moment - back) / stream.time_base), stream=stream)
        last = None
        for frame in container.decode(stream):
            if float(frame.time or 0) > moment:
                break
            last = frame
        else:
            return last
        if last is not None or back >= moment - begin or not stream.time_base:
            return last or frame
        back = 4 * back or 1.0


# --- frames by their number -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
    """When each frame of a stream is shown, in the stream's own units and in that order; one of None is not known."""

    shown: Sequence[int | None]
    keys: Sequence[int | None]
    """Of frames that can be decoded without those before them."""

    def seek(self, container: Any, stream: Any, wanted: Sequence[int]) -> list[Any]:
        """The frames of these numbers, decoding each from the key frame before it; none where that cannot be done."""
        times: list[Any] = [self.shown[number] for number in wanted]
        if None in self.shown or None in self.keys or not self.keys or len(set(self.shown)) < len(self.shown):
            return []
        taken: list[Any] = []
        frames: Iterator[Any] = iter(())
        at: Any = None
        for time in times:
            before = self.keys[max(0, bisect_right(self.keys, time) - 1)]  # type: ignore[type-var]
            if at is None or before > at:
                container.seek(time, stream=stream)
                frames = container.decode(stream)
            frame = next((one for one in frames if one.pts is None or one.pts >= time), None)
            if frame is None or frame.pts != time:
                return []
            at = frame.pts
            taken.append(frame)
        return taken


def _in_order(container: Any, stream: Any, wanted: Sequence[int]) -> list[Any]:
    """The frames of these numbers, every one before them decoded."""
    container.seek(0)
    chosen, all_needed = set(wanted), islice(container.decode(stream), wanted[-1] + 1)
    return [frame for number, frame in enumerate(all_needed) if number in chosen]


def _sorted(times: list[int | None]) -> list[int | None]:
    return times if None in times else sorted(times)  # type: ignore[type-var]


def _upright(frame: Any) -> Picture:
    picture: Picture = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if getattr(frame, "rotation", 0) else picture
