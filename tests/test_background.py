"""Training in a process of its own, steered from here, found again after the one who started it is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import workbench as wb
from workbench.background import LiveRun
from workbench.data.scene_files import Planted, make
from workbench.errors import DataError, RunError, TrainingError
from workbench.instruct.generator import generate
from workbench.recipe import Recipe
from workbench.run import Run

WAIT = 120.0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Many steps of one conversation each."""
    dataset = make(tmp_path_factory.mktemp("data") / "scenes", count=12, seed=5, planted=Planted(0, 0, 0))
    generate(dataset, tasks={"caption": 1}, questions_per_image=0)
    changed = ["train.batch_size=1", "train.threads=1", "train.max_steps=100000", "data.val_fraction=0.2"]
    return Recipe.load("tiny-align", [f"data.dataset={dataset.path}", *changed])


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    try:
        process = psutil.Process(json.loads((tmp_path / "run" / "process.json").read_text())["process"])
        if "workbench.background" in process.cmdline():
            process.kill()
            process.wait(30)
    except (OSError, ValueError, psutil.Error):
        pass


def until(what: Callable[[], Any]) -> None:
    limit = time.monotonic() + WAIT
    while not what():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.02)


def steps(run: Run) -> int:
    return len(run.metrics())


def test_it_is_paused_saved_stopped_and_goes_on(recipe: Recipe, out: Path) -> None:
    run = wb.train(recipe, out=out, background=True)
    assert isinstance(run, LiveRun) and run.status == "starting"
    with pytest.raises(RunError, match="a run that is being trained.*wb.attach"):
        wb.train(recipe, out=out, background=True)
    until(lambda: steps(run) > 2)
    assert run.status == "running" and wb.attach(out).status == "running"
    run.pause()
    assert run.status == "paused"
    until(lambda: _stands_still(run))
    before = steps(run)
    run.resume()
    until(lambda: steps(run) > before)
    run.save()
    until((out / "checkpoints" / "last").is_dir)
    run.stop()
    assert run.wait(WAIT, progress=False).status == "stopped"
    assert run.trouble is None and not run.working
    with pytest.raises(RunError, match="found a run that is stopped; expected one at work to pause"):
        run.pause()
    done = steps(run)
    run.resume()  # in a new process
    until(lambda: steps(run) > done)
    assert [row["step"] for row in run.metrics()][: done + 1] == list(range(1, done + 2))
    run.stop()
    assert run.wait(WAIT, progress=False).status == "stopped"


def _stands_still(run: Run) -> bool:
    before = steps(run)
    time.sleep(1.0)
    return steps(run) == before


def test_it_outlives_the_process_group_that_started_it_and_is_found_again(recipe: Recipe, out: Path) -> None:
    (out.parent / "recipe.yaml").write_text(recipe.to_yaml())
    code = (
        "import time, workbench as wb\n"
        f"recipe = wb.Recipe.load({str(out.parent / 'recipe.yaml')!r})\n"
        f"wb.train(recipe, out={str(out)!r}, background=True)\n"
        "time.sleep(600)\n"
    )
    notebook = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    until(lambda: steps(Run(out)) > 1)
    os.killpg(notebook.pid, signal.SIGKILL)  # as Jupyter ends a kernel
    notebook.wait()
    run = wb.attach(out)
    before = steps(run)
    until(lambda: steps(run) > before)
    assert run.status == "running"
    run.stop()
    assert run.wait(WAIT, progress=False).status == "stopped"


def test_one_that_died_is_noticed_and_shows_its_last_lines(recipe: Recipe, out: Path) -> None:
    run = wb.train(recipe, out=out, background=True)
    until(lambda: steps(run) > 1)
    psutil.Process(json.loads((out / "process.json").read_text())["process"]).kill()
    told = r"gone without a word \(signal 9\)[^$]*conversations about [^$]*put that right and start it again"
    with pytest.raises(TrainingError, match=told):
        run.wait(WAIT, progress=False)
    assert run.status == wb.attach(out).status == "died"
    with pytest.raises(RunError, match="found a run that has died; expected one at work to pause"):
        run.pause()
    assert "steps of 1 conversation:" in run.tail()


def test_an_error_in_the_recipe_is_told_with_its_line(recipe: Recipe, out: Path) -> None:
    run = wb.train(recipe.with_overrides("data.tasks=[captoin]"), out=out, background=True)
    with pytest.raises(TrainingError, match="ended with an error[^$]*no task 'captoin'[^$]*did you mean caption"):
        run.wait(WAIT, progress=False)
    assert run.status == "failed"
    again = wb.train(recipe.with_overrides("train.max_steps=2"), out=out, background=True)  # corrected: makes room
    assert again.wait(WAIT, progress=False).status == "finished"
    assert again.trouble is None and steps(again) >= 2
    with pytest.raises(RunError, match="a finished run"):
        wb.train(recipe, out=out, background=True)


@pytest.mark.parametrize("background", [True, False])
def test_a_dataset_is_given_by_its_folder_as_to_a_plan(recipe: Recipe, out: Path, background: bool) -> None:
    """It was an AttributeError: only an open one was taken."""
    folder, few = recipe.data.dataset, recipe.with_overrides("data.dataset=unused", "train.max_steps=2")
    run: Run = wb.train(few, out=out, dataset=folder, progress=False, background=background)  # type: ignore[call-overload]
    if isinstance(run, LiveRun):
        run.wait(WAIT, progress=False)
    assert run.status == "finished" and run.recipe.data.dataset == folder
    assert wb.train(few, out=out, dataset=Path(folder), reuse=True, background=background).status == "finished"


def test_what_is_no_folder_and_no_dataset_is_told(recipe: Recipe, out: Path) -> None:
    with pytest.raises(DataError, match="^out: found None; expected a path$"):
        wb.train(recipe, out=None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="^dataset: found 3, of type int; expected a Dataset, or its folder$"):
        wb.train(recipe, out=out, dataset=3)  # type: ignore[arg-type]
    assert not out.exists()


def test_stopped_while_it_starts_it_ends_at_once(recipe: Recipe, out: Path) -> None:
    run = wb.train(recipe, out=out, background=True)
    run.stop()
    assert run.wait(WAIT, progress=False).status == "stopped"
    assert steps(run) == 0


def test_paused_while_it_starts_it_waits_after_its_first_step_and_saves_in_the_pause(recipe: Recipe, out: Path) -> None:
    """The command once made a folder that `is no run` of it, and killed the process."""
    run = wb.train(recipe, out=out, background=True)
    run.pause()
    assert repr(run) == f"LiveRun({str(out)!r}, starting)"
    until(lambda: run.status == "paused" and steps(run))
    run.save()
    until((out / "checkpoints" / "last").is_dir)
    assert run.status == "paused" and steps(run) == 1 and _stands_still(run)
    run.stop()
    assert run.wait(WAIT, progress=False).status == "stopped"


def test_what_cannot_be_handed_over_or_found_is_told(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="a model in memory"):
        wb.train(recipe, out=tmp_path / "run", llava=object(), background=True)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="expected a run folder"):
        wb.attach(tmp_path)
    (tmp_path / "process.json").write_text("torn")
    assert wb.attach(tmp_path).status == "damaged"


def test_a_process_number_that_another_process_got_is_not_ours(recipe: Recipe, tmp_path: Path) -> None:
    Run.create(tmp_path / "run", recipe, kind="train").close()
    (tmp_path / "run" / "process.json").write_text(json.dumps({"process": os.getpid(), "created": 1.0}))
    assert wb.attach(tmp_path / "run").status == "died"
