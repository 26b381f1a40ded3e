"""Logits to the next token: greedy, or drawn with temperature, top-k and top-p.

Knows: one generator per row, so that what a row draws depends on its seed alone and not on its neighbours.
Does not know: models, caches or text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workbench.chat_model import SamplingOptions


def generator(options: SamplingOptions, row: int = 0) -> torch.Generator | None:
    """Where row `row` of a batch draws from; None when nothing is drawn. On the CPU, whatever the model is on."""
    if options.greedy:
        return None
    made = torch.Generator()
    if options.seed is None:
        made.seed()
        return made
    return made.manual_seed(options.seed + row)


def choose(
    logits: torch.Tensor, options: SamplingOptions, generators: Sequence[torch.Generator | None]
) -> torch.Tensor:
    """One token per row. logits: (rows, vocabulary), any float type; the result: (rows,) int64, on the same device."""
    if options.greedy:
        return logits.argmax(dim=-1)
    probabilities, tokens = kept(logits, options)  # (rows, vocabulary), most likely first
    drawn = torch.stack([torch.rand((), generator=source) for source in generators]).to(logits.device)
    sums = probabilities.cumsum(dim=-1)
    sums = sums / sums[:, -1:]
    place = torch.searchsorted(sums, drawn[:, None], right=True).clamp(max=sums.shape[-1] - 1)
    # Rounding may put the place behind the last token that was kept.
    place = torch.minimum(place, (probabilities > 0).sum(dim=-1, keepdim=True) - 1)
    return tokens.gather(-1, place).squeeze(-1)


def kept(logits: torch.Tensor, options: SamplingOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities after temperature, top-k, then top-p, most likely first, 0 where a token is out; and the tokens.

    Both (rows, vocabulary). As in transformers, top-p is taken of what top-k left, and one token always stays.
    """
    ordered, tokens = (logits.float() / options.temperature).sort(dim=-1, descending=True, stable=True)
    if 0 < options.top_k < ordered.shape[-1]:
        ordered = ordered.masked_fill(ordered < ordered[:, options.top_k - 1, None], float("-inf"))
    probabilities = ordered.softmax(dim=-1)
    if options.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        out = before >= options.top_p
        out[:, 0] = False
        probabilities = probabilities.masked_fill(out, 0)
    return probabilities / probabilities.sum(dim=-1, keepdim=True), tokens
