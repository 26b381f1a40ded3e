"""DeepSpeed's ZeRO trains, saves and resumes as one process alone does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_shards import assert_close, run_ranks
from workbench.training.trainer import train

pytest.importorskip("deepspeed")
Made = Callable[..., Any]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    "trains",
    [
        ("train.language=lora",),
        ("train.language=full", "train.vision=full", "train.weight_decay=0.1"),
        ("train.stage=align", "train.language=frozen"),
    ],
    ids=["lora", "full", "align"],
)
def test_two_processes_under_zero_train_what_one_trains(
    stage: int, trains: tuple[str, ...], tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    # Packs of one tree: one process has text where another has an image. The last step of an epoch has one
    # conversation, so that one process only computes along.
    overrides = ["train.batch_size=9", "train.max_share=2", "train.pack_tokens=260", "train.max_tokens=260"]
    overrides += ["train.eval_every=3", "train.max_steps=5", *trains]
    recipe = make_recipe(make_dataset(split=True, images=7), *overrides)
    one = train(recipe, out=tmp_path / "one", progress=False)
    zero = f"train.deepspeed={{zero_optimization: {{stage: {stage}, stage3_param_persistence_threshold: 0}}}}"
    two = run_ranks(start_ranks, recipe.with_overrides(zero), tmp_path / "two")
    assert_close(two, one)
