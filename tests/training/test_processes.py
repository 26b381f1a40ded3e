"""Two processes that share every step come to what one process comes to."""

from __future__ import annotations

import runpy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.model.checkpoint import load_checkpoint
from workbench.run import Run
from workbench.training.trainer import train

Made = Callable[..., Any]
SCRIPT = """
import os
os.environ.update(RANK="{rank}", LOCAL_RANK="{rank}", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}",
                  ACCELERATE_USE_CPU="true")  # what `accelerate launch --cpu --num_processes 2` says to its processes
import torch
torch.set_num_threads(1)
from workbench.recipe import Recipe
from workbench.training.trainer import train
train(Recipe.load({recipe!r}), out={out!r}, progress=False)
"""


def test_two_processes_train_what_one_trains(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, start: Made
) -> None:
    # 19 conversations in steps of 9: the last step of an epoch has one conversation for two processes.
    overrides = ["train.batch_size=9", "train.max_share=2", "train.pack_tokens=400", "train.eval_every=3"]
    recipe = make_recipe(make_dataset(split=True, images=7), *overrides)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    one = train(recipe, out=tmp_path / "one", progress=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        fields = {"rank": rank, "port": port, "recipe": str(tmp_path / "recipe.yaml"), "out": str(tmp_path / "two")}
        script = tmp_path / f"{rank}.py"
        script.write_text(SCRIPT.format(**fields))
        processes.append(start(runpy.run_path, str(script)))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    two = Run.open(tmp_path / "two")
    assert two.status == "finished"
    for row, other in zip(one.metrics(), two.metrics(), strict=True):
        for key in {"loss", "grad_norm", "val_loss", "tokens", "supervised_tokens", "images"} & row.keys():
            assert other[key] == pytest.approx(row[key], rel=1e-4), (key, row["step"])
    models = [load_checkpoint(run.path / "checkpoints" / "last", device="cpu").model for run in (one, two)]
    for (name, expected), found in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(found, expected, atol=2e-4), name
