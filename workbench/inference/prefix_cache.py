"""What is computed once and kept: an image's features, and the keys and values of how prompts begin.

Knows: byte budgets with the least recently used going first, what makes two beginnings equal (tokens, and pixels where
images stand), and when weights have changed.
Does not know: how features or prefixes are computed, or which question asks for them.
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch

DEFAULT_BUDGET = 256 * 1024 * 1024
BLOCK = 8
"""Tokens of a prefix that are kept and found together. The rest of a block is computed again in every turn: of 16, that
was a third of a turn's work."""


class FeatureCache:
    """Tensors by key, up to `budget` bytes. Least recently used leave first; one above the budget is never kept.

    Several threads may use one.
    """

    def __init__(self, budget: int = DEFAULT_BUDGET) -> None:
        self.budget = budget
        self.size = 0
        """Bytes held now."""
        self.hits = self.misses = 0
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, key: Hashable) -> torch.Tensor | None:
        with self._guard:
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
        with self._guard:
            old = self._kept.pop(key, None)
            self.size += tensor.nbytes - (old.nbytes if old is not None else 0)
            self._kept[key] = tensor
            while self.size > self.budget:
                _, dropped = self._kept.popitem(last=False)
                self.size -= dropped.nbytes

    def clear(self) -> None:
        with self._guard:
            self._kept.clear()
            self.size = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)


class PrefixCache(FeatureCache):
    """Keys and values of how prompts begin, in blocks of `BLOCK` tokens, each known by all that stands before its end.

    `hits` and `misses` count prompts that began with something kept, and those that did not.
    """

    def find(self, keys: Sequence[bytes]) -> list[torch.Tensor]:
        """The blocks kept of a beginning, as many as follow each other."""
        found: list[torch.Tensor] = []
        with self._guard:
            for key in keys:
                block = self._kept.get(key)
                if block is None:
                    break
                found.append(block)
            for key in reversed(keys[: len(found)]):  # the first block is the last to go: without it none is found
                self._kept.move_to_end(key)
            self.hits += bool(found)
            self.misses += not found
        return found

    def keep(self, keys: Sequence[bytes], block: Callable[[int], torch.Tensor]) -> None:
        """Keep the blocks that are not there; `block(n)` makes the n-th."""
        for number in reversed(range(len(keys))):
            if keys[number] not in self:
                self.put(keys[number], block(number))


def pixel_hash(pixels: torch.Tensor, also: object = "") -> str:
    """A name for exactly these pixel values: their type, shape and bytes. pixels: any shape, on the CPU.

    also: what decides beside them what a model gets to see.
    """
    digest = hashlib.blake2b(f"{pixels.dtype} {tuple(pixels.shape)}{also}".encode(), digest_size=16)
    digest.update(pixels.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_state(model: torch.nn.Module) -> Hashable:
    """Changes whenever weights of a model are written or replaced, so that nothing is reused that they have outgrown.

    Torch counts most writes to a tensor, but not those of fused optimisers or through `.data`: norms show these, of
    the weights that train. Holds the model itself: while a key with it is kept, no other can be taken for it.
    """
    weights = list(model.parameters())
    here = [getattr(weight, "_local_tensor", weight) for weight in weights]  # of one that is cut among processes
    state = tuple((mine.data_ptr(), weight._version) for weight, mine in zip(weights, here, strict=True))
    trained = [mine.detach() for weight, mine in zip(weights, here, strict=True) if weight.requires_grad]
    norms = torch.stack([torch.linalg.vector_norm(one, dtype=torch.float32) for one in trained]) if trained else None
    return model, state, () if norms is None else tuple(norms.tolist())


def prefix_key(ids: Sequence[int], image_hashes: Sequence[str]) -> Hashable:
    """Equal exactly for prompts that begin alike: the same tokens and, in their image slots, the same pixels."""
    return tuple(ids), tuple(image_hashes)


def block_keys(
    root: Hashable, ids: Sequence[int], images: Sequence[tuple[int, int, str]], known: Sequence[bytes] = ()
) -> list[bytes]:
    """A name for each whole block of `ids`, equal exactly where all up to its end is: tokens, pixels, and `root`.

    images: (first slot, the one after the last, hash of the pixels) of each. known: the first names, made before.
    """
    keys = list(known)
    before = keys[-1] if keys else repr(root).encode()
    for begin in range(len(keys) * BLOCK, len(ids) - BLOCK + 1, BLOCK):
        end = begin + BLOCK
        digest = hashlib.blake2b(before, digest_size=16)
        digest.update(array("q", ids[begin:end]).tobytes())
        for first, last, name in images:
            if first < end and begin < last:
                digest.update(f"{first} {last} {name}".encode())
        before = digest.digest()
        keys.append(before)
    return keys
