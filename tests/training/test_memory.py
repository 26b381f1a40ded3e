"""Memory foreseen on shapes: equal to what the real step holds, and near to what a process takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.memory_prediction import make_parts
from tests.benchmarks.memory_prediction import make_recipe as random_recipe
from workbench.errors import TrainingError
from workbench.model.outline import outline, outline_of
from workbench.model.stages import prepare
from workbench.training import forward, head
from workbench.training.blank import blank
from workbench.training.compiling import compile_layers
from workbench.training.dry_run import dry_run
from workbench.training.loading import while_loading
from workbench.training.memory import Foresight, at_most
from workbench.training.packing import Entry, Pack, Tree
from workbench.training.room import choose_layers

Made = Callable[..., Any]


def make_pack(trees: int = 3, branch: int = 40, supervised: int = 9) -> Pack:
    """Trees of one image (9 tokens), 20 more in the prefix, two conversations."""
    entry = Entry(0, 29 + branch, 29, supervised, 1, 1)
    return [Tree((entry, entry))] * trees


def outlined(recipe: Any) -> Any:
    return outline(recipe.model, template=recipe.template, image_mode=recipe.image_mode)


class Real:
    """A model that is there, in the place of its outline."""

    def __init__(self, llava: Any) -> None:
        self.llava, self.shapes = llava, nullcontext


@pytest.mark.parametrize(
    ("every", "way"),
    [
        (0, ("train.stage=align", "train.language=frozen")),
        (1, ("train.language=lora",)),
        (2, ("train.language=full", "train.optimizer=adamw8bit")),
        (1, ("train.language=lora", "model.load=bf16", "train.vision=lora")),
        (0, ("train.language=full", "train.vision=full", "model.dtype=bf16")),
    ],
)
def test_the_shapes_of_a_step_take_what_the_step_takes(
    make_recipe: Made, make_llava: Made, every: int, way: tuple[str, ...]
) -> None:
    recipe = make_recipe("unused", *way)
    foreseen = Foresight(outlined(recipe), recipe.train).peak(make_pack(), every=every)
    real = Foresight(Real(make_llava(recipe)), recipe.train).peak(make_pack(), every=every)  # type: ignore[arg-type]
    assert foreseen.items == pytest.approx(real.items, rel=0.002, abs=4096)
    assert (foreseen.phase, foreseen.flops) == (real.phase, real.flops)
    assert foreseen.flops > 0


@pytest.mark.parametrize("load", ["fp32", "bf16", "4bit", "8bit"])
def test_an_outline_has_the_parameters_of_the_model(make_recipe: Made, make_llava: Made, load: str) -> None:
    recipe = make_recipe("unused", f"model.load={load}", "train.vision=lora")
    made, real = outlined(recipe), make_llava(recipe)
    with made.shapes():
        prepare(made.llava, recipe.train, say=lambda text: None)
    prepare(real, recipe.train, say=lambda text: None)
    for part in (lambda p: p.requires_grad, lambda p: not p.requires_grad and p.is_floating_point()):
        found, expected = (
            {name: (p.shape, p.dtype) for name, p in llava.model.named_parameters() if part(p)}
            for llava in (made.llava, real)
        )
        assert found == expected
    assert made.llava.image_tokens == real.image_tokens and made.llava.spec["load"] == load


def test_the_outline_of_a_model_that_is_there_foresees_the_same(make_recipe: Made, make_llava: Made) -> None:
    recipe = make_recipe()
    llava = make_llava(recipe)
    prepare(llava, recipe.train, say=lambda text: None)
    before = {name: p.clone() for name, p in llava.model.named_parameters()}
    found = Foresight(outline_of(llava), recipe.train).peak(make_pack())
    assert found.items == Foresight(outlined(recipe), recipe.train).peak(make_pack()).items
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in llava.model.named_parameters())
    assert found.peak < at_most(llava, sum(tree.tokens for tree in make_pack()))


def test_a_checkpoint_is_outlined_with_its_adapter_and_without_its_weights(
    tmp_path: Path, make_recipe: Made, make_llava: Made
) -> None:
    from workbench.model.checkpoint import save

    recipe = make_recipe()
    llava = make_llava(recipe)
    prepare(llava, recipe.train, say=lambda text: None)
    folder = save(llava, tmp_path / "saved")
    for path in folder.rglob("*.safetensors"):
        path.write_bytes(b"not weights")
    again = recipe.with_overrides(f"model.checkpoint={folder}")
    found = {name: p.shape for name, p in outlined(again).llava.model.named_parameters()}
    assert found == {name: p.shape for name, p in llava.model.named_parameters()}


@pytest.mark.parametrize("way", [("train.language=lora",), ("train.language=full", "train.vision=full")])
def test_checkpointing_changes_no_bit_and_leaves_a_frozen_tower_alone(
    make_recipe: Made, make_llava: Made, way: tuple[str, ...]
) -> None:
    from workbench.training.checkpointing import checkpoint_layers

    recipe = make_recipe("unused", *way, *(("train.lora.dropout=0.1", "train.share=false") if len(way) == 1 else ()))
    results = []
    for every in (0, 2, 1):
        llava = make_llava(recipe)
        groups = prepare(llava, recipe.train, say=lambda text: None)
        llava.model.train()
        checkpoint_layers(llava, every)
        assert llava.tower.is_activation_checkpointing == bool(every and llava.vision_trains)
        torch.manual_seed(3)
        loss = forward.token_losses(llava, *blank(make_pack(), llava))
        loss.sum().backward()
        results.append([loss, *(p.grad for group in groups for p in group.params)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_head_in_chunks_gives_the_same_losses_and_gradients(
    make_recipe: Made, make_llava: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe("unused", "train.language=full")
    llava = make_llava(recipe)
    groups = prepare(llava, recipe.train, say=lambda text: None)
    params = [parameter for group in groups for parameter in group.params]

    def run() -> list[torch.Tensor]:
        losses = forward.token_losses(llava, *blank(make_pack(), llava))
        weights = torch.arange(1.0, len(losses) + 1)  # every token counts differently
        return [losses, *torch.autograd.grad((losses * weights).sum(), params)]

    whole = run()
    shapes: list[torch.Size] = []
    llava.model.lm_head.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    monkeypatch.setattr(head, "CHUNK", 4)
    chunked = run()
    assert max(shape[0] for shape in shapes) == 4 and len(whole[0]) == 54
    for a, b in zip(whole, chunked, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_compiled_layers_give_the_same_losses_and_gradients(
    make_recipe: Made, make_llava: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    results = []
    for compiled in (False, True):
        llava = make_llava(recipe)
        groups = prepare(llava, recipe.train, say=lambda text: None)
        if compiled:
            compile_layers(llava)
            assert llava.model.model.language_model.layers[0].mlp._compiled_call_impl is not None
        losses = forward.token_losses(llava, *blank(make_pack(), llava))
        params = [parameter for group in groups for parameter in group.params]
        results.append([losses, *torch.autograd.grad(losses.sum(), params)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainingError, match="no C\\+\\+ compiler"):
        compile_layers(llava)


def test_a_process_takes_what_was_foreseen(make_recipe: Made) -> None:
    recipe = make_recipe()
    pack = make_pack(trees=10, branch=700, supervised=300)
    foreseen = Foresight(outlined(recipe), recipe.train).peak(pack)
    measured = dry_run(recipe, pack)
    assert foreseen.peak > 100e6
    assert foreseen.peak == pytest.approx(measured.peak, rel=0.1)


@pytest.mark.parametrize("load", ["fp32", "bf16", "4bit"])
def test_loading_takes_what_was_foreseen_and_is_not_part_of_the_peak(tmp_path: Path, load: str) -> None:
    parts = make_parts(tmp_path, width=256, layers=1, vocabulary=60_000, edge=2)
    recipe = random_recipe(parts, "train.stage=align", "train.language=frozen", f"model.load={load}")
    made, pack = outlined(recipe), make_pack(branch=5, supervised=1)
    loading = while_loading(made.llava)
    foreseen, measured = Foresight(made, recipe.train).peak(pack), dry_run(recipe, pack)
    assert loading == pytest.approx(measured.loading, rel=0.1)
    assert foreseen.peak == pytest.approx(measured.peak, rel=0.1)
    assert load == "fp32" or measured.loading > 1.3 * measured.peak


def test_layers_are_checkpointed_only_as_far_as_needed(make_recipe: Made) -> None:
    recipe = make_recipe()
    foresight = Foresight(outlined(recipe), recipe.train)
    pack = make_pack(trees=6, branch=400)
    peaks = {every: foresight.peak(pack, every=every) for every in (0, 2, 1)}
    # Of the two layers the last is computed in the few places that predict: there is nothing to drop in it.
    assert peaks[0].peak > peaks[2].peak == peaks[1].peak
    for every in (0, 2):
        assert choose_layers(peaks.__getitem__, int(peaks[every].peak * 1.1))[0] == every
    assert choose_layers(peaks.__getitem__, 1000)[0] == 1
