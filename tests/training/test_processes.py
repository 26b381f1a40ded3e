"""Two processes that share every step come to what one process comes to."""

from __future__ import annotations

import runpy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_shards import assert_close, run_ranks
from workbench.errors import TrainingError
from workbench.training.trainer import train

Made = Callable[..., Any]
SUMS = """
import os
os.environ.update(RANK="{rank}", LOCAL_RANK="{rank}", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}")
import torch
from workbench.training import distributed
distributed.BUCKET = 1000  # bytes
processes = distributed.Processes("cpu")
kinds = [torch.float32] * 6 + [torch.bfloat16] * 3 + [torch.float32]
sizes = (5, 70, 1, 300, 2, 9, 4, 4, 90, 6)
params = [torch.nn.Parameter(torch.zeros(size, 3, dtype=kind)) for size, kind in zip(sizes, kinds)]
for number, parameter in enumerate(params):
    if number % 3 or {rank}:
        parameter.grad = torch.full_like(parameter, 10.0 * number + {rank} + 1)
processes.sum_gradients(params)
for number, parameter in enumerate(params):
    expected = 20 * number + 3 if number % 3 else 10 * number + 2
    assert (parameter.grad == expected).all(), number
"""


def test_two_processes_train_what_one_trains(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    # 19 conversations in steps of 9: the last step of an epoch has one conversation for two processes.
    overrides = ["train.batch_size=9", "train.max_share=2", "train.pack_tokens=400", "train.eval_every=3"]
    recipe = make_recipe(make_dataset(split=True, images=7), *overrides)
    one = train(recipe, out=tmp_path / "one", progress=False)
    assert_close(run_ranks(start_ranks, recipe, tmp_path / "two"), one)


@pytest.mark.parametrize(
    ("load", "shard"), [("bf16", "false"), ("bf16", "true"), ("fp16", "false"), ("fp16", "true"), ("4bit", "false")]
)
def test_every_number_format_is_the_same_on_two_processes(
    load: str, shard: str, tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    recipe = make_recipe(make_dataset(), f"model.load={load}", "train.max_steps=3")
    one = train(recipe, out=tmp_path / "one", progress=False)
    two = run_ranks(start_ranks, recipe.with_overrides(f"train.shard={shard}"), tmp_path / "two")
    for row, other in zip(two.metrics(), one.metrics(), strict=True):
        for key in {"loss", "grad_norm", "val_loss"} & other.keys():
            assert row[key] == pytest.approx(other[key], rel=2e-2), (key, row["step"])


def test_buckets_add_up_every_gradient_once(tmp_path: Path, start: Made) -> None:
    """Gradients of several types and sizes, some larger than a bucket, some that only one process has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        script = tmp_path / f"{rank}.py"
        script.write_text(SUMS.format(rank=rank, port=port))
        processes.append(start(runpy.run_path, str(script)))
    for process in processes:
        process.join()
        assert process.exitcode == 0


@pytest.mark.parametrize(
    ("variables", "override", "told"),
    [
        ({"WORLD_SIZE": "2"}, "model.device=cuda:1", "model.device: found cuda:1 for several processes"),
        ({"WORLD_SIZE": "2"}, "model.device=mps", "several processes on mps; expected cuda or cpu"),
        ({"ACCELERATE_USE_FSDP": "true"}, "train.seed=0", "fsdp_version: 1; expected FSDP2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "train.seed=0",
            "fsdp_offload_params: true; expected weights on the devices",
        ),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "train.seed=0", "mixed_precision: bf16; expected fp32, as the recipe"),
    ],
)
def test_what_processes_cannot_do_is_refused(
    variables: dict[str, str],
    override: str,
    told: str,
    tmp_path: Path,
    make_dataset: Made,
    make_recipe: Made,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=told):
        train(make_recipe(make_dataset(), override), out=tmp_path / "run", progress=False)
