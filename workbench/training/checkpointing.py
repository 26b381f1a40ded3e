"""Activation checkpointing: layers whose activations are dropped and computed again on the way back.

Knows: which layers, and that a frozen tower is none of them. Does not know: when that is worth it (`room.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from workbench.model.llava import Llava


def checkpoint_layers(llava: Llava, every: int) -> None:
    """Drop the activations of each `every`-th layer of what trains through; 0: of none.

    Losses and gradients are bit for bit the same, dropout included. Called on the parts, not on the whole model: that
    would record and recompute a frozen tower too. Nothing has to ask for a gradient of the embeddings either.
    """
    parts = [llava.model.model.language_model, *([llava.tower] if llava.vision_trains else [])]
    for part in parts:
        if part.is_activation_checkpointing:
            part.activation_checkpointing_disable()
        if every:
            part.activation_checkpointing_enable(every_n_layers=every)
            part.disable_input_require_grads()


@contextmanager
def recompute(llava: Llava, every: int) -> Iterator[None]:
    """`checkpoint_layers` for a while."""
    checkpoint_layers(llava, every)
    try:
        yield
    finally:
        checkpoint_layers(llava, 0)
