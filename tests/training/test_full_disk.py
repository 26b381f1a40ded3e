"""A disk that fills up while a run saves: one clear error, what was saved before intact, and the run goes on later."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import DiskError
from workbench.run import Run
from workbench.training.trainer import train

FULL = Path("/dev/full")
"""A file that every write finds full."""
SCRIPT = """
import os, shutil, subprocess, sys, threading, time
from pathlib import Path
from workbench.errors import DiskError
from workbench.recipe import Recipe
from workbench.run import Run
from workbench.training.trainer import train

room, recipe = Path(sys.argv[1]), Recipe.load(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", room], check=True)

def stop():
    while not Run(room / "run").metrics():
        time.sleep(0.01)
    Run(room / "run").send("stop")

threading.Thread(target=stop, daemon=True).start()
saved = train(recipe, out=room / "run", progress=False).checkpoint
before = (saved / "checkpoint.json").read_bytes()
ballast, done = room / "ballast", len(Run(room / "run").metrics())

def fill():
    while len(Run(room / "run").metrics()) == done:
        time.sleep(0.001)
    ballast.write_bytes(bytes(shutil.disk_usage(room).free - 100_000))

threading.Thread(target=fill, daemon=True).start()
for _ in range(2):
    try:
        train(recipe, out=room / "run", resume=True, progress=False)
    except DiskError as error:
        print(error)
run = Run.open(room / "run")
print(run.status, (run.checkpoint / "checkpoint.json").read_bytes() == before, run.checkpoint.name)
print(sorted(path.name for path in (room / "run" / "checkpoints").iterdir()))
ballast.unlink()
run = train(recipe, out=room / "run", resume=True, progress=False)
print(run.status, [row["step"] for row in run.metrics()] == list(range(1, 31)))
"""


def test_a_full_disk_loses_nothing(
    tmp_path: Path, make_dataset: Callable[..., Any], make_recipe: Callable[..., Any], own_mounts: list[str]
) -> None:
    recipe = make_recipe(make_dataset(each=1), "train.max_steps=30", "data.val_fraction=0")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    (tmp_path / "room").mkdir()
    command = [*own_mounts, sys.executable, "-c", SCRIPT, str(tmp_path / "room"), str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    error, at_start, state, folders, end = done.stdout.splitlines()
    assert "a full disk" in error and "make room" in error and "then add --resume" in error
    assert "0.000 GB free; expected 0.0" in at_start and "make room" in at_start
    assert state == "failed True last"
    assert folders == "['last']" or "step-" in folders and ".tmp" not in folders
    assert end == "finished True"


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux")
@pytest.mark.parametrize("name", ["metrics.jsonl", "losses-0.jsonl"])
def test_a_line_that_finds_no_room_fails_the_run_and_lets_it_go_on_later(
    name: str, tmp_path: Path, make_dataset: Callable[..., Any], make_recipe: Callable[..., Any]
) -> None:
    """It was raised a second time as the run let go of its folder, raw, and the folder stayed locked as `running`."""
    recipe = make_recipe(make_dataset(each=1), "train.max_steps=2", "data.val_fraction=0")
    out = tmp_path / "run"
    run = Run.create(out, recipe, kind="train")
    run.log({"step": 0})
    run.close()
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(FULL)
    with pytest.raises(DiskError, match=rf"{name}: found a full disk"):
        train(recipe, out=out, resume=True, progress=False)
    assert Run.open(out).status == "failed" and "a full disk" in Run.open(out).info["error"]
    (out / name).unlink()
    run = train(recipe, out=out, resume=True, progress=False)
    assert run.status == "finished" and [row["step"] for row in run.metrics()][-2:] == [1, 2]
