"""How the starting parts train fast on a CPU: low precision where the processor has it, compiled, Muon for matrices.

Knows: which number format is fast here, optimisers, rates over a run, one update.
Does not know: which part trains, or on what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from workbench.model.tiny.muon import Muon

WARM_UP = 100
"""Steps until the learning rate is at its peak."""


def half_is_fast() -> bool:
    """Whether bfloat16 products are done in hardware (AVX512-BF16 or AMX); elsewhere they are emulated, slowly."""
    return torch.cpu._is_avx512_bf16_supported()


def autocast(settings: dict[str, Any]) -> AbstractContextManager[None]:
    """bfloat16 products over float32 weights where `precision: auto` finds them fast, or `bf16` asks for them."""
    wanted = settings["precision"]
    return torch.autocast("cpu", torch.bfloat16, enabled=wanted == "bf16" or (wanted == "auto" and half_is_fast()))


def compiled(module: torch.nn.Module, settings: dict[str, Any]) -> Callable[..., Any]:
    """The module, compiled for each shape it meets; as it is without `compile`, which needs a C++ compiler."""
    torch._dynamo.config.cache_size_limit = 64
    return torch.compile(module, dynamic=False) if settings["compile"] else module


def optimizers(
    module: torch.nn.Module, layers: Iterable[torch.nn.Module], settings: dict[str, Any]
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of these layers, AdamW for everything else in the module."""
    inner = [parameter for layer in layers for parameter in layer.parameters() if parameter.ndim == 2]
    held = {id(parameter) for parameter in inner}
    rest = [parameter for parameter in module.parameters() if id(parameter) not in held]
    dtype = torch.bfloat16 if half_is_fast() else torch.float32
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=settings["lr"], betas=(0.9, 0.98), weight_decay=settings["weight_decay"]),
        Muon(inner, lr=settings["muon"], dtype=dtype),
    ]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


def set_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group["peak"] * factor


def flat_then_linear(step: int, steps: int, decay: float) -> float:
    """Warm-up, then flat, and over the last share `decay` of the steps linearly down to a fiftieth."""
    left = (1 - step / steps) / decay if decay else 1.0
    return min(1.0, (step + 1) / WARM_UP) * max(0.02, min(1.0, left))


def cosine(step: int, steps: int) -> float:
    """Warm-up, then a cosine down to a fiftieth."""
    return min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


def update(
    parameters: Iterable[torch.nn.Parameter], optimizers: Sequence[torch.optim.Optimizer], loss: torch.Tensor
) -> None:
    """Backward, gradients clipped at a norm of 1, one step of every optimiser."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(list(parameters), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
