"""Whether a run gains by keeping what its frozen tower makes of images on the disk, and why.

Knows: how often each image is met, the tower's part of a step's arithmetic, bytes needed, allowed and free.
Does not know: how features are kept (`feature_cache.py`), or what is there already. Whatever is chosen, a run's numbers
are the same bits: the choice is between `on` and `read` alone, and both give what the tower gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.model.llava import Llava
from workbench.recipe import TrainSpec
from workbench.training.feature_cache import room_on_disk
from workbench.training.features import BUDGET
from workbench.training.flops import step_cost, tower_cost
from workbench.training.lengths import Lengths
from workbench.training.meetings import Meetings
from workbench.training.packing import Plan, Tree
from workbench.training.room import kept_images

WORTH = 0.05
"""Share of a run's arithmetic that must be saved: less is easily lost again by writing and reading."""
SAMPLE = 100
"""Steps that tell the tower's share of all: counting every tree of a large dataset would hold up its start."""
ONCE = 1.05
"""Meetings below which an image is said to be met once."""
TOLD = {"on": "on", "read": "read only", "off": "off", "fp16": "on, rounded to fp16"}


@dataclass(frozen=True)
class Choice:
    """What becomes of a tower's features."""

    kind: str
    """`on`, `read`, `off` or `fp16`, as in `train.feature_cache`."""
    why: str
    size: int = 0
    """Bytes that the features of all images of the run take; 0 where there are none to keep."""
    squares: int = 0
    """Of these images, that the tower sees."""
    times: float = 0.0
    """How often an image is met."""

    def __str__(self) -> str:
        return f"feature cache {TOLD[self.kind]}: {self.why}"

    @property
    def on_disk(self) -> int:
        """Bytes that the run adds to the disk at most."""
        return self.size if self.kind in ("on", "fp16") else 0

    @property
    def held(self) -> bool:
        """Whether all features stay in memory, each process's own."""
        return 0 < self.size <= BUDGET

    def through_tower(self, processes: int) -> float:
        """Squares that go through a frozen tower in each of so many processes, if nothing is on the disk before."""
        if self.held:
            return self.squares
        return self.squares * (1.0 if self.on_disk else self.times) / processes

    def settled(self, train: TrainSpec) -> TrainSpec:
        """The settings with this choice in place of `auto`."""
        return train.model_copy(update={"feature_cache": self.kind})


def choose(llava: Llava, train: TrainSpec, order: Plan, met: Meetings, lengths: Lengths) -> Choice:
    """What `train.feature_cache: auto` means for a run; what a recipe says itself is kept as it is.

    `llava`: prepared for its stage, of weights or of shapes. `lengths`: of the conversations in `order`.
    """
    if llava.vision_trains:
        return Choice("off", "the tower trains, and makes something else of an image after every step")
    if not met.keys:
        return Choice("off", "there are no images")
    tiles, squares = (lengths.tiles(len(met.keys), squares=each) for each in (False, True))
    size, share = kept_images(llava, tiles, train), tower_share(llava, list(order.epoch(SAMPLE)))
    kind, why = _decide(train, met.times, share, size)
    return Choice(kind, why, size, squares, met.times)


def _decide(train: TrainSpec, times: float, share: float, size: int) -> tuple[str, str]:
    """(kind, why). `times`: an image is met. `share`: the tower's of a step (0-1). `size`: bytes of all features."""
    facts = f"each image is met {_often(times)}, the tower is {share:.0%} of a step"
    budget = int(train.feature_cache_gb * 2**30)
    needs = f"needs {_told(size)} of {_told(budget)}"
    if train.feature_cache != "auto":
        return train.feature_cache, f"as the recipe says; {facts}{f', {needs}' if size else ''}"
    saved = share * (1 - 1 / times)
    if saved < WORTH:
        return "read", facts if times < ONCE else f"{facts}: keeping its features would save {saved:.0%}"
    if size > budget:
        return "read", f"{facts}, but it {needs} (train.feature_cache_gb)"
    if size > (room := room_on_disk(size)):
        return "read", f"{facts}, but it needs {_told(size)} and the disk has {_told(room)} to spare"
    return "on", f"{facts}, {needs}"


def tower_share(llava: Llava, trees: Sequence[Tree]) -> float:
    """Share (0-1) that a frozen tower has in the arithmetic of steps over these trees, if it runs for all of them."""
    tower = tower_cost(llava) * sum(tree.squares for tree in trees)
    return tower / step_cost(llava, encodes=True).of_trees(trees)


def _often(times: float) -> str:
    return "once" if times < ONCE else f"{f'{times:,.1f}'.removesuffix('.0')} times"


def _told(size: int) -> str:
    """Bytes in the unit of `train.feature_cache_gb`, or in a thousandth of it."""
    amount, unit = (size / 2**30, "GB") if size >= 2**30 else (size / 2**20, "MB")
    return f"{f'{amount:,.1f}'.removesuffix('.0') if amount >= 1 else f'{amount:.2g}'} {unit}"
