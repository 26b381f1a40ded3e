"""DeepSpeed's ZeRO trains, saves and resumes as one process alone does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_resume_ranks import killed
from tests.training.test_shards import assert_answers_and_text_in_validation, assert_close, run_ranks
from workbench.run import Run
from workbench.training.trainer import train

pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install 'llava-workbench[deepspeed]'")
Made = Callable[..., Any]
CPU = "{device: cpu}"


def zero(stage: int, **more: str) -> str:
    """The override for a stage in which every weight is cut, however small."""
    parts = {"stage": stage, "stage3_param_persistence_threshold": 0, **more}
    return f"train.deepspeed={{zero_optimization: {{{', '.join(f'{key}: {value}' for key, value in parts.items())}}}}}"


LORA, ALIGN = ("train.language=lora",), ("train.stage=align", "train.language=frozen")
FULL = ("train.language=full", "train.vision=full", "train.weight_decay=0.1")


@pytest.mark.parametrize(
    ("trains", "cut"),
    [
        (LORA, zero(1)),
        (FULL, zero(2)),
        (ALIGN, zero(3)),
        ((*LORA, "train.checkpointing=on"), zero(3, overlap_comm="false")),
        (FULL, zero(3, offload_optimizer=CPU, offload_param=CPU)),
        ((*LORA, "model.load=4bit"), zero(1, offload_optimizer=CPU)),
        (("image_mode=anyres", *ALIGN), zero(3)),
    ],
    ids=["lora-1", "full-2", "align-3", "lora-3", "full-3-offload", "qlora-1-offload", "next-align-3"],
)
def test_two_processes_under_zero_train_what_one_trains(
    trains: tuple[str, ...], cut: str, tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    # Packs of one tree: one process has text where another has an image. The last step of an epoch has one
    # conversation, so that one process only computes along.
    overrides = ["train.batch_size=9", "train.max_share=2", "train.pack_tokens=260", "train.max_tokens=260"]
    overrides += ["train.eval_every=3", "train.max_steps=4", *trains]
    recipe = make_recipe(make_dataset(split=True, images=7), *overrides)
    one = train(recipe, out=tmp_path / "one", progress=False)
    assert_close(run_ranks(start_ranks, recipe.with_overrides(cut), tmp_path / "two"), one)


@pytest.mark.parametrize("cut", [zero(3), zero(3, offload_param=CPU, offload_optimizer=CPU)], ids=["3", "3-offload"])
def test_zero_3_answers_and_validates_on_text_as_one_process_does(
    cut: str, tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    made = {"make_dataset": make_dataset, "make_recipe": make_recipe, "start_ranks": start_ranks}
    assert_answers_and_text_in_validation(cut, tmp_path=tmp_path, **made)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_killed_run_goes_on_with_another_number_of_processes(
    stage: int, tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    # Three processes: no weight can be cut in equal parts.
    recipe = make_recipe(make_dataset(), "train.max_steps=6", "train.save_every=2", "train.eval_every=3")
    whole = train(recipe, out=tmp_path / "whole", progress=False)
    recipe, out = recipe.with_overrides(zero(stage)), tmp_path / "broken"
    killed(start_ranks(recipe, out), out, 4, (1, 0))
    assert len(Run.open(out).metrics()) < 6
    assert_close(run_ranks(start_ranks, recipe, out, resume=True, world=3), whole)


def test_one_process_alone_offloads(tmp_path: Path, make_dataset: Made, make_recipe: Made, start: Made) -> None:
    recipe = make_recipe(make_dataset(), "train.max_steps=3")
    one = train(recipe, out=tmp_path / "one", progress=False)
    cut = recipe.with_overrides(zero(3, offload_optimizer=CPU, offload_param=CPU))
    process = start(train, cut, out=tmp_path / "cut", progress=False)
    process.join()
    assert process.exitcode == 0
    assert_close(Run.open(tmp_path / "cut"), one)


def test_quantised_weights_are_not_cut(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    recipe = make_recipe(make_dataset(), zero(3), "model.load=4bit")
    for process in start_ranks(recipe, tmp_path / "run"):
        process.join(60)
        assert process.exitcode == 1
    assert "stage 3 with model.load: 4bit; use stage 1 or 2" in Run.open(tmp_path / "run").info["error"]
