"""Small videos made by PyAV: frames that differ, so that a wrong one is seen."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

SIZE = (64, 48)


def painted(number: int, size: tuple[int, int] = SIZE, seed: int = 0) -> PILImage.Image:
    """A frame of large coloured patches, another for each number."""
    colours = np.random.default_rng([seed, number]).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return PILImage.fromarray(colours).resize(size, PILImage.Resampling.BILINEAR)


def video(path: Path, shades: list[int], side: int = 64) -> Path:
    """One second of each shade of grey, ten frames a second."""
    frames = (PILImage.new("L", (side, side), shade) for shade in shades for _ in range(10))
    return written(path, frames, (side, side))


def moving(path: Path, frames: int, size: tuple[int, int] = SIZE, seed: int = 0, **settings: Any) -> Path:
    """So many frames, ten a second, each with its own picture."""
    return written(path, (painted(number, size, seed) for number in range(frames)), size, **settings)


def written(
    path: Path,
    frames: Iterator[PILImage.Image],
    size: tuple[int, int],
    *,
    codec: str = "mpeg4",
    gop: int = 5,
    kind: str = "mp4",
    options: dict[str, str] | None = None,
) -> Path:
    """These frames as a file, a key frame every `gop`."""
    import av

    with av.open(str(path), "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height = size
        stream.time_base, stream.gop_size = Fraction(1, 10), gop
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame.convert("RGB"))))
        container.mux(stream.encode())
    return path


def later_and_later(path: Path, frames: int) -> Path:
    """Frame i after i * i / 10 seconds, with B-frames: key frames are stored long before they are shown."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"bf": "3", "sc_threshold": "0"})
        stream.width, stream.height = SIZE
        stream.time_base, stream.gop_size = Fraction(1, 10), 12
        for number in range(frames):
            frame = av.VideoFrame.from_image(painted(number))
            frame.pts, frame.time_base = number * number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def unknown_codec(path: Path) -> Path:
    """A video whose frames no decoder is known for."""
    made = moving(path, 4, codec="libvpx", kind="webm").read_bytes()
    path.write_bytes(made.replace(b"V_VP8", b"V_ODD"))
    return path


def sound(path: Path) -> Path:
    """A second of silence, and no pictures."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        for number in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, number * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoded(path: Path, numbers: list[int]) -> list[PILImage.Image]:
    """Frames of these numbers as transformers' example reads them (`read_video_pyav`): all, one after the other."""
    import av

    with av.open(str(path)) as container:
        return [frame.to_image() for number, frame in enumerate(container.decode(video=0)) if number in numbers]


_SDP = b"""v=0
o=- 0 0 IN IP4 127.0.0.1
s=x
c=IN IP4 127.0.0.1
t=0 0
m=video 5004 RTP/AVP 96
a=rtpmap:96 H264/90000
"""
LEADING = {
    "ffconcat": b"ffconcat version 1.0\nfile priv/a.png\nduration 4\n",
    "sdp": _SDP,
    "sdp behind a sign of Matroska": b"\x1a\x45\xdf\xa3\n" + _SDP,
    "sdp behind a sign of MP4": b"\0\0\0\1ftyp\n" + _SDP,
}
"""Files that FFmpeg, left to itself, follows: to a picture beside them, or to a port of this machine."""


def leading_elsewhere(folder: Path, kind: str) -> bytes:
    """One of `LEADING`, and in `folder` what it leads to."""
    (folder / "priv").mkdir()
    painted(1).save(folder / "priv" / "a.png")
    return LEADING[kind]
