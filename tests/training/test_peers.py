"""One process of two fails: the other ends within seconds, and the run says which rank it was and which sample."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.errors import TrainingError
from workbench.run import Run
from workbench.training.trainer import train

Made = Callable[..., Any]
PROMPTLY = 20
"""Seconds in which the other process must be gone; it would otherwise wait for minutes."""

BREAK_FILES = """
import pathlib
whole = Loop.run_all
def broken(self):
    for file in pathlib.Path("data/images").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    return whole(self)
Loop.run_all = broken
"""
AT_STEP_3 = """
step = Loop.step
def changed(self, number, stream):
    if number == 2:
        {act}
    return step(self, number, stream)
Loop.step = changed
"""
HANG = """
import time
real = train
def train(*given, **named):
    try:
        real(*given, **named)
    finally:
        time.sleep(100)
"""


@pytest.fixture
def ended(tmp_path: Path, start_ranks: Made) -> Callable[..., Run]:
    """`ended(recipe, before)`: the run of two processes after both ended on their own, each with a failure."""

    def made(recipe: Any, before: dict[int, str], **options: Any) -> Run:
        processes = start_ranks(recipe, tmp_path / "run", before=before, **options)
        while processes[0].is_alive() and processes[1].is_alive():
            time.sleep(0.05)
        first = time.monotonic()
        for process in processes:
            process.join(PROMPTLY)
        assert time.monotonic() - first < PROMPTLY and not any(process.is_alive() for process in processes)
        assert all(process.exitcode for process in processes)
        return Run.open(tmp_path / "run")

    return made


def test_an_image_broken_after_the_start_names_rank_conversation_and_file(
    ended: Made, tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    """Each rank has the data on a disk of its own, as two machines have; the one of rank 1 breaks."""
    dataset = make_dataset(split=True)
    shutil.copytree(dataset.path, tmp_path / "other" / "data")
    folders = {1: tmp_path / "other"}
    recipe = make_recipe("data", "train.feature_cache=off")  # every image is opened again for every step
    run = ended(recipe, {1: BREAK_FILES}, folders=folders)
    assert run.status == "failed"
    error = run.info["error"]
    assert error.startswith("PeerError: step 1, c") and "rank 1 of 2" in error, error
    assert ".png: " in error and "quarantine the image" in error, error


def test_a_loss_that_is_no_number_names_rank_and_conversation(
    ended: Made, make_dataset: Made, make_recipe: Made
) -> None:
    act = 'self.placement.groups[0].params[0].data.fill_(float("nan"))'
    run = ended(make_recipe(make_dataset(split=True)), {1: AT_STEP_3.format(act=act)})
    assert run.status == "failed"
    error = run.info["error"]
    assert "step 3: found a loss of nan in " in error and "(rank 1)" in error and "(rank 0)" not in error, error
    assert len(run.metrics()) == 2


TOO_MUCH = "torch.empty(1 << 60, dtype=torch.uint8)"


def test_memory_that_runs_out_names_rank_and_conversations(
    ended: Made, make_dataset: Made, make_recipe: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process once said the rank alone; one process alone showed a traceback."""
    recipe = make_recipe(make_dataset(split=True))
    run = ended(recipe, {1: AT_STEP_3.format(act=f"self.placement.losses = lambda *given: {TOO_MUCH}")})
    monkeypatch.setattr("workbench.training.placement.token_losses", lambda *given: eval(TOO_MUCH, {"torch": torch}))
    with pytest.raises(TrainingError) as alone:
        train(recipe, out=tmp_path / "alone", progress=False)
    for told, step, rank in ((run.info["error"], 3, "rank 1 of 2"), (str(alone.value), 1, "")):
        assert f"step {step}, c" in told and rank in told, told
        assert "no memory left on cpu" in told and " tokens; set train.checkpointing: on" in told, told


def test_memory_that_runs_out_in_the_optimiser_says_so(
    make_dataset: Made, make_recipe: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *given: eval(TOO_MUCH, {"torch": torch}))
    with pytest.raises(TrainingError, match="^step 1: found no memory left on cpu for the optimiser;.* adamw8bit"):
        train(make_recipe(make_dataset(split=True)), out=tmp_path / "run", progress=False)


def test_a_rank_that_waits_for_a_failed_one_that_hangs_ends_all_the_same(
    tmp_path: Path, start_ranks: Made, make_dataset: Made, make_recipe: Made
) -> None:
    """No connection breaks while the failed process lives: only word of mouth ends the wait."""
    hang = AT_STEP_3.format(act='raise ValueError("a bug")') + HANG
    processes = start_ranks(make_recipe(make_dataset(split=True)), tmp_path / "run", before={1: hang})
    processes[0].join(60)
    assert processes[0].exitcode == 1 and processes[1].is_alive()
    processes[1].kill()
    run = Run.open(tmp_path / "run")
    assert run.status == "failed"
    assert "rank 1 of 2, ValueError: a bug" in run.info["error"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_other(rank: int, ended: Made, make_dataset: Made, make_recipe: Made) -> None:
    act = f"import signal; os.kill(os.getpid(), signal.{signal.SIGKILL.name})"
    run = ended(make_recipe(make_dataset(split=True)), {rank: AT_STEP_3.format(act=act)})
    if rank == 1:
        assert run.status == "failed" and "another process gone without a word" in run.info["error"]
    else:
        assert run.status == "died"  # whoever writes was killed


def test_a_refusal_of_the_first_rank_ends_the_second(
    ended: Made, tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    """The folder is in the way: only the rank that writes can see it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"kind": "train", "status": "finished"}')
    assert ended(make_recipe(make_dataset(split=True)), {}).status == "finished"


def test_ranks_with_other_data_are_told_apart(
    ended: Made, tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    dataset = make_dataset(split=True)
    other = shutil.copytree(dataset.path, tmp_path / "other" / "data")
    from workbench.data.dataset import Dataset

    there = Dataset.open(other)
    there.write_conversations(there.conversations()[:-1])
    run = ended(make_recipe("data"), {}, folders={1: tmp_path / "other"})
    assert "rank 1 of 2: found conversations: 15; expected 16, as rank 0 has it" in run.info["error"]
