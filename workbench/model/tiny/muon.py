"""Muon: the optimiser of the hidden matrices of the tiny tower and the tiny language model.

Knows: momentum, made orthogonal by five Newton-Schulz steps (Jordan et al., "Muon: an optimizer for hidden layers in
neural networks", 2024), scaled to the size of an AdamW step (Liu et al., "Muon is scalable for LLM training", 2025).
Does not know: embeddings, heads and norms; they stay with AdamW.

`torch.optim.Muon` takes one matrix at a time and always works in bfloat16, which a CPU without it emulates at a
twentieth of the speed. Here matrices of one shape go together, in the type that the caller says is fast.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """For matrices alone. `lr` is that of an AdamW step of the same size."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.02,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, members in by_shape.items():
                updates = torch.stack([self._direction(parameter, group["momentum"]) for parameter in members])
                size = -group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, update in zip(members, orthogonal(updates.to(self.dtype)).float(), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=size)

    def _direction(self, parameter: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        """Nesterov's: the gradient moved towards the running mean of gradients."""
        held = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        held.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(held, momentum)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """(B, M, N) the same directions, with all singular values near 1."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.float().flatten(1).norm(dim=1)[:, None, None].to(x.dtype) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.mT
