"""One more token of answers that begin alike: keys and values of what they have in common are read once.

Knows: which rows of a batch have how many leading columns in common, and attention in two parts, over what is common
and over what is each row's own. Registered with transformers as `shared`; a forward that is given no groups gets sdpa.
Does not know: tokens, requests, slots, or when a step is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "shared"
LEAST = 512
"""Columns of rows that need not be read, from which on two parts cost less than one."""
SHARE = 0.25
"""And what part of all rows' columns they have to be."""


@dataclass(frozen=True)
class Groups:
    """Rows that have their first `columns` in common."""

    columns: int
    sizes: tuple[int, ...]
    """Rows of each group; of one row alone 1."""
    firsts: tuple[int, ...]
    """A row of each group."""
    order: torch.Tensor
    """(rows,) all rows, group by group."""
    back: torch.Tensor
    """(rows,) where each row stands in `order`."""


def find_groups(keys: Sequence[Sequence[bytes]], block: int) -> Groups | None:
    """The groups that save most reading; None where too little would be saved.

    keys: of each row a name of each whole block of `block` columns, equal where all up to the block's end is.
    """
    best, saved = 0, 0
    for blocks in range(1, max(map(len, keys), default=0) + 1):
        names = [each[blocks - 1] for each in keys if len(each) >= blocks]
        spared = blocks * block * (len(names) - len(set(names)))
        if spared > saved:
            best, saved = blocks, spared
    if saved < max(LEAST, SHARE * best * block * len(keys)):
        return None
    rows: dict[object, list[int]] = {}
    for row, each in enumerate(keys):
        rows.setdefault(each[best - 1] if len(each) >= best else row, []).append(row)
    groups = list(rows.values())
    order = torch.tensor([row for group in groups for row in group])
    firsts = tuple(group[0] for group in groups)
    return Groups(best * block, tuple(map(len, groups)), firsts, order, order.argsort())


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    shared: Groups | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """query: (rows, heads, 1, width); key, value: (rows, key heads, columns, width); attention_mask: (rows, 1, 1,
    columns), True where a row sees; gives (rows, 1, heads, width). Without `shared` any query, by sdpa."""
    if shared is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
    assert attention_mask is not None
    (rows, heads, _, width), end = query.shape, shared.columns
    asked = query.reshape(rows, key.shape[1], -1, width) * (width**-0.5 if scaling is None else scaling)
    common = _by_group(shared, asked, key[:, :, :end].transpose(2, 3))
    own = asked @ key[:, :, end:].transpose(2, 3)
    scores = torch.cat([common, own], dim=-1).float()  # (rows, key heads, heads of each, columns)
    weights = scores.masked_fill(~attention_mask, float("-inf")).softmax(dim=-1).to(value.dtype)
    said = weights[..., end:] @ value[:, :, end:] + _by_group(shared, weights[..., :end], value[:, :, :end])
    return said.reshape(rows, 1, heads, width), None


def _by_group(groups: Groups, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left (rows, heads, n, a) times right (rows, heads, a, b), of which only each group's first row is read."""
    ordered, made, begin = left[groups.order], [], 0
    for size, first in zip(groups.sizes, groups.firsts, strict=True):
        some = ordered[begin : begin + size].transpose(0, 1)  # (heads, size, n, a)
        product = some.flatten(1, 2) @ right[first]  # (heads, size * n, b)
        made.append(product.unflatten(1, some.shape[1:3]).transpose(0, 1))
        begin += size
    return torch.cat(made)[groups.back]


@contextmanager
def sharing(config: Any) -> Iterator[None]:
    """Inside, a forward of the model with this configuration may be given `shared`."""
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
