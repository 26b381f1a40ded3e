"""What the vision tower makes of each image, computed once when it fits in memory and again for every batch when not.

Knows: a byte budget, decoding in threads, and the fixed order in which everything is computed, so that a resumed run
reads the same numbers. Does not know: datasets, conversations, packs; an image is a key that `load` turns into pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import torch

from workbench.errors import ImageError
from workbench.progress import Progress

BUDGET = 1 << 30
"""Bytes of memory for features (or, while the tower trains, for pixels)."""
CHUNK = 32
"""Images that go through the tower at once."""
DECODERS = 4
"""Threads that open images; decoding releases the interpreter's lock."""


class FeatureStore:
    """Features by image key: `encode(load(key))`, or only `load(key)` where `encode` is None because the tower trains.

    `load`: key -> (3, H, W) pixels, raises `ImageError`. `encode`: (B, 3, H, W) -> (B, N, D), under no_grad.
    """

    def __init__(
        self,
        load: Callable[[str], torch.Tensor],
        encode: Callable[[torch.Tensor], torch.Tensor] | None,
        *,
        budget: int = BUDGET,
    ) -> None:
        self._load, self._encode, self.budget = load, encode, budget
        self._pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="images")
        self._slots: dict[str, int] = {}
        self._held: torch.Tensor | None = None

    def fill(self, keys: Iterable[str], bar: Progress) -> list[ImageError]:
        """Compute and hold all of these, or none if they exceed the budget. Returns the errors of images that failed.

        Whether they fit is judged by the first one that can be opened. The order is the keys' own, so that the numbers
        do not depend on which batch first asked for an image.
        """
        names, errors = sorted(set(keys)), []
        slots: dict[str, int] = {}
        held: torch.Tensor | None = None
        for chunk in _chunks(names, CHUNK):
            opened = dict(zip(chunk, self._pool.map(self._try, chunk), strict=True))
            errors += [result for result in opened.values() if isinstance(result, ImageError)]
            good = {key: result for key, result in opened.items() if isinstance(result, torch.Tensor)}
            if good:
                made = self._compute(list(good.values()))
                if held is None:
                    if made[0].nbytes * len(names) > self.budget:
                        return errors
                    held = made.new_empty((len(names), *made.shape[1:]))
                held[len(slots) : len(slots) + len(good)] = made
                slots |= {key: len(slots) + number for number, key in enumerate(good)}
            bar.advance(len(chunk))
        self._slots, self._held = slots, held
        return errors

    @property
    def holds_all(self) -> bool:
        return self._held is not None

    def get(self, keys: Sequence[str]) -> torch.Tensor:
        """(n, N, D) features or (n, 3, H, W) pixels of n keys. Raises `ImageError` for one that cannot be opened."""
        if self._held is not None:
            return self._held[torch.tensor([self._slots[key] for key in keys])]
        unique = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return self._compute(list(self._pool.map(self._load, unique)))[torch.tensor([unique[key] for key in keys])]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    @torch.no_grad()
    def _compute(self, pixels: list[torch.Tensor]) -> torch.Tensor:
        stacked = torch.stack(pixels)
        return stacked if self._encode is None else self._encode(stacked)

    def _try(self, key: str) -> torch.Tensor | ImageError:
        try:
            return self._load(key)
        except ImageError as error:
            return error


def _chunks(items: Sequence[str], size: int) -> Iterator[list[str]]:
    waiting = iter(items)
    while chunk := list(islice(waiting, size)):
        yield chunk
