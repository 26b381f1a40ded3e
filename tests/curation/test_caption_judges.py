"""A language model and a BLIP as judges; the BLIP is a real one of the smallest size, with random weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from transformers import BertTokenizerFast, BlipConfig, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from workbench.curation.caption_judges import Matching, Perplexity
from workbench.curation.filters import curate
from workbench.curation.measure_filters import matching
from workbench.data.dataset import Dataset
from workbench.errors import ModelError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "star", "square"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 12}
    text |= {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    vision = {**small, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=8, projection_dim=8)
    model = BlipForImageTextRetrieval(config)
    torch.nn.init.normal_(model.itm_head.weight, std=2.0)  # so that different pictures give different answers
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_text_of_its_own_kind_surprises_a_language_model_less() -> None:
    judge = Perplexity("tiny", device="cpu")
    said, jumbled = judge(["there is a red circle in the picture", "picture circle a the in red is there"])
    assert 1 < said < jumbled / 2
    texts = ["a red star", "there is a large blue heart on the left", "x"] * 20
    together = list(judge(texts))
    alone = [next(judge([text])) for text in texts[:3]]
    assert together == pytest.approx(alone * 20, rel=1e-4), "what stands beside a text does not count"
    assert all(map(math.isfinite, together)) and judge.name.startswith("perplexity-tiny-")


def test_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    from transformers import AutoModelForCausalLM

    from workbench.model.tokenizers import load_tokenizer
    from workbench.resources import tiny_folder

    text = "there is a red circle"
    tokenizer = load_tokenizer("tiny")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder() / "language", dtype=torch.float32)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        wanted = model(input_ids=ids, labels=ids).loss.exp().item()
    assert next(Perplexity("tiny", device="cpu")([text])) == pytest.approx(wanted, rel=1e-4)


def test_a_blip_gives_a_probability_for_each_pair(blip: Path) -> None:
    judge = Matching(blip, device="cpu")
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(3)]
    texts = ["a red star", "a blue square a blue square a blue square a blue square", "star"]
    found = judge(pictures, texts)
    assert len(found) == 3 and all(0 < value < 1 for value in found) and len(set(found)) == 3
    alone = [judge([picture], [text])[0] for picture, text in zip(pictures, texts, strict=True)]
    assert found == pytest.approx(alone, abs=1e-5)


def test_another_kind_of_model_is_refused() -> None:
    from workbench.resources import tiny_folder

    with pytest.raises(ModelError, match="found a clip.* model; expected a BLIP for image-text retrieval"):
        Matching(tiny_folder() / "vision")


def test_the_funnel_asks_the_blip_once_for_each_pair(shapes: Dataset, blip: Path) -> None:
    funnel = curate(shapes, [matching(1.0, None, model=str(blip))])
    assert funnel.removed.height == 6 and funnel.removed["reason"][0].endswith(", less than 1.0: a red star")
    (folder,) = (shapes.path / "measures").iterdir()
    assert folder.name.startswith("matching-")
    for path in (shapes.path / "images").iterdir():
        path.unlink()
    again = funnel.removed.select("id", status=pl.lit("ok"))
    shapes.update_images(again, operation={"name": "test"})
    assert curate(shapes, [matching(1.0, None, model=str(blip))]).removed.equals(funnel.removed)
