"""The language model's head: the loss of supervised rows, a chunk of them at a time.

Knows: that a row's loss depends on its own hidden state alone, so that under a frozen head the gradient can be made on
the way forward, while the chunk's scores are there: they are never kept, and never made twice.
Does not know: what the rows are of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from workbench.model.linears import PLAIN
from workbench.model.products import linear

CHUNK = 2048
"""Rows that meet the vocabulary at once."""
FROZEN_CHUNK = 256
"""The same under a frozen head, where a smaller one costs nothing."""


def row_losses(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(K, D) hidden states, (K,) targets -> (K,) float32 cross-entropy.

    Scores of all K rows never exist together. Where the head trains, those of more than `CHUNK` rows are made anew on
    the way back.
    """
    if _frozen(head, hidden):
        return _FrozenHead.apply(hidden, head.weight, head.bias, targets)  # type: ignore[no-any-return]
    pairs = list(zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True))
    if len(pairs) == 1 or not torch.is_grad_enabled():
        return torch.cat([_losses(head, *pair) for pair in pairs])
    return torch.cat([checkpoint(_losses, head, *pair, use_reentrant=False) for pair in pairs])


def _losses(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, reduction="none")


def _frozen(head: nn.Module, hidden: torch.Tensor) -> bool:
    """Whether a gradient goes through a plain linear layer that does not train.

    In float16 it does not: a gradient that is made before the loss is scaled would be too small for it.
    """
    plain = type(head) in PLAIN and not head.weight.requires_grad
    half = torch.float16 in (hidden.dtype, head.weight.dtype)
    half = half or (
        torch.is_autocast_enabled(hidden.device.type) and torch.get_autocast_dtype(hidden.device.type) == torch.float16
    )
    return plain and not half and torch.is_grad_enabled() and hidden.requires_grad


class _FrozenHead(torch.autograd.Function):
    """Loss and, with the scores at hand, its gradient: (softmax - one hot) times the weight, for every row."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        grads = torch.empty_like(hidden)
        for start in range(0, len(hidden), FROZEN_CHUNK):
            part = slice(start, start + FROZEN_CHUNK)
            scores = linear(hidden[part], weight, bias).float()
            wanted = targets[part, None]
            highest, place = scores.max(1, keepdim=True)
            score = scores.gather(1, wanted)
            torch.softmax(scores, 1, out=scores)  # in place: neither logsumexp's copy nor a second pass of exp
            losses[part] = (highest - scores.gather(1, place).log() - score)[:, 0]
            scores.scatter_add_(1, wanted, scores.new_full(wanted.shape, -1.0))
            grads[part] = linear(scores.to(weight.dtype), weight.t())
        ctx.save_for_backward(grads)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (grads,) = ctx.saved_tensors
        return grads * grad[:, None].to(grads.dtype), None, None, None
