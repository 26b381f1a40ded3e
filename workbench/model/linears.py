"""Linears as training computes them: fast products, and with LoRA base and adapter added up by the products themselves.

Knows: y = x W' + s (x A') B' and its gradients (Hu et al. 2021, eq. 3), of which peft makes three copies as large as y
on the way there and two on the way back. Everything else about an adapter stays peft's: its names, files, merging.
Does not know: quantised linears, dropout, several adapters at once: they are computed as peft does.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn

from workbench.model.products import by_onednn, fits, linear


def use(model: nn.Module) -> None:
    """Let the model's linears compute so, in place; they stay `nn.Linear` and peft's, with all their names."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = SummedLinear
        elif type(module) is nn.Linear and by_onednn():
            module.__class__ = FastLinear


class FastLinear(nn.Linear):
    """torch's linear with another forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain = torch.compiler.is_compiling() or hasattr(self.weight, "ds_id")
        if plain or not fits(x.reshape(-1, x.shape[-1]), self.weight):
            return super().forward(x)
        return _Product.apply(x, self.weight, self.bias)  # type: ignore[no-any-return]


PLAIN = (nn.Linear, FastLinear)


class _Product(torch.autograd.Function):
    """(..., in) x, (out, in) W, (out,) bias -> (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if of_weight else None, weight if of_x else None)
        ctx.shape = x.shape
        return linear(rows, weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1]).contiguous()
        of_x = None if weight is None else linear(grad, weight.t()).view(ctx.shape)
        of_weight = None if rows is None else linear(grad.t(), rows.t())
        return of_x, of_weight, grad.sum(0) if ctx.needs_input_grad[2] else None


class SummedLinear(Linear):
    """peft's linear with another forward."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or torch.compiler.is_compiling() or not self._summed(x):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base, down, up = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        return _Summed.apply(x, base.weight, base.bias, down, up, self.scaling[name])  # type: ignore[no-any-return]

    def _summed(self, x: torch.Tensor) -> bool:
        """Whether this is the plain case: one adapter without dropout beside a frozen floating-point weight."""
        base, names = self.base_layer, self.active_adapters
        if not torch.is_grad_enabled() or self.disable_adapters or self.merged or len(names) != 1:
            return False
        weight, dropout = base.weight, self.lora_dropout[names[0]]
        plain = type(base) in PLAIN and not weight.requires_grad and not hasattr(weight, "ds_id")
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
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        small_down, small_up = down.to(x.dtype), (up * scale).to(x.dtype)
        y = linear(rows, weight, bias)
        low = linear(rows, small_down)
        torch.addmm(y, low, small_up.t(), out=y)
        ctx.save_for_backward(rows, weight, small_down, small_up, low)
        ctx.scale, ctx.shape, ctx.held = scale, x.shape, (down.dtype, up.dtype)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, down, up, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1]).contiguous()
        of_low = linear(grad, up.t())
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = linear(grad, weight.t())
            of_x = torch.addmm(of_x, of_low, down, out=of_x).view(ctx.shape)
        of_down = linear(of_low.t(), rows.t()).to(ctx.held[0])
        of_up = linear(low.t(), grad.t()).t().to(ctx.held[1]).mul_(ctx.scale)
        return of_x, None, None, of_down, of_up, None
