"""AdamW, whole or in 8 bits, with one learning rate per group, and how the learning rates move over a run.

Knows: warm-up, decay, clipping. A rate is a pure function of the step, so resuming needs no state of a scheduler.
Does not know: which parameters train (that is `model/stages.py`) or what they are trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from workbench.errors import TrainingError
from workbench.model.stages import ParamGroup


def lr_factor(step: int, total: int, *, warmup: float, schedule: str) -> float:
    """Factor on every group's learning rate at optimiser step `step` (from 0) of `total`.

    Rises in a line over the first `ceil(warmup * total)` steps and reaches 1 on the last of them; then falls to
    (almost) 0 along a cosine or a line, or stays at 1.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, total - rising)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0


def check_optimizer(name: str, device: torch.device | str) -> None:
    """Raise `TrainingError` for a paged optimiser without a CUDA device, to whose memory the pages belong."""
    if name.startswith("paged_") and not str(device).startswith("cuda"):
        fix = f"use train.optimizer: {name.removeprefix('paged_')}"
        raise TrainingError(f"train.optimizer: {name}", found=f"the device {device}", expected="a CUDA device", fix=fix)


def make_optimizer(
    groups: Sequence[ParamGroup], *, betas: tuple[float, float], name: str = "adamw"
) -> torch.optim.Optimizer:
    """AdamW of torch, or one of bitsandbytes, in which every group keeps its own peak learning rate as `peak`.

    8-bit ones hold the averages of tensors under 4,096 numbers in float32, where they would save nothing. bitsandbytes
    pages what it makes itself: in a resumed run the averages stay in the device's memory.
    """
    settings = [
        {"params": g.params, "lr": g.lr, "peak": g.lr, "weight_decay": g.weight_decay, "name": g.name} for g in groups
    ]
    if name == "adamw":
        return torch.optim.AdamW(settings, betas=betas, fused=True)
    from bitsandbytes import optim

    kinds = {"adamw8bit": optim.AdamW8bit, "paged_adamw": optim.PagedAdamW, "paged_adamw8bit": optim.PagedAdamW8bit}
    return kinds[name](settings, betas=betas)


def averages(numbers: int, name: str) -> int:
    """Bytes of the two averages that an optimiser keeps of a tensor: 8-bit ones a byte per number and a float per 256,
    of 4,096 numbers and more."""
    return 2 * (numbers + 4 * -(-numbers // 256)) if name.endswith("8bit") and numbers >= 4096 else 8 * numbers


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group's learning rate to `factor` times its peak; returns the rates by the groups' names."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def clip(params: Sequence[torch.nn.Parameter], limit: float | None) -> float:
    """Scale the gradients so that their norm is at most `limit` (None: leave them); returns the norm before."""
    return torch.nn.utils.clip_grad_norm_(params, math.inf if limit is None else limit).item()


def clipped_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, limit: float | None) -> float:
    """One step with clipped gradients; returns their norm before. Where that is no number, no step is made."""
    scaler.unscale_(optimizer)
    norm = clip([parameter for group in optimizer.param_groups for parameter in group["params"]], limit)
    if math.isfinite(norm) or scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
    return norm
