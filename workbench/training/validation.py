"""What a validation says: losses by task and dataset, whether this is the best model so far, whether to go on.

Knows: the lowest loss so far and how many validations in a row were no better.
Does not know: the model, batches, checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from workbench.errors import TrainingError
from workbench.recipe import TrainSpec
from workbench.training.state import Position


def check_early_stop(train: TrainSpec, conversations: int) -> None:
    """Raise `TrainingError` for an early stop without a conversation to validate on."""
    if train.early_stop is not None and not conversations:
        fix = "give the dataset a validation split, set data.val_fraction, or leave train.early_stop out"
        raise TrainingError("train.early_stop", found="no conversation to validate on", expected="some", fix=fix)


def without_effect(train: TrainSpec, conversations: int) -> str:
    """What a recipe asks for that takes held-out conversations, where there are none; empty if there is nothing to say.

    It is no error: a recipe may serve for data with and without.
    """
    fields = [f"train.{name}" for name in ("eval_every", "answers_every") if getattr(train, name) is not None]
    if conversations or not fields:
        return ""
    verb = "has" if len(fields) == 1 else "have"
    fix = "give the dataset a validation split or set data.val_fraction"
    return f"no conversation to validate on: {' and '.join(fields)} {verb} no effect ({fix})"


def means_by(labels: Sequence[str], sums: torch.Tensor) -> dict[str, float]:
    """Loss per supervised token of each label. `sums`: (conversations, 2) float64, loss and tokens of each."""
    names = sorted(set(labels))
    places = torch.tensor([names.index(label) for label in labels])
    held = torch.zeros(len(names), 2, dtype=sums.dtype).index_add_(0, places, sums)
    return dict(zip(names, (held[:, 0] / held[:, 1]).tolist(), strict=True))


def note(position: Position, loss: float) -> bool:
    """Take down the loss of a validation; True if it is the lowest so far. One that is no number never is."""
    if math.isfinite(loss) and (position.best is None or loss < position.best):
        position.best, position.best_step, position.stale = loss, position.step, 0
        return True
    position.stale += 1
    return False


def settled(train: TrainSpec, position: Position) -> bool:
    """Whether so many validations in a row were no better that the run ends here."""
    return train.early_stop is not None and position.stale >= train.early_stop


def told(position: Position) -> str:
    """Which checkpoint a finished run is used with."""
    if position.best_step in (None, position.step):
        return ""
    return (
        f"best: step {position.best_step}, validation loss {position.best:.4f}, which chat, evaluate and export take; "
        f"the last, step {position.step}, is in checkpoints/last"
    )
