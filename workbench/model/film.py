"""Videos in LLaVA-NeXT-Video and LLaVA-OneVision: how many tokens so many frames are, and of which rows they are made.

Knows: that each frame is one square of which about a quarter of the tokens stay, frame after frame. LLaVA-NeXT-Video
pools them two by two *before* the projector and adds no newline: pooled rows lie in blocks as large as a square's, so
that what holds, counts and projects squares does the same with them. LLaVA-OneVision scales them down *behind* it, and
one newline ends the video. Formulas are those of transformers' `LlavaNextVideoPooler`,
`LlavaOnevisionModel.apply_pooling` and the `replace_video_token` of both processors.
Does not know: files (`data/video.py`), pixels (`tiles.py`), models.

A video has a size as pictures have one, made of its frames' number: `(-frames, 0)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from workbench.errors import ModelError
from workbench.model.places import BEHIND, Part, bilinear
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


class Films(Protocol):
    """What a family of models makes of a video's frames."""

    def check(self) -> None:
        """Raise `ModelError` for squares of which it can make nothing."""

    def tiles(self, frames: int) -> int:
        """Blocks as large as a square's rows that the projector is given."""

    def tokens(self, frames: int) -> int:
        """Tokens in the language model."""

    def parts(self, frames: int) -> Iterator[Part]:
        """Where these lie among the projected rows, a newline's place being `BEHIND`."""


@dataclass(frozen=True)
class Pooled:
    """LLaVA-NeXT-Video: blocks of pooled rows (`pooled`), and tokens as they lie. The last may be full in part."""

    edge: int
    """Tokens along a square's edge."""

    def check(self) -> None:
        if self.edge % 2:
            found = f"frames of {self.edge} x {self.edge} tokens"
            raise ModelError("videos", found=found, expected="even numbers, to be pooled two by two")

    def tiles(self, frames: int) -> int:
        return -(-frames // POOLED)

    def tokens(self, frames: int) -> int:
        return frames * self.edge**2 // POOLED

    def parts(self, frames: int) -> Iterator[Part]:
        yield torch.arange(self.tokens(frames)), None


@dataclass(frozen=True)
class Scaled:
    """LLaVA-OneVision: every row of every frame is projected, a token is a mixture of four, a newline ends all."""

    edge: int
    """Tokens along a square's edge."""

    def check(self) -> None:
        pass

    def tiles(self, frames: int) -> int:
        return frames

    def tokens(self, frames: int) -> int:
        return frames * self._half**2 + 1

    def parts(self, frames: int) -> Iterator[Part]:
        rows = self.edge**2
        index, weight = bilinear(torch.arange(rows).view(self.edge, self.edge), (self._half, self._half))
        begins = torch.arange(frames)[:, None, None] * rows
        yield (index.view(1, -1, 4) + begins).flatten(0, 1), weight.view(-1, 4).repeat(frames, 1)
        yield torch.tensor([BEHIND]), None

    @property
    def _half(self) -> int:
        return -(-self.edge // 2)


def pooled(features: torch.Tensor, how: str) -> torch.Tensor:
    """(frames, N, D) of square frames -> (blocks, N, D): their pooled rows end to end, then zeros."""
    frames, tokens, width = features.shape
    edge = math.isqrt(tokens)
    grids = features.view(frames, edge, edge, width).permute(0, 3, 1, 2)  # (frames, D, edge, edge)
    rows = POOLS[how](grids, 2).flatten(2).transpose(1, 2).flatten(0, 1)  # (frames x N / 4, D)
    return functional.pad(rows, (0, 0, 0, -len(rows) % tokens)).view(-1, tokens, width)
