"""Packs on their way to the model, made ahead of it where images have to be opened first.

Knows: this process's share of every optimiser step, and the totals of a step over all processes.
Does not know: the model, the optimiser, what a step does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from workbench.model.llava import Llava
from workbench.training.batch import Batch, collate
from workbench.training.example import Example
from workbench.training.features import FeatureStore
from workbench.training.flops import pairs
from workbench.training.packing import Pack, Plan, packs, spread

Item = TypeVar("Item")
AHEAD = 2
"""Packs made ahead of the model."""
OPENED_AHEAD = 4
"""Packs whose images are being opened while another is made."""


@dataclass(frozen=True)
class Piece:
    """One pack, on the model's device."""

    batch: Batch
    images: torch.Tensor | None
    """Features or pixels of the tiles of the batch's images, in order; None without any."""


@dataclass(frozen=True)
class Work:
    """What one optimiser step is made of, over all processes; `pieces` of it follow for this one."""

    supervised: int
    tokens: int
    images: int
    tiles: int
    """Tiles of the images, which the projector is given."""
    squares: int
    """Squares that the tower sees of them."""
    conversations: int
    pairs: int
    """Pairs of tokens that see each other."""
    pieces: int


class Feed:
    """The part of a plan that one process of several computes."""

    def __init__(
        self,
        plan: Plan,
        examples: Sequence[Example],
        store: FeatureStore,
        llava: Llava,
        *,
        pack_tokens: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.plan, self.examples, self.store, self.pack_tokens = plan, examples, store, pack_tokens
        self.rank, self.world = rank, world
        self.device, self.image_token_id, self.tiling = llava.device, llava.image_token_id, llava.tiling

    def stream(self, start: int, stop: int) -> Iterator[Work | Piece]:
        """For every step a `Work`, then its pieces. A process may have none in a step with few packs."""
        made = self._stream(start, stop)
        return made if self.store.holds_all else ahead(made, AHEAD)

    def piece(self, pack: Pack) -> Piece:
        """A pack as tensors."""
        return self._with_images(self._lay(pack, self.examples))

    def pieces(self, packs: Sequence[Pack], examples: Sequence[Example]) -> Iterator[Piece]:
        """Packs as tensors, their images opened ahead. `examples`: where their numbers point to."""
        laid = (self._lay(pack, examples) for pack in packs)
        return map(self._with_images, early(laid, OPENED_AHEAD, self._expect))

    def _stream(self, start: int, stop: int) -> Iterator[Work | Piece]:
        for item in early(self._laid(start, stop), OPENED_AHEAD, self._expect):
            yield item if isinstance(item, Work) else self._with_images(item)

    def _expect(self, item: Work | Batch) -> None:
        if isinstance(item, Batch):
            self.store.expect(item.images)

    def _with_images(self, batch: Batch) -> Piece:
        images = self.store.get(batch.images).to(self.device, non_blocking=True) if batch.images else None
        return Piece(batch.to(self.device), images)

    def _lay(self, pack: Pack, examples: Sequence[Example]) -> Batch:
        laid = [[examples[entry.number] for entry in tree.members] for tree in pack]
        return collate(laid, image_token_id=self.image_token_id, tiling=self.tiling)

    def _laid(self, start: int, stop: int) -> Iterator[Work | Batch]:
        for number in range(start, stop):
            trees = self.plan.step(number)
            mine = packs(spread(trees, self.world)[self.rank], self.pack_tokens)
            yield Work(
                supervised=sum(tree.supervised for tree in trees),
                tokens=sum(tree.tokens for tree in trees),
                images=sum(tree.images for tree in trees),
                tiles=sum(tree.tiles for tree in trees),
                squares=sum(tree.squares for tree in trees),
                conversations=sum(len(tree) for tree in trees),
                pairs=sum(pairs(tree.prefix, [entry.branch for entry in tree.members]) for tree in trees),
                pieces=len(mine),
            )
            yield from (self._lay(pack, self.examples) for pack in mine)


def early(items: Iterator[Item], count: int, begin: Callable[[Item], None]) -> Iterator[Item]:
    """The same items, each after `begin` was called for it and for up to `count` behind it."""
    waiting: deque[Item] = deque()
    for item in items:
        begin(item)
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """The same items, `count` of them made beforehand by a thread. An error surfaces at its own item."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        waiting: deque[Future[Item | object]] = deque(pool.submit(next, items, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
