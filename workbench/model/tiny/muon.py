"""Muon in float32: the optimiser of the tiny language model's hidden matrices.

Knows: momentum, made orthogonal by five Newton-Schulz steps (Jordan et al., "Muon: an optimizer for hidden layers in
neural networks", 2024), scaled to the size of an AdamW step (Liu et al., "Muon is scalable for LLM training", 2025).
Does not know: embeddings, heads and norms; they stay with AdamW.

`torch.optim.Muon` does the Newton-Schulz steps in bfloat16, which CPUs without it emulate: 2 s instead of 0.1 s a step.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """For matrices alone. `lr` is that of an AdamW step of the same size."""

    def __init__(
        self, params: Iterable[torch.nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.02
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                held = self.state[parameter]
                if "momentum" not in held:
                    held["momentum"] = torch.zeros_like(parameter)
                held["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(held["momentum"], group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """(M, N) the same directions, with all singular values near 1."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.T
