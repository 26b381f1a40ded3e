"""Which conversations share which image, which trees of them lie in one pack, and the order an epoch sees them in.

Knows: token counts, the prefix that conversations about one image have in common, the seeded plan of a run.
Does not know: token ids, pixels, tensors, or how a pack becomes a batch (`batch.py`).

A tree is a shared prefix (system text and image) and one branch per conversation. A pack is trees of different images,
and conversations without one, laid end to end: it is what goes through the model at once, and it has no padding.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from workbench.recipe import TrainSpec

PATIENCE = 4
"""A step that looked past so many times its size for another image takes what is there."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What packing has to know about one conversation."""

    number: int
    """Its place among the examples."""
    tokens: int
    """Tokens of the whole conversation, images in full."""
    prefix: int
    """Tokens of the prefix it can share, images in full; 0 where it can share none."""
    supervised: int
    """Tokens that count in the loss."""
    images: int = 0
    """Images in it."""
    shared_images: int = 0
    """How many of them lie in the prefix."""
    key: Hashable | None = None
    """Equal for conversations with the same prefix; None where nothing is shared."""
    tiles: int = 0
    """Tiles of its images, which the projector is given; see `Tiling.tiles` for videos."""
    shared_tiles: int = 0
    image_tokens: int = 0
    """How many of its tokens are images'."""
    shared_image_tokens: int = 0
    squares: int = 0
    """Squares that the tower sees, where these are not as many as tiles: of videos there are more."""
    shared_squares: int = 0
    first: int | None = None
    """The first entry of the same conversation, where a mixture repeats it within an epoch."""

    @property
    def branch(self) -> int:
        """Tokens after the prefix."""
        return self.tokens - self.prefix


@dataclass(frozen=True, slots=True)
class Tree:
    """Conversations that share one prefix: all have the same key, or there is only one."""

    members: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.members)

    @property
    def key(self) -> Hashable | None:
        return self.members[0].key

    @property
    def prefix(self) -> int:
        return self.members[0].prefix

    @property
    def tokens(self) -> int:
        """The prefix once, then every branch."""
        return self.prefix + sum(entry.branch for entry in self.members)

    @property
    def supervised(self) -> int:
        return sum(entry.supervised for entry in self.members)

    @property
    def images(self) -> int:
        """Images in it, a shared one counted once."""
        return self._once("images", "shared_images")

    @property
    def tiles(self) -> int:
        """Tiles of them, which the projector is given."""
        return self._once("tiles", "shared_tiles")

    @property
    def squares(self) -> int:
        """Squares that the tower sees of them."""
        return self._once("squares", "shared_squares") or self.tiles

    @property
    def image_tokens(self) -> int:
        return self._once("image_tokens", "shared_image_tokens")

    def _once(self, all_of: str, shared: str) -> int:
        first: int = getattr(self.members[0], shared)
        return first + sum(getattr(entry, all_of) - first for entry in self.members)

    def split(self, count: int) -> tuple[Tree, Tree | None]:
        """The first `count` conversations and the rest, if there is one."""
        rest = self.members[count:]
        return Tree(self.members[:count]), Tree(rest) if rest else None


Pack = list[Tree]


def group(entries: Iterable[Entry], *, share: bool = True) -> list[list[Entry]]:
    """Entries that may lie in one tree, in the order in which each group was first met."""
    groups: dict[object, list[Entry]] = {}
    for entry in entries:
        alone = entry.key is None or not share
        groups.setdefault((entry.number,) if alone else entry.key, []).append(entry)
    return list(groups.values())


def trees(groups: Iterable[Sequence[Entry]], *, max_share: int, max_tokens: float = math.inf) -> list[Tree]:
    """Cut each group into trees of at most `max_share` conversations and `max_tokens` tokens.

    A single conversation is never cut, however long.
    """
    made = []
    for members in groups:
        held: list[Entry] = []
        tokens = 0
        for entry in members:
            if held and (len(held) == max_share or tokens + entry.branch > max_tokens):
                made.append(Tree(tuple(held)))
                held, tokens = [], 0
            tokens += entry.branch if held else entry.tokens
            held.append(entry)
        made.append(Tree(tuple(held)))
    return made


def packs(trees: Iterable[Tree], pack_tokens: int) -> list[Pack]:
    """Trees laid into as few packs of at most `pack_tokens` tokens as first fit, longest first, needs.

    A tree that is longer by itself is a pack of its own. The first pack begins with the longest tree.
    """
    made: list[Pack] = []
    room: list[int] = []
    for tree in sorted(trees, key=lambda tree: -tree.tokens):
        size = tree.tokens
        place = next((number for number, free in enumerate(room) if free >= size), None)
        if place is None:
            made.append([tree])
            room.append(pack_tokens - size)
        else:
            made[place].append(tree)
            room[place] -= size
    return made


def spread(trees: Sequence[Tree], world: int) -> list[list[Tree]]:
    """The trees of a step for `world` processes: the longest that is left goes to whoever has the fewest tokens."""
    shares: list[list[Tree]] = [[] for _ in range(world)]
    tokens = [0] * world
    for tree in sorted(trees, key=lambda tree: -tree.tokens):
        least = tokens.index(min(tokens))
        shares[least].append(tree)
        tokens[least] += tree.tokens
    return shares


class Plan:
    """The whole order of a training run, known before step 1 and a pure function of its arguments.

    Every epoch sees every conversation once; every optimiser step but an epoch's last sees exactly `batch_size`, of
    one image at most `max_share` unless hardly anything else is left. A conversation that a mixture repeats comes back
    after equal parts of the epoch. Which conversations a step has does not depend on `max_tokens`: trees are cut to it
    within their step, so that a run is the same one with packs of any size.
    """

    def __init__(
        self, entries: Sequence[Entry], *, batch_size: int, share: bool, max_share: int, max_tokens: int, seed: int
    ) -> None:
        self.repeats: dict[int, list[Entry]] = {}  # first entry of a conversation -> the others, where there are any
        for entry in entries:
            if entry.first not in (None, entry.number):
                self.repeats.setdefault(entry.first, []).append(entry)  # type: ignore[arg-type]
        self.groups = group((one for one in entries if one.first in (None, one.number)), share=share)
        self.batch_size, self.max_share, self.max_tokens, self.seed = batch_size, max_share, max_tokens, seed
        self.steps_per_epoch = -(-len(entries) // batch_size)
        self._epoch: tuple[int, list[list[Tree]]] | None = None

    @classmethod
    def of(cls, entries: Sequence[Entry], train: TrainSpec, *, pack_tokens: int | None = None) -> Plan:
        """The order that a recipe means, with packs of other sizes than its own if `pack_tokens` says so."""
        settings: dict[str, Any] = {name: getattr(train, name) for name in ("batch_size", "share", "max_share", "seed")}
        return cls(entries, **settings, max_tokens=pack_tokens or train.tree_size)

    def steps(self, train: TrainSpec) -> int:
        """Optimiser steps of the whole run."""
        return train.max_steps or max(1, round(train.epochs * self.steps_per_epoch))

    def step(self, number: int) -> list[Tree]:
        """The trees of optimiser step `number`, counted from 0 over the whole run."""
        epoch, within = divmod(number, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._plan_epoch(epoch)
        return self._epoch[1][within]

    def epoch(self, most: int | None = None) -> Iterator[Tree]:
        """The trees of the first epoch, step by step; of `most` steps at most, which stand for all: order is random."""
        steps = self.steps_per_epoch if most is None else min(most, self.steps_per_epoch)
        return chain.from_iterable(map(self.step, range(steps)))

    def _plan_epoch(self, epoch: int) -> list[list[Tree]]:
        rng = np.random.default_rng([self.seed, epoch])
        groups = [members if len(members) == 1 else self._shuffled(members, rng) for members in self.groups]
        made = trees(groups, max_share=self.max_share)
        ordered = [made[i] for i in rng.permutation(len(made))]
        steps = fill_steps(self._repeated(ordered), self.batch_size, self.max_share)
        limits: dict[str, Any] = {"max_share": self.max_share, "max_tokens": self.max_tokens}
        return [trees((tree.members for tree in step), **limits) for step in steps]

    def _repeated(self, ordered: list[Tree]) -> list[Tree]:
        """The trees with those of repeats among them: the n-th of k lies n k-ths of the epoch behind the first."""
        if not self.repeats:
            return ordered
        placed: list[tuple[float, Tree]] = []
        for number, tree in enumerate(ordered):
            again = [self.repeats.get(entry.number, []) for entry in tree.members]
            times = 1 + max(map(len, again))
            turns = [tuple(held[turn] for held in again if len(held) > turn) for turn in range(times - 1)]
            for turn, members in enumerate([tree.members, *turns]):
                placed.append(((number / len(ordered) + turn / times) % 1, Tree(members)))
        return [tree for _, tree in sorted(placed, key=lambda pair: pair[0])]

    @staticmethod
    def _shuffled(members: list[Entry], rng: np.random.Generator) -> list[Entry]:
        return [members[i] for i in rng.permutation(len(members))]


def fill_steps(trees: Sequence[Tree], batch_size: int, max_share: int) -> list[list[Tree]]:
    """Steps of exactly `batch_size` conversations (the last may have fewer): a tree on a border is split in two.

    A second tree of an image waits for the next step where the first leaves it no room under `max_share`.
    """
    waiting = deque(trees)
    steps: list[list[Tree]] = []
    while waiting:
        step: list[Tree] = []
        aside: deque[Tree] = deque()
        held: dict[Hashable, int] = {}
        room = batch_size
        while room and (waiting or aside):
            patient = waiting and len(aside) < PATIENCE * batch_size
            tree = waiting.popleft() if patient else aside.popleft()
            seen = held.get(tree.key, 0) if tree.key is not None else 0
            if patient and seen and seen + len(tree) > max_share:
                aside.append(tree)
                continue
            taken, rest = tree.split(room)
            if rest is not None:
                waiting.appendleft(rest)
            held[tree.key] = seen + len(taken)
            step.append(taken)
            room -= len(taken)
        waiting = deque(chain(aside, waiting)) if aside else waiting
        steps.append(step)
    return steps
