"""A model cut among processes (FSDP2) trains, saves and resumes as one that lies whole in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.model.checkpoint import load_checkpoint
from workbench.run import Run
from workbench.training.room import answers_left_out
from workbench.training.trainer import train

Made = Callable[..., Any]
LIMIT = 200
"""Seconds after which processes that wait for each other have failed."""
KEYS = {"loss", "grad_norm", "val_loss", "tokens", "supervised_tokens", "images"}


def assert_close(run: Run, expected: Run) -> None:
    """The same metrics, the same weights and the same state of the optimiser, as near as sums in another order are."""
    for row, other in zip(run.metrics(), expected.metrics(), strict=True):
        for key in KEYS & other.keys():
            assert row[key] == pytest.approx(other[key], rel=1e-4), (key, row["step"])
    for name in ("last", "best"):
        folders = [one.path / "checkpoints" / name for one in (run, expected)]
        held, wanted = (dict(load_checkpoint(folder, device="cpu").model.named_parameters()) for folder in folders)
        for key, tensor in wanted.items():
            assert torch.allclose(held[key], tensor, atol=2e-4), key
    states = [torch.load(one.path / "checkpoints" / "last" / "trainer.pt")["optimizer"] for one in (run, expected)]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for number, state in states[1]["state"].items():
        for key, tensor in state.items():
            assert states[0]["state"][number][key].shape == tensor.shape
            assert torch.allclose(states[0]["state"][number][key], tensor, atol=1e-3), (number, key)


def run_ranks(start_ranks: Made, recipe: Any, out: Path, **options: Any) -> Run:
    processes = start_ranks(recipe, out, **options)
    for process in processes:
        process.join(LIMIT)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * len(processes)
    run = Run.open(out)
    assert run.status == "finished"
    return run


@pytest.mark.parametrize(
    "trains",
    [
        ("train.language=lora",),
        ("train.language=full", "train.vision=full", "train.weight_decay=0.1"),
        ("train.stage=align", "train.language=frozen"),
        ("image_mode=anyres", "train.language=lora"),
    ],
    ids=["lora", "full", "align", "lora of a LLaVA-NeXT"],
)
def test_two_shards_train_what_one_process_trains(
    trains: tuple[str, ...], tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    # Packs of one tree: one process has text where another has an image. The last step of an epoch has one
    # conversation, so that one process only computes along.
    overrides = ["train.batch_size=9", "train.max_share=2", "train.pack_tokens=260", "train.max_tokens=260"]
    overrides += ["train.eval_every=3", "train.max_steps=5", *trains]
    recipe = make_recipe(make_dataset(split=True, images=7), *overrides)
    one = train(recipe, out=tmp_path / "one", progress=False)
    two = run_ranks(start_ranks, recipe.with_overrides("train.shard=true"), tmp_path / "two")
    assert_close(two, one)


def assert_answers_and_text_in_validation(
    cut: str, *trains: str, tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    """The same answers and validation losses as of one process, where one of two has text while the other has an image
    to validate on, and no step came before the first answers."""
    dataset = make_dataset(split=True, images=5)
    held = [replace(one, split="val") if one.id == "text" else one for one in dataset.conversations()]
    dataset.write_conversations(held)
    overrides = ["train.batch_size=9", "train.max_share=2", "train.pack_tokens=260", "train.max_tokens=260"]
    overrides += ["train.eval_every=2", "train.answers_every=2", "train.max_steps=3"]
    recipe = make_recipe(dataset, *overrides, *trains)
    one = train(recipe, out=tmp_path / "one", progress=False)
    two = run_ranks(start_ranks, recipe.with_overrides(cut), tmp_path / "two")
    assert_close(two, one)
    said = [[(row["step"], row["answers"]) for row in run.answers()] for run in (two, one)]
    assert said[0] == said[1] and [step for step, _ in said[0]] == [0, 2, 3]
    assert {each["picture"] is None for each in said[0][0][1]} == {True, False}


@pytest.mark.parametrize("vision", ["frozen", "lora"])
def test_two_shards_answer_and_validate_on_text_as_one_process_does(
    vision: str, tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    made = {"make_dataset": make_dataset, "make_recipe": make_recipe, "start_ranks": start_ranks}
    assert_answers_and_text_in_validation("train.shard=true", f"train.vision={vision}", tmp_path=tmp_path, **made)


def test_questions_are_left_out_where_the_whole_model_has_no_room(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, make_llava: Made, start_ranks: Made
) -> None:
    recipe = make_recipe(make_dataset(split=True), "train.shard=true", "train.answers_every=1", "train.max_steps=1")
    tight = recipe.with_overrides("train.memory_gb=0.0005")
    assert run_ranks(start_ranks, tight, tmp_path / "run").answers() == []
    llava = make_llava(recipe)
    assert answers_left_out(0, llava, tight.train) == answers_left_out(10**6, llava, recipe.train) == ""
    assert "train.answers_every: no questions are answered" in answers_left_out(10**6, llava, tight.train)
