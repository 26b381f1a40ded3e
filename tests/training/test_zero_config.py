"""A DeepSpeed config beside a recipe: what both say is the same, and what is not done is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import MissingPackageError, RecipeError, TrainingError
from workbench.training import zero_config as module
from workbench.training.trainer import train
from workbench.training.zero_config import check_format, passed, zero_config

Made = Callable[..., Any]
AUTO = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": "auto", "total_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
    },
    "steps_per_print": 2000,
}
"""As transformers' documentation has them."""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: object())


@pytest.fixture
def made(make_recipe: Made, tmp_path: Path) -> Callable[..., Any]:
    """`made(config, "train.lr=1")`: a recipe that names a file with this config."""

    def written(config: dict[str, Any], *overrides: str) -> Any:
        path = tmp_path / "zero.json"
        path.write_text(json.dumps(config))
        return make_recipe("unused", f"train.deepspeed={path}", *overrides)

    return written


def test_a_config_of_transformers_serves_as_it_is(made: Made, installed: None) -> None:
    recipe = made(AUTO, "train.schedule=linear")
    assert recipe.train.deepspeed == AUTO  # the content: a run folder's recipe is complete
    config = zero_config(recipe)
    assert config == AUTO
    check_format(config, "bf16")
    given = passed(config, hidden=100, clip=0.5)
    zero = given["zero_optimization"]
    assert zero["reduce_bucket_size"] == 10_000 and zero["stage3_prefetch_bucket_size"] == 9_000
    assert zero["stage3_param_persistence_threshold"] == 1_000
    assert given["gradient_clipping"] == 0.5 and given["train_micro_batch_size_per_gpu"] == 1
    assert not {"optimizer", "scheduler", "bf16", "fp16"} & given.keys()


def test_numbers_equal_to_the_recipes_are_taken(made: Made, installed: None) -> None:
    params = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
    own = {"train_batch_size": 6, "gradient_clipping": 1.0, "gradient_accumulation_steps": 1}
    config = AUTO | own | {"optimizer": {"type": "AdamW", "params": params}}
    assert zero_config(made(config, "train.schedule=linear")) == config


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"train_batch_size": 64},
            "found train_batch_size: 64; expected 6, as train.batch_size has it; set it to auto",
        ),
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu: 4; expected auto.*train.pack_tokens"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps: 4; expected auto"),
        ({"gradient_clipping": 0.5}, "gradient_clipping: 0.5; expected 1.0, as train.clip has it"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer.type: Lamb; expected AdamW"),
        ({"optimizer": {"params": {"lr": 3e-4}}}, "optimizer.params.lr: 0.0003; expected 0.001, as train.lr has it"),
        ({"optimizer": {"params": {"freeze_step": 9}}}, "optimizer.params.freeze_step: 9; expected nothing"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler.type: constant; expected linear, as train.schedule has it"),
        ({"scheduler": {"params": {"warmup_num_steps": 9}}}, "scheduler.params.warmup_num_steps: 9; expected auto"),
        ({"compression_training": {}}, "found compression_training; expected ZeRO alone"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage: 0; expected 1, 2 or 3"),
        ({"zero_optimization": {}}, "no zero_optimization.stage; expected 1, 2 or 3"),
        ({"zero_optimization": 3}, "zero_optimization: 3; expected an object"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/n"}}},
            "offload_param.device: nvme; expected cpu or none: reading from NVMe needs the operator async_io compiled",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "offload_param in stage 2; expected stage 3",
        ),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "zero_quantized_weights; expected plain"),
    ],
)
def test_what_contradicts_the_recipe_or_is_not_done_is_refused(
    changed: dict[str, Any], told: str, made: Made, installed: None
) -> None:
    with pytest.raises(TrainingError, match=told):
        zero_config(made(AUTO | changed, "train.schedule=linear"))


@pytest.mark.parametrize(
    ("section", "computed", "told"),
    [
        ({"bf16": {"enabled": True}}, "fp32", "bf16.enabled: true; expected fp32, as the recipe has it"),
        ({"bf16": {"enabled": False}}, "bf16", "bf16.enabled: false; expected bf16"),
        ({"fp16": {"enabled": True}}, "bf16", "fp16.enabled: true; expected bf16"),
        ({}, "fp16", "found fp16; expected bf16 or fp32"),
    ],
)
def test_the_number_format_is_the_recipes(section: dict[str, Any], computed: str, told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        check_format(section, computed)


def test_accelerate_names_a_file_or_says_it_in_flags(
    made: Made, make_recipe: Made, installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = make_recipe("unused", "train.schedule=linear")
    assert zero_config(recipe) is None
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "1")
    assert zero_config(recipe)["zero_optimization"]["stage"] == 1
    made(AUTO)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "zero.json"))
    assert zero_config(recipe)["zero_optimization"]["stage"] == 3
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "absent.json"))
    with pytest.raises(TrainingError, match="accelerate's config.*absent.json.*deepspeed_config_file"):
        zero_config(recipe)


def test_a_file_that_cannot_be_read_is_named(make_recipe: Made, tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{\n"zero_optimization": {')
    for name, told in (("cut.json", "cut.json, line 2: found broken JSON"), ("absent.json", "absent.json")):
        with pytest.raises(RecipeError, match=told):
            make_recipe("unused", f"train.deepspeed={tmp_path / name}")


def test_two_ways_to_cut_are_refused(made: Made, make_dataset: Made) -> None:
    with pytest.raises(RecipeError, match="deepspeed and shard: true; expected one way"):
        made(AUTO, "train.shard=true")


def test_without_the_package_its_install_line_is_told(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    recipe = make_recipe(make_dataset(), "train.deepspeed={zero_optimization: {stage: 2}}")
    with pytest.raises(MissingPackageError, match=r"no package deepspeed; pip install 'llava-workbench\[deepspeed\]'"):
        train(recipe, out=tmp_path / "run", progress=False)
