"""Processes that can compute only together: every part of a model takes its turn in every pass, in one order.

Knows: what a piece without an image, or one through which no gradient would go, has to do for the others' sake.
Does not know: how a model is cut (sharding.py, zero.py), the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from workbench.model.llava import Llava
from workbench.training.batch import Batch
from workbench.training.forward import token_losses

Result = TypeVar("Result")


class Root(nn.Module):
    """The module under which the parts of a LLaVA are put together for as long as it computes."""

    def __init__(self, llava: Llava, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        llava.model.get_input_embeddings().register_forward_hook(_with_gradient)

    def forward(self, function: Callable[..., Result], *given: Any) -> Result:
        """`function(*given)`, with the parts in place that are not cut layer by layer."""
        return function(*given)


def joint_losses(llava: Llava, batch: Batch, images: torch.Tensor | None) -> torch.Tensor:
    """`token_losses` in which every part takes part, in the same order: all processes put it together at once.

    A piece without an image sends a blank one through projector and tower, and counts it zero.
    """
    if images is not None:
        return token_losses(llava, batch, images)
    side = llava.model.config.vision_config.image_size
    with llava.autocast():
        blank = 0.0 * llava.project(llava.tower_features(torch.zeros(1, 3, side, side))).float().sum()
        if llava.newline is not None:
            blank = blank + 0.0 * llava.newline.float().sum()
    return token_losses(llava, batch, None) + blank  # made first, so that its gradients come last, as an image's do


def _with_gradient(module: nn.Module, given: Any, embedded: torch.Tensor) -> torch.Tensor:
    """The way back goes through every layer, whether or not an image with a gradient lies in the row."""
    return embedded.requires_grad_() if torch.is_grad_enabled() else embedded
