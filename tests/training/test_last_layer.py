"""The last layer in the places that predict gives the loss and gradients of the whole one, and computes less."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from workbench.model.stages import prepare
from workbench.training import last_layer
from workbench.training.attention import Layout, attend_rows, layout, row_masks
from workbench.training.batch import Batch, collate
from workbench.training.example import IMAGE, Example
from workbench.training.forward import token_losses

Made = Callable[..., Any]


def example(llava: Any, name: str, words: int, supervised: int) -> Example:
    """An image and seven tokens that all examples share, and `words` of its own, the last `supervised` trained on."""
    ids = np.concatenate([[5, IMAGE], np.full(6, 7), 10 + np.arange(words) % 40]).astype(np.int32)
    trained = np.zeros(len(ids), bool)
    trained[-supervised:] = True
    return Example(name, ids, trained, 8, ("a",), (llava.image_tokens,))


@pytest.fixture
def case(make_recipe: Made, make_llava: Made) -> tuple[Any, Batch, torch.Tensor]:
    recipe = make_recipe("unused", "train.language=lora")
    llava = make_llava(recipe)
    prepare(llava, recipe.train, say=lambda text: None)
    trees = [[example(llava, f"{tree}{n}", 9 + n, 3) for n in range(3)] for tree in range(2)]
    trees.append([example(llava, "alone", 12, 4)])
    return llava, collate(trees, image_token_id=llava.image_token_id), torch.randn(3, 3, 24, 24)


def measured(llava: Any, batch: Batch, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    llava.model.zero_grad(set_to_none=True)
    losses = token_losses(llava, batch, llava.tower_features(images))
    losses.sum().backward()
    return losses.detach(), {name: p.grad for name, p in llava.model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_those_of_the_whole_layer(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llava, batch, images = case
    seen: list[torch.Size] = []
    hook = llava.model.model.language_model.norm.register_forward_hook(lambda _, given, out: seen.append(out.shape))
    losses, gradients = measured(llava, batch, images)
    monkeypatch.setattr(last_layer, "LARGEST_SHARE", 0.0)
    whole, wanted = measured(llava, batch, images)
    hook.remove()
    assert [shape[1] for shape in seen] == [len(batch.rows), batch.input_ids.shape[1]]
    torch.testing.assert_close(losses, whole, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


def test_after_it_was_pruned_the_model_still_answers_with_every_place(case: Any) -> None:
    llava, batch, images = case
    ids = torch.arange(3, 9)[None]
    before = llava.model(input_ids=ids).logits
    measured(llava, batch, images)
    assert torch.equal(llava.model(input_ids=ids).logits, before)


def test_a_layer_of_another_make_is_computed_whole() -> None:
    layer = SimpleNamespace(self_attn=None)
    other: Any = SimpleNamespace(model=SimpleNamespace(model=SimpleNamespace(language_model=SimpleNamespace())))
    other.model.model.language_model.layers = [layer]
    assert not last_layer.prunes(other, 1, 100)


def test_a_batch_that_trains_on_most_of_its_tokens_is_computed_whole(case: Any) -> None:
    llava, *_ = case
    assert not last_layer.prunes(llava, 51, 100) and last_layer.prunes(llava, 50, 100)


@pytest.mark.parametrize("tree", [(5, [3, 4, 2]), (0, [6]), (4, [5])], ids=str)
def test_a_place_sees_what_it_sees_in_the_whole_square(tree: tuple[int, list[int]]) -> None:
    prefix, branches = tree
    length = prefix + sum(branches)
    both = [(0, [3]), tree]
    (_, masks) = row_masks(both, 3 + torch.arange(length))
    owner = torch.cat([torch.full((prefix,), -1), *(torch.full((n,), k) for k, n in enumerate(branches))])
    for place in range(length):
        wanted = [at <= place and owner[at] in (-1, owner[place]) for at in range(length)]
        assert masks[place].tolist() == wanted
    assert isinstance(layout(both), Layout)


def test_a_tree_without_any_place_that_predicts_is_passed_over() -> None:
    trees, rows = [(0, [4]), (0, [5])], torch.tensor([6])
    q, kv = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 9, 8)
    out = attend_rows(q, kv, kv, layout(trees), row_masks(trees, rows))
    alone = torch.nn.functional.scaled_dot_product_attention(q, kv[:, :, 4:7], kv[:, :, 4:7])
    torch.testing.assert_close(out, alone.transpose(1, 2))
