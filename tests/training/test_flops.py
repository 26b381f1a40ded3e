"""Operations of a step, counted against PyTorch's own counter and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from workbench.model.stages import prepare
from workbench.training.attention import branch_mask
from workbench.training.batch import collate
from workbench.training.example import IMAGE, Example
from workbench.training.flops import measured_peak, pairs, step_cost
from workbench.training.forward import token_losses

Made = Callable[..., Any]


def example(llava: Any, length: int, supervised: int) -> Example:
    ids = np.full(length, 7, np.int32)
    ids[1] = IMAGE
    trained = np.zeros(length, bool)
    trained[-supervised:] = True
    return Example("one", ids, trained, 2, ("a",), (llava.image_tokens,))


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.language=lora"],
        ["train.language=full"],
        ["train.language=frozen"],
        ["train.language=lora", "train.projector=frozen"],
        ["train.vision=full", "train.language=frozen"],
    ],
    ids=" ".join,
)
def test_a_step_costs_what_the_machine_computes(overrides: list[str], make_recipe: Made, make_llava: Made) -> None:
    recipe = make_recipe("unused", *overrides)
    llava = make_llava(recipe)
    prepare(llava, recipe.train)
    one = example(llava, 60, 20)
    batch = collate([[one]], image_token_id=llava.image_token_id)
    pixels = torch.randn(1, 3, 24, 24)
    images = pixels if llava.vision_trains else llava.tower_features(pixels)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        token_losses(llava, batch, images).sum().backward()
    length = one.tokens
    cost = step_cost(llava, encodes=False)
    whole = cost.of(tokens=length, supervised=20, images=1, pairs=length**2)  # the machine computes every pair
    # Left out on purpose: the first layer's input needs no gradient where nothing below it trains. Here that is one
    # layer of two, in a real model one of 32.
    assert whole == pytest.approx(counter.get_total_flops(), rel=0.1 if "train.projector=frozen" in overrides else 0.03)


def test_a_frozen_linear_counts_four_a_weight_and_a_trained_one_six(make_recipe: Made, make_llava: Made) -> None:
    costs = {}
    for language in ("frozen", "full"):
        recipe = make_recipe("unused", f"train.language={language}")
        llava = make_llava(recipe)
        prepare(llava, recipe.train)
        costs[language] = step_cost(llava, encodes=False)
    weights = sum(
        m.weight.numel() for m in llava.model.model.language_model.modules() if isinstance(m, torch.nn.Linear)
    )
    head = llava.model.lm_head.weight.numel()
    # A token that is predicted goes through all of it, others not through all of the last layer.
    assert costs["frozen"].token + costs["frozen"].supervised == 4 * (weights + head)
    assert costs["full"].token + costs["full"].supervised == 6 * (weights + head)
    assert costs["full"].supervised > 6 * head
    assert costs["frozen"].pair == costs["frozen"].last_pair == 4 * 64 * 3  # 2 matrix products, width, 3 times


def test_pairs_of_a_tree_are_those_of_its_mask() -> None:
    prefix = torch.ones(5, 5, dtype=torch.bool).tril()
    assert pairs(5, [3, 4]) == int(prefix.sum() + branch_mask(5, [3, 4]).sum())
    assert pairs(0, [4]) == 10


def test_the_peak_is_measured_without_touching_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    peak = measured_peak(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.rand(4), expected)
    assert 1e8 < peak < 1e14
