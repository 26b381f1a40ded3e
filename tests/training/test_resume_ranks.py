"""Resume is equality with several processes too, whichever of them is killed, and with another number of them after."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_resume import assert_same, wait_for
from tests.training.test_shards import assert_close, run_ranks
from workbench.errors import TrainingError
from workbench.run import Run
from workbench.training.trainer import train

Made = Callable[..., Any]


def killed(processes: list[Any], out: Path, lines: int, victims: tuple[int, ...]) -> None:
    """Kill these ranks once the run has logged so many lines, and wait for the end of all."""
    wait_for(out, lines, processes[0])
    for rank in victims:
        processes[rank].kill()
    for process in processes:
        process.join(30)
        assert process.exitcode not in (0, None)
    assert processes[victims[0]].exitcode == -signal.SIGKILL


def test_two_processes_killed_again_and_again_end_in_the_same_bits(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    overrides = ["train.max_steps=8", "train.save_every=2", "train.eval_every=3", "train.lora.dropout=0.1"]
    recipe = make_recipe(make_dataset(), *overrides)
    whole = run_ranks(start_ranks, recipe, tmp_path / "whole")
    out = tmp_path / "broken"
    for lines, victims in ((3, (1,)), (5, (0,)), (8, (0, 1))):
        killed(start_ranks(recipe, out, resume=True), out, lines, victims)
    run_ranks(start_ranks, recipe, out, resume=True)
    assert_same(out, whole.path)


@pytest.mark.parametrize("shard", ["false", "true"])
def test_another_number_of_processes_goes_on_with_the_same_losses(
    shard: str, tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    overrides = ["train.max_steps=6", "train.save_every=2", "train.eval_every=3"]
    recipe = make_recipe(make_dataset(), *overrides)
    whole = train(recipe, out=tmp_path / "whole", progress=False)
    recipe, out = recipe.with_overrides(f"train.shard={shard}"), tmp_path / "broken"
    killed(start_ranks(recipe, out), out, 4, (1, 0))
    assert len(Run.open(out).metrics()) < 6
    assert_close(run_ranks(start_ranks, recipe, out, resume=True, world=3), whole)


def test_shards_of_one_process_are_refused(tmp_path: Path, make_dataset: Made, make_recipe: Made) -> None:
    with pytest.raises(TrainingError, match="train.shard: found one process; expected several.*--processes 8"):
        train(make_recipe(make_dataset(), "train.shard=true"), out=tmp_path / "run", progress=False)


def test_quantised_weights_are_not_cut(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    recipe = make_recipe(make_dataset(), "train.shard=true", "model.load=4bit")
    for process in start_ranks(recipe, tmp_path / "run"):
        process.join(60)
        assert process.exitcode == 1
    assert "model.load: 4bit; expected floating-point weights" in Run.open(tmp_path / "run").info["error"]
