"""The recipes of LLaVA-1.5, 1.6 and NeXT-Video at full size, on shapes: published numbers of parts, what fits."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from workbench.cli import main
from workbench.model.anyres import AnyRes
from workbench.model.llava import Llava
from workbench.model.lora import used_layers
from workbench.model.outline import outline
from workbench.model.tiling import OneTile
from workbench.model.tokenizers import load_tokenizer
from workbench.recipe import Recipe, find_recipe
from workbench.training.attention import check_places
from workbench.training.cards import SIZES, answer_memory, as_on_a_card, cards, reason_for, try_out
from workbench.training.flops import step_cost
from workbench.training.memory import Foresight, part_of
from workbench.training.room import MARGIN
from workbench.training.sharded_memory import in_shards
from workbench.training.usual import context, full_pack

TOKENIZER = Path(__file__).parents[1] / "model" / "llava" / "tokenizer.model"
CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768}  # fmt: skip
SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "mistral-7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                   "num_key_value_heads": 8, "model_type": "mistral", "sliding_window": None},
    "34b": {"hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60, "num_attention_heads": 56,
            "num_key_value_heads": 8, "vocab_size": 64000},
}  # fmt: skip
"""Vicuna, Mistral 7B Instruct and Nous-Hermes-2-Yi-34B, as published."""
LANGUAGE = {"7b": 6_738_415_616, "13b": 13_015_864_320, "mistral-7b": 7_241_732_096, "34b": 34_388_917_248}
"""Numbers in each, before any token is added."""
TOWER = 303_507_456
"""Numbers in CLIP ViT-L/14 at 336 px; its last layer (12,596,224 of them) is computed for nothing."""
PROJECTOR = {"7b": 20_979_712, "13b": 31_467_520, "mistral-7b": 20_979_712, "34b": 58_734_592}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
Made = Callable[[str], Recipe]
Foreseen = Callable[[str], tuple[Recipe, Foresight]]


def lora(size: str, rank: int = 128) -> int:
    """Numbers in adapters on every linear of the language model: rank x (in + out) for each."""
    shape: dict[str, Any] = SHAPES[size]
    wide, inner, heads = (shape[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    keys = wide * shape.get("num_key_value_heads", heads) // heads
    each = 2 * (wide + wide) + 2 * (wide + keys) + 3 * (wide + inner)
    return int(shape["num_hidden_layers"]) * rank * each


def size_of(name: str) -> str:
    """The language model of a recipe."""
    return next(size for size in reversed(SHAPES) if size in name)


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`full_size(name)`: a shipped recipe with the published models' configurations in place of their names."""
    root = tmp_path_factory.mktemp("full")
    (root / "clip").mkdir()
    (root / "clip" / "config.json").write_text(json.dumps(CLIP))
    for size, shape in SHAPES.items():
        told = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
                "tie_word_embeddings": False} | shape  # fmt: skip
        words = load_tokenizer(TOKENIZER)
        words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"] * (size == "34b")})
        words.save_pretrained(root / size)
        words.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
        (root / size / "config.json").write_text(json.dumps(told))
        rows = int(told["vocab_size"]) + 64
        config = {"text_config": told | {"vocab_size": rows}, "vision_config": CLIP, "vision_feature_layer": -2,
                  "image_token_index": len(words) - 1}  # fmt: skip
        tiled = {"image_grid_pinpoints": PINPOINTS}
        more = {"llava": {}, "llava_next": tiled, "llava_next_video": tiled | {"video_token_index": len(words)}}
        for kind, grids in more.items():
            if kind == "llava_next_video":
                more_words = {"additional_special_tokens": ["<video>"]}
                words.add_special_tokens(more_words, replace_extra_special_tokens=False)
            words.save_pretrained(root / f"{kind}-{size}")
            held = config | {"model_type": kind} | grids
            (root / f"{kind}-{size}" / "config.json").write_text(json.dumps(held))

    def made(name: str) -> Recipe:
        recipe, size = Recipe.load(name), size_of(name)
        if recipe.model.checkpoint:
            kind = "llava_next" if "v1.6" in name else "llava_next_video" if name in VIDEO else "llava"
            return recipe.with_overrides(f"model.checkpoint={root / f'{kind}-{size}'}", "model.device=cpu")
        parts = (f"model.vision={root / 'clip'}", f"model.language={root / size}", "model.device=cpu")
        return recipe.with_overrides(*parts, "train.pack_tokens=4096")

    return made


@pytest.fixture(scope="session")
def foreseen(full_size: Made) -> Foreseen:
    """`foreseen(name)`: a recipe, and its training on shapes; made once."""

    @cache
    def made(name: str) -> tuple[Recipe, Foresight]:
        recipe = as_on_a_card(full_size(name))
        held = outline(recipe.model, template=recipe.template, image_mode=recipe.image_mode)
        return recipe, Foresight(held, recipe.train, card=True)

    return made


RECIPES = [f"llava-1.5-{size}-{way}" for size in ("7b", "13b") for way in ("align", "full", "lora", "qlora")]
RECIPES += ["llava-34b-lora-8gpu"]
NEXT = [f"llava-v1.6-{name}" for name in ("vicuna-7b-lora", "vicuna-13b-lora", "mistral-7b-lora", "34b-qlora")]
VIDEO = ["llava-next-video-7b-lora"]
RATES = {"align": {"projector": 1e-3}, "full": {"projector": 2e-5, "language full": 2e-5}}
ADAPTED = {"projector": 2e-5, "language lora": 2e-4}


@pytest.mark.parametrize("name", [*RECIPES, *NEXT, *VIDEO])
def test_every_part_has_the_published_numbers(name: str, full_size: Made, foreseen: Foreseen) -> None:
    recipe, size = full_size(name), size_of(name)
    if recipe.model.load == "4bit":  # a quantised weight is bytes
        recipe = recipe.with_overrides("model.load=bf16")
        held = outline(recipe.model, template=recipe.template, image_mode=recipe.image_mode)
        foresight = Foresight(held, recipe.train, card=True)
    else:
        foresight = foreseen(name)[1]
    groups, llava = {group.name: group for group in foresight.groups}, foresight.llava
    check_places(llava, recipe.train.max_tokens)
    counts: dict[str, int] = {}
    for key, parameter in llava.model.named_parameters():
        counts[part_of(key)] = counts.get(part_of(key), 0) + parameter.numel()
    width = int(str(SHAPES[size]["hidden_size"]))
    rows = 64 * 2 * width if recipe.model.checkpoint else 0  # of the converted checkpoint
    projector = PROJECTOR[size] + (width if name in NEXT + VIDEO else 0)  # and a newline
    assert counts["language model"] == LANGUAGE[size] + rows
    assert (counts["vision tower"], counts["projector"]) == (TOWER, projector)
    assert used_layers(llava) == 23  # of 24
    expected = {"projector": projector}
    if recipe.train.language != "frozen":
        full = recipe.train.language == "full"
        expected["language full" if full else "language lora"] = LANGUAGE[size] if full else lora(size)
    assert {key: group.count for key, group in groups.items()} == expected
    rates = RATES.get(name.rpartition("-")[2], ADAPTED)
    assert {key: group.lr for key, group in groups.items()} == rates | (
        {"language lora": 1e-4} if size == "34b" else {}
    )


def test_a_video_of_the_recipe_leaves_room_for_text(foreseen: Foreseen) -> None:
    recipe, foresight = foreseen("llava-next-video-7b-lora")
    tiling = foresight.llava.tiling
    assert (tiling.frames, tiling.tokens((-16, 0)), tiling.tiles((-16, 0))) == (16, 2304, 4)
    assert tiling.longest == 2928 and (tiling.most, tiling.most_squares) == (5, 16)
    assert recipe.train.max_tokens - tiling.tokens((-16, 0)) == 1792


def test_two_stages_of_the_paper_carry_llavas_own_numbers() -> None:
    for size in ("7b", "13b"):
        align, full = Recipe.load(f"llava-1.5-{size}-align"), Recipe.load(f"llava-1.5-{size}-full")
        assert (align.train.batch_size, align.template, align.image_mode) == (256, "plain", "crop")
        assert (full.train.batch_size, full.template, full.image_mode) == (128, "v1", "pad")
        for train in (align.train, full.train):
            usual = (train.weight_decay, train.warmup, train.schedule, train.max_tokens, train.clip, train.epochs)
            assert usual == (0.0, 0.03, "cosine", 2048, 1.0, 1.0)


def test_a_full_pack_is_full() -> None:
    one, tiles = OneTile(576), AnyRes(336, 24, tuple((high, wide) for high, wide in PINPOINTS))
    for tokens in (2048, 4096, 8192):
        assert sum(tree.tokens for tree in full_pack(tokens, one)) == tokens
    assert sum(tree.tokens for tree in full_pack(100, one)) > 576  # one conversation is never cut
    for tokens, count in ((4096, 1), (8192, 2)):
        pack = full_pack(tokens, tiles)
        assert sum(tree.tokens for tree in pack) == tokens and len(pack) == count
        assert [(tree.image_tokens, tree.tiles) for tree in pack] == [(2928, 5)] * count, "the largest picture's"


LEAST: dict[str, tuple[int | None, int | None, int | None, str]] = {
    "llava-1.5-7b-align": (24, 24, 24, "at least 15.4 GB (language model 13.5, "),
    "llava-1.5-7b-full": (None, None, 40, "at least 123.3 GB (optimiser 54.1, "),
    "llava-1.5-7b-lora": (24, 24, 24, "at least 20.6 GB (language model 13.5, "),
    "llava-1.5-7b-qlora": (16, 16, 16, "at least 11.4 GB (language model 3.9, "),
    "llava-1.5-13b-align": (40, 40, 40, "at least 28.6 GB (language model 26.0, "),
    "llava-1.5-13b-full": (None, None, 80, "at least 237.1 GB (optimiser 104.4, "),
    "llava-1.5-13b-lora": (40, 40, 40, "at least 36.7 GB (language model 26.0, "),
    "llava-1.5-13b-qlora": (24, 24, 24, "at least 18.6 GB (language model 7.2, "),
    "llava-v1.6-vicuna-7b-lora": (24, 24, 24, "at least 21.6 GB (language model 13.5, "),
    "llava-v1.6-vicuna-13b-lora": (80, 80, 80, "at least 38.1 GB (language model 26.0, "),
    "llava-v1.6-mistral-7b-lora": (40, 40, 40, "at least 23.1 GB (language model 14.5, "),
    "llava-next-video-7b-lora": (24, 24, 24, "at least 21.6 GB (language model 13.5, "),
    "llava-34b-lora-8gpu": (None, 80, 24, " GB (language model 68.8, "),
    "llava-v1.6-34b-qlora": (80, 80, 80, "at least 43.0 GB (language model 19.1, "),
}
"""Recipe -> the smallest card of 16, 24, 40 and 80 GB on which it trains: alone, on each of 2, of 8; the reason."""


@pytest.mark.parametrize("name", LEAST)
def test_each_recipe_fits_on_these_cards_or_the_reason_is_said(name: str, foreseen: Foreseen) -> None:
    recipe, foresight = foreseen(name)
    least = try_out(foresight, recipe, recipe.train.max_tokens, 1)  # the setting that takes least
    assert not least.memory.items["kernels"], "a card keeps none of a CPU's"
    ways = [least.memory]
    for processes in (2, 8):
        ways.append(in_shards(least.memory, foresight.llava, processes) if recipe.train.shard else least.memory)
    found = [next((size for size in SIZES if memory.peak <= MARGIN * size * 1e9), None) for memory in ways]
    assert tuple(found) == LEAST[name][:3] and LEAST[name][3] in reason_for(least.memory)
    header = find_recipe(name).read_text(encoding="utf-8").partition("\n\n")[0]
    assert "--processes 8" in header, "how it runs on several cards"
    assert found[0] is None or f"ne card of {found[0]} GB is enough" in header


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


@pytest.mark.parametrize(("load", "size"), [("bf16", 28.6), ("8bit", 16.0), ("4bit", 9.9)])
def test_the_13b_answers_in_what_is_published(load: str, size: float, full_size: Made) -> None:
    """LLaVA says about 28 GB in 16 bits; `docs/hardware.md` has these numbers."""
    assert answer_memory(full_size("llava-1.5-13b-qlora"), load) / 1e9 == pytest.approx(size, abs=0.06)


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


def test_an_answer_about_tiles_is_counted_with_all_of_them(made_small: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    arrange = Llava.arrange

    def watched(llava: Llava, projected: Any, places: Any) -> Any:
        rows = arrange(llava, projected, places)
        seen.append((len(projected), rows.shape[1]))
        return rows

    monkeypatch.setattr(Llava, "arrange", watched)
    tiled = made_small.with_overrides("image_mode=anyres", "train.max_tokens=4096")
    assert answer_memory(tiled, "bf16") > answer_memory(made_small, "bf16")
    assert seen == [(5, 2928), (1, 576)], "tiles and tokens of the largest picture"
    said = "memory is that of pictures of 5 tiles (2,928 tokens), the largest there are"
    assert said in str(cards(tiled, (1000,))) and "pictures of" not in str(cards(made_small, (1000,)))
    tiling = AnyRes(336, 24, tuple((high, wide) for high, wide in PINPOINTS))
    assert (context(OneTile(576), 2048), context(tiling, 2048)) == (2048, 4096)


def test_hours_are_counted_operations_at_the_rate_that_is_assumed(
    made_small: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other count, `flops.py`, goes by formulas, not by what is run. Attention computes masked pairs too."""
    recipe = made_small.with_overrides("train.checkpointing=off", "train.pack_tokens=2048")
    held = outline(recipe.model, template=recipe.template, image_mode=recipe.image_mode)
    foresight = Foresight(held, recipe.train, card=True)
    with held.shapes():
        cost = step_cost(foresight.llava, encodes=True)
    by_formula = cost.of(tokens=766, supervised=100, images=1, pairs=766**2)
    whole = try_out(foresight, recipe, 2 * 766, 0)  # so many that none of them is longer than usual
    assert whole.operations == pytest.approx(by_formula, rel=0.05)
    plain = try_out(foresight, recipe, 2048, 0)
    assert try_out(foresight, recipe, 2048, 1).operations > plain.operations * 1.05, "what is computed again counts"

    (tmp_path / "mine.yaml").write_text(recipe.to_yaml())
    command = ["plan", str(tmp_path / "mine.yaml"), "--cards", "16", "0.01", "--rate", "50", "--processes", "2"]
    assert main([*command, "--conversations", "300000", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cards"]["16"]["planned_seconds"] == pytest.approx(plain.operations * 300_000 / 1e14)
    assert told["cards"]["0.01"]["planned_seconds"] is None
    assert (told["assumed_teraflops"], told["conversations"]) == (50.0, 300_000)
    assert main(command) == 0
    assert "times are planned: 100,000 conversations, if each card keeps 50 TFLOPS; nothing" in capsys.readouterr().out
    for lonely in (["--rate", "50"], ["--cards", "16", "--conversations", "5"]):
        assert main(["plan", str(tmp_path / "mine.yaml"), *lonely]) == 1
        assert "expected --cards with --rate, and --conversations with both" in capsys.readouterr().err


GUIDES = Path(__file__).parents[2] / "docs" / "hardware.md"


@pytest.mark.parametrize("section", ["A Colab T4 (16 GB)", "LLaVA-1.6: pictures in tiles"])
def test_a_guide_quotes_what_the_command_prints(
    section: str, full_size: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two that are planned soonest; whoever changes what is foreseen looks at the other plans on that page too."""
    guide = GUIDES.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    quoted = re.search(r"`workbench plan\s([^`]+)`[^`]*?says:\n\n((?:(?:    .*)?\n)+)", guide)
    assert quoted, "a command and what it says"
    name, *words = quoted[1].split()
    settings = re.findall(r"--set ((?:model|train)\.\S+)", guide)
    (tmp_path / "mine.yaml").write_text(full_size(name).with_overrides(*settings).to_yaml())
    assert main(["plan", str(tmp_path / "mine.yaml"), *words]) == 0
    assert textwrap.dedent(quoted[2]).strip("\n") in capsys.readouterr().out


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
