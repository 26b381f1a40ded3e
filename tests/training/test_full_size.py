"""The recipes of LLaVA-1.5 at full size, on shapes: numbers of every part as published, and what fits on which card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.cli import main
from workbench.model.lora import used_layers
from workbench.model.outline import outline
from workbench.model.stages import prepare
from workbench.model.tokenizers import load_tokenizer
from workbench.recipe import Recipe
from workbench.training.cards import cards, full_pack
from workbench.training.memory import part_of
from workbench.training.room import MARGIN

TOKENIZER = Path(__file__).parents[1] / "model" / "llava" / "tokenizer.model"
CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768}  # fmt: skip
VICUNA = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
LANGUAGE = {"7b": 6_738_415_616, "13b": 13_015_864_320}
"""Numbers in Vicuna, before any token is added."""
TOWER = 303_507_456
"""Numbers in CLIP ViT-L/14 at 336 px; its last layer (12,596,224 of them) is computed for nothing."""
PROJECTOR = {"7b": 20_979_712, "13b": 31_467_520}
Made = Callable[[str], Recipe]


def lora(size: str, rank: int = 128) -> int:
    """Numbers in adapters on every linear of the language model: rank x (in + out) for each."""
    wide, inner, layers = (VICUNA[size][key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    return layers * rank * (4 * (wide + wide) + 3 * (wide + inner))


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`full_size(name)`: a shipped recipe with the published models' configurations in place of their names."""
    root = tmp_path_factory.mktemp("full")
    (root / "clip").mkdir()
    (root / "clip" / "config.json").write_text(json.dumps(CLIP))
    for size, shape in VICUNA.items():
        told = shape | {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096,
                        "rms_norm_eps": 1e-05, "tie_word_embeddings": False}  # fmt: skip
        (root / size).mkdir()
        (root / size / "config.json").write_text(json.dumps(told))
        shutil.copyfile(TOKENIZER, root / size / "tokenizer.model")
        words = load_tokenizer(TOKENIZER)
        words.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
        words.save_pretrained(root / f"llava-{size}")
        config = {"model_type": "llava", "text_config": told | {"vocab_size": 32064}, "vision_config": CLIP,
                  "image_token_index": len(words) - 1, "vision_feature_layer": -2}  # fmt: skip
        (root / f"llava-{size}" / "config.json").write_text(json.dumps(config))

    def made(name: str) -> Recipe:
        recipe, size = Recipe.load(name), "13b" if "13b" in name else "7b"
        if recipe.model.checkpoint:
            return recipe.with_overrides(f"model.checkpoint={root / f'llava-{size}'}", "model.device=cpu")
        parts = (f"model.vision={root / 'clip'}", f"model.language={root / size}", "model.device=cpu")
        return recipe.with_overrides(*parts, "train.pack_tokens=4096")

    return made


RECIPES = [f"llava-1.5-{size}-{way}" for size in VICUNA for way in ("align", "full", "lora", "qlora")]
RATES = {"align": {"projector": 1e-3}, "full": {"projector": 2e-5, "language full": 2e-5}}
ADAPTED = {"projector": 2e-5, "language lora": 2e-4}


@pytest.mark.parametrize("name", RECIPES)
def test_every_part_has_the_published_numbers(name: str, full_size: Made) -> None:
    recipe, size = full_size(name), "13b" if "13b" in name else "7b"
    plain = recipe.with_overrides("model.load=bf16")  # a quantised weight is bytes
    made = outline(plain.model, template=plain.template, image_mode=plain.image_mode)
    with made.shapes():
        groups = {group.name: group for group in prepare(made.llava, plain.train, say=lambda text: None)}
    counts: dict[str, int] = {}
    for key, parameter in made.llava.model.named_parameters():
        counts[part_of(key)] = counts.get(part_of(key), 0) + parameter.numel()
    rows = 64 * 2 * VICUNA[size]["hidden_size"] if recipe.model.checkpoint else 0  # of the converted checkpoint
    assert counts["language model"] == LANGUAGE[size] + rows
    assert (counts["vision tower"], counts["projector"]) == (TOWER, PROJECTOR[size])
    assert used_layers(made.llava) == 23  # of 24
    expected = {"projector": PROJECTOR[size]}
    if recipe.train.language != "frozen":
        full = recipe.train.language == "full"
        expected["language full" if full else "language lora"] = LANGUAGE[size] if full else lora(size)
    assert {key: group.count for key, group in groups.items()} == expected
    assert {key: group.lr for key, group in groups.items()} == RATES.get(name.rpartition("-")[2], ADAPTED)


def test_two_stages_of_the_paper_carry_llavas_own_numbers() -> None:
    for size in VICUNA:
        align, full = Recipe.load(f"llava-1.5-{size}-align"), Recipe.load(f"llava-1.5-{size}-full")
        assert (align.train.batch_size, align.template, align.image_mode) == (256, "plain", "crop")
        assert (full.train.batch_size, full.template, full.image_mode) == (128, "v1", "pad")
        for train in (align.train, full.train):
            usual = (train.weight_decay, train.warmup, train.schedule, train.max_tokens, train.clip, train.epochs)
            assert usual == (0.0, 0.03, "cosine", 2048, 1.0, 1.0)


def test_a_full_pack_is_full() -> None:
    for tokens in (2048, 4096, 8192):
        assert sum(tree.tokens for tree in full_pack(tokens, 576)) == tokens
    assert sum(tree.tokens for tree in full_pack(100, 576)) > 576  # one conversation is never cut


def test_without_any_data_a_card_is_enough_or_the_reason_is_said(
    full_size: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ("train.checkpointing=on", "train.pack_tokens=2048")  # the setting that takes least, and no other
    (tmp_path / "mine.yaml").write_text(full_size("llava-1.5-7b-qlora").with_overrides(*one).to_yaml())
    command = ["plan", str(tmp_path / "mine.yaml"), "--cards", "8", "16", "24", "40", "80", "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"]["language model"] == LANGUAGE["7b"] + 64 * 2 * 4096
    assert told["parameters"]["adapters"] == lora("7b")
    fits = {card: bool(held["training"]) for card, held in told["cards"].items()}
    assert fits == {"8": False, "16": True, "24": True, "40": True, "80": True}
    assert told["cards"]["24"]["training"]["pack_tokens"] == 2048
    assert told["cards"]["8"]["answering"] == {"bf16": False, "8bit": False, "4bit": True}
    assert told["cards"]["16"]["answering"] == {"bf16": False, "8bit": True, "4bit": True}
    assert told["cards"]["24"]["answering"] == {"bf16": True, "8bit": True, "4bit": True}
    assert 13.5e9 < told["answering_bytes"]["bf16"] < 16e9  # published: about 16 GB
    assert told["reason"].startswith("at least 1") and "language model 3.9" in told["reason"]


def test_of_several_settings_the_quickest_that_fits_is_taken(made_small: Recipe) -> None:
    whole = cards(made_small, (1000,))
    quick = whole.trials[1000]
    assert quick is not None and (quick.pack_tokens, quick.every) == (4096, 0)
    assert whole.least.memory.peak < quick.memory.peak and whole.least.pack_tokens == 2048
    between = (whole.least.memory.peak + quick.memory.peak) / 2e9 / MARGIN
    found = cards(made_small, (between, 0.001))
    chosen = found.trials[between]
    assert chosen is not None and whole.least.memory.peak <= chosen.memory.peak < quick.memory.peak
    assert found.trials[0.001] is None
    text = str(found)
    assert "(its last layer is not used)" in text and "no: at least " in text and "GB  yes: " in text


@pytest.fixture
def made_small(full_size: Made, tmp_path: Path) -> Recipe:
    """`llava-1.5-7b-lora` with a tower and a language model of two narrow layers."""
    recipe = full_size("llava-1.5-7b-lora")
    parts = []
    for part, source in (("vision", recipe.model.vision), ("language", recipe.model.language)):
        told = json.loads(Path(str(source), "config.json").read_text())
        told |= {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(told))
        parts.append(f"model.{part}={tmp_path / part}")
    shutil.copyfile(TOKENIZER, tmp_path / "language" / "tokenizer.model")
    return recipe.with_overrides(*parts, "train.pack_tokens=4096")
