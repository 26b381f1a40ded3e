"""`workbench train --background`, `steer` and `losses`: a training seen and steered from a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.cli import main
from workbench.data.scene_files import Planted, make
from workbench.instruct.generator import generate


@pytest.fixture
def data(tmp_path: Path) -> str:
    dataset = make(tmp_path / "scenes", count=12, seed=5, planted=Planted(0, 0, 0))
    generate(dataset, tasks={"caption": 1}, questions_per_image=0)
    return str(dataset.path)


def test_a_training_in_the_background_is_watched_and_its_losses_listed(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    changed = [f"data.dataset={data}", "train.max_steps=3", "train.batch_size=4", "train.threads=1"]
    assert main(["train", "tiny-align", "--out", out, "--background", *(f"--set={one}" for one in changed)]) == 0
    assert f"starting: {out}\nnext: workbench steer {out} watch" in capsys.readouterr().out
    assert main(["steer", out, "watch"]) == 0
    assert f"finished: {out}" in capsys.readouterr().out
    assert main(["steer", out, "pause"]) == 1
    assert "found a run that has finished; expected one at work to pause" in capsys.readouterr().err
    assert main(["steer", out, "resume"]) == 1
    assert "found a finished run" in capsys.readouterr().err
    assert main(["losses", out, "-n", "2", "--out", str(tmp_path / "all.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["excess", "loss", "conversation"] and len(lines) == 3
    assert "Describe the image briefly." in lines[1], "what was asked and answered stands beside it"
    assert len((tmp_path / "all.csv").read_text().splitlines()) > 3
    assert main(["losses", out, "-n", "2", "--json"]) == 0
    worst = json.loads(capsys.readouterr().out)
    assert [set(row) for row in worst] == [{"id", "excess", "loss", "tokens", "times", "text"}] * 2
    assert worst[0]["excess"] >= worst[1]["excess"]


def test_what_is_no_training_run_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["losses", str(tmp_path)], ["steer", str(tmp_path), "watch"]):
        assert main(command) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"error: {tmp_path}: found no") and told.count("\n") == 1
