"""`train.feature_cache: auto` is decided by the plan's own numbers, says why, and changes no number of a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_feature_training import Trained
from workbench.resources import state_folder
from workbench.training import feature_cache
from workbench.training.feature_choice import Choice
from workbench.training.plan import plan
from workbench.training.trainer import train

Made = Callable[..., Any]
ONE_ROW = 16 * 128 * 4
"""Bytes that `large_tower` makes of an image."""
THRICE = ("train.epochs=3", "train.eval_every=1")
"""Three steps of everything, and as many validations."""


@pytest.fixture(autouse=True)
def own_home(home: Path) -> Path:
    return home


@pytest.fixture(scope="session")
def large_tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An override that names a tower of 4 x 4 patches with several times the language model's weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "num_hidden_layers": 12}
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=24, patch_size=6))
    folder = tmp_path_factory.mktemp("large tower")
    tower.save_pretrained(folder)
    return f"model.vision={folder}"


@pytest.fixture
def recipe_of(make_recipe: Made, make_dataset: Made, large_tower: str) -> Made:
    """`recipe_of("train.epochs=3")`: over seven pictures, one of them to validate on, each met once an epoch."""
    dataset = make_dataset(images=7, split=True)

    def made(*overrides: str) -> Any:
        return make_recipe(dataset, large_tower, "train.max_steps=null", "train.batch_size=19", *overrides)

    return made


def chosen(recipe: Any) -> Choice:
    forecast = plan(recipe)
    assert f"\n{forecast.cache}\n" in str(forecast), "a line of its own"
    assert forecast.recipe.train.feature_cache == recipe.train.feature_cache, "nobody asked to fit"
    assert forecast.summary()["feature_cache"] == {"chosen": forecast.cache.kind, "why": forecast.cache.why}
    return forecast.cache


def test_many_meetings_with_a_large_tower_are_worth_the_disk(recipe_of: Made) -> None:
    choice = chosen(recipe_of(*THRICE))
    assert (choice.kind, choice.size, choice.on_disk) == ("on", 7 * ONE_ROW, 7 * ONE_ROW)
    told = str(choice)
    assert told.startswith("feature cache on: each image is met 3 times, the tower is ")
    assert told.endswith("% of a step, needs 0.055 MB of 20 GB")


def test_very_many_meetings_are_told_in_thousands(recipe_of: Made) -> None:
    """They were told as 1.71428e+06 times."""
    told = str(chosen(recipe_of("train.max_steps=2000000")))
    assert re.search(r"each image is met 1,[67]\d\d,\d{3}(\.\d)? times, the tower", told), told


def test_the_tower_runs_once_for_what_is_kept_and_every_time_else(recipe_of: Made) -> None:
    on, off = (chosen(recipe_of(*THRICE, f"train.feature_cache={kind}")) for kind in ("on", "off"))
    assert on.held and [on.through_tower(processes) for processes in (1, 4)] == [7, 7], "in memory each has its own"
    assert not off.held and [off.through_tower(processes) for processes in (1, 3)] == [21, 7]
    large = replace(on, size=1 << 31)
    assert [large.through_tower(processes) for processes in (1, 2)] == [7, 3.5], "the disk is one for all"
    assert replace(large, kind="read").through_tower(1) == 21


def test_what_is_met_once_is_not_written(recipe_of: Made) -> None:
    choice = chosen(recipe_of())
    assert (choice.kind, choice.on_disk) == ("read", 0)
    assert str(choice).startswith("feature cache read only: each image is met once, the tower is ")


def test_a_run_shorter_than_an_epoch_meets_few_images_once(recipe_of: Made) -> None:
    choice = chosen(recipe_of("train.batch_size=3", "train.max_steps=1"))
    assert choice.kind == "read" and "each image is met once" in choice.why
    assert choice.size <= 4 * ONE_ROW, "of a step of three conversations, and the one that is validated on"


def test_conversations_that_share_an_image_meet_it_once(recipe_of: Made) -> None:
    assert chosen(recipe_of()).kind == "read"
    apart = chosen(recipe_of("train.share=false"))
    assert apart.kind == "on" and "met 2.7 times" in apart.why, "6 x 3, and one to validate on, of 7"


def test_a_tower_that_hardly_counts_is_not_worth_the_disk(recipe_of: Made, parts: dict[str, Path]) -> None:
    choice = chosen(recipe_of(*THRICE, f"model.vision={parts['clip']}"))
    assert choice.kind == "read"
    assert "met 3 times, the tower is 0% of a step: keeping its features would save 0%" in choice.why


def test_a_tower_that_trains_has_nothing_to_keep(recipe_of: Made) -> None:
    choice = chosen(recipe_of(*THRICE, "train.vision=lora"))
    assert (choice.kind, choice.size) == ("off", 0) and "the tower trains" in choice.why


def test_a_budget_that_is_too_small_is_named(recipe_of: Made) -> None:
    short, enough = (f"train.feature_cache_gb={7 * ONE_ROW * share / 2**30}" for share in (0.99, 1.01))
    choice = chosen(recipe_of(*THRICE, short))
    assert choice.kind == "read" and choice.why.endswith("(train.feature_cache_gb)")
    assert chosen(recipe_of(*THRICE, enough)).kind == "on"


def test_a_disk_that_is_too_full_is_named(recipe_of: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "RESERVE", 1 << 60)
    choice = chosen(recipe_of(*THRICE))
    assert choice.kind == "read" and choice.why.endswith("but it needs 0.055 MB and the disk has 0 MB to spare")


def test_text_alone_has_nothing_to_keep(make_recipe: Made, make_dataset: Made, large_tower: str) -> None:
    dataset = make_dataset(images=1)
    dataset.write_conversations([each for each in dataset.conversations() if not each.images])
    assert chosen(make_recipe(dataset, large_tower, *THRICE)).why == "there are no images"


@pytest.mark.parametrize("kind", ["on", "read", "off", "fp16"])
def test_what_a_recipe_says_is_kept(kind: str, recipe_of: Made) -> None:
    for recipe in (recipe_of(f"train.feature_cache={kind}"), recipe_of(*THRICE, f"train.feature_cache={kind}")):
        choice = chosen(recipe)
        assert choice.kind == kind and choice.why.startswith("as the recipe says; each image is met ")
        assert plan(recipe, fit=True).recipe.train.feature_cache == kind


def test_fit_writes_its_choice_into_the_recipe(recipe_of: Made) -> None:
    for overrides, kind in ((THRICE, "on"), ((), "read")):
        fitted = plan(recipe_of(*overrides), fit=True)
        assert fitted.recipe.train.feature_cache == fitted.cache.kind == kind
        assert str(fitted.cache) in str(fitted) and "as the recipe says" not in str(fitted)


@pytest.mark.parametrize(("overrides", "kind"), [(THRICE, "on"), ((), "read")], ids=["on", "read"])
def test_a_run_that_chooses_is_the_run_that_was_told(
    overrides: tuple[str, ...],
    kind: str,
    recipe_of: Made,
    tmp_path: Path,
) -> None:
    def run(cache: str) -> Trained:
        return Trained(recipe_of(*overrides, f"train.feature_cache={cache}"), tmp_path / cache)

    auto = run("auto")
    assert (state_folder() / "features").exists() == (kind == "on"), "as if it had been told"
    assert auto.tower == 7
    assert auto == run(kind) == run("off") == run("on" if kind == "read" else "read")


def test_what_earlier_runs_left_is_read_by_a_run_that_writes_nothing(recipe_of: Made, tmp_path: Path) -> None:
    first = Trained(recipe_of("train.feature_cache=on"), tmp_path / "first")
    second = Trained(recipe_of(), tmp_path / "second")
    assert (first.tower, second.tower) == (7, 0) and first == second


def test_a_run_says_what_it_chose(recipe_of: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(*THRICE)
    run = train(recipe, out=tmp_path / "run")
    told = capsys.readouterr().err
    assert f"{plan(recipe).cache}\n" in told, "the plan's own words"
    assert run.recipe.train.feature_cache == "auto", "what was asked for stays in the run's recipe"


def test_only_the_images_of_the_steps_go_through_the_tower(
    recipe_of: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("train.batch_size=2", "train.max_steps=2")
    run = Trained(recipe_of(*short), tmp_path / "short")
    shown = sum(row["images"] for row in run.run.metrics() if "loss" in row)
    assert run.tower <= shown + 1 < 7, "and one that is validated on"
    assert run == Trained(recipe_of(*short, "train.feature_cache=off"), tmp_path / "off")
    monkeypatch.setenv("WORKBENCH_PROGRESS", "plain")
    train(recipe_of(*short), out=tmp_path / "told")
    assert f"images of the steps, through the tower: {run.tower}/{run.tower} image" in capsys.readouterr().err
