"""Which images a run shows, and how often, known from its plan before one of them is opened.

Knows: steps, epochs, that conversations which share an image meet it once, and validations.
Does not know: files, what becomes of an image, what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from workbench.model.tiling import Tiling
from workbench.recipe import TrainSpec
from workbench.training.packing import Plan
from workbench.training.rows import Rows
from workbench.training.sizes import shown_keys


@dataclass(frozen=True)
class Meetings:
    """The images of a whole run, validations included."""

    keys: list[str]
    """Of the images that the run meets at all; a run shorter than an epoch leaves some out."""
    visits: float
    """How often one of them is needed; of an epoch the first is counted for all."""

    @property
    def times(self) -> float:
        """How often an image is met, on average; 0 without images."""
        return self.visits / len(self.keys) if self.keys else 0.0


def meetings(order: Plan, train: TrainSpec, rows: Rows, val: Rows, tiling: Tiling) -> Meetings:
    """What the steps of `order`, and the validations between them, show.

    `rows`: the conversations of the plan, by their number in it. `val`: those to validate on.
    """
    steps, whole = order.steps(train), order.steps_per_epoch
    shown, visits = shown_keys(rows, tiling), 0
    keys: dict[str, None] = {}
    for number in range(min(steps, whole)):
        for tree in order.step(number):
            seen = dict.fromkeys(key for entry in tree.members for key in shown[entry.number])
            keys |= seen
            visits += len(seen)
    validated = dict.fromkeys(chain.from_iterable(shown_keys(val, tiling)))
    trained = visits * max(1.0, steps / whole)
    return Meetings(list(keys | validated), trained + validations(steps, train.eval_every) * len(validated))


def validations(steps: int, every: int | None) -> int:
    """Times that a run of so many steps validates: every so many, and after the last."""
    return -(-steps // every) if every else 1
