"""A small random LLaVA, pictures by name and questions about them, for tests of what answers."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image as PILImage
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from workbench.conversation import Conversation, Image
from workbench.model.images import ImageMode
from workbench.model.llava import Llava
from workbench.model.renderer import Renderer

WORDS = (
    "what",
    "colour",
    "is",
    "the",
    "small",
    "red",
    "cube",
    "left",
    "of",
    "any",
    "and",
    "how",
    "many",
    "are",
    "there",
)
SIZE, PATCH = 32, 8
IMAGE_TOKENS = (SIZE // PATCH) ** 2


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def random_llava(template: str = "tiny", *, kind: str = "llama", seed: int = 0, **text: object) -> Llava:
    """Weights are drawn wide, so that what is likely depends on every token and pixel and nothing is nearly tied."""
    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text_shape = shape | {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 256} | text
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape, image_size=SIZE, patch_size=PATCH),
        text_config=(LlamaConfig if kind == "llama" else Qwen2Config)(**text_shape),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight *= 4
    settings = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    mode = ImageMode("square", settings | {"crop_size": settings["size"]})
    place = torch.device("cpu")
    return Llava(model, tokenizer, Renderer(tokenizer, template), mode, {}, place, torch.float32)


def greedy(llava: Llava, ids: torch.Tensor, most: int, **images: torch.Tensor) -> tuple[int, ...]:
    """What transformers' own `generate` writes after these ids and pictures, without a cache of ours."""
    out = llava.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=list(llava.renderer.end_ids),
        pad_token_id=0,
        **images,
    )
    return tuple(out[0, ids.shape[1] :].tolist())


def picture(image: Image) -> PILImage.Image:
    """A picture for every name, always the same one."""
    noise = np.random.default_rng(list(image.path.encode())).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    return PILImage.fromarray(noise)


def asked(number: int, image: str | None = "a", words: int = 4) -> Conversation:
    text = " ".join(random.Random(number).choices(WORDS, k=words))
    return Conversation(f"c{number}", ()).add("user", *([Image(image)] if image else []), text)


def thirty() -> list[Conversation]:
    """Questions of all lengths about few images, some without one, some later in a conversation, some with two."""
    made = []
    for number in range(30):
        one = asked(number, "abcd"[number % 4] if number % 7 else None, words=1 + number % 6)
        if number % 5 == 0:
            again = (Image("z"), "and here?") if number % 2 else ("and now?",)
            one = one.add("assistant", "a red cube").add("user", *again)
        made.append(one)
    return made
