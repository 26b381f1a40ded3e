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
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector
from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoMultiModalProjector
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionMultiModalProjector

from workbench.errors import ModelError
from workbench.model.anyres import ONEVISION_GRIDS, AnyRes, pinpoints_of
from workbench.model.film import POOLS
from workbench.model.mode_names import ANYRES, FRAMES, limit_in, reads_videos, with_frames
from workbench.model.tiling import OneTile, Tiling

AnyConfig: TypeAlias = LlavaConfig | LlavaNextConfig | LlavaNextVideoConfig | LlavaOnevisionConfig
AnyLlava: TypeAlias = (
    LlavaForConditionalGeneration
    | LlavaNextForConditionalGeneration
    | LlavaNextVideoForConditionalGeneration
    | LlavaOnevisionForConditionalGeneration
)
AnyProjector: TypeAlias = (
    LlavaMultiModalProjector
    | LlavaNextMultiModalProjector
    | LlavaNextVideoMultiModalProjector
    | LlavaOnevisionMultiModalProjector
)
CLASSES: dict[str, Any] = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "llava_next_video": LlavaNextVideoForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
}
"""`model_type` in a configuration -> the class: LLaVA v1 and 1.5, LLaVA-NeXT (1.6), its Video, LLaVA-OneVision."""
PROJECTORS = {"mlp2x_gelu": "gelu", "linear": "linear"}
"""Projector name -> the activation between the two linears of transformers' projector.

LLaVA v1's single linear is the same class with no activation and an identity, never trained, as its second linear.
"""

PROJECTOR_CLASSES: dict[str, Any] = {
    "llava": LlavaMultiModalProjector,
    "llava_next": LlavaNextMultiModalProjector,
    "llava_next_video": LlavaNextVideoMultiModalProjector,
    "llava_onevision": LlavaOnevisionMultiModalProjector,
}
"""They differ in name only."""


def llava_config(
    record: dict[str, Any],
    tower: PreTrainedModel,
    language: PreTrainedModel,
    image_token_id: int,
    video_token_id: int | None = None,
) -> AnyConfig:
    """The configuration of the whole. A tower without a class token (SigLIP) never has its first patch dropped.

    With image mode `anyres` it is LLaVA-NeXT's, with `anyres_video_N` that of its Video, with `anyres_max_N`
    OneVision's (with `_video_N` too); the grids are those `record` names, else those of LLaVA's own models, and it then
    does. video_token_id: of models that read videos.
    """
    extra, patches = tower_tokens(tower)
    drop = extra and record["vision_select"] == "default"
    depth = tower.config.num_hidden_layers
    if not -depth - 1 <= record["vision_layer"] <= depth:
        raise ModelError("vision_layer", found=str(record["vision_layer"]), expected=f"within {-depth - 1} .. {depth}")
    text = copy.deepcopy(language.config)
    if hasattr(text, "quantization_config"):
        del text.quantization_config  # describes how it was loaded, not what it is
    kind, more = _kind(record, tower.config.image_size)
    if video_token_id is not None:
        more["video_token_index"] = video_token_id
    return kind(
        **more,
        vision_config=copy.deepcopy(tower.config),
        text_config=text,
        tie_word_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
        image_token_index=image_token_id,
        image_seq_length=patches if drop else patches + extra,
        projector_hidden_act=PROJECTORS[record["projector"]],
        vision_feature_select_strategy="default" if drop else "full",
        vision_feature_layer=record["vision_layer"],
    )


def _kind(record: dict[str, Any], side: int) -> tuple[Any, dict[str, Any]]:
    """The class of the configuration that an image mode needs, and what only that class has."""
    mode = record["image_mode"]
    if limit := limit_in(mode):
        grids = record.setdefault("pinpoints", pinpoints_of(side, ONEVISION_GRIDS))
        return LlavaOnevisionConfig, {"image_grid_pinpoints": grids, "vision_aspect_ratio": f"anyres_max_{limit}"}
    if mode == ANYRES or reads_videos(mode):
        grids = {"image_grid_pinpoints": record.setdefault("pinpoints", pinpoints_of(side))}
        if not reads_videos(mode):
            return LlavaNextConfig, grids
        return LlavaNextVideoConfig, grids | {"spatial_pool_mode": record.get("spatial_pool", "average")}
    return LlavaConfig, {}


def own_mode(config: AnyConfig, frames: int = FRAMES) -> str | None:
    """The image mode of a model that sees tiles; None for LLaVA 1.5, which may have any of the others.

    frames: of a video, which the model's configuration does not say.
    """
    if isinstance(config, LlavaOnevisionConfig):
        return with_frames(config.vision_aspect_ratio, frames)
    if isinstance(config, LlavaNextVideoConfig):
        return f"anyres_video_{frames}"
    return ANYRES if isinstance(config, LlavaNextConfig) else None


def tower_tokens(tower: PreTrainedModel) -> tuple[int, int]:
    """(tokens beside the patches: 1 with a class token, else 0; patches), read off the position embedding."""
    patches = (tower.config.image_size // tower.config.patch_size) ** 2
    return tower.embeddings.position_embedding.num_embeddings - patches, patches


def tiling_of(config: AnyConfig, frames: int = FRAMES) -> Tiling:
    """The rule by which a model of this configuration cuts pictures into tiles, and how many frames it is shown.

    Raises `ModelError` for odd grids, and for videos that are pooled in another way than two by two without weights.
    """
    mode = own_mode(config, frames)
    if mode is None:
        return OneTile(config.image_seq_length)
    vision, limit = config.vision_config, limit_in(mode)
    if isinstance(config, LlavaOnevisionConfig) and limit is None:
        found = repr(config.vision_aspect_ratio)
        raise ModelError("vision_aspect_ratio", found=found, expected="anyres_max_9, or another number")
    edge = vision.image_size // vision.patch_size
    if config.image_seq_length != edge**2:
        found = f"{config.image_seq_length} tokens a tile, its class token too"
        raise ModelError(mode, found=found, expected=f"{edge} x {edge}", fix="use vision_select: default")
    pinpoints = tuple((high, wide) for high, wide in config.image_grid_pinpoints)
    if isinstance(config, LlavaNextVideoConfig):
        _check_pooling(config)
    read = 0 if isinstance(config, LlavaNextConfig) else frames
    return AnyRes(vision.image_size, edge, pinpoints, limit, alone=limit is not None, frames=read)


def _check_pooling(config: AnyConfig) -> None:
    """Raise `ModelError` for a pooling of videos that is not done here."""
    if config.spatial_pool_mode not in POOLS:
        found, expected = f"{config.spatial_pool_mode!r}, which has weights", " or ".join(POOLS)
        raise ModelError("spatial_pool_mode", found=found, expected=expected)
    if config.spatial_pool_stride != 2:
        raise ModelError("spatial_pool_stride", found=str(config.spatial_pool_stride), expected="2")


def fresh_projector(config: AnyConfig, seed: int) -> AnyProjector:
    """A projector initialised by torch's own rule for linears (as LLaVA does), from `seed`; no other state moves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector: AnyProjector = PROJECTOR_CLASSES[config.model_type](config)
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
