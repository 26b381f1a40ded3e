"""A pack that has only its sizes: tensors as the feed would give them, filled with nothing in particular.

Knows: how many tokens, images and supervised tokens lie where. Does not know: conversations, images.
"""

from __future__ import annotations

import torch

from workbench.model.llava import Llava
from workbench.model.places import Places
from workbench.training.attention import layout, row_masks
from workbench.training.batch import Batch
from workbench.training.packing import Pack, Tree


def blank(pack: Pack, llava: Llava) -> tuple[Batch, torch.Tensor | None]:
    """The batch of a pack, and (n, N, D) features of its n tiles or, where the tower trains, pixels of its squares.

    The squares of videos are not gathered into tiles here: a projector that is given them all has more to do, not less.
    """
    trees = [_tokens(tree, llava) for tree in pack]
    ids = torch.cat(trees)
    supervised = sum(tree.supervised for tree in pack)
    rows = torch.arange(supervised) * max(1, len(ids) // max(1, supervised)) % len(ids)
    tiles = sum(tree.squares or tree.images if llava.vision_trains else _tiles(tree) for tree in pack)
    shapes = [(tree.prefix, [entry.branch for entry in tree.members]) for tree in pack]
    batch = Batch(
        input_ids=ids[None],
        position_ids=torch.cat([torch.arange(len(tree)) for tree in trees])[None],
        trees=layout(shapes),
        rows=rows,
        sees=row_masks(shapes, rows),
        targets=torch.zeros(supervised, dtype=torch.int64),
        conversations=torch.zeros(supervised, dtype=torch.int64),
        ids=(),
        images=(),
        places=some_places(sum(tree.image_tokens for tree in pack), tiles, llava),
    )
    return batch.to(llava.device), _images(tiles, llava) if tiles else None


def _tiles(tree: Tree) -> int:
    return tree.tiles or tree.images  # an entry that was not measured has images of one tile


def some_places(tokens: int, tiles: int, llava: Llava) -> Places | None:
    """Some row of the tiles for each token, or some four where a picture may be scaled down."""
    if not llava.tiling.varies or not tiles:
        return None
    index = torch.arange(tokens) % (tiles * llava.tiling.each + 1)
    if not llava.tiling.mixes:
        return Places(index)
    return Places(index[:, None].expand(-1, 4), torch.full((tokens, 4), 0.25))


def _tokens(tree: Tree, llava: Llava) -> torch.Tensor:
    """(T,) ids of a tree: its images first, then some other token."""
    ids = torch.full((tree.tokens,), 1 if llava.image_token_id == 0 else 0)
    ids[: tree.image_tokens or tree.images * llava.tiling.each] = llava.image_token_id
    return ids


def _images(count: int, llava: Llava) -> torch.Tensor:
    config = llava.model.config.vision_config
    if llava.vision_trains:
        return torch.zeros(count, 3, config.image_size, config.image_size, device=llava.device)
    dtype = next(llava.tower.parameters()).dtype
    return torch.ones(count, llava.tiling.each, config.hidden_size, dtype=dtype, device=llava.device)
