"""The shipped starting parts: what they know, what they never met, and that they are loaded as any others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel, LlamaForCausalLM

from workbench.data.scene_text import caption
from workbench.data.scenes import NEVER_SEEN, draw_scene, sample_scene
from workbench.model.clip import Clip
from workbench.model.tiny import corpus, language, tower
from workbench.model.tiny.muon import orthogonal
from workbench.recipe_yaml import read_yaml
from workbench.resources import recipes_folder, tiny_folder


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny_folder() / "language")


def test_a_few_megabytes_of_fp16_and_no_pickles() -> None:
    weights = list(tiny_folder().rglob("*.safetensors"))
    assert {file.parent.name for file in weights} == {"vision", "language"}
    assert sum(file.stat().st_size for file in weights) < 10e6
    assert not [file for kind in ("*.bin", "*.pt", "*.pkl") for file in tiny_folder().rglob(kind)]


def test_any_class_name_can_be_written(tokenizer) -> None:
    for text in ("Schrödinger's 猫 🐈", "a\tb\n", "façade", "x" * 50):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_language_model_looks_things_up_in_text(tokenizer) -> None:
    """On scenes told in words that hold a pair it never met; from text alone, no projector."""
    model = LlamaForCausalLM.from_pretrained(tiny_folder() / "language", dtype=torch.float32)
    found = language.text_accuracy(model, language.Encoder(tokenizer), filler=12, count=40)
    assert np.mean(list(found.values())) > 0.88, found


def test_the_text_head_matches_pictures_with_their_captions() -> None:
    rng = np.random.default_rng(77)
    scenes = [sample_scene(rng) for _ in range(24)]
    clip = Clip("tiny", device="cpu")
    pictures = clip.embed_images([draw_scene(scene, rng) for scene in scenes])
    scores = pictures @ clip.embed_texts([caption(scene) for scene in scenes]).T
    assert (scores.argmax(1) == np.arange(24)).mean() > 0.8


def test_the_corpus_never_holds_the_pairs_that_are_kept_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        doc = corpus.document(rng, filler=2, recall=0.2)
        stated = " ".join((*doc.context, *(text for turn in doc.turns for text in turn)))
        for shape, color in NEVER_SEEN:
            assert f"{color} {shape}" not in stated


def test_a_pooled_phrase_is_the_mean_of_its_words(tokenizer) -> None:
    encoder = language.Encoder(tokenizer)
    model = LlamaForCausalLM.from_pretrained(tiny_folder() / "language", dtype=torch.float32)
    doc = corpus.Document("", ("small red star top left",), True, (("What color is the star?", "red"),))
    batch = encoder.batch([encoder.encode(doc)])
    embedded = language.embed(model, batch, noise=0.0, generator=None)
    place = int(batch.pooled[1][0])
    words = tokenizer.encode(" small red star top left", add_special_tokens=False)
    mean = model.get_input_embeddings().weight[words].mean(0)
    assert len(words) == 5 and torch.allclose(embedded[0, place], mean, atol=1e-6)


def test_muon_steps_are_orthogonal() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(2, 60, 24)))
    assert values.min() > 0.6 and values.max() < 1.3


def test_the_recipe_of_the_parts_names_what_the_builders_need(tmp_path) -> None:
    """Both builders run from the shipped recipe, cut to a few steps, and write folders that load."""
    recipe = read_yaml(recipes_folder() / "tiny-parts.yaml")
    parts = tokenizer_of(recipe)
    few = {"precision": "fp32", "compile": False, "steps": 2}
    vision = recipe["vision"] | few | {"pictures": 8, "batch": 4}
    tower.build_tower(parts, vision, tmp_path / "vision", tmp_path / "vision.jsonl")
    spoken = recipe["language"] | few | {"batch": 2}
    language.build_language(parts, spoken, tmp_path / "language", tmp_path / "language.jsonl")
    assert CLIPModel.from_pretrained(tmp_path / "vision").config.vision_config.hidden_size == recipe["vision"]["width"]
    assert LlamaForCausalLM.from_pretrained(tmp_path / "language").config.hidden_size == recipe["language"]["width"]
    assert [json.loads(line) for line in (tmp_path / "language.jsonl").read_text().splitlines()]


def tokenizer_of(recipe):
    return language.build_tokenizer(**recipe["tokenizer"], documents=200)
