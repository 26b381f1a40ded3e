"""The ways to let conversations share a prefix in attention, timed forward and backward on one pack.

Knows: the product's way (`trees`), and three others that give the same numbers: one mask over the whole row, a
FlexAttention block mask, and variable-length attention with a copy of the prefix's keys for each branch.
Does not know: models.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from workbench.training.attention import attend, branch_mask, layout

Trees = Sequence[tuple[int, Sequence[int]]]
"""(tokens of the prefix, tokens of every branch) of each tree."""
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(1, H, T, d) query, key and value -> (1, H, T, d)."""


def ours(trees: Trees, device: torch.device) -> Attention:
    laid, module = layout(trees).to(device), torch.nn.Module()
    return lambda q, k, v: attend(module, q, k, v, None, trees=laid)[0].transpose(1, 2)


def one_mask(trees: Trees, device: torch.device) -> Attention:
    """sdpa with a (T, T) boolean mask."""
    blocks = []
    for prefix, branches in trees:
        own = torch.ones(prefix, prefix, dtype=torch.bool).tril()
        top = torch.nn.functional.pad(own, (0, sum(branches)))
        blocks.append(torch.cat([top, branch_mask(prefix, branches)]))
    mask = torch.block_diag(*blocks).bool().to(device)
    return lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask)


def flex(trees: Trees, device: torch.device) -> Attention:
    """FlexAttention, compiled, with a BlockMask made once for the pack."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tree, branch = [], []
    for number, (prefix, branches) in enumerate(trees):
        tree += [number] * (prefix + sum(branches))
        branch += [0] * prefix + [at for at, length in enumerate(branches, 1) for _ in range(length)]
    own_tree, own_branch = (torch.tensor(held, device=device) for held in (tree, branch))

    def sees(_: Any, __: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        same = (own_branch[k] == 0) | (own_branch[k] == own_branch[q])
        return (own_tree[q] == own_tree[k]) & same & (k <= q)

    mask = create_block_mask(sees, None, None, len(tree), len(tree), device=device)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def varlen(trees: Trees, device: torch.device) -> Attention:
    """One flash call: a prefix over itself, each branch over a copy of the prefix and itself."""
    from torch.nn.attention.varlen import varlen_attn

    queries, keys, places, start = [], [], [], 0
    for prefix, branches in trees:
        queries.append(prefix)
        keys.append(prefix)
        places.append(torch.arange(start, start + prefix))
        at = start + prefix
        for length in branches:
            queries.append(length)
            keys.append(prefix + length)
            places += [torch.arange(start, start + prefix), torch.arange(at, at + length)]
            at += length
        start = at
    gather = torch.cat(places).to(device)
    ends = [torch.tensor([0, *held]).cumsum(0).to(device, torch.int32) for held in (queries, keys)]
    longest = max(queries), max(keys)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        flat, key, value = (each[0].transpose(0, 1) for each in (q, k, v))  # (T, H, d)
        held = (each.index_select(0, gather) for each in (key, value))
        return varlen_attn(flat, *held, *ends, *longest, window_size=(-1, 0)).transpose(0, 1)[None]

    return call


WAYS = {"trees": ours, "one mask": one_mask, "flex": flex, "varlen": varlen}


def measure(trees: Trees, heads: int, width: int, device: torch.device, repeats: int = 10) -> dict[str, Any]:
    """Milliseconds forward and backward of each way, peak memory, and how far its numbers are from `one mask`'s."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokens = sum(prefix + sum(branches) for prefix, branches in trees)
    torch.manual_seed(0)
    made = torch.randn(4, 1, heads, tokens, width, device=device, dtype=dtype)
    told, exact = {}, _once(one_mask(trees, device), made)[0]
    for name, way in WAYS.items():
        try:
            call = way(trees, device)
            differs = [(a - b).abs().max().item() for a, b in zip(_once(call, made)[0], exact, strict=True)]
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = statistics.median(_once(call, made)[1] for _ in range(repeats))
            told[name] = {"ms": 1000 * seconds, "differs": max(differs)}
            if device.type == "cuda":
                told[name]["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
        except Exception as error:  # a way that this device or build does not have is a result too
            told[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return told


def _once(call: Attention, made: torch.Tensor) -> tuple[list[torch.Tensor], float]:
    """(output and three gradients, seconds) of one forward and backward."""
    q, k, v = (held.detach().clone().requires_grad_() for held in made[:3])
    _wait(made)
    began = time.perf_counter()
    out = call(q, k, v)
    out.backward(made[3])
    _wait(made)
    seconds = time.perf_counter() - began
    return [out.detach().float(), *(held.grad.float() for held in (q, k, v) if held.grad is not None)], seconds


def _wait(made: torch.Tensor) -> None:
    if made.is_cuda:
        torch.cuda.synchronize()
