"""A run that no longer gets better ends, and is used with the best it had."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.errors import RecipeError, TrainingError
from workbench.model.checkpoint import checkpoint_folder, read_manifest
from workbench.run import Run
from workbench.training.state import Position
from workbench.training.trainer import train
from workbench.training.validation import means_by, note

Made = Callable[..., Any]
OVERFIT = ["train.lr=5e-2", "train.clip=null", "train.schedule=constant", "train.warmup=0", "train.max_steps=40"]
"""Far too fast: the held-out loss soon rises."""


def test_a_run_that_gets_no_better_ends_and_keeps_the_best(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(make_dataset(split=True), *OVERFIT, "train.eval_every=1", "train.early_stop=3")
    run = train(recipe, out=tmp_path / "run")
    values = [row["val_loss"] for row in run.metrics() if "val_loss" in row]
    best = values.index(min(values))
    assert run.status == "finished" and len(values) < 40
    assert len(values) == best + 1 + 3, "three in a row without a lower one"
    assert run.info["step"] == len(values) and run.info["best_step"] == best + 1
    assert run.info["val_loss"] == min(values)
    told = capsys.readouterr().err
    assert f"ended at step {len(values)} of 40: 3 validations without a lower loss" in told
    assert f"best: step {best + 1}" in told and "the last" in told
    assert checkpoint_folder(run.path) == run.path / "checkpoints" / "best"
    assert read_manifest(run.path / "checkpoints" / "best")["step"] == best + 1
    chosen = checkpoint_folder(run.path / "checkpoints" / "last")
    assert read_manifest(chosen)["step"] == len(values), "the last can be asked for"


def test_a_killed_run_goes_on_counting(tmp_path: Path, make_dataset: Made, make_recipe: Made, start: Made) -> None:
    recipe = make_recipe(
        make_dataset(split=True), *OVERFIT, "train.eval_every=1", "train.save_every=1", "train.early_stop=3"
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = [row.get("val_loss") for row in train(recipe, out=whole, progress=False).metrics()]
    process = start(train, recipe, out=broken, progress=False)
    while len(Run(broken).metrics()) < len(expected) - 3:  # within the last three, which are no better
        assert process.is_alive()
    process.kill()
    process.join()
    run = train(recipe, out=broken, resume=True, progress=False)
    assert run.info["resumed"] == 1
    assert [row.get("val_loss") for row in run.metrics()] == expected


def test_it_needs_validations_and_something_to_validate_on(
    tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    with pytest.raises(RecipeError, match="early_stop: 2 without eval_every.*set train.eval_every"):
        make_recipe("data", "train.early_stop=2")
    recipe = make_recipe(make_dataset(), "train.early_stop=2", "train.eval_every=1", "data.val_fraction=0")
    with pytest.raises(TrainingError, match="no conversation to validate on.*data.val_fraction"):
        train(recipe, out=tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (["train.eval_every=1"], "train.eval_every has no effect (give the dataset a validation split or set data."),
        (["train.eval_every=1", "train.answers_every=1"], "train.eval_every and train.answers_every have no effect"),
        ([], ""),
    ],
)
def test_what_has_no_effect_without_validation_is_said(
    tmp_path: Path,
    make_dataset: Made,
    make_recipe: Made,
    capsys: pytest.CaptureFixture[str],
    fields: list[str],
    told: str,
) -> None:
    recipe = make_recipe(make_dataset(images=2), "train.max_steps=1", "data.val_fraction=0", *fields)
    assert train(recipe, out=tmp_path / "run").status == "finished"
    said = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
    assert len(said) == bool(told)
    assert not told or said[0].startswith("no conversation to validate on: ") and told in said[0]


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    position = Position(step=4)
    assert not note(position, math.nan) and not note(position, math.inf) and position.best is None
    assert note(position, 2.0)
    assert not note(position, math.nan) and not note(position, 2.0) and position.stale == 2
    position.step = 7
    assert note(position, 1.9) and (position.best_step, position.stale) == (7, 0)


def test_losses_are_told_per_supervised_token() -> None:
    sums = torch.tensor([[6.0, 2.0], [1.0, 1.0], [2.0, 4.0]], dtype=torch.float64)
    assert means_by(["b", "a", "b"], sums) == {"a": 1.0, "b": pytest.approx(8 / 6)}
