"""Image modes by their names, of models that see tiles: `anyres`, `anyres_video_N`, `anyres_max_N`,
`anyres_max_N_video_N`.

Knows: which limit of tiles and how many frames of a video a name means, and which name they have. Does not know:
configurations (`joint.py`), or what is done by a mode (`tiles.py`).
"""

from __future__ import annotations

import re

ANYRES = "anyres"
"""The image mode of LLaVA-NeXT, and of no other."""
ANYRES_MAX = re.compile(r"(anyres_max_([1-9]\d*))(?:_video_(0|[1-9]\d*))?")
"""The image modes of LLaVA-OneVision, and of no other: the tokens of so many tiles at most, beside the first's, and so
many frames of a video at most, `FRAMES` where nothing is said."""
ANYRES_VIDEO = re.compile(r"anyres_video_([1-9]\d*)")
"""The image modes of LLaVA-NeXT-Video, and of no other: pictures as LLaVA-NeXT, so many frames of a video at most."""
FRAMES = 8
"""Of a video, where nothing else is said: 1,152 tokens of a published LLaVA-NeXT-Video, 1,569 of a LLaVA-OneVision,
which were trained on up to 32."""


def pictures_in(mode: str) -> str:
    """The mode as far as pictures go. Two names are of one mode where this and `frames_in` are equal."""
    if named := ANYRES_MAX.fullmatch(mode):
        return named[1]
    return "anyres_video" if ANYRES_VIDEO.fullmatch(mode) else mode


def frames_in(mode: str) -> int:
    """How many frames of a video an image mode shows at most; 0 where its models read none."""
    if named := ANYRES_MAX.fullmatch(mode):
        return FRAMES if named[3] is None else int(named[3])
    named = ANYRES_VIDEO.fullmatch(mode)
    return int(named[1]) if named else 0


def reads_videos(mode: str) -> bool:
    """Whether a model of this image mode reads videos."""
    return frames_in(mode) > 0


def limit_in(mode: str) -> int | None:
    """N of `anyres_max_N`; None for other modes."""
    named = ANYRES_MAX.fullmatch(mode)
    return int(named[2]) if named else None


def with_frames(pictures: str, frames: int) -> str:
    """The name of the mode of a LLaVA-OneVision: its `anyres_max_N` for pictures, and so many frames."""
    return pictures if frames == FRAMES else f"{pictures}_video_{frames}"
