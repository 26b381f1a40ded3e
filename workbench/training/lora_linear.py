"""A linear with LoRA as training computes it: base and adapter are added up by the matrix products themselves.

Knows: y = x W' + s (x A') B' and its gradients (Hu et al. 2021, eq. 3), of which peft makes three copies as large as y
on the way there and two on the way back. Everything else about an adapter stays peft's: its names, files, merging.
Does not know: quantised linears, dropout, several adapters at once: they are computed as peft does.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn

from workbench.model.llava import Llava


def use(llava: Llava) -> None:
    """Let the model's linears with LoRA compute so wherever a gradient is wanted."""
    for module in llava.model.modules():
        if type(module) is Linear:
            module.__class__ = SummedLinear


class SummedLinear(Linear):
    """peft's linear with another forward."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not self._summed(x):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base, down, up = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        return _Summed.apply(x, base.weight, base.bias, down, up, self.scaling[name])  # type: ignore[no-any-return]

    def _summed(self, x: torch.Tensor) -> bool:
        """Whether this is the plain case: one adapter without dropout beside a frozen floating-point weight."""
        base, names = self.base_layer, self.active_adapters
        if not torch.is_grad_enabled() or self.disable_adapters or self.merged or len(names) != 1:
            return False
        weight, dropout = getattr(base, "weight", None), self.lora_dropout[names[0]]
        plain = type(base) is nn.Linear and not weight.requires_grad and not hasattr(weight, "ds_id")
        plain = plain and names[0] not in self.lora_variant and not self.lora_bias[names[0]]
        kind = x.device.type
        computed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        still = isinstance(dropout, nn.Identity) or not dropout.training
        return plain and still and x.dtype == weight.dtype == computed


class _Summed(torch.autograd.Function):
    """(..., in) x, (out, in) W, (out,) bias, (r, in) A, (out, r) B, s -> (..., out). No gradient of W and bias."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, down: torch.Tensor,
        up: torch.Tensor, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        rows = x.reshape(-1, x.shape[-1])
        small_down, small_up = down.to(x.dtype), (up * scale).to(x.dtype)
        y = nn.functional.linear(rows, weight, bias)
        low = rows @ small_down.t()
        torch.addmm(y, low, small_up.t(), out=y)
        ctx.save_for_backward(rows, weight, small_down, small_up, low)
        ctx.scale, ctx.shape, ctx.held = scale, x.shape, (down.dtype, up.dtype)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, down, up, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        of_low = grad @ up
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = grad @ weight
            of_x = torch.addmm(of_x, of_low, down, out=of_x).view(ctx.shape)
        of_down = (of_low.t() @ rows).to(ctx.held[0])
        of_up = (grad.t() @ low).to(ctx.held[1]).mul_(ctx.scale)
        return of_x, None, None, of_down, of_up, None
