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
from workbench.data.images import LIMITS, load_image, read_file, still_format
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
        return min(most, len(self._index.shown))

    def frames(self, most: int) -> list[Picture]:
        """At most so many frames at even distances, upright, RGB. Raises `ImageError` where one cannot be read."""
        index = self._index
        wanted = numbers(len(index.shown), most)
        with opened(self.source, self.where) as (container, stream):
            found = index.seek(container, stream, wanted) or _in_order(container, stream, wanted)
            if len(found) < len(wanted):
                have = f"{len(found)} of {len(wanted)} frames that can be read"
                raise ImageError(self._told, found=have, expected="all of them", fix="download or copy it again")
            return [_upright(frame) for frame in found]

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
    """What a person is shown of it: the picture, or a film's first frame. Raises `ImageError`."""
    return opened.frames(1)[0] if isinstance(opened, Film) else opened


# --- files ------------------------------------------------------------------------------------------------------


@contextmanager
def opened(source: Path | bytes, where: str = "") -> Iterator[tuple[Any, Any]]:
    """An open container and its first video stream. Raises `ImageError`."""
    import av

    where = where or ("a video" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else read_file(source)
    if kind := still_format(data):
        raise ImageError(where, found=f"a picture ({kind}), not a video", expected="a video", fix="name it as an image")
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.video:
                cut = "a video that cannot be read (there is nothing in it; it may be cut off)"
                found = "sound and no pictures" if container.streams.audio else cut
                raise ImageError(where, found=found, expected=EXPECTED)
            stream = container.streams.video[0]
            if stream.width * stream.height > LIMITS.pixels:
                found = f"enormous frames: {stream.width} x {stream.height} pixels"
                raise ImageError(where, found=found, expected=f"at most {LIMITS.pixels:,} pixels")
            yield container, stream
    except (av.FFmpegError, ValueError) as problem:
        raise ImageError(where, found=f"a video that cannot be read ({problem})", expected=EXPECTED) from None


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
        begin = float((stream.start_time or 0) * stream.time_base)
        if stream.time_base:
            container.seek(int((moment + begin) / stream.time_base), stream=stream)
        last = None
        for frame in container.decode(stream):
            if last is not None and float(frame.time or 0) > moment + begin:
                break
            last = frame
        if last is None:
            raise ImageError(str(source)[:200], found="no frame that can be read", expected=EXPECTED)
        return _upright(last)


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
