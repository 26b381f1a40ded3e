"""A model cut among processes (FSDP2) trains, saves and resumes as one that lies whole in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.model.checkpoint import load_checkpoint
from workbench.run import Run
from workbench.training.trainer import train

Made = Callable[..., Any]
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
        process.join()
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
