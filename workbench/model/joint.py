"""How a tower and a language model are joined: LLaVA's configuration, the count of image tokens, a fresh projector.

Knows: which of transformers' classes a LLaVA is, which hidden state is taken, whether a class token is dropped, and how
one projector class is both LLaVA's linear and its two-layer projector. Does not know: weights on disk, number formats.
"""

from __future__ import annotations

import copy
import math
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from workbench.errors import ModelError
from workbench.model.anyres import AnyRes, pinpoints_of
from workbench.model.tiling import OneTile, Tiling

AnyConfig: TypeAlias = LlavaConfig | LlavaNextConfig
AnyLlava: TypeAlias = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration
AnyProjector: TypeAlias = LlavaMultiModalProjector | LlavaNextMultiModalProjector
CLASSES: dict[str, Any] = {"llava": LlavaForConditionalGeneration, "llava_next": LlavaNextForConditionalGeneration}
"""`model_type` in a configuration -> the class: LLaVA v1 and 1.5, LLaVA-NeXT (1.6)."""
ANYRES = "anyres"
"""The image mode of LLaVA-NeXT, and of no other."""

PROJECTORS = {"mlp2x_gelu": "gelu", "linear": "linear"}
"""Projector name -> the activation between the two linears of transformers' projector.

LLaVA v1's single linear is the same class with no activation and an identity, never trained, as its second linear.
"""


def llava_config(
    record: dict[str, Any], tower: PreTrainedModel, language: PreTrainedModel, image_token_id: int
) -> AnyConfig:
    """The configuration of the whole. A tower without a class token (SigLIP) never has its first patch dropped.

    With image mode `anyres` it is LLaVA-NeXT's; the grids are those `record` names, else LLaVA-1.6's, and it then does.
    """
    extra, patches = tower_tokens(tower)
    drop = extra and record["vision_select"] == "default"
    depth = tower.config.num_hidden_layers
    if not -depth - 1 <= record["vision_layer"] <= depth:
        raise ModelError("vision_layer", found=str(record["vision_layer"]), expected=f"within {-depth - 1} .. {depth}")
    text = copy.deepcopy(language.config)
    if hasattr(text, "quantization_config"):
        del text.quantization_config  # describes how it was loaded, not what it is
    grids = {}
    if record["image_mode"] == ANYRES:
        grids["image_grid_pinpoints"] = record.setdefault("pinpoints", pinpoints_of(tower.config.image_size))
    return (LlavaNextConfig if grids else LlavaConfig)(
        **grids,
        vision_config=copy.deepcopy(tower.config),
        text_config=text,
        tie_word_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
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


def tiling_of(config: AnyConfig) -> Tiling:
    """The rule by which a model of this configuration cuts pictures into tiles. Raises `ModelError` for odd grids."""
    if not isinstance(config, LlavaNextConfig):
        return OneTile(config.image_seq_length)
    vision = config.vision_config
    edge = vision.image_size // vision.patch_size
    if config.image_seq_length != edge**2:
        found = f"{config.image_seq_length} tokens a tile, its class token too"
        raise ModelError("anyres", found=found, expected=f"{edge} x {edge}", fix="use vision_select: default")
    return AnyRes(vision.image_size, edge, tuple((high, wide) for high, wide in config.image_grid_pinpoints))


def fresh_projector(config: AnyConfig, seed: int) -> AnyProjector:
    """A projector initialised by torch's own rule for linears (as LLaVA does), from `seed`; no other state moves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = LlavaNextMultiModalProjector if isinstance(config, LlavaNextConfig) else LlavaMultiModalProjector
        projector: AnyProjector = kind(config)
    if config.projector_hidden_act == "linear":
        nn.init.eye_(projector.linear_2.weight)
        nn.init.zeros_(projector.linear_2.bias)
    return projector


def fresh_newline(config: AnyConfig, seed: int) -> torch.Tensor:
    """(width of the language model,): what LLaVA-NeXT puts after each row of tokens, drawn as LLaVA draws it."""
    width = config.text_config.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.randn(width) / math.sqrt(width)
