"""The recipe of LLaVA-OneVision at full size, on shapes: numbers of every part as published, and what fits where."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.model.test_anyres import ONEVISION
from workbench.model.lora import used_layers
from workbench.model.outline import Outline, outline
from workbench.recipe import Recipe
from workbench.training.attention import check_places
from workbench.training.memory import Foresight, part_of
from workbench.training.room import MARGIN
from workbench.training.usual import full_pack

QWEN2 = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
         "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 152_000, "max_position_embeddings": 32768,
         "tie_word_embeddings": True}  # fmt: skip
SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
          "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": False}  # fmt: skip
"""SigLIP-so400m/14-384 as OneVision has it: without its last layer and its head."""
LANGUAGE = 494_032_768
"""Numbers in Qwen2-0.5B, whose 151,936 rows of tokens are filled up to 152,000 here."""
WHOLE_TOWER = 428_225_600
"""Numbers in SigLIP-so400m/14-384 with its 27th layer and its head."""
LAYER = 4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
HEAD = 1152 + 4 * (1152 * 1152 + 1152) + 2 * 1152 + 2 * 1152 * 4304 + 4304 + 1152
PROJECTOR = 1152 * 896 + 896 + 896 * 896 + 896


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The shipped recipe with the published configuration in place of its name, and a tokenizer of made-up words."""
    folder = tmp_path_factory.mktemp("onevision")
    config = {"model_type": "llava_onevision", "text_config": QWEN2, "vision_config": SIGLIP,
              "image_grid_pinpoints": ONEVISION, "image_token_index": 151_646, "vision_feature_layer": -1,
              "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"word{n}" for n in range(151_643 - len(letters)))]
    backend = Tokenizer(models.BPE(vocab={word: id for id, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = {"additional_special_tokens": ["<|im_start|>"], "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    for mark in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"):
        tokenizer.add_tokens([mark], special_tokens=True)
    tokenizer.add_special_tokens(marks, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(folder)
    return Recipe.load("llava-onevision-0.5b-full").with_overrides(f"model.checkpoint={folder}", "model.device=cpu")


@pytest.fixture(scope="module")
def made(recipe: Recipe) -> Outline:
    return outline(recipe.model, template=recipe.template, image_mode=recipe.image_mode)


@pytest.fixture(scope="module")
def foresight(made: Outline, recipe: Recipe) -> Foresight:
    return Foresight(made, recipe.train, card=True)


def test_the_language_model_has_places_for_the_longest_conversation(made: Outline, recipe: Recipe) -> None:
    check_places(made.llava, recipe.train.max_tokens)


def test_every_part_has_the_published_numbers(made: Outline, foresight: Foresight) -> None:
    counts: dict[str, int] = {}
    for key, parameter in made.llava.model.named_parameters():
        counts[part_of(key)] = counts.get(part_of(key), 0) + parameter.numel()
    tower = WHOLE_TOWER - LAYER - HEAD
    assert counts["language model"] == LANGUAGE + 64 * 896
    assert counts["vision tower"] == tower
    assert counts["projector"] == PROJECTOR + 896, "with its newline"
    assert used_layers(made.llava) == 26, "all there are"
    groups = {group.name: (group.count, group.lr) for group in foresight.groups}
    norm = 2 * 1152  # behind the layer whose states are taken
    assert groups == {
        "language full": (LANGUAGE + 64 * 896, 1e-5),
        "projector": (PROJECTOR + 896, 1e-5),
        "vision full": (tower - norm, 2e-6),
    }


def test_pictures_have_the_published_tokens(made: Outline) -> None:
    tiling = made.llava.tiling
    assert (tiling.each, tiling.most, tiling.longest) == (729, 37, 8829)
    assert tiling.tokens((384, 384)) == 729 + 27 * 28
    assert tiling.tokens((2304, 2304)) == 729 + 81 * 82, "9 tiles of 36"
    assert tiling.tokens(tiling.seen((2304, 2304), 2)) == 730


def test_a_card_of_24_gb_is_enough_and_the_reason_is_said_where_it_is_not(foresight: Foresight, recipe: Recipe) -> None:
    least = foresight.peak(full_pack(recipe.train.pack_tokens, foresight.llava.tiling), every=1)
    fits = {card: least.peak <= MARGIN * card * 1e9 for card in (16, 24, 40, 80)}
    assert fits == {16: False, 24: True, 40: True, 80: True}
    held = sum(least.items[name] for name in ("language model", "projector", "gradients", "optimiser"))
    assert 12e9 < held < 16e9 < least.peak < 21.5e9, "weights, gradients and AdamW first, then one pack"
