"""Packs as tensors: token ids, restarting positions, the tree mask, and which row predicts which token.

Knows: how a tree of branches lies in one row and who sees whom.
Does not know: the model, images' content (only their keys, in the order of their tokens), or how packs were chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.training.packing import IMAGE, Pack


@dataclass
class Batch:
    """One micro-batch of B rows, T tokens each, with K supervised tokens."""

    input_ids: torch.Tensor
    """(B, T) int64; shorter rows end in padding, which nothing sees."""
    position_ids: torch.Tensor
    """(B, T) int64; every branch goes on where the prefix ends."""
    mask: torch.Tensor | None
    """(B, 1, T, T) bool: who (third axis) sees whom (fourth); None where every row is one conversation."""
    rows: torch.Tensor
    """(K,) int64 into the B * T positions: the one that predicts. The prefix's last predicts every branch's first."""
    targets: torch.Tensor
    """(K,) int64: the token predicted."""
    conversations: torch.Tensor
    """(K,) int64 into `ids`."""
    ids: tuple[str, ...]
    """Ids of the conversations, row by row."""
    images: tuple[str, ...]
    """Keys of the images in the order of their tokens."""

    def to(self, device: torch.device | str) -> Batch:
        if torch.device(device).type == "cpu":
            return self
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return Batch(**{**vars(self), **moved})


def collate(packs: Sequence[Pack], *, image_token_id: int, pad_id: int = 0) -> Batch:
    """Lay packs out as one padded micro-batch. `pad_id` is any id but the image token's; nothing ever sees it."""
    longest = max(pack.tokens for pack in packs)
    ids = np.full((len(packs), longest), pad_id, np.int64)
    positions = np.tile(np.arange(longest), (len(packs), 1))
    branches = np.zeros((len(packs), longest), np.int64)
    rows, targets, owners = [], [], []
    names: list[str] = []
    for row, pack in enumerate(packs):
        start = prefix = pack.prefix
        for number, example in enumerate(pack.examples, 1):
            whole, places = example.expand()
            end = start + example.branch
            ids[row, :prefix], ids[row, start:end] = whole[:prefix], whole[prefix:]
            positions[row, start:end] = np.arange(prefix, example.tokens)
            branches[row, start:end] = number
            # A token is predicted by the one before it: in the prefix, or in its own branch.
            rows.append(row * longest + np.where(places <= prefix, places - 1, places - 1 + start - prefix))
            targets.append(whole[places])
            owners.append(np.full(len(places), len(names)))
            names.append(example.id)
            start = end
    ids[ids == IMAGE] = image_token_id
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        mask=tree_mask(torch.from_numpy(branches)) if len(names) > len(packs) else None,
        rows=torch.from_numpy(np.concatenate(rows)),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        conversations=torch.from_numpy(np.concatenate(owners)),
        ids=tuple(names),
        images=tuple(key for pack in packs for key in pack.images),
    )


def tree_mask(branches: torch.Tensor) -> torch.Tensor:
    """(B, T) number of the branch, 0 for the prefix -> (B, 1, T, T) bool, who sees whom.

    A token sees what came before it in the prefix and in its own branch. Padding at the end of a row sees the prefix,
    so that no row of the softmax is empty.
    """
    length = branches.shape[1]
    before = torch.ones(length, length, dtype=torch.bool).tril()
    known = branches[:, None, :]
    return (((known == 0) | (known == branches[:, :, None])) & before)[:, None]
