"""How a tower and a language model are joined: LLaVA's configuration, the count of image tokens, a fresh projector.

Knows: which hidden state is taken, whether a class token is dropped, and how transformers' one projector class is both
LLaVA's linear and its two-layer projector. Does not know: weights on disk, number formats.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import LlavaConfig, PreTrainedModel
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from workbench.errors import ModelError

PROJECTORS = {"mlp2x_gelu": "gelu", "linear": "linear"}
"""Projector name -> the activation between the two linears of transformers' projector.

LLaVA v1's single linear is the same class with no activation and an identity, never trained, as its second linear.
"""


def llava_config(
    record: dict[str, Any], tower: PreTrainedModel, language: PreTrainedModel, image_token_id: int
) -> LlavaConfig:
    """The configuration of the whole. A tower without a class token (SigLIP) never has its first patch dropped."""
    extra, patches = tower_tokens(tower)
    drop = extra and record["vision_select"] == "default"
    depth = tower.config.num_hidden_layers
    if not -depth - 1 <= record["vision_layer"] <= depth:
        raise ModelError("vision_layer", found=str(record["vision_layer"]), expected=f"within {-depth - 1} .. {depth}")
    text = copy.deepcopy(language.config)
    if hasattr(text, "quantization_config"):
        del text.quantization_config  # describes how it was loaded, not what it is
    return LlavaConfig(
        vision_config=copy.deepcopy(tower.config),
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=patches if drop else patches + extra,
        projector_hidden_act=PROJECTORS[record["projector"]],
        vision_feature_select_strategy="default" if drop else "full",
        vision_feature_layer=record["vision_layer"],
    )


def tower_tokens(tower: PreTrainedModel) -> tuple[int, int]:
    """(tokens beside the patches: 1 with a class token, else 0; patches), read off the position embedding."""
    patches = (tower.config.image_size // tower.config.patch_size) ** 2
    return tower.embeddings.position_embedding.num_embeddings - patches, patches


def fresh_projector(config: LlavaConfig, seed: int) -> LlavaMultiModalProjector:
    """A projector initialised by torch's own rule for linears (as LLaVA does), from `seed`; no other state moves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = LlavaMultiModalProjector(config)
    if config.projector_hidden_act == "linear":
        nn.init.eye_(projector.linear_2.weight)
        nn.init.zeros_(projector.linear_2.bias)
    return projector
