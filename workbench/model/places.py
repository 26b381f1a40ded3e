"""Where the tokens of pictures and videos lie among the projected rows of their tiles, and what is made of several.

Knows: rows laid end to end with one newline behind, choosing among them, and bilinear scaling as a choice of four rows
and their weights, which are those of torch's `interpolate(mode="bilinear")`.
Does not know: which rows a picture (`anyres.py`) or a video (`film.py`) keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

BEHIND = 1 << 40
"""Stands for the newline's place while it is not known how many tiles come before it."""
Part = tuple[torch.Tensor, torch.Tensor | None]
"""(index, weight) of some tokens, as `Places` has them, counted from the first row of their own picture."""


@dataclass(frozen=True)
class Places:
    """Where the tokens of pictures lie among the projected rows of their tiles, end to end, with a newline behind."""

    index: torch.Tensor
    """(tokens,) int64: the row that each token is; or (tokens, k), where it is made of several."""
    weight: torch.Tensor | None = None
    """(tokens, k) float32: how much of each of several."""

    def to(self, device: torch.device | str) -> Places:
        """These places on another device."""
        return Places(self.index.to(device), None if self.weight is None else self.weight.to(device))

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """(tiles x tokens of a tile + 1, D) rows -> (tokens, D)."""
        if self.weight is None:
            return rows.index_select(0, self.index)
        return (rows[self.index] * self.weight[..., None].to(rows)).sum(1)


def joined(parts: Sequence[Part]) -> Places:
    """The tokens of all parts, one part after the other; where one mixes rows, all have four."""
    if all(weight is None for _, weight in parts):
        return Places(torch.cat([index for index, _ in parts]))
    one = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    index = torch.cat([part[:, None].expand(-1, 4) if weight is None else part for part, weight in parts])
    return Places(index, torch.cat([one.expand(len(part), 4) if w is None else w for part, w in parts]))


def bilinear(rows: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, columns) of numbers -> (*size, 4) of them and their weights, as of torch's bilinear `interpolate`."""
    (top, bottom, down), (left, right, across) = (_between(old, new) for old, new in zip(rows.shape, size, strict=True))
    corners = [rows[one][:, other] for one in (top, bottom) for other in (left, right)]
    shares = [one[:, None] * other for one in (1 - down, down) for other in (1 - across, across)]
    return torch.stack(corners, -1), torch.stack(shares, -1)


def _between(old: int, new: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(before, behind, share of the one behind) of each of `new` points among `old`, whose middles are apart alike."""
    middle = ((torch.arange(new, dtype=torch.float32) + 0.5) * (old / new) - 0.5).clamp(min=0)
    before = middle.long().clamp(max=old - 1)
    return before, (before + 1).clamp(max=old - 1), middle - before
