"""What an image costs once: its features, kept for the next question about it, and what makes two prefixes equal.

Knows: a byte budget with the least recently used going first, keys made of pixels, and when a tower has changed.
Does not know: how features or prefixes are computed, or which question asks for them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch

DEFAULT_BUDGET = 256 * 1024 * 1024


class FeatureCache:
    """Tensors by key, up to `budget` bytes. Least recently used leave first; one above the budget is never kept."""

    def __init__(self, budget: int = DEFAULT_BUDGET) -> None:
        self.budget = budget
        self.size = 0
        """Bytes held now."""
        self.hits = self.misses = 0
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()

    def get(self, key: Hashable) -> torch.Tensor | None:
        found = self._kept.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, tensor: torch.Tensor) -> None:
        """Keep `tensor`. It must own its memory: a view would keep the whole of its base alive."""
        if tensor.nbytes > self.budget:
            return
        old = self._kept.pop(key, None)
        self.size += tensor.nbytes - (old.nbytes if old is not None else 0)
        self._kept[key] = tensor
        while self.size > self.budget:
            _, dropped = self._kept.popitem(last=False)
            self.size -= dropped.nbytes

    def clear(self) -> None:
        self._kept.clear()
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)


def pixel_hash(pixels: torch.Tensor) -> str:
    """A name for exactly these pixel values: their type, shape and bytes. pixels: any shape, on the CPU."""
    digest = hashlib.blake2b(f"{pixels.dtype} {tuple(pixels.shape)}".encode(), digest_size=16)
    digest.update(pixels.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tower_state(tower: torch.nn.Module) -> Hashable:
    """Changes whenever weights of the tower are written or replaced, so that features of a tower that trained are new.

    Torch counts most writes to a tensor, but not those of fused optimisers or through `.data`: norms show these.
    Holds the tower itself: while a key with it is kept, no other tower can be taken for it.
    """
    weights = [weight.detach() for weight in tower.parameters()]
    norms = torch.stack([torch.linalg.vector_norm(weight, dtype=torch.float32) for weight in weights])
    return tower, tuple((weight.data_ptr(), weight._version) for weight in weights), tuple(norms.tolist())


def prefix_key(ids: Sequence[int], image_hashes: Sequence[str]) -> Hashable:
    """Equal exactly for prompts that begin alike: the same tokens and, in their image slots, the same pixels."""
    return tuple(ids), tuple(image_hashes)
