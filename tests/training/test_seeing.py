"""What a run writes down to be looked at: losses of conversations, answers as it learns, speed and memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import polars as pl
import psutil
import pytest

from workbench.conversation import Conversation, Image, Message
from workbench.errors import TrainingError
from workbench.run import Run
from workbench.training.answers import choose
from workbench.training.trainer import train

Made = Callable[..., Any]


def wait_for(run: Path, lines: int, process: Any) -> None:
    import time

    while len(Run(run).metrics()) < lines:
        assert process.is_alive(), "ended too early"
        time.sleep(0.005)


def test_every_conversation_of_every_step_is_there_with_its_loss(
    tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    run = train(make_recipe(make_dataset(), "train.max_steps=8"), out=tmp_path / "run", progress=False)
    table = run.losses()
    steps = table.group_by("step", maintain_order=True).agg(
        pl.len(), mean=(pl.col("loss") * pl.col("tokens")).sum() / pl.col("tokens").sum(), tokens=pl.col("tokens").sum()
    )
    rows = [row for row in run.metrics() if "loss" in row]
    assert steps["step"].to_list() == [row["step"] for row in rows]
    assert steps["tokens"].to_list() == [row["supervised_tokens"] for row in rows]
    for mean, row in zip(steps["mean"], rows, strict=True):
        assert mean == pytest.approx(row["loss"], rel=1e-4)  # the step's own loss, told apart
    epoch = table.filter(pl.col("epoch") <= 1)
    assert epoch["id"].n_unique() == epoch.height, "an epoch has every conversation once"


def test_killed_and_gone_on_a_run_has_the_losses_and_answers_of_an_uninterrupted_one(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, start: Made
) -> None:
    overrides = ["train.max_steps=8", "train.save_every=3", "train.answers_every=2", "data.val_fraction=0.3"]
    recipe = make_recipe(make_dataset(), *overrides)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe, out=whole, progress=False)
    process = start(train, recipe, out=broken, progress=False)
    wait_for(broken, 5, process)
    process.kill()
    process.join()
    train(recipe, out=broken, resume=True, progress=False)
    assert Run(broken).losses().equals(Run(whole).losses())
    said = [[(row["step"], row["answers"]) for row in Run(path).answers()] for path in (whole, broken)]
    assert said[0] == said[1]
    assert [step for step, _ in said[0]] == [0, 2, 4, 6, 8]


def test_answers_show_the_same_questions_with_their_pictures(
    tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    overrides = ["train.max_steps=3", "train.answers_every=2", "data.val_fraction=0.5"]
    plain = train(make_recipe(make_dataset(images=12), *overrides[::2]), out=tmp_path / "plain", progress=False)
    recipe = make_recipe(tmp_path / "data", *overrides)
    run = train(recipe, out=tmp_path / "run", progress=False)
    rows = run.answers()
    assert [row["step"] for row in rows] == [0, 2, 3]
    for row in rows:
        assert [one["id"] for one in row["answers"]] == [one["id"] for one in rows[0]["answers"]]
        assert len(row["answers"]) == 5
    for one in rows[0]["answers"]:
        assert one["question"].startswith("Which colour?") or one["question"].startswith("What is 1+1?")
        assert one["reference"].rstrip("!") in ("red", "green", "blue", "grey", "Two.")
        if one["picture"]:
            with PIL.Image.open(run.path / one["picture"]) as picture:
                assert max(picture.size) <= 160
    assert len({one["picture"] for one in rows[0]["answers"]}) == 5, "each about another image"
    losses = [[row["loss"] for row in held.metrics() if "loss" in row] for held in (plain, run)]
    assert losses[0] == losses[1], "asking changes nothing"
    assert plain.answers() == []
    files = [one.path for one in psutil.Process().open_files() if one.path.startswith(str(tmp_path))]
    assert [path for path in files if path.endswith(".jsonl")] == [], "a run that ended holds none open"


def test_a_corrected_recipe_begins_with_answers_of_its_own(
    tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    asks = ["train.answers_every=5", "data.val_fraction=0.5", "train.max_steps=3", "train.clip=null"]
    wild = make_recipe(make_dataset(), *asks, "train.lr=1e30", "train.log_every=3")
    with pytest.raises(TrainingError, match="found a loss of nan"):
        train(wild, out=tmp_path / "run", progress=False)
    assert [row["step"] for row in Run(tmp_path / "run").answers()] == [0]
    corrected = make_recipe(tmp_path / "data", *asks, "train.lora.r=2")
    run = train(corrected, out=tmp_path / "run", progress=False)
    assert [row["step"] for row in run.answers()] == [0, 3]
    assert run.losses()["step"].unique().to_list() == [1, 2, 3]


def test_tasks_take_turns_and_images_are_not_asked_about_twice() -> None:
    def made(name: str, task: str, image: str) -> Conversation:
        return Conversation(name, (Message("user", (Image(image), "?")), Message("assistant", ("!",))), task=task)

    held = [made(f"a{n}", "caption", f"{n % 3}.png") for n in range(9)] + [made("b0", "detail", "5.png")]
    chosen = choose(held, 5)
    assert [one.id for one in chosen] == ["a0", "b0", "a1", "a2", "a3"]  # only then an image for the second time
    assert choose(reversed(held), 5) == chosen


def test_a_line_of_metrics_tells_memory_and_useful_arithmetic(
    tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    run = train(make_recipe(make_dataset(each=1), "train.max_steps=2"), out=tmp_path / "run", progress=False)
    for row in run.metrics()[:2]:
        assert 50e6 < row["memory"] < 20e9
        assert 0 < row["flops_fraction"] < 1
    assert run.info["steps"] == 2
