"""The live view in a real JupyterLab: a training is started, watched, paused and stopped there, and found again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from workbench.data.scene_files import Planted, make
from workbench.instruct.generator import generate
from workbench.recipe import Recipe
from workbench.resources import PACKAGE
from workbench.run import Run

sys.path.insert(0, str(Path(__file__).parents[1]))
from notebook_server import notebook, run_cell  # noqa: E402

# Once more where a busy machine made the page wait too long; what is broken fails twice.
pytestmark = [pytest.mark.timeout(900), pytest.mark.flaky(reruns=1)]
WAIT = 200_000
"""Milliseconds."""
START = 'import workbench as wb\nrun = wb.train(wb.Recipe.load("recipe.yaml"), out="run", background=True)\nrun'
ATTACH = 'import workbench as wb\nrun = wb.attach("run")\nrun'
BUSY = "import time\ntime.sleep(600)"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the notebook lies, with a recipe of many short steps; the training is ended afterwards."""
    dataset = make(tmp_path / "scenes", count=24, seed=5, planted=Planted(0, 0, 0))
    generate(dataset, tasks={"caption": 1}, questions_per_image=0)
    often = ["train.eval_every=10", "train.answers_every=10", "data.val_fraction=0.3"]
    changed = ["train.batch_size=2", "train.threads=1", "train.max_steps=100000", *often]
    place = tmp_path / "lab"
    place.mkdir()
    recipe = Recipe.load("tiny-align", [f"data.dataset={dataset.path}", *changed])
    (place / "recipe.yaml").write_text(recipe.to_yaml())
    yield place
    if (place / "run" / "process.json").is_file():
        noted = json.loads((place / "run" / "process.json").read_text())
        if psutil.pid_exists(noted["process"]) and noted.get("ended") is None:
            psutil.Process(noted["process"]).kill()


@pytest.fixture
def lab(folder: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a notebook with three cells: start, keep busy, attach."""
    cells = {"one": START, "two": BUSY, "three": ATTACH}
    settings = {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "PYTHONPATH": str(PACKAGE.parent)}
    with notebook(folder, cells, tmp_path / "lab.log", **settings) as page:
        yield page


def until(what: Any) -> None:
    limit = time.monotonic() + WAIT / 1000
    while not what():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.05)


def dark(page: Any) -> None:
    page.evaluate("() => void jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    page.wait_for_timeout(1000)


def test_a_training_is_started_steered_and_found_again(browser: Any, lab: str, folder: Path, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 1300, "height": 1250})
    context.set_default_timeout(WAIT)
    context.route(lambda url: "://127.0.0.1" not in url, lambda route: route.abort())
    page, run = context.new_page(), Run(folder / "run")
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    try:
        page.goto(lab)
        live = run_cell(page, 0).locator(".wb-live")
        live.locator("[data-curve=loss] polyline").nth(1).wait_for()  # training and validation
        live.locator(".wb-card img").nth(2).wait_for()
        page.wait_for_timeout(3000)
        page.screenshot(path=str(tmp_path / "light.png"))
        _steer(page, live, run)
        dark(page)
        page.screenshot(path=str(tmp_path / "dark.png"))
        _lose_the_kernel(page, run)
        found = run_cell(page, 2).locator(".wb-live")
        found.locator("[data-curve=loss] polyline").first.wait_for()
        found.locator("button >> text=Stop").click()
        found.locator(".wb-pill[data-status=stopped]").wait_for()
        assert found.locator("button >> text=Stop").is_disabled()
        assert found.locator("button >> text=Go on").is_enabled()
        assert problems == []
    finally:
        page.screenshot(path=str(tmp_path / "end.png"))
        context.close()


def _steer(page: Any, live: Any, run: Run) -> None:
    """Pause, go on and save, while another cell keeps the kernel busy."""
    run_cell(page, 1)
    live.locator("button >> text=Pause").click()
    until(lambda: run.control == "pause")
    live.locator(".wb-pill[data-status=paused]").wait_for()
    live.locator("button >> text=Go on").click()
    live.locator(".wb-pill[data-status=running]").wait_for()
    live.locator("button >> text=Save now").click()
    until((run.path / "checkpoints" / "last").is_dir)


def _lose_the_kernel(page: Any, run: Run) -> None:
    """The kernel is killed, busy as it is; the training goes on without it."""
    (kernel,) = (
        process
        for process in psutil.Process().children(recursive=True)
        if "ipykernel_launcher" in " ".join(process.cmdline())
    )
    kernel.kill()
    page.locator(".jp-Dialog >> text=Kernel Restarting").first.wait_for()
    page.locator(".jp-Dialog button.jp-mod-accept").first.click()
    before = len(run.metrics())
    until(lambda: len(run.metrics()) > before)
