"""A CLIP through our own class, and the shipped one through transformers' own classes, as any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL.Image import Image
from transformers import CLIPModel, CLIPProcessor

from workbench.data.scene_text import caption
from workbench.data.scenes import draw_scene, sample_scene
from workbench.errors import ModelError
from workbench.model.clip import Clip
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


def test_vectors_are_those_of_vanilla_transformers(told) -> None:
    pictures, captions = told
    folder, clip = tiny_folder() / "vision", Clip("tiny", device="cpu")
    model, processor = CLIPModel.from_pretrained(folder, dtype=torch.float32), CLIPProcessor.from_pretrained(folder)
    wide = [picture.resize((150, 70)) for picture in pictures]
    with torch.no_grad():
        vanilla = model(**processor(text=captions, images=wide, padding=True, return_tensors="pt"))
    np.testing.assert_allclose(clip.embed_images(wide), vanilla.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(clip.embed_texts(captions), vanilla.text_embeds.numpy(), atol=1e-5)


def test_vectors_do_not_depend_on_the_batch(told) -> None:
    pictures, captions = told
    clip = Clip("tiny", device="cpu")
    for embed, items in ((clip.embed_images, pictures), (clip.embed_texts, captions)):
        many = embed(items * 4)
        assert many.shape == (96, 160) and many.dtype == np.float32 and embed([]).shape == (0, 160)
        np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(many[72:], np.concatenate([embed([item]) for item in items]), atol=1e-5)


def test_of_a_long_text_the_beginning_is_read() -> None:
    clip = Clip("tiny", device="cpu")
    beginning = "a small red star" + " and a blue ring" * 60
    one, other = clip.embed_texts([beginning, beginning + " and a heart"])
    assert (one == other).all() and not np.allclose(one, clip.embed_texts(["a small red star"])[0])


def test_another_model_has_another_name(tmp_path: Path) -> None:
    folder = _copy(tmp_path / "one of mine")
    first = Clip(folder).name
    assert first.startswith("clip-one-of-mine-") and first[-16:] == Clip("tiny").name[-16:]
    assert Clip(folder).name == first
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.5, 0.5, 0.5]}))
    second = Clip(folder).name
    model = CLIPModel.from_pretrained(folder)
    model.logit_scale.data += 1
    model.save_pretrained(folder)
    assert len({first, second, Clip(folder).name}) == 3


def test_what_is_no_clip_with_a_text_half_is_refused(parts, tmp_path: Path) -> None:
    for name, kind in (("clip", "clip_vision_model"), ("siglip_whole", "siglip"), ("llama", "llama")):
        with pytest.raises(ModelError, match=f"found a {kind} model; expected a CLIP with its text half"):
            Clip(parts[name])
    with pytest.raises(ModelError, match="no such folder"):
        Clip(tmp_path / "nowhere")


def test_a_tokenizer_that_does_not_fit_is_refused(parts, tmp_path: Path) -> None:
    without = _copy(tmp_path / "without")
    shutil.copy(tiny_folder() / "language" / "tokenizer.json", without)
    with pytest.raises(ModelError, match="found a tokenizer that adds no EOS; expected one that does"):
        Clip(without)
    shutil.copytree(parts["clip_whole"], tmp_path / "larger")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder() / "vision" / file, tmp_path / "larger")
    with pytest.raises(ModelError, match="found a tokenizer of 781 tokens; expected at most 20"):
        Clip(tmp_path / "larger")
    settings = json.loads((without / "tokenizer_config.json").read_text())
    (without / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    with pytest.raises(ModelError, match="without a padding token"):
        Clip(without)


def _copy(folder: Path) -> Path:
    """The shipped CLIP in a folder that may be changed."""
    return Path(shutil.copytree(tiny_folder() / "vision", folder))
