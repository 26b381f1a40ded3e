"""One video file, checked when it comes into a dataset: what a row says of it, or why it cannot be used.

Knows: what is looked at and what is not. Does not know: how frames are found (`video.py`), or tables (`image_rows.py`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import imagehash

from workbench.data.images import LIMITS, ImageFacts, Limits, read_file
from workbench.data.video import SUFFIXES, Film, opened
from workbench.errors import ImageError

AGAIN = "download or copy it again"


def check_video(path: str | Path, *, limits: Limits = LIMITS) -> ImageFacts:
    """Open a video, count its frames, decode the first and the last, and tell what it is.

    Width, height and perceptual hash are those of the first frame, upright. Found are: no file, an empty one, one that
    is no video or has no pictures (sound alone), enormous frames, no frame, a file that was cut off in the middle of a
    frame, and frames that cannot be decoded at either end. Not found: damage between the ends, which would take
    decoding all of it (whoever reads those frames says so), and a WebM or Matroska file that was cut off between two
    frames, which is a whole shorter one. Raises `ImageError` for these.
    """
    path = Path(path)
    data = read_file(path, limits)
    film = Film(data, where=str(path))
    total = film.total
    if _is_cut_off(data, str(path)):
        raise ImageError(str(path), found=f"a video that was cut off after {total} frames", fix=AGAIN)
    first = film.at(sorted({0, total - 1}))[0]
    notes = [] if path.suffix.lower() in SUFFIXES else [f"a video named {path.suffix or 'without an extension'}"]
    phash = str(imagehash.phash(first))
    return ImageFacts(*first.size, "video", first.mode, hashlib.sha256(data).hexdigest(), phash, tuple(notes))


def _is_cut_off(data: bytes, where: str) -> bool:
    """Whether the file ends within its last packet, of whichever stream: FFmpeg marks such a packet."""
    last = None
    with opened(data, where) as (container, _):
        for packet in container.demux():
            last = packet if packet.size else last
    return last is not None and bool(last.is_corrupt)
