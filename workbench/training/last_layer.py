"""The last decoder layer in the places that predict: nothing reads what it would make of the others.

Knows: the layers of Llama, Mistral and Qwen2, which are computed alike, and that keys and values are needed in every
place, all else only where a token is predicted. Loss and gradients are those of the whole layer.
Does not know: how trees lie (`attention.py`), or the head.

In a language model of n layers with one place in ten that predicts this leaves out about three quarters of an n-th, and
as much of its activations. So this layer is never checkpointed: transformers does that in the `forward` replaced here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers.models.llama.modeling_llama import rotate_half

from workbench.model.llava import Llava
from workbench.training.attention import Layout, attend_rows

ALIKE = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
LARGEST_SHARE = 0.5
"""Above it attention with a mask costs as much as is saved: the whole layer is computed."""


def predicting_parts(llava: Llava) -> list[torch.nn.Module]:
    """What of the last layer is needed only in the places that predict; empty where its make is not known."""
    last = llava.model.model.language_model.layers[-1]
    if not ALIKE & {kind.__name__ for kind in type(last).__mro__}:
        return []
    return [last.self_attn.q_proj, last.self_attn.o_proj, last.mlp]


def prunes(llava: Llava, supervised: int, tokens: int) -> bool:
    """Whether the last layer is computed for `supervised` of `tokens` places alone; it is made able to where it can."""
    if supervised > LARGEST_SHARE * tokens or not predicting_parts(llava):
        return False
    last = llava.model.model.language_model.layers[-1]
    if "forward" not in vars(last):
        last.forward = partial(_forward, last, last.forward)
    return True


def _forward(layer: Any, whole: Any, hidden_states: torch.Tensor, **given: Any) -> torch.Tensor:
    """(1, T, D) -> (1, K, D) where `rows`, (K,) places, are given with `sees`; else the layer as it is."""
    rows: torch.Tensor | None = given.get("rows")
    if rows is None:
        return whole(hidden_states, **given)
    kept = hidden_states.index_select(1, rows)
    kept = kept + _attend(layer.self_attn, layer.input_layernorm(hidden_states), **given)
    return kept + layer.mlp(layer.post_attention_layernorm(kept))


def _attend(
    attention: Any,
    hidden: torch.Tensor,
    *,
    rows: torch.Tensor,
    sees: tuple[torch.Tensor, ...],
    trees: Layout,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **_: Any,
) -> torch.Tensor:
    """(1, T, D) -> (1, K, D): queries of the rows alone."""
    cos, sin = (each[:, None] for each in position_embeddings)  # (1, 1, T, d)
    query, key, value = (
        part(seen).view(1, seen.shape[1], -1, attention.head_dim).transpose(1, 2)
        for part, seen in (
            (attention.q_proj, hidden.index_select(1, rows)),
            (attention.k_proj, hidden),
            (attention.v_proj, hidden),
        )
    )
    query = query * cos.index_select(2, rows) + rotate_half(query) * sin.index_select(2, rows)
    key = key * cos + rotate_half(key) * sin
    dropout = attention.attention_dropout if attention.training else 0.0
    seen = attend_rows(query, key, value, trees, sees, dropout_p=dropout, scale=attention.scaling)
    return attention.o_proj(seen.flatten(2))
