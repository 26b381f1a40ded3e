"""A pack as tensors: token ids, restarting positions, where trees lie, and which place predicts which token.

Knows: how trees lie end to end in one row.
Does not know: the model, images' content (only their keys, in the order of their tokens), or how packs were chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from workbench.model.places import Places
from workbench.model.tiling import Size, Tiling
from workbench.training.attention import Layout, layout, row_masks
from workbench.training.example import IMAGE, Example


@dataclass
class Batch:
    """One pack: T tokens in one row, K of them supervised."""

    input_ids: torch.Tensor
    """(1, T) int64."""
    position_ids: torch.Tensor
    """(1, T) int64; every tree begins at 0, every branch goes on where its prefix ends."""
    trees: Layout
    """Where the trees lie and who sees whom."""
    rows: torch.Tensor
    """(K,) int64 into the T places: the one that predicts. A prefix's last predicts every branch's first."""
    sees: tuple[torch.Tensor, ...]
    """(k, L) bool of each tree of L tokens: whom each of its k places among `rows` sees."""
    targets: torch.Tensor
    """(K,) int64: the token predicted."""
    conversations: torch.Tensor
    """(K,) int64 into `ids`."""
    ids: tuple[str, ...]
    """Ids of the conversations in the order of their branches."""
    images: tuple[str, ...]
    """Keys of the images in the order of their tokens."""
    places: Places | None = None
    """Where their tokens lie among those of their tiles; None where each image is one tile, as it lies."""
    sizes: tuple[Size, ...] = ()
    """Of the images, where the model makes more tokens of a larger one."""

    def to(self, device: torch.device | str) -> Batch:
        if torch.device(device).type == "cpu":
            return self
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        places = None if self.places is None else self.places.to(device)
        sees = tuple(mask.to(device, non_blocking=True) for mask in self.sees)
        return replace(self, trees=self.trees.to(device), places=places, sees=sees, **moved)


def collate(trees: Sequence[Sequence[Example]], *, image_token_id: int, tiling: Tiling | None = None) -> Batch:
    """Lay trees out end to end. The examples of each tree begin with the same ids and the same image.

    tiling: of the model, where what becomes of an image depends on its size.
    """
    ids, positions, rows, targets, owners = [], [], [], [], []
    names: list[str] = []
    keys: list[str] = []
    sizes: list[Size] = []
    start = 0
    for examples in trees:
        root, prefix = start, examples[0].prefix
        keys += examples[0].images[: examples[0].shared_images]
        sizes += examples[0].sizes[: examples[0].shared_images]
        start += prefix
        for number, example in enumerate(examples):
            whole, places = example.expand()
            begin = 0 if number == 0 else prefix  # the first brings the prefix along
            ids.append(whole[begin:])
            positions.append(np.arange(begin, example.tokens))
            # A token is predicted by the one before it: in the prefix, or in its own branch.
            rows.append(np.where(places <= prefix, root, start - prefix) + places - 1)
            targets.append(whole[places])
            owners.append(np.full(len(places), len(names)))
            names.append(example.id)
            keys += example.images[example.shared_images :]
            sizes += example.sizes[example.shared_images :]
            start += example.branch
    tokens = np.concatenate(ids).astype(np.int64)
    tokens[tokens == IMAGE] = image_token_id
    shapes = [(examples[0].prefix, [example.branch for example in examples]) for examples in trees]
    predicting = torch.from_numpy(np.concatenate(rows))
    return Batch(
        input_ids=torch.from_numpy(tokens)[None],
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        trees=layout(shapes),
        rows=predicting,
        sees=row_masks(shapes, predicting),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        conversations=torch.from_numpy(np.concatenate(owners)),
        ids=tuple(names),
        images=tuple(keys),
        places=tiling.places(sizes) if tiling is not None and sizes else None,
        sizes=tuple(sizes),
    )
