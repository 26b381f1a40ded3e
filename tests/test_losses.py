"""Losses of conversations: which are worst although a model gets better all the time, and what a resumed run keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.errors import RunError
from workbench.losses import LossFile, hardest, read_losses


def test_a_hard_conversation_at_the_end_is_worse_than_an_easy_one_at_the_start(tmp_path: Path) -> None:
    file = LossFile(tmp_path)
    for step in range(100):  # losses fall from 10 to 0.1 while the run learns
        ids, losses = [f"{step}-{place}" for place in range(4)], [10 - step / 10] * 4
        if step == 90:
            losses[2] = 3.0
        file.append(step + 1, step / 100, ids, losses, [5] * 4)
    table = hardest(tmp_path).head(3)
    assert table["id"][0] == "90-2"
    assert table.row(0, named=True)["excess"] == pytest.approx(2.0, abs=0.1)
    assert hardest(tmp_path).height == 400


def test_what_is_seen_twice_counts_on_average_and_shows_its_last_loss(tmp_path: Path) -> None:
    file = LossFile(tmp_path)
    file.append(1, 0.5, ["a", "b", "c"], [5.0, 2.0, 2.0], [1, 2, 3])
    file.append(2, 1.0, ["c", "b", "a"], [1.0, 1.0, 2.0], [3, 2, 1])
    row = hardest(tmp_path).row(0, named=True)
    assert (row["id"], row["loss"], row["tokens"], row["times"]) == ("a", 2.0, 1, 2)
    assert row["excess"] == pytest.approx(1.5)  # the median of all six is 2


def test_processes_write_each_their_own_and_a_resumed_run_doubles_nothing(tmp_path: Path) -> None:
    files = [LossFile(tmp_path, rank=rank, world=2) for rank in range(2)]
    for step in range(1, 5):
        for rank, file in enumerate(files):
            file.append(step, 0.0, [f"{rank}.{step}"], [1.0], [1])
    with open(tmp_path / "losses-1.jsonl", "a") as torn:
        torn.write('{"step": 5, "ids": ["torn"')
    alone = LossFile(tmp_path)  # goes on with one process
    alone.rewind(2)
    alone.append(3, 0.0, ["0.3", "1.3"], [1.0, 1.0], [1, 1])
    assert read_losses(tmp_path)["id"].to_list() == ["0.1", "1.1", "0.2", "1.2", "0.3", "1.3"]


def test_a_folder_without_losses_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="found no losses of conversations; expected the folder of a training run"):
        hardest(tmp_path)
    assert read_losses(tmp_path).columns == ["step", "epoch", "id", "loss", "tokens"]
