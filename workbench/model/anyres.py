"""LLaVA-NeXT's dynamic resolution in whole numbers: the grid a picture gets, and which tokens of its tiles it keeps.

Knows: the choice of a grid by effective and wasted pixels, the black borders that are taken off again ("unpad"), one
newline after each row, OneVision's bilinear scaling down of more than so many tiles (`anyres_max_N`), that of
several pictures each is one padded square there. Formulas are those of transformers' processors and models of these
families, which are LLaVA's (`mm_utils.py`, `llava_arch.py`).
Does not know: pixels (`tiles.py`), what becomes of a video's frames (`film.py`), models.

A grid is written as (height, width) in pixels, as transformers reads `image_grid_pinpoints`. LLaVA reads the same list
as (width, height): the order of the grids differs, and with it the first of two that are equally good. `from_llava`
turns one into the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from workbench.errors import ModelError
from workbench.model.film import Films, Pooled, Scaled, frames_of
from workbench.model.places import BEHIND, Part, Places, bilinear, joined
from workbench.model.tiling import PADDED, Size

GRIDS = ((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))
"""LLaVA-1.6's grids as (rows, columns) of tiles, in the order in which LLaVA tries them."""
ONEVISION_GRIDS = tuple((rows, columns) for columns in range(1, 7) for rows in range(1, 7))
"""LLaVA-OneVision's, "(1x1),...,(6x6)", likewise."""
SCALED_FROM = 1.1
"""`anyres_max_N` leaves a picture as it is while its edges are at most so many times too long."""


def pinpoints_of(side: int, grids: Iterable[tuple[int, int]] = GRIDS) -> list[list[int]]:
    """Grids of tiles `side` pixels wide, as [height, width]; those of LLaVA-1.6 unless told."""
    return [[rows * side, columns * side] for rows, columns in grids]


def from_llava(pinpoints: Iterable[Sequence[int]]) -> list[list[int]]:
    """An original checkpoint's `image_grid_pinpoints`, which are [width, height], as [height, width]; and back."""
    return [[height, width] for width, height in pinpoints]


def check_pinpoints(pinpoints: Sequence[Sequence[int]], side: int, where: str = "") -> None:
    """Raise `ModelError` for a grid that is not whole tiles `side` pixels wide. where: whose grids they are."""
    told = f"{where}: image_grid_pinpoints" if where else "image_grid_pinpoints"
    for pinpoint in pinpoints:
        if len(pinpoint) != 2 or any(edge < side or edge % side for edge in pinpoint):
            expected = f"multiples of {side}, the vision tower's image size"
            raise ModelError(told, found=str(list(pinpoint)), expected=expected)
    if not pinpoints:
        raise ModelError(told, found="none", expected="at least one")


@dataclass(frozen=True)
class AnyRes:
    """Grids of tiles for pictures of any size. The first tile is the whole picture, squashed.

    Raises `ModelError` for a grid that is not whole tiles.
    """

    side: int
    """Pixels of a tile's edge."""
    edge: int
    """Tokens along a tile's edge."""
    pinpoints: tuple[tuple[int, int], ...]
    """(height, width) in pixels of every grid there is; the first of equally good ones wins."""
    limit: int | None = None
    """N of `anyres_max_N`: tiles whose tokens a picture may have beside the first; None: all it needs."""
    alone: bool = False
    """Whether only a picture that is alone in its conversation gets a grid; of several each is then `PADDED`. So it is
    in LLaVA-OneVision, which shows videos in a way of its own, too."""
    frames: int = 0
    """Of a video at most; 0: videos are not read."""
    varies = True

    def __post_init__(self) -> None:
        if self.frames:
            self.films.check()
        check_pinpoints(self.pinpoints, self.side)

    @property
    def mixes(self) -> bool:
        return self.limit is not None

    @property
    def films(self) -> Films:
        """What becomes of a video's frames."""
        return Scaled(self.edge) if self.alone else Pooled(self.edge)

    @property
    def each(self) -> int:
        return self.edge**2

    @property
    def most(self) -> int:
        tiles = 1 + max(height * width for height, width in self.pinpoints) // self.side**2
        return max(tiles, self.films.tiles(self.frames))

    @property
    def most_squares(self) -> int:
        return max(self.most, self.frames)

    @property
    def longest(self) -> int:
        """Of grids that keep all of one edge: one that just needs no scaling has more than a whole one."""
        whole = [(self.edge * height // self.side, self.edge * width // self.side) for height, width in self.pinpoints]
        kept = {(row, columns) for rows, columns in whole for row in range(1, rows + 1)}
        kept |= {(rows, column) for rows, columns in whole for column in range(1, columns + 1)}
        scaled = [self._scaled(rows, columns) for rows, columns in kept]
        picture = self.each + max(rows * (columns + 1) for rows, columns in scaled)
        return max(picture, self.films.tokens(self.frames)) if self.frames else picture

    def seen(self, size: Size, among: int) -> Size:
        return PADDED if self.alone and among > 1 and not frames_of(size) else size

    def tiles(self, size: Size) -> int:
        if size == PADDED:
            return 1
        if frames := frames_of(size):
            return self.films.tiles(frames)
        rows, columns = self.grid(size)
        return 1 + rows * columns

    def squares(self, size: Size) -> int:
        return frames_of(size) or self.tiles(size)

    def tokens(self, size: Size) -> int:
        if size == PADDED:
            return self.each + 1
        if frames := frames_of(size):
            return self.films.tokens(frames)
        _, (rows, columns) = self._kept(size)
        rows, columns = self._scaled(rows, columns)
        return self.each + rows * (columns + 1)

    def grid(self, size: Size) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        height, width = self.resolution(size)
        return height // self.side, width // self.side

    def resolution(self, size: Size) -> tuple[int, int]:
        """(height, width) in pixels of the grid on which most of the picture's pixels show, with least black beside it.

        Of a picture so thin that none of it shows on any grid, only the first tile keeps tokens.
        """
        best, most, least = self.pinpoints[0], 0, math.inf
        for height, width in self.pinpoints:
            scale = min(width / size[0], height / size[1])
            shown = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
            wasted = width * height - shown
            if shown > most or (shown == most and wasted < least):
                best, most, least = (height, width), shown, wasted
        return best

    def fitted(self, size: Size) -> Size:
        """(width, height) of the picture on its grid, black borders aside."""
        height, width = self.resolution(size)
        if width / size[0] < height / size[1]:
            return width, min(math.ceil(size[1] * (width / size[0])), height)
        return min(math.ceil(size[0] * (height / size[1])), width), height

    def patches(self, size: Size) -> torch.Tensor:
        if size == PADDED:
            return torch.cat([torch.arange(self.each), torch.tensor([-1])])
        if frames_of(size):
            return torch.full((self.tokens(size),), -1)
        rows, columns = self._scaled(*self._kept(size)[1])
        row, column = (((torch.arange(many) + 0.5) * self.edge / max(many, 1)).long() for many in (rows, columns))
        tiles = torch.cat([row[:, None] * self.edge + column, torch.full((rows, 1), -1)], 1)
        return torch.cat([torch.arange(self.each), tiles.flatten()])

    def places(self, sizes: Sequence[Size]) -> Places:
        made, first = [], 0
        for size in sizes:
            for index, weight in self._parts(size):
                made.append((index + first * self.each, weight))
            first += self.tiles(size)
        whole = [(index.clamp(max=first * self.each), weight) for index, weight in made]  # the newline is last
        return joined(whole)

    def _parts(self, size: Size) -> Iterator[Part]:
        """(index, weight) of a picture's tokens as `Places` has them: of the first tile, then of the grid."""
        if frames := frames_of(size):
            yield from self.films.parts(frames)
            return
        yield torch.arange(self.each), None
        if size == PADDED:
            yield torch.tensor([BEHIND]), None
            return
        rows, columns = self.grid(size)
        numbers = torch.arange(self.each, self.each * (1 + rows * columns))
        whole = numbers.view(rows, columns, self.edge, self.edge).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        (top, left), (height, width) = self._kept(size)
        kept = whole[top : top + height, left : left + width]
        scaled = self._scaled(height, width)
        if scaled == (height, width):
            yield _with_newlines(kept).flatten(), None
            return
        index, weight = bilinear(kept, scaled)
        newline = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(scaled[0], 1, 4)
        yield _with_newlines(index).flatten(0, 1), torch.cat([weight, newline], 1).flatten(0, 1)

    def _kept(self, size: Size) -> tuple[tuple[int, int], tuple[int, int]]:
        """((top, left), (rows, columns)) of the grid's tokens that lie on the picture, not on its black borders."""
        width, height = size
        rows, columns = (self.edge * count for count in self.grid(size))
        if width / height > columns / rows:
            border = (rows - int(round(height * (columns / width), 7))) // 2
            return (border, 0), (rows - 2 * border, columns)
        border = (columns - int(round(width * (rows / height), 7))) // 2
        return (0, border), (rows, columns - 2 * border)

    def _scaled(self, rows: int, columns: int) -> tuple[int, int]:
        if self.limit is None:
            return rows, columns
        ratio = math.sqrt(rows * columns / (self.limit * self.each))
        return (int(rows // ratio), int(columns // ratio)) if ratio > SCALED_FROM else (rows, columns)


def _with_newlines(index: torch.Tensor) -> torch.Tensor:
    """(rows, columns, ...) -> (rows, columns + 1, ...)."""
    return torch.cat([index, index.new_full((len(index), 1, *index.shape[2:]), BEHIND)], 1)
