"""One rendered conversation, kept small: an image is one id until a batch is made of it.

Knows: token ids, which of them are supervised, and how long the prefix is that it may share.
Does not know: where it came from, pixels, tensors, or what it lies beside.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

IMAGE = -200
"""Stands for one image among an example's ids."""


@dataclass(eq=False, slots=True)
class Example:
    """One rendered conversation of m ids."""

    id: str
    ids: np.ndarray
    """(m,) int32 token ids, -200 where an image stands."""
    trained: np.ndarray
    """(m,) bool: which tokens are supervised. The first never is: nothing predicts it."""
    shared: int = 0
    """How many leading ids conversations about the same image have in common; 0 without an image."""
    images: tuple[str, ...] = ()
    """Keys of the images, in the order of their places; see `sizes.py` for those that are shown in two ways."""
    counts: tuple[int, ...] = ()
    """How many tokens each image takes."""
    sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) by which each image counts, where the model makes more tokens of a larger one; else nothing."""
    task: str | None = None
    shared_images: int = field(init=False)
    """How many of the images lie in the shared prefix."""
    prefix: int = field(init=False)
    """Tokens of the shared prefix, images in full."""
    tokens: int = field(init=False)
    """Tokens of the whole conversation, images in full."""
    supervised: int = field(init=False)
    """Tokens that are predicted and count in the loss."""

    def __post_init__(self) -> None:
        self.trained[:1] = False
        self.shared_images = int((self.ids[: self.shared] == IMAGE).sum())
        self.prefix = self.shared + sum(self.counts[: self.shared_images]) - self.shared_images
        self.tokens = len(self.ids) + sum(self.counts) - len(self.counts)
        self.supervised = int(self.trained.sum())

    @property
    def branch(self) -> int:
        """Tokens after the shared prefix."""
        return self.tokens - self.prefix

    @property
    def share_key(self) -> int | None:
        """Equal for conversations that begin with the same tokens and the same image; None where nothing is shared.

        64 bits of BLAKE2: two different prefixes among a million collide with a chance of 3 in 10^8.
        """
        if not self.shared_images:
            return None
        digest = hashlib.blake2b(self.ids[: self.shared].tobytes(), digest_size=8)
        for key in self.images[: self.shared_images]:
            digest.update(key.encode("utf-8", "surrogatepass") + b"\0")
        return int.from_bytes(digest.digest(), "little", signed=True)

    def expand(self) -> tuple[np.ndarray, np.ndarray]:
        """(`tokens`,) ids, every image in full but still as -200, and (`supervised`,) places of the supervised ones."""
        repeats = np.ones(len(self.ids), np.int64)
        repeats[self.ids == IMAGE] = self.counts
        return np.repeat(self.ids, repeats), np.flatnonzero(np.repeat(self.trained, repeats))
