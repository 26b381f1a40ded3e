"""Every LLaVA there is a recipe or a guide for, small: two stages, killed and resumed, merged, elsewhere, served.

Each is of its own language model, tokenizer, template, projector and way of seeing; after every step it says, to the
logit, what it said before. LLaVA-NeXT-Video and LLaVA-OneVision have files of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.model.conftest import _byte_pairs
from tests.serving.requests_made import uri
from tests.training.tiled import SIZES, assert_goes_on, draw
from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image, to_chat
from workbench.data.images import load_image
from workbench.inference.engine import Engine
from workbench.model.export import export_hf
from workbench.model.llava import build, load
from workbench.model.proof import probe
from workbench.model.tokenizers import load_tokenizer
from workbench.serving.run import Server
from workbench.training.trainer import train

pytestmark = pytest.mark.usefixtures("own_state")
Made = Callable[..., Any]
SENTENCEPIECE = Path(__file__).parents[1] / "model" / "llava" / "tokenizer.model"
GROUPED = {"num_key_value_heads": 1}
MOST = ("train.max_tokens=1500", "train.pack_tokens=1500")


def sentencepiece() -> Any:
    return load_tokenizer(SENTENCEPIECE)


LANGUAGES: dict[str, tuple[Any, Any, dict[str, Any], Callable[[], Any]]] = {
    "vicuna": (LlamaConfig, LlamaForCausalLM, {}, sentencepiece),
    "mistral": (MistralConfig, MistralForCausalLM, GROUPED | {"sliding_window": None}, sentencepiece),
    "yi": (LlamaConfig, LlamaForCausalLM, GROUPED, lambda: _byte_pairs("<s>", "<|im_end|>", "<|im_start|>")),
    "llama_3": (
        LlamaConfig, LlamaForCausalLM, GROUPED | {"rope_theta": 500000.0},
        lambda: _byte_pairs("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    ),
    "qwen": (
        Qwen2Config, Qwen2ForCausalLM, GROUPED | {"tie_word_embeddings": True},
        lambda: _byte_pairs(None, "<|im_end|>", "<|im_start|>", pad_token="<|endoftext|>"),
    ),
}  # fmt: skip
"""Configuration, class and tokenizer of the language models that LLaVAs are published with, each small."""
WAYS = {
    "LLaVA v1": ("vicuna", "model.projector=linear", "template=v1", "image_mode=crop"),
    "LLaVA 1.5": ("vicuna", "template=v1", "image_mode=pad"),
    "LLaVA 1.6 Vicuna": ("vicuna", "template=v1", "image_mode=anyres"),
    "LLaVA 1.6 Mistral": ("mistral", "template=mistral", "image_mode=anyres"),
    "LLaVA 1.6 Yi": ("yi", "template=chatml", "image_mode=anyres"),
    "LLaVA 1.6 Llama 3": ("llama_3", "template=llama_3", "image_mode=anyres"),
    "LLaVA 1.6 Qwen": ("qwen", "template=qwen", "image_mode=anyres"),
}
"""Published model -> its language model, and what else of a recipe makes a small one of it."""


@pytest.fixture(scope="session")
def languages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("languages")
    torch.manual_seed(0)
    for name, (config, kind, more, words) in LANGUAGES.items():
        tokenizer = words()
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
        shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = kind(config(**shape, **ends, **more, vocab_size=len(tokenizer), max_position_embeddings=2048))
        for parameter in model.parameters():  # larger than the usual start, so that every path shows in the logits
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in LANGUAGES}


def says(one: Any, other: Any, *, within: float) -> None:
    """Both read the probe as the same tokens and give its logits."""
    (ids, logits), (again, others) = probe(one), probe(other)
    assert ids == again
    torch.testing.assert_close(others, logits, rtol=within, atol=within)


@pytest.mark.parametrize("name", WAYS)
def test_two_stages_resume_merge_vanilla_transformers_and_a_server_say_the_same(
    name: str, languages: dict[str, Path], make_dataset: Made, make_recipe: Made, start: Made, tmp_path: Path
) -> None:
    dataset = make_dataset(images=len(SIZES))
    draw(dataset)
    words, *more = WAYS[name]
    usual = (f"model.language={languages[words]}", *MOST, *more)

    align = make_recipe(dataset, *usual, "train.stage=align", "train.language=frozen", "train.lr=5e-3")
    first = load(train(align, out=tmp_path / "align", progress=False).path, device="cpu")
    ways = (f"model.projector_from={tmp_path / 'align'}", "train.max_steps=6", "train.save_every=2")
    recipe = make_recipe(dataset, *usual, *ways, "train.lr=1e-2")
    says(first, build(recipe.model, template=recipe.template, image_mode=recipe.image_mode), within=0)
    whole, broken = assert_goes_on(tmp_path, recipe, start)
    tuned = load(whole, device="cpu")
    says(tuned, load(broken, device="cpu"), within=0)
    assert not torch.allclose(probe(tuned)[1], probe(first)[1], atol=1e-2), "it has learned something"

    folder = export_hf(whole, tmp_path / "out", device="cpu")
    merged = load(folder, device="cpu")
    says(tuned, merged, within=1e-4)
    place = dataset.path / "images" / "1.png"
    asked = Conversation("asked", ()).add("user", Image(str(place), root=""), "Which colour?")
    with Engine(merged, name="mine") as engine:
        answer = engine.reply(asked, SamplingOptions(max_tokens=8, logprobs=0))
        text = answer.text
    assert [token.id for token in answer.logprobs] == vanilla(folder, merged, asked, place)
    with Engine(tuned, name="mine") as engine, Server(engine, port=0) as server:
        client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
        shown = {"type": "image_url", "image_url": {"url": uri(place.read_bytes(), "image/png")}}
        told: Any = [{"role": "user", "content": [shown, {"type": "text", "text": "Which colour?"}]}]
        served = client.chat.completions.create(model="mine", messages=told, max_tokens=8).choices[0].message.content
    assert served == text


@torch.no_grad()
def vanilla(folder: Path, ours: Any, asked: Conversation, place: Path) -> list[int]:
    """Tokens that transformers alone answers with from the folder, whose logits of the prompt are those of `ours`."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    picture = load_image(place)
    text = processor.apply_chat_template(to_chat(asked), add_generation_prompt=True)
    inputs = processor(text=text, images=picture, return_tensors="pt")
    rows = ours.look([ours.show(picture)])
    ids, _ = ours.renderer.expand(ours.renderer.prompt(asked), [len(rows[0])], ours.image_token_id)
    assert inputs["input_ids"][0].tolist() == ids
    expected = ours.model(input_ids=torch.tensor([ids]), mm_encoder_outputs=ours.image_inputs(rows)).logits
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    written: list[int] = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    return written
