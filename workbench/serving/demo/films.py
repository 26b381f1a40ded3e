"""Frames of a video file for a demo's model: sampled for one that reads videos, spread out for one that reads pictures.

Knows: PyAV, and which frames `workbench chat` and `serve` take of the same file.
Does not know: workbench, models, the page: this file is copied into exported demos.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from .turns import NotAnswered

SPREAD = 8
"""Frames that a model of pictures is shown of a video."""
LARGEST = 120_000_000
"""Pixels of a frame that is decoded."""
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_READERS = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"\x00\x00\x01\xba": "mpeg",
    b"\x00\x00\x01\xb3": "mpegvideo",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"FLV\x01": "flv",
    b"OggS": "ogg",
}
"""FFmpeg's reader by how a file begins. Left to choose, it follows a playlist into other files of the machine, and a
session description into the network."""


def sampled(path: str, most: int) -> list[Image.Image]:
    """At most so many frames at even distances from the first on, upright. Raises `NotAnswered`."""
    with _opened(path) as (container, stream):
        total = sum(bool(packet.size) for packet in container.demux(stream))
        count = min(total, most)
        wanted = {number * total // count for number in range(count)}
        container.seek(0)
        taken = []
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                taken.append(_upright(frame))
            if len(taken) == count:
                break
    if not taken or len(taken) < count:
        raise NotAnswered(f"{Path(path).name} has frames that cannot be read. Try another file.")
    return taken


def spread(path: str, count: int = SPREAD) -> list[Image.Image]:
    """What is seen in the middle of so many equal parts of it, upright. Raises `NotAnswered`."""
    with _opened(path) as (container, stream):
        seconds = _seconds(container, stream)
        begin = float((stream.start_time or 0) * stream.time_base)
        moments = [begin + (number + 0.5) * seconds / count for number in range(count)]
        container.seek(0)
        taken: list[Image.Image] = []
        last: Any = None
        for frame in container.decode(stream):
            while last is not None and len(taken) < count and float(frame.time or 0) > moments[len(taken)]:
                taken.append(_upright(last))
            last = frame
        if last is None:
            raise NotAnswered(f"{Path(path).name} has no frame that can be read. Try another file.")
        return taken + [_upright(last)] * (count - len(taken))


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """An open container and its first video stream."""
    import av

    name = Path(path).name
    try:
        with av.open(path, format=_reader(path)) as container:
            if not container.streams.video:
                raise NotAnswered(f"{name} has no pictures in it. Try another file.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("no decoder for its frames")
            if stream.width * stream.height > LARGEST:
                raise NotAnswered(f"{name} has frames of {stream.width} x {stream.height} pixels. Make it smaller.")
            yield container, stream
    except (av.FFmpegError, OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise NotAnswered(f"{name} is not a video that can be read ({cause}). Try another file.") from None


def _reader(path: str) -> str:
    """The one reader that may open a file. Raises `ValueError` for what begins as none of the containers taken."""
    with open(path, "rb") as file:
        begin = file.read(256)
    if begin[4:8] in _BOXES:
        return "mov"
    if begin.startswith(b"RIFF") and begin[8:12] == b"AVI ":
        return "avi"
    packets = any(begin[one : one + 1] == begin[two : two + 1] == b"G" for one, two in ((0, 188), (4, 196)))
    found = next((name for sign, name in _READERS.items() if begin.startswith(sign)), "mpegts" if packets else None)
    if found is None:
        raise ValueError("it begins as none of those that are taken")
    return found


def _seconds(container: Any, stream: Any) -> float:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return float(container.duration / 1e6)
    return max((float(frame.time or 0) for frame in container.decode(stream)), default=0.0)


def _upright(frame: Any) -> Image.Image:
    picture: Image.Image = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if getattr(frame, "rotation", 0) else picture
