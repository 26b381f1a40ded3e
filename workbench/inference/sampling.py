"""Logits to the next token: greedy, or drawn with temperature, top-k, top-p and min-p.

Knows: each row's own options, penalties, grammar and generator, so that what a row draws depends on itself alone and
not on its neighbours, and how likely a token was.
Does not know: models, caches, or how a grammar decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from workbench.chat_model import SamplingOptions, TokenLogprob

if TYPE_CHECKING:
    from workbench.inference.decoding import Row


def generator(options: SamplingOptions, row: int = 0) -> torch.Generator | None:
    """Where row `row` of a batch draws from; None when nothing is drawn. On the CPU, whatever the model is on."""
    if options.greedy:
        return None
    made = torch.Generator()
    if options.seed is None:
        made.seed()
        return made
    return made.manual_seed(options.seed + row)


def next_tokens(logits: torch.Tensor, rows: Sequence[Row], text_of: Callable[[int], str]) -> list[int]:
    """The next token of each row by its own options. logits: (rows, vocabulary).

    Log probabilities that a row's options ask for are added to its own; `text_of`: a token as a person reads it.
    """
    if all(row.options.greedy and not _special(row) for row in rows):
        return logits.argmax(dim=-1).tolist()
    allowed = torch.stack([_allowed(scores, row) for scores, row in zip(logits, rows, strict=True)])
    alike: dict[tuple[float, ...], list[int]] = {}
    for index, row in enumerate(rows):
        asked = row.options
        key = () if asked.greedy else (asked.temperature, asked.top_p, float(asked.top_k), asked.min_p)
        alike.setdefault(key, []).append(index)
    tokens = [0] * len(rows)
    for indices in alike.values():
        sources = [rows[index].generator for index in indices]
        chosen = choose(allowed[indices], rows[indices[0]].options, sources).tolist()
        for index, token in zip(indices, chosen, strict=True):
            tokens[index] = token
    for scores, row, token in zip(logits, rows, tokens, strict=True):
        if row.options.logprobs is not None:
            row.logprobs.append(_told(scores, token, row.options.logprobs, text_of))
        if row.grammar is not None and row.fault is None:
            row.guarded(row.grammar.take, token)
    return tokens


def _special(row: Row) -> bool:
    """Whether more than the largest logit decides, or is asked for."""
    asked = row.options
    return asked.repetition_penalty != 1 or asked.logprobs is not None or row.grammar is not None


def _allowed(scores: torch.Tensor, row: Row) -> torch.Tensor:
    """scores: (vocabulary,), as the model gives them; back with the row's penalty, without what its grammar forbids."""
    penalty = row.options.repetition_penalty
    if penalty != 1:
        said = torch.tensor(sorted({*row.ids, *row.written}), device=scores.device)
        said = said[said < len(scores)]
        held = scores[said]
        scores = scores.index_copy(0, said, torch.where(held < 0, held * penalty, held / penalty))
    if row.grammar is not None:
        allowed = row.guarded(row.grammar.allowed, len(scores))
        scores = scores if allowed is None else scores.masked_fill(~allowed.to(scores.device), float("-inf"))
    return scores


def _told(scores: torch.Tensor, token: int, count: int, text_of: Callable[[int], str]) -> TokenLogprob:
    """How likely `token` was, and the `count` most likely ones. scores: (vocabulary,)."""
    logprobs = scores.float().log_softmax(dim=-1)
    values, tokens = logprobs.topk(min(count, len(logprobs)))
    top = tuple((id, text_of(id), value) for id, value in zip(tokens.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, text_of(token), float(logprobs[token]), top)


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
    """Probabilities after temperature, top-k, top-p, then min-p, most likely first, 0 where a token is out; and the
    tokens.

    Both (rows, vocabulary). As in transformers, each is taken of what those before it left, and one token always stays.
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
    if options.min_p > 0:  # a share of the likeliest, which comes first
        probabilities = probabilities.masked_fill(probabilities < options.min_p * probabilities[:, :1], 0)
    return probabilities / probabilities.sum(dim=-1, keepdim=True), tokens
