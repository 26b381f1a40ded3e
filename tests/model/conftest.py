"""Random parts small enough to build in a second: a CLIP tower of 4 x 4 patches and a Llama of two layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders: `clip` (tower), `clip_whole` (tower and text half), `siglip_whole`, `llama`, `qwen2` (no <image>)."""
    import torch
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        SiglipConfig,
        SiglipModel,
        SiglipVisionConfig,
    )

    torch.set_num_threads(1)
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("parts")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    picture = small | {"image_size": 48, "patch_size": 12, "num_hidden_layers": 3}
    words = small | {"num_hidden_layers": 1, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1}
    clip, siglip = CLIPVisionConfig(**picture), SiglipVisionConfig(**picture)
    models: dict[str, Any] = {
        "clip": CLIPVisionModel(clip),
        "clip_whole": CLIPModel(CLIPConfig(vision_config=clip.to_dict(), text_config=words)),
        "siglip_whole": SiglipModel(SiglipConfig(vision_config=siglip.to_dict(), text_config=words)),
    }
    speech = small | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    for name, config, kind, image in (
        ("llama", LlamaConfig, LlamaForCausalLM, True),
        ("qwen2", Qwen2Config, Qwen2ForCausalLM, False),
    ):
        tokenizer = byte_tokenizer(image=image)
        tokenizer.save_pretrained(root / name)
        ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
        models[name] = kind(config(vocab_size=len(tokenizer), tie_word_embeddings=name == "qwen2", **ends, **speech))
    for name, model in models.items():
        for parameter in model.parameters():  # larger than the usual start, so that every path shows in the logits
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(root / name)
    return {path.name: path for path in root.iterdir()}


def byte_tokenizer(*, image: bool) -> Any:
    """A byte-level tokenizer without merges, BOS added: with `<image>`, or with ChatML's tokens instead."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    extra = ["<image>"] if image else ["<|im_start|>", "<|im_end|>"]
    special = ["<s>", "</s>", "<pad>", "<unk>", *extra]
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={name: id for id, name in enumerate(names)}, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=extra,
    )


@pytest.fixture
def make(parts: dict[str, Path]) -> Callable[..., Any]:
    """`make(load="4bit", ...)`: a small LLaVA; keywords go to `ModelSpec`, but `template`, `seed`, `image_mode`."""
    from workbench.model.llava import build
    from workbench.recipe import ModelSpec

    def made(
        vision: str = "clip",
        language: str = "llama",
        template: str = "v1",
        seed: int = 0,
        image_mode: str = "square",
        **fields: Any,
    ) -> Any:
        spec = ModelSpec(vision=str(parts[vision]), language=str(parts[language]), device="cpu", **fields)
        return build(spec, template=template, image_mode=image_mode, seed=seed)

    return made


@pytest.fixture
def finetune() -> Callable[..., Any]:
    """`finetune(vision="full", r=4, ...)`: a training recipe for a QLoRA stage, changed as told."""
    from workbench.recipe import LoraSpec, TrainSpec

    def made(r: int = 4, **fields: Any) -> Any:
        usual = {"stage": "finetune", "language": "lora", "lr": 1e-3, "lora": LoraSpec(r=r, alpha=2.0 * r)}
        return TrainSpec(**(usual | fields))

    return made


@pytest.fixture
def train_a_little() -> Callable[..., None]:
    """Move every trainable weight a little, so that saved and fresh weights differ."""

    def train(llava: Any, scale: float = 0.05) -> None:
        import torch

        generator = torch.Generator().manual_seed(7)
        for parameter in llava.model.parameters():
            if parameter.requires_grad:
                parameter.data += scale * torch.randn(parameter.shape, generator=generator)

    return train


# --- tokenizers -------------------------------------------------------------------------------------------------

WORDS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers to "
    "the user's questions. USER: What colour is the small cat? ASSISTANT: Black. [INST] Is there a dog? [/INST] No, "
    "there is not.\nDescribe the image in detail: 42 3.5 naïve — 日本語 🙂 (x) <b>tag</b>\n\nYes.\n"
)


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with tokenizers of five kinds, each with `<image>`.

    `sentencepiece`, `sentencepiece_new` (not legacy) and `unigram`, as Llama has them; `gpt`, a byte-level one with
    BOS; and `chatml`, one as Qwen has it, without.
    """
    import json
    import logging
    import shutil

    import sentencepiece

    from workbench.model.tokenizers import load_tokenizer

    logging.disable(logging.WARNING)
    root = tmp_path_factory.mktemp("tokenizers")
    (root / "words.txt").write_text(WORDS * 20, encoding="utf-8")
    folders = {}
    for name, kind in (("sentencepiece", "bpe"), ("unigram", "unigram")):
        (root / f"bare_{name}").mkdir()
        sentencepiece.SentencePieceTrainer.train(
            input=str(root / "words.txt"), model_prefix=str(root / f"bare_{name}" / "tokenizer"), model_type=kind,
            vocab_size=400, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True, minloglevel=2, hard_vocab_limit=False, num_threads=1,
        )  # fmt: skip
    shutil.copytree(root / "bare_sentencepiece", root / "bare_sentencepiece_new")
    (root / "bare_sentencepiece_new" / "tokenizer_config.json").write_text(json.dumps({"legacy": False}))
    made = {name: load_tokenizer(root / f"bare_{name}") for name in ("sentencepiece", "sentencepiece_new", "unigram")}
    made |= {"gpt": _byte_pairs(bos=True), "chatml": _byte_pairs(bos=False)}
    for name, tokenizer in made.items():
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
        tokenizer.save_pretrained(root / name)
        folders[name] = root / name
    return folders


def _byte_pairs(*, bos: bool) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    pattern = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    special = ["<s>", "</s>"] if bos else ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([WORDS, "\n\n\n\n"] * 5, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
