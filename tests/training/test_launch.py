"""`workbench train --processes 2`, torchrun, accelerate launch: real commands; processes begin and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.run import Run
from workbench.training.trainer import train

Made = Callable[..., Any]
HERE = Path(__file__).parents[2]
SECONDS = 120


def command(*words: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", *words], cwd=HERE, stdout=pipe, stderr=pipe, text=True)


def two(folder: Path) -> tuple[str, ...]:
    recipe, out = str(folder / "recipe.yaml"), str(folder / "run")
    return ("workbench.cli", "train", recipe, "--out", out, "--processes", "2")


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in Run.open(run).metrics() if "loss" in row]


def until_logged(run: Path, lines: int, process: subprocess.Popen[str]) -> None:
    while len(Run(run).metrics()) < lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def children(process: subprocess.Popen[str]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not listed.exists():
        pytest.skip("needs Linux")
    return [int(word) for word in listed.read_text().split()]


def test_every_way_to_start_two_processes_gives_the_losses_of_one(
    tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    recipe = make_recipe(make_dataset())
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    expected = losses(train(recipe, out=tmp_path / "one", progress=False).path)
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "workbench.cli")
    accelerate = ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    more = ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "workbench.cli")
    ways = {"own": ("workbench.cli",), "torchrun": torchrun, "accelerate": (*accelerate, *more)}
    started = {}
    for name, words in ways.items():
        own = ("--processes", "2") if name == "own" else ()
        started[name] = command(*words, "train", str(file), "--out", str(tmp_path / name), "--json", *own)
    for name, process in started.items():
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err
        assert json.loads(out)["status"] == "finished", "one process speaks for both"
        assert losses(tmp_path / name) == pytest.approx(expected, rel=1e-5), name
        assert err.count("trains ") == 1, err


def two_processes(recipe: Any, folder: Path) -> tuple[str, ...]:
    """The command that trains a recipe on two processes in `folder`."""
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    out = ("--out", str(folder / "run"), "--processes", "2")
    return ("workbench.cli", "train", str(folder / "recipe.yaml"), *out)


def test_ctrl_c_saves_stops_and_the_run_goes_on(tmp_path: Path, make_dataset: Made, make_recipe: Made) -> None:
    recipe = make_recipe(make_dataset(), "train.max_steps=1000")
    words = two_processes(recipe, tmp_path)
    process = command(*words)
    until_logged(tmp_path / "run", 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130 and "with --resume" in out, (out, err)
    done = losses(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "last").is_dir() and 2 <= len(done) < 1000
    process = command(*words, "--resume")
    until_logged(tmp_path / "run", len(done) + 1, process)
    process.terminate()
    process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert losses(tmp_path / "run")[: len(done)] == done


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("lines", [0, 2])
def test_a_killed_process_ends_the_other_with_one_line(
    rank: int, lines: int, tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    """Also before they have met: one must not wait for the other for ever."""
    recipe = make_recipe(make_dataset(), "train.max_steps=1000")
    words = two_processes(recipe, tmp_path)
    process = command(*words)
    until_logged(tmp_path / "run", lines, process)
    while len(children(process)) < 2:
        time.sleep(0.01)
    os.kill(children(process)[rank], signal.SIGKILL)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert f"error: rank {rank} of 2 was ended by SIGKILL" in err and "Traceback" not in err, err


def test_a_refusal_is_told_once(tmp_path: Path, make_dataset: Made, make_recipe: Made) -> None:
    recipe = make_recipe(make_dataset(), "train.max_tokens=10", "train.pack_tokens=10")
    words = two_processes(recipe, tmp_path)
    process = command(*words)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert err.count("error: ") == 1 and "Traceback" not in err, err
