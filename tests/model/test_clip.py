"""The shipped CLIP through transformers' own classes, as any other CLIP."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL.Image import Image
from transformers import CLIPModel, CLIPProcessor

from workbench.data.scene_text import caption
from workbench.data.scenes import draw_scene, sample_scene
from workbench.model.tiny.tower import save_tower
from workbench.model.tokenizers import load_tokenizer
from workbench.resources import tiny_folder


@pytest.fixture(scope="module")
def told() -> tuple[list[Image], list[str]]:
    """24 scenes and their captions."""
    rng = np.random.default_rng(77)
    scenes = [sample_scene(rng) for _ in range(24)]
    return [draw_scene(scene, rng) for scene in scenes], [caption(scene) for scene in scenes]


def test_vanilla_transformers_finds_the_captions_of_pictures(told) -> None:
    """Without BOS and EOS from the tokenizer it found 1 of 24."""
    folder, (pictures, captions) = tiny_folder() / "vision", told
    model, processor = CLIPModel.from_pretrained(folder, dtype=torch.float32), CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=captions, images=pictures, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits_per_image
    for axis in (0, 1):
        assert (scores.argmax(axis) == torch.arange(24)).float().mean() > 0.8


def test_the_text_head_has_the_language_models_tokens_and_adds_bos_and_eos(tmp_path) -> None:
    """Only what is added around a text differs, in the shipped folder and in one made again."""
    vision, language = (
        json.loads((tiny_folder() / part / "tokenizer.json").read_text()) for part in ("vision", "language")
    )
    tokenizer = load_tokenizer("tiny")
    save_tower(CLIPModel.from_pretrained(tiny_folder() / "vision"), tokenizer, tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == vision
    assert vision.pop("post_processor") != language.pop("post_processor")
    assert vision == language
    plain = tokenizer("a cat")["input_ids"]
    assert load_tokenizer(tmp_path)("a cat")["input_ids"] == [1, *plain, 3], "the language model's adds nothing"
