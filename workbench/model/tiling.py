"""How pictures become rows of the language model: tiles that the tower sees one by one, and where tokens come from.

Knows: what everything that counts, packs or caches asks of a picture's size. Does not know: pixels, or any one rule;
`OneTile` is LLaVA 1.5's, `anyres.AnyRes` that of LLaVA-NeXT.

A picture's size is (width, height) in pixels, upright, as Pillow has it; or `PADDED`; or that of a video (`film.py`),
which counts as a picture does everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from workbench.model.places import Places

Size = tuple[int, int]
PADDED: Size = (0, 0)
"""Stands for the size of a picture that is shown as one padded square beside others: its own makes no difference."""


@dataclass(frozen=True)
class Shown:
    """One picture or video as the tower sees it."""

    tiles: torch.Tensor
    """(squares, 3, side, side) float32: rescaled and normalised."""
    size: Size


class Tiling(Protocol):
    """A rule by which pictures are cut into tiles and the tiles' tokens put in order."""

    varies: bool
    """Whether it depends on a picture's size; if not, no size need be known."""

    @property
    def frames(self) -> int:
        """Frames of a video that are shown at most; 0 where videos are not read."""

    @property
    def mixes(self) -> bool:
        """Whether tokens may be made of several rows, by their weights."""

    @property
    def each(self) -> int:
        """Tokens of one tile, and the fewest that a picture takes."""

    @property
    def most(self) -> int:
        """Tiles that a picture has at most."""

    @property
    def most_squares(self) -> int:
        """Squares that the tower sees of a picture or video at most."""

    @property
    def longest(self) -> int:
        """Tokens that a picture takes at most."""

    def seen(self, size: Size, among: int) -> Size:
        """The size by which a picture of this size counts among so many of its conversation: its own, or `PADDED`."""

    def tiles(self, size: Size) -> int:
        """Tiles of a picture; of a video, the blocks of rows as large as a tile's that it becomes."""

    def squares(self, size: Size) -> int:
        """Squares that the tower sees: as many as tiles, or a video's frames."""

    def tokens(self, size: Size) -> int:
        """Tokens of a picture in the language model."""

    def patches(self, size: Size) -> torch.Tensor:
        """(tokens,) int64: where on the first tile, which shows the whole picture, each token lies; -1: nowhere."""

    def places(self, sizes: Sequence[Size]) -> Places | None:
        """Where the tokens of these pictures come from; None where they are their tiles' as they lie."""


@dataclass(frozen=True)
class OneTile:
    """LLaVA 1.5: every picture is made one square, and its tokens are the tower's, row by row."""

    each: int
    most = most_squares = 1
    frames = 0
    varies = False
    mixes = False

    @property
    def longest(self) -> int:
        return self.each

    def seen(self, size: Size, among: int) -> Size:
        return size

    def tiles(self, size: Size) -> int:
        return 1

    def squares(self, size: Size) -> int:
        return 1

    def tokens(self, size: Size) -> int:
        return self.each

    def patches(self, size: Size) -> torch.Tensor:
        return torch.arange(self.each)

    def places(self, sizes: Sequence[Size]) -> None:
        return None
