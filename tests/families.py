"""Vision-language models of other families than LLaVA: real classes with their processors, small, random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from workbench.inference.vlm import without_video

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
VISION = {**SMALL, "image_size": 48, "patch_size": 12}
NAMED = {
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}  # fmt: skip
"""Special tokens that InternVL's processor asks its tokenizer for by name."""
SPECIAL = (
    "<image>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<fake_token_around_image>",
    "<global-img>", "<end_of_utterance>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>",
)  # fmt: skip


def tokenizer(**named: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", "<pad>", "<unk>", *SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={name: id for id, name in enumerate(names)}, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=list(SPECIAL), **ends, **named)


def llava(words: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaImageProcessorPil,
        LlavaProcessor,
    )

    image = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**text), image_token_id=image
    )
    side = {"height": 48, "width": 48}
    pictures = LlavaImageProcessorPil(size=side, crop_size=side)
    settings = {"patch_size": 12, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = LlavaProcessor(pictures, words, chat_template=TEMPLATE.replace("IMAGE", "<image>"), **settings)
    return LlavaForConditionalGeneration(config), processor


def qwen2_vl(words: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil, Qwen2VLProcessor

    marks = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in marks.items()}
    rope = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "patch_size": 14, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config={**text, **rope}, vision_config=vision, **ids)
    pictures = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = without_video(Qwen2VLProcessor)(pictures, words, chat_template=template)
    return Qwen2VLForConditionalGeneration(config), processor


def idefics3(words: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    pictures = Idefics3ImageProcessorPil(**_UNSPLIT)
    template = TEMPLATE.replace("IMAGE", "<image>")
    processor = Idefics3Processor(pictures, words, image_seq_len=4, chat_template=template)
    return Idefics3ForConditionalGeneration(Idefics3Config(**_connected(words, text))), processor


def smolvlm(words: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil, SmolVLMProcessor

    pictures, template = SmolVLMImageProcessorPil(**_UNSPLIT), TEMPLATE.replace("IMAGE", "<image>")
    processor = without_video(SmolVLMProcessor)(pictures, words, None, image_seq_len=4, chat_template=template)
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**_connected(words, text))), processor


_UNSPLIT = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 48}, "do_image_splitting": False}


def _connected(words: Any, text: dict[str, Any]) -> dict[str, Any]:
    """Tower and language model of Idefics3's kind: 4 tokens a picture."""
    from transformers import LlamaConfig

    ids = {"image_token_id": words.convert_tokens_to_ids("<image>"), "pad_token_id": 2}
    return {"vision_config": VISION, "text_config": LlamaConfig(**text).to_dict(), "scale_factor": 2, **ids}


def internvl(words: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessorPil,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        Qwen2Config,
    )

    words = tokenizer(extra_special_tokens=NAMED)
    ids = {"image_token_id": words.convert_tokens_to_ids("<IMG_CONTEXT>"), "image_seq_length": 4}
    words_config = Qwen2Config(**text).to_dict()
    config = InternVLConfig(vision_config=VISION, text_config=words_config, tie_word_embeddings=False, **ids)
    side = {"height": 48, "width": 48}
    pictures = GotOcr2ImageProcessorPil(size=side, crop_to_patches=True, max_patches=4)
    template = TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>")
    processor = without_video(InternVLProcessor)(pictures, words, image_seq_length=4, chat_template=template)
    return InternVLForConditionalGeneration(config), processor


def blip2(words: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import OPTConfig

    sizes = {"hidden_size": 64, "ffn_dim": 96, "word_embed_proj_dim": 64, "num_hidden_layers": 2}
    same = {name: text[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    same |= {"num_attention_heads": 4, "max_position_embeddings": 256}
    return _blip2(words, OPTConfig(**sizes, **same, tie_word_embeddings=False))


def blip2_t5(words: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import T5Config

    sizes = {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": text["vocab_size"]}
    return _blip2(words, T5Config(**sizes, decoder_start_token_id=2, eos_token_id=1, pad_token_id=2))


def _blip2(words: Any, language: Any) -> tuple[Any, Any]:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessorPil

    config = Blip2Config(text_config=language.to_dict(), **_queries(words))
    pictures = BlipImageProcessorPil(size={"height": 48, "width": 48})
    return Blip2ForConditionalGeneration(config), Blip2Processor(pictures, words, num_query_tokens=4)


def instructblip(words: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import (
        BlipImageProcessorPil,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
        LlamaConfig,
    )

    config = InstructBlipConfig(text_config=LlamaConfig(**text).to_dict(), **_queries(words))
    pictures = BlipImageProcessorPil(size={"height": 48, "width": 48})
    processor = InstructBlipProcessor(pictures, words, tokenizer(), num_query_tokens=4)
    return InstructBlipForConditionalGeneration(config), processor


def _queries(words: Any) -> dict[str, Any]:
    """Tower and Q-Former of BLIP-2's kind: 4 queries a picture."""
    queries = {**SMALL, "encoder_hidden_size": 32, "vocab_size": len(words)}
    image = words.convert_tokens_to_ids("<image>")
    return {"vision_config": VISION, "qformer_config": queries, "num_query_tokens": 4, "image_token_index": image}


KINDS = {
    one.__name__: one for one in (llava, qwen2_vl, idefics3, smolvlm, internvl, blip2, blip2_t5, instructblip)
}  # fmt: skip


def made(kind: str, folder: Path) -> Path:
    """`folder` with the model of that kind; a batch of one question and its picture is answered alike every time."""
    torch.manual_seed(0)
    words = tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    text = {**sizes, "num_key_value_heads": 2, "vocab_size": len(words), **ends}
    model, processor = KINDS[kind](words, text)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.15)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 2
    model.save_pretrained(folder)
    save(processor, folder)
    return folder


def save(processor: Any, folder: Path) -> None:
    if None not in (getattr(processor, name) for name in processor.get_attributes()):
        return processor.save_pretrained(folder)
    # The part for videos cannot be made without torchvision, so that the whole cannot be saved either.
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(processor.chat_template)
    counts = {
        name: getattr(processor, name) for name in ("image_seq_len", "image_seq_length") if hasattr(processor, name)
    }
    (folder / "processor_config.json").write_text(json.dumps(counts))
