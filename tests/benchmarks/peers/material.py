"""What every trainer of the comparison is given: one random LLaVA, its first adapter, the same rows and pictures.

Knows: the model's fixed shape, how rows are drawn, and the file shapes that the trainers ask for.
Does not know: any trainer.

The tokenizer splits at white space and punctuation, so that templates which differ in spaces give the same ids.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 32_000
SPECIAL = ("<s>", "</s>", "<pad>", "<image>", "<unk>")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LORA = {"r": 16, "alpha": 32.0}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KINDS = (((12, 34), (10, 30), (10, 30)), ((12, 110),), ((16, 130),))
"""Words of question and answer, turn by turn: a conversation, a description, an argument, as in LLaVA-Instruct."""

CHAT = """\
{{ bos_token }}SYSTEM {% for message in messages %}{% if message['role'] == 'user' %}USER: \
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] if part['type'] == 'image' %}<image>
{% endfor %}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %} \
ASSISTANT:{% else %}{% generation %} \
{% if message['content'] is string %}{{ message['content'] }}{% else %}{{ message['content'][0]['text'] }}{% endif %}\
{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"""
"""Template `v1` in Jinja, with the marks by which TRL finds the assistant's tokens."""


@dataclass(frozen=True)
class Shape:
    """The compared model: 512 wide, 8 layers, vocabulary 32,000; a CLIP tower 256 wide, 6 layers, patches of 14."""

    side: int = 336
    """Pixels of a picture: 336 are 576 image tokens, 616 are 1,936."""
    language: dict[str, int] = field(
        default_factory=lambda: {
            "hidden_size": 512,
            "intermediate_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
        }
    )
    tower: dict[str, int] = field(
        default_factory=lambda: {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
        }
    )

    @property
    def image_tokens(self) -> int:
        return (self.side // 14) ** 2


def make_model(folder: Path, shape: Shape, texts: Sequence[str] = ()) -> int:
    """A LLaVA in Hugging Face's layout with random weights, its processor beside it; returns its parameters.

    `texts`: their words are tokens, besides the made-up ones.
    """
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from workbench.model.images import ImageMode

    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    wide = {"max_position_embeddings": 8192, "initializer_range": 0.04}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape.tower, image_size=shape.side, patch_size=14),
        text_config=LlamaConfig(**shape.language, vocab_size=VOCABULARY, **ends, **wide),
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=shape.image_tokens,
        vision_feature_layer=-2,
    )
    model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    side = {"height": shape.side, "width": shape.side}
    settings = ImageMode("pad", {"size": side, "crop_size": side}).processor_settings()
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1))
    make_tokenizer(texts).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT.replace("SYSTEM", SYSTEM))
    tells = {"processor_class": "LlavaProcessor", "patch_size": 14, "num_additional_image_tokens": 1}
    tells |= {"vision_feature_select_strategy": "default", "image_token": "<image>"}
    (folder / "processor_config.json").write_text(json.dumps(tells, indent=1))
    return sum(parameter.numel() for parameter in model.parameters())


def make_tokenizer(texts: Sequence[str] = ()) -> Any:
    """Whole words as tokens: the template's, punctuation, those of `texts`, and made-up ones up to the vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Whitespace()
    known = [f"{SYSTEM} USER: ASSISTANT: ? .", *texts]
    names = [*SPECIAL, *sorted({part for text in known for part, _ in split.pre_tokenize_str(text)})]
    names += [f"w{number}" for number in range(VOCABULARY - len(names))]
    backend = Tokenizer(models.WordLevel({name: id for id, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = split
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="right",
        model_max_length=8192,
    )


def per_image(images: int, mean: float) -> list[int]:
    """How many conversations each image has: `mean` on average, as even as 1, 2 and 3 allow."""
    rng = random.Random(0)
    if mean == int(mean):
        return [int(mean)] * images
    total = round(images * mean)
    counts = [rng.choice((1, 2, 3)) for _ in range(images)]
    while sum(counts) != total:
        at = rng.randrange(images)
        counts[at] = min(3, counts[at] + 1) if sum(counts) < total else max(1, counts[at] - 1)
    return counts


def make_rows(folder: Path, counts: Sequence[int]) -> list[dict[str, Any]]:
    """LLaVA records in `rows.json` and their pictures, 640 x 480 JPEGs of noise and shapes, in `images/`."""
    from PIL import Image, ImageDraw

    rng, noise = random.Random(1), np.random.default_rng(1)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, count in enumerate(counts):
        small = noise.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
        box = sorted(rng.sample(range(480), 2))
        ImageDraw.Draw(picture).ellipse((box[0], box[0], box[1], box[1]), fill=(number * 37 % 255, 90, 160))
        picture.save(folder / "images" / f"{number:05}.jpg", quality=90)
        for turn in range(count):
            kind = KINDS[(number + turn) % len(KINDS)]
            rows.append(_row(rng, f"{number}.{turn}", f"{number:05}.jpg", kind))
    (folder / "rows.json").write_text(json.dumps(rows))
    return rows


def _row(rng: random.Random, id: str, image: str, kind: Sequence[tuple[int, int]]) -> dict[str, Any]:
    turns: list[dict[str, str]] = []
    for asked, answered in kind:
        start = "" if turns else "<image>\n"
        turns.append({"from": "human", "value": f"{start}{_words(rng, asked)}?"})
        turns.append({"from": "gpt", "value": f"{_words(rng, answered)}."})
    return {"id": id, "image": image, "conversations": turns}


def _words(rng: random.Random, mean: int) -> str:
    """About `mean` words, few of them often and most rarely, as in a language."""
    count = max(2, round(rng.gauss(mean, mean / 4)))
    return " ".join(f"w{min(int(rng.paretovariate(0.6)), VOCABULARY - 200)}" for _ in range(count))
