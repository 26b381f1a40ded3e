"""Videos in LLaVA-NeXT-Video: how many tokens so many frames are, and how frames become rows for the projector.

Knows: that each frame is one square and keeps a quarter of its tokens, pooled two by two before the projector, frame
after frame and without newlines; that pooled rows lie in blocks as large as a square's, so that what holds, counts and
projects squares does the same with them. Formulas are those of transformers' `LlavaNextVideoPooler` and
`LlavaNextVideoProcessor.replace_video_token`.
Does not know: files (`data/video.py`), pixels (`tiles.py`), models.

A video has a size as pictures have one, made of its frames' number: `(-frames, 0)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from workbench.model.tiling import Size

POOLED = 4
"""Tokens that become one."""
POOLS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "average": functional.avg_pool2d,
    "max": functional.max_pool2d,
}
"""`spatial_pool_mode` -> how they do."""


def film_size(frames: int) -> Size:
    """The size by which a video of so many frames counts."""
    return -frames, 0


def frames_of(size: Size) -> int:
    """How many frames a size means; 0 for that of a picture."""
    return max(0, -size[0])


def blocks_of(frames: int) -> int:
    """Blocks that their pooled rows fill, the last one perhaps in part."""
    return -(-frames // POOLED)


def pooled(features: torch.Tensor, how: str) -> torch.Tensor:
    """(frames, N, D) of square frames -> (blocks, N, D): their pooled rows end to end, then zeros."""
    frames, tokens, width = features.shape
    edge = math.isqrt(tokens)
    grids = features.view(frames, edge, edge, width).permute(0, 3, 1, 2)  # (frames, D, edge, edge)
    rows = POOLS[how](grids, 2).flatten(2).transpose(1, 2).flatten(0, 1)  # (frames x N / 4, D)
    return functional.pad(rows, (0, 0, 0, -len(rows) % tokens)).view(-1, tokens, width)
