"""Keys and values of many rows in one place, written where they belong: rows come and go and nobody else moves.

Knows: one slot per row, a row's n-th token in column n, room that grows, and transformers' side of a cache.
Does not know: whose rows these are, tokens, or what a prefix is worth keeping for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import Cache

STEP = 64
"""Columns by which room grows."""
ALIGN = 64
"""Bytes at whose multiples torch lets tensors begin."""


class Slots(Cache):
    """transformers' cache over one tensor. `aim` says which slots and columns the next forward pass writes."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[])
        self.count = layers
        self.data: torch.Tensor | None = None
        """(layers, 2, slots, heads, columns, width); 2: keys and values."""
        self._room = (0, 0)
        self._first = self._last = self._columns = 0
        self._positions = torch.empty(0, 0, dtype=torch.long)
        self._start: int | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self.data is None else self.data.nbytes

    @property
    def room(self) -> tuple[int, int]:
        """Slots and columns there is room for."""
        return self._room

    def reserve(self, slots: int, columns: int, keep: int | None = None) -> None:
        """Room for so many rows of so many tokens. Where there is less, the first `keep` slots (all) move to new room,
        which is no larger than asked for: in columns rounded up."""
        have = self._room
        if slots <= have[0] and columns <= have[1]:
            return
        keep = have[0] if keep is None else keep
        old, columns = self.data, -(-columns // STEP) * STEP
        self._room = (max(slots, keep), max(columns, have[1]) if keep else columns)
        if old is not None and not keep:
            self.data = None
        elif old is not None:
            self.data = _zeros((*old.shape[:2], self._room[0], old.shape[3], self._room[1], old.shape[5]), old)
            self.data[:, :, :keep, :, : have[1]] = old[:, :, :keep]

    def release(self) -> None:
        """Give the memory back; every row is lost."""
        self.data, self._room = None, (0, 0)

    def load(self, slot: int, blocks: Sequence[torch.Tensor], column: int = 0) -> None:
        """Put blocks of a prefix, each (layers, 2, heads, tokens, width), into a slot from this column on."""
        for block in blocks:
            data = self._made(block.shape[2], block.shape[4], block)
            data[:, :, slot, :, column : column + block.shape[3]] = block
            column += block.shape[3]

    def block(self, slot: int, begin: int, end: int) -> torch.Tensor:
        """A copy of these columns of a slot: (layers, 2, heads, end - begin, width)."""
        assert self.data is not None
        return self.data[:, :, slot, :, begin:end].clone(memory_format=torch.contiguous_format)

    def move(self, source: int, target: int, columns: int) -> None:
        """Copy the first columns of one slot into another."""
        if self.data is not None and source != target:
            self.data[:, :, target, :, :columns] = self.data[:, :, source, :, :columns]

    def aim(self, first: int, positions: torch.Tensor, columns: int, start: int | None) -> None:
        """The next pass is of the slots from `first` on; `positions` (rows, tokens) are the columns it writes,
        `columns` how many there are then. `start`: the first of them where all rows begin at the same, else None."""
        self._first, self._last = first, first + len(positions)
        self._positions, self._columns, self._start = positions, columns, start

    # --- transformers' side -------------------------------------------------------------------------------------

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """key_states, value_states: (rows, heads, tokens, width); gives those of all columns so far."""
        data = self._made(key_states.shape[1], key_states.shape[3], key_states)
        held = data[layer_idx, :, self._first : self._last]  # (2, rows, heads, columns, width)
        tokens = key_states.shape[2]
        for place, states in zip(held, (key_states, value_states), strict=True):
            if self._start is not None:
                place[:, :, self._start : self._start + tokens] = states
            else:
                rows = torch.arange(len(states), device=states.device)[:, None]
                place[rows, :, self._positions] = states.transpose(1, 2)
        return held[0, :, :, : self._columns], held[1, :, :, : self._columns]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._columns - self._positions.shape[1]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._columns, 0

    def _made(self, heads: int, width: int, like: torch.Tensor) -> torch.Tensor:
        if self.data is None:
            self.data = _zeros((self.count, 2, self._room[0], heads, self._room[1], width), like)
        return self.data


def _zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros of the type and on the device of `like`. On a CPU memory that nobody writes is never touched: torch writes
    all of it at once, and of room for many rows little is used at first."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    held = np.zeros(math.prod(shape) * like.itemsize + ALIGN, np.uint8)  # the system's own zeros
    begin = -held.ctypes.data % ALIGN
    return torch.from_numpy(held[begin : len(held) - ALIGN + begin]).view(like.dtype).view(shape)
