"""Every legal way to train, really trained: what it frees moves, and nothing else does by a single bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.errors import ModelError, RecipeError
from workbench.training.trainer import train

Made = Callable[..., Any]
Method = tuple[str, str, str, str, str]
"""stage, language, vision, projector, load"""
LOADS = ("fp32", "bf16", "fp16", "8bit", "4bit")
KINDS = ("frozen", "lora", "full")


def methods() -> Iterator[Method]:
    yield from (("align", "frozen", "frozen", "full", load) for load in LOADS)
    for language, vision, projector, load in itertools.product(KINDS, KINDS, ("frozen", "full"), LOADS):
        nothing = (language, vision, projector) == ("frozen", "frozen", "frozen")
        if not nothing and not (language == "full" and load in ("8bit", "4bit")):
            yield "finetune", language, vision, projector, load


def part_of(name: str) -> str:
    """`language`, `vision` or `projector`; an adapter's tensors end in ` lora`."""
    places = {"vision_tower": "vision", "multi_modal_projector": "projector"}
    part = next((part for place, part in places.items() if place in name), "language")
    return f"{part} lora" if ".lora_" in name else part


def numbers(llava: Any) -> dict[str, torch.Tensor]:
    """Every tensor of the model, those of a quantised linear as they are packed."""
    return {
        name: tensor.detach().clone() for name, tensor in llava.model.state_dict().items() if torch.is_tensor(tensor)
    }


@pytest.fixture
def trained(tmp_path: Path, make_dataset: Made, make_recipe: Made, make_llava: Made) -> Callable[..., Any]:
    """`trained(*overrides)`: (run, model, names of the tensors that three steps have moved)."""
    dataset = make_dataset(images=3, each=2)

    def made(*overrides: str) -> Any:
        fixed = ("train.max_steps=3", "train.schedule=constant", "train.warmup=0", "data.val_fraction=0")
        recipe = make_recipe(dataset, *fixed, *overrides)
        llava = make_llava(recipe)
        before = numbers(llava)
        run = train(recipe, out=tmp_path / "run", llava=llava, progress=False)
        after = {name.replace(".base_layer.", "."): tensor for name, tensor in numbers(llava).items()}
        assert before.keys() <= after.keys()
        moved = {name for name, tensor in before.items() if not torch.equal(tensor.to(after[name].dtype), after[name])}
        moved |= {
            name for name, tensor in after.items() if ".lora_B." in name and tensor.any()
        }  # which begins as zeros
        return run, llava, moved

    return made


@pytest.mark.parametrize(("stage", "language", "vision", "projector", "load"), [*methods()], ids=lambda value: value)
def test_what_a_method_frees_moves_and_nothing_else(
    stage: str, language: str, vision: str, projector: str, load: str, trained: Callable[..., Any]
) -> None:
    settings = {"stage": stage, "language": language, "vision": vision, "projector": projector}
    overrides = [f"train.{key}={value}" for key, value in settings.items()]
    if vision != "frozen":
        overrides.append("train.vision_lr=5e-4")
    if load == "fp16":
        overrides.append("train.max_steps=6")  # the loss scale is found by steps that are left out
    run, llava, moved = trained(*overrides, f"model.load={load}")
    chosen = {"language": language, "vision": vision, "projector": projector}
    expected = {part + (" lora" if how == "lora" else "") for part, how in chosen.items() if how != "frozen"}
    assert {part_of(name) for name in moved} == expected
    free = {name for name, parameter in llava.model.named_parameters() if parameter.requires_grad}
    still = {name for name in free if ".lora_A." not in name} - {name.replace(".base_layer.", ".") for name in moved}
    assert not still, "everything that is free has moved"
    rows = run.metrics()
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows)
    rates = rows[-1]["lr"]
    assert {name.partition(" ")[0] for name in rates} == {part for part, how in chosen.items() if how != "frozen"}
    if vision != "frozen":
        assert rates[f"vision {vision}"] == pytest.approx(5e-4), "a rate of its own"


@pytest.mark.parametrize("projector", ["linear", "mlp2x_gelu"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_both_projectors_learn_in_mixed_precision(projector: str, dtype: str, trained: Callable[..., Any]) -> None:
    align = ("train.stage=align", "train.language=frozen", "train.max_steps=6")
    _, llava, moved = trained(*align, f"model.projector={projector}", f"model.dtype={dtype}")
    layers = ("linear_1",) if projector == "linear" else ("linear_1", "linear_2")
    expected = {f"model.multi_modal_projector.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert moved == expected
    assert {tensor.dtype for tensor in llava.projector.parameters()} == {torch.float32}


# --- what cannot be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ("train.language=frozen train.projector=frozen", "every part frozen; expected language, vision or projector"),
        ("train.stage=align", "stage: align with language: lora.*use stage: finetune"),
        ("train.stage=align train.language=frozen train.vision=lora", "align with vision: lora.*use stage: finetune"),
        ("train.stage=align train.language=frozen train.projector=frozen", "align with projector: frozen"),
        ("model.load=4bit train.language=full", "4bit with train.language: full.*use train.language: lora"),
        ("model.load=8bit train.language=full", "8bit with train.language: full.*or model.load: bf16"),
        ("train.vision_lr=1e-4", "a learning rate with vision: frozen; expected vision to train"),
        ("train.projector=frozen train.projector_lr=1e-4", "a learning rate with projector: frozen"),
        ("model.projector=mlp3x", "'linear' or 'mlp2x_gelu'"),
        ("train.optimizer=sgd", "'adamw', 'adamw8bit', 'paged_adamw' or 'paged_adamw8bit'"),
    ],
)
def test_what_cannot_train_is_refused_with_what_to_do(make_recipe: Made, overrides: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        make_recipe("data", *overrides.split())


def test_a_computation_finer_than_the_weights_is_refused(make_recipe: Made, make_llava: Made) -> None:
    with pytest.raises(ModelError, match="fp32 over bf16 weights.*or load: fp32"):
        make_llava(make_recipe("data", "model.load=bf16", "model.dtype=fp32"))


# --- what is told --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["true", "off"])
def test_a_dropout_is_announced_as_one_mask_where_images_are_shared(
    share: str, tmp_path: Path, make_dataset: Made, make_recipe: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(make_dataset(), "train.lora.dropout=0.05", "train.max_steps=1", f"train.share={share}")
    train(recipe, out=tmp_path / "run")
    told = capsys.readouterr().err
    announced = "LoRA dropout 0.05: conversations that share an image share one mask over it" in told
    assert announced == (share == "true"), told


def test_text_alone_over_a_frozen_language_model_moves_nothing_and_is_told(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    align = (
        "train.stage=align",
        "train.language=frozen",
        "train.batch_size=1",
        "train.epochs=1",
        "train.max_steps=null",
    )
    recipe = make_recipe(make_dataset(images=1, each=2), *align, "data.val_fraction=0", "train.warmup=0")
    run = train(recipe, out=tmp_path / "run")
    norms = [row["grad_norm"] for row in run.metrics() if "loss" in row]
    assert len(norms) == 3 and norms.count(0) == 1
    assert "1 conversations without an image teach nothing" in capsys.readouterr().err
