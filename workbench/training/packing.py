"""Which conversations share which image: examples, packs, and the order in which an epoch sees them.

Knows: token counts, the prefix that conversations about one image have in common, the seeded plan of a run.
Does not know: pixels, tensors, the model, or how a row of tokens is masked (that is `batch.py`).

A pack is a tree in one row: the shared prefix (system text and image), then one branch per conversation.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

IMAGE = -200
"""Stands for one image among an example's ids."""


@dataclass(eq=False, slots=True)
class Example:
    """One rendered conversation, kept small: an image is one id until a batch is made of it."""

    id: str
    ids: np.ndarray
    """(m,) int32 token ids, -200 where an image stands."""
    trained: np.ndarray
    """(m,) bool: which tokens are supervised. The first never is: nothing predicts it."""
    shared: int = 0
    """How many leading ids conversations about the same image have in common; 0 without an image."""
    images: tuple[str, ...] = ()
    """Keys of the images, in the order of their places."""
    counts: tuple[int, ...] = ()
    """How many tokens each image takes."""
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
    def share_key(self) -> Hashable:
        """Equal for conversations that begin with the same tokens and the same image; None where nothing is shared."""
        if not self.shared_images:
            return None
        return self.images[: self.shared_images], self.ids[: self.shared].tobytes()

    def expand(self) -> tuple[np.ndarray, np.ndarray]:
        """(`tokens`,) ids, every image in full but still as -200, and (`supervised`,) places of the supervised ones."""
        repeats = np.ones(len(self.ids), np.int64)
        repeats[self.ids == IMAGE] = self.counts
        return np.repeat(self.ids, repeats), np.flatnonzero(np.repeat(self.trained, repeats))


@dataclass(frozen=True)
class Pack:
    """Conversations in one row. All of them have the same `share_key`, or there is only one."""

    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def prefix(self) -> int:
        return self.examples[0].prefix

    @property
    def tokens(self) -> int:
        """Length of the row: the prefix once, then every branch."""
        return self.prefix + sum(example.branch for example in self.examples)

    @property
    def supervised(self) -> int:
        return sum(example.supervised for example in self.examples)

    @property
    def images(self) -> tuple[str, ...]:
        """Keys of the images in the order of their tokens in the row."""
        first = self.examples[0]
        own = [key for example in self.examples for key in example.images[example.shared_images :]]
        return (*first.images[: first.shared_images], *own)

    def split(self, count: int) -> tuple[Pack, Pack]:
        return Pack(self.examples[:count]), Pack(self.examples[count:])


def group(examples: Sequence[Example], *, share: bool = True) -> list[list[Example]]:
    """Examples that may lie in one row together, in the order in which each group was first met."""
    groups: dict[Hashable, list[Example]] = {}
    for number, example in enumerate(examples):
        key = example.share_key if share else None
        groups.setdefault(number if key is None else key, []).append(example)
    return list(groups.values())


def pack(groups: Sequence[Sequence[Example]], *, max_share: int, max_tokens: int) -> list[Pack]:
    """Cut each group into packs of at most `max_share` conversations and `max_tokens` tokens.

    A single conversation is never cut, however long: the trainer refuses those that are too long by id.
    """
    packs = []
    for members in groups:
        held: list[Example] = []
        tokens = 0
        for example in members:
            if held and (len(held) == max_share or tokens + example.branch > max_tokens):
                packs.append(Pack(tuple(held)))
                held, tokens = [], 0
            tokens += example.branch if held else example.tokens
            held.append(example)
        packs.append(Pack(tuple(held)))
    return packs


def micro_batches(packs: Sequence[Pack], rows: int) -> list[list[Pack]]:
    """Packs of one optimiser step as micro-batches of at most `rows` rows of similar length, longest first."""
    ordered = sorted(packs, key=lambda pack: -pack.tokens)
    return [list(ordered[start : start + rows]) for start in range(0, len(ordered), rows)]


class Plan:
    """The whole order of a training run, known before step 1 and a pure function of its arguments.

    Every epoch sees every conversation once; every optimiser step but an epoch's last sees exactly `batch_size`.
    """

    def __init__(
        self, examples: Sequence[Example], *, batch_size: int, share: bool, max_share: int, max_tokens: int, seed: int
    ) -> None:
        self.groups = group(examples, share=share)
        self.batch_size, self.max_share, self.max_tokens, self.seed = batch_size, max_share, max_tokens, seed
        self.steps_per_epoch = -(-len(examples) // batch_size)
        self._epoch: tuple[int, list[list[Pack]]] | None = None

    def step(self, number: int) -> list[Pack]:
        """The packs of optimiser step `number`, counted from 0 over the whole run."""
        epoch, within = divmod(number, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._plan_epoch(epoch)
        return self._epoch[1][within]

    def _plan_epoch(self, epoch: int) -> list[list[Pack]]:
        rng = np.random.default_rng([self.seed, epoch])
        groups = [[members[i] for i in rng.permutation(len(members))] for members in self.groups]
        packs = pack(groups, max_share=self.max_share, max_tokens=self.max_tokens)
        return fill_steps([packs[i] for i in rng.permutation(len(packs))], self.batch_size)


def fill_steps(packs: Sequence[Pack], batch_size: int) -> list[list[Pack]]:
    """Steps of exactly `batch_size` conversations (the last may have fewer): a pack on a border is split in two."""
    steps: list[list[Pack]] = [[]]
    room = batch_size
    for rest in packs:
        while len(rest):
            if not room:
                steps.append([])
                room = batch_size
            taken, rest = rest.split(room)
            steps[-1].append(taken)
            room -= len(taken)
    return steps
