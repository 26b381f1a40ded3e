"""A LLaVA of any size with random weights, made on its device: real shapes where no real weights can be had.

Knows: the shapes of LLaVA-1.5-7B and of one with NeXT's number of image tokens, bf16 and NF4.
Does not know: who trains it.
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
    """Pixels of a picture; with patches of 14."""
    language: tuple[int, int, int, int]
    """Width, width of the MLP, layers, heads."""
    tower: tuple[int, int, int, int]
    vocabulary: int = 32_064

    @property
    def image_tokens(self) -> int:
        return (self.side // 14) ** 2


VICUNA, CLIP = (4096, 11008, 32, 32), (1024, 4096, 24, 16)
SIZES = {
    size.name: size
    for size in (
        Size("llava-1.5-7b", 336, VICUNA, CLIP),
        Size("next-7b-like", 672, VICUNA, CLIP),  # 2,304 image tokens from one large square instead of five tiles
        Size("tiny", 56, (64, 128, 2, 2), (64, 128, 2, 2)),
    )
}


def make(size: Size, load: str, device: torch.device) -> Any:
    """transformers' LLaVA in bf16 (on a CPU float32); `load="4bit"`: the language model's linears in NF4."""
    from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **dict(zip(names, size.tower, strict=True)), image_size=size.side, patch_size=14
        ),
        text_config=LlamaConfig(
            **dict(zip(names, size.language, strict=True)),
            vocab_size=size.vocabulary,
            max_position_embeddings=8192,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=size.image_tokens,
        vision_feature_layer=-2,
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForImageTextToText.from_config(config, dtype=held_dtype(device))
    model.requires_grad_(False).eval()
    if load == "4bit":
        quantise(model, held_dtype(device))
    return model


def held_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def quantise(model: Any, dtype: torch.dtype) -> None:
    """Put NF4 with double quantisation, layer by layer, into every linear of the language model."""
    import bitsandbytes as bnb

    language = model.model.language_model
    for name, linear in [(name, held) for name, held in language.named_modules() if isinstance(held, nn.Linear)]:
        settings = {"compute_dtype": dtype, "compress_statistics": True, "quant_type": "nf4"}
        with torch.device("meta"):
            packed = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, **settings)
        weight, place = linear.weight.data, linear.weight.device
        packed.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=packed
        )
        language.set_submodule(name, packed.to(place))
    model.is_loaded_in_4bit = True
