"""The same numbers in every tracker as in metrics.jsonl, through a kill as well; a missing one is told first."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import MissingPackageError, RecipeError
from workbench.run import Run
from workbench.training.trackers import flatten
from workbench.training.trainer import train

Made = Callable[..., Any]


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"no package {name}")


def test_names_are_joined_and_only_what_is_there_is_told() -> None:
    row = {"step": 3, "lr": {"language lora": 1e-3}, "val_loss_by_task": {"caption": 2.0}, "best": None, "targets": [1]}
    expected = {"step": 3, "lr/language lora": 1e-3, "val_loss_by_task/caption": 2.0, "targets": "[1]"}
    assert flatten(row) == expected


def test_a_missing_package_is_one_line_before_anything_is_read(
    tmp_path: Path, make_recipe: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])  # nothing can be found any more
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(MissingPackageError, match="trackio: found no package trackio; pip install trackio"):
        train(make_recipe("nowhere", "train.trackers=[trackio]"), out=tmp_path / "run", progress=False)


def test_an_unknown_tracker_names_the_known_ones(make_recipe: Made) -> None:
    with pytest.raises(RecipeError, match="'tensorboard', 'wandb' or 'trackio'"):
        make_recipe("data", "train.trackers=[tensorbord]")


@needs("tensorboard")
def test_tensorboard_holds_every_step_once_through_a_resumption(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, start: Made
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = ["train.trackers=[tensorboard]", "train.eval_every=3", "train.save_every=3", "train.max_steps=8"]
    recipe = make_recipe(make_dataset(split=True), *overrides)
    out = tmp_path / "run"
    process = start(train, recipe, out=out, progress=False)
    while len(Run(out).metrics()) < 6:
        assert process.is_alive()
    process.kill()
    process.join()
    killed = int(time.time())
    while int(time.time()) == killed:  # TensorBoard reads files in the order of the seconds in their names
        time.sleep(0.01)
    run = train(recipe, out=out, resume=True, progress=False)
    held = EventAccumulator(str(out / "tensorboard"))
    held.Reload()
    rows = [row for row in run.metrics() if "loss" in row]
    for name, expected in (
        ("loss", [row["loss"] for row in rows]),
        ("lr/projector", [row["lr"]["projector"] for row in rows]),
    ):
        events = held.Scalars(name)
        assert [event.step for event in events] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert [event.value for event in events] == pytest.approx(expected)
    values = [row["val_loss"] for row in run.metrics() if "val_loss" in row]
    assert [event.value for event in held.Scalars("val_loss")] == pytest.approx(values)


@needs("trackio")
def test_trackio_holds_the_losses(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    recipe = make_recipe(make_dataset(), "train.trackers=[trackio]", "train.max_steps=2")
    run = train(recipe, out=tmp_path / "run", progress=False)
    (file,) = [path for path in (tmp_path / "trackio").glob("*.db")]
    with sqlite3.connect(file) as database:
        rows = [json.loads(text) for (text,) in database.execute("SELECT metrics FROM metrics")]
    assert {row["loss"] for row in rows if "loss" in row} == {row["loss"] for row in run.metrics() if "loss" in row}


def without_login(recipe: Any, out: Path) -> None:
    """In a process of its own: wandb reads its surroundings once."""
    os.environ.update(WANDB_MODE="online", HOME=str(out.parent), NETRC=str(out.parent / "none"))
    os.environ.pop("WANDB_API_KEY", None)
    train(recipe, out=out, progress=False)


@needs("wandb")
def test_weights_and_biases_works_offline_and_tells_a_missing_login(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, start: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe = make_recipe(make_dataset(), "train.trackers=[wandb]", "train.max_steps=2")
    run = train(recipe, out=tmp_path / "run", progress=False)
    (file,) = (run.path / "wandb").glob("offline-run-*/*.wandb")
    assert b"grad_norm" in file.read_bytes()
    process = start(without_login, recipe, tmp_path / "other")
    process.join()
    error = Run.open(tmp_path / "other").info["error"]
    assert "train.trackers: wandb: found No API key" in error and "log in to wandb" in error
