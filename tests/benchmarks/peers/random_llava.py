"""A LLaVA of any size with random weights, made on its device: real shapes where no real weights can be had.

Knows: the shapes of LLaVA-1.5 and 1.6 as published and of one with NeXT's number of image tokens in one square; bf16
and NF4. Does not know: who trains it or answers with it. It is imported beside other trainers: nothing of workbench.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peers.material import SPECIAL


@dataclass(frozen=True)
class Size:
    """The shape of a LLaVA."""

    name: str
    side: int
    """Pixels of a picture, or of a tile; with patches of 14."""
    language: tuple[int, int, int, int]
    """Width, width of the MLP, layers, heads."""
    tower: tuple[int, int, int, int]
    vocabulary: int = 32_064
    tiles: bool = False
    """Whether a picture is shown in tiles too, as LLaVA-NeXT (1.6) does."""
    shared: int | None = None
    """Heads of keys and values, where there are fewer than of queries."""

    @property
    def image_tokens(self) -> int:
        """Of a square picture, or of a tile."""
        return (self.side // 14) ** 2


VICUNA, VICUNA_13B, CLIP = (4096, 11008, 32, 32), (5120, 13824, 40, 40), (1024, 4096, 24, 16)
YI = (7168, 20480, 60, 56)
"""Nous-Hermes-2-Yi-34B; 8 heads of keys and values."""
NARROW = (64, 128, 2, 2)
SIZES = {
    size.name: size
    for size in (
        Size("llava-1.5-7b", 336, VICUNA, CLIP),
        Size("llava-1.5-13b", 336, VICUNA_13B, CLIP),
        Size("llava-v1.6-vicuna-7b", 336, VICUNA, CLIP, tiles=True),
        Size("llava-v1.6-34b", 336, YI, CLIP, vocabulary=64_064, tiles=True, shared=8),
        Size("next-7b-like", 672, VICUNA, CLIP),  # 2,304 image tokens from one large square instead of five tiles
        Size("tiny", 56, NARROW, NARROW),
        Size("tiny-next", 56, NARROW, NARROW, tiles=True, shared=1),
    )
}


def configured(size: Size) -> Any:
    """transformers' configuration of such a LLaVA."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextConfig

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    tower = dict(zip(names, size.tower, strict=True))
    language = dict(zip(names, size.language, strict=True)) | {"num_key_value_heads": size.shared or size.language[3]}
    shape: dict[str, Any] = {
        "vision_config": CLIPVisionConfig(**tower, image_size=size.side, patch_size=14),
        "text_config": LlamaConfig(**language, vocab_size=size.vocabulary, max_position_embeddings=8192, **ends),
        "image_token_index": SPECIAL.index("<image>"),
        "image_seq_length": size.image_tokens,
        "vision_feature_layer": -2,
        "tie_word_embeddings": False,
    }
    if not size.tiles:
        return LlavaConfig(**shape)
    grids = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]  # LLaVA's, (high, wide) in tiles
    return LlavaNextConfig(**shape, image_grid_pinpoints=[[high * size.side, wide * size.side] for high, wide in grids])


def make(size: Size, load: str, device: torch.device) -> Any:
    """transformers' LLaVA in bf16 (on a CPU float32); `load="4bit"`: the language model's linears in NF4.

    Layer by layer, so that on its way a 4-bit model never takes more than one layer more than it will hold.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    config, dtype, layers = configured(size), held_dtype(device), size.language[2]
    torch.manual_seed(0)
    config.text_config.num_hidden_layers = 0
    with device:
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    language = model.model.language_model
    for held in (model.config.text_config, language.config):
        held.num_hidden_layers = layers
    for number in range(layers):
        with device:
            layer = LlamaDecoderLayer(language.config, number).to(dtype)
        layer.apply(language._init_weights)
        language.layers.append(quantised(layer, dtype) if load == "4bit" else layer)
    model.requires_grad_(False).eval()
    if load == "4bit":
        model.is_loaded_in_4bit = True
    return model


def held_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def quantised(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The layer with NF4 and double quantisation in every linear."""
    import bitsandbytes as bnb

    for name, linear in [(name, held) for name, held in layer.named_modules() if isinstance(held, nn.Linear)]:
        settings = {"compute_dtype": dtype, "compress_statistics": True, "quant_type": "nf4"}
        with torch.device("meta"):
            packed = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, **settings)
        weight, place = linear.weight.data, linear.weight.device
        packed.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=packed
        )
        layer.set_submodule(name, packed.to(place))
    return layer
