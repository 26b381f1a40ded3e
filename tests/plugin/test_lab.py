"""`wb.open` and `wb.show` in a cell of a real JupyterLab: the App appears below it, with the panel Conversations."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from workbench.chat_model import ScriptedModel
from workbench.conversation import Conversation, Message
from workbench.data.dataset import Dataset
from workbench.evaluation.task import evaluate

sys.path.insert(0, str(Path(__file__).parents[1]))
from notebook_server import notebook, run_cell  # noqa: E402

# Once more where a busy machine made the page wait too long; what is broken fails twice.
pytestmark = [pytest.mark.timeout(600), pytest.mark.flaky(reruns=1)]
WAIT = 200_000


SHOW = """import workbench as wb
results = wb.Results.open({results!r})
session = wb.show(results.failures, {dataset!r})
"""


@contextmanager
def lab(folder: Path, source: str) -> Iterator[str]:
    """The address of a notebook with one cell, while the block lasts."""
    (folder / "lab").mkdir()
    settings = {"FIFTYONE_PLUGINS_DIR": str(folder / "plugins"), "JUPYTER_CONFIG_DIR": str(folder)}
    settings["FIFTYONE_CONTEXT"] = "NONE"  # as FiftyOne leaves it in a process that starts Jupyter
    with notebook(folder / "lab", {"one": source}, folder / "lab.log", **settings) as page:
        yield page


@contextmanager
def shown(browser: Any, lab: str, folder: Path) -> Iterator[tuple[Any, Any]]:
    """The cell after it ran, and the App below it; what goes wrong is told with the page and JupyterLab's log."""
    context = browser.new_context(viewport={"width": 1500, "height": 1100})
    context.set_default_timeout(WAIT)
    context.add_init_script("localStorage.setItem('fiftyone-enterprise-tooltip-seen', 'true')")
    context.route(lambda url: "://127.0.0.1" not in url, lambda route: route.abort())
    page = context.new_page()
    try:
        page.goto(lab)
        cell = run_cell(page, 0)
        app = cell.frame_locator(".jp-OutputArea iframe").first
        app.locator("[data-cy=fo-grid] [data-cy=looker]").first.wait_for()
        yield cell, app
    except Exception as error:
        log = (folder / "lab.log").read_text()[-4000:]
        raise AssertionError(f"{error}\n\nthe page: {page.inner_text('body')}\n\nJupyterLab: {log}") from error
    finally:
        page.screenshot(path=str(folder / "lab.png"))
        context.close()


def test_the_app_appears_below_the_cell_with_images_and_conversations(
    browser: Any, dataset: Dataset, tmp_path: Path
) -> None:
    source = f"import workbench as wb\nsession = wb.open({str(dataset.path)!r})\n"
    with lab(tmp_path, source) as address, shown(browser, address, tmp_path) as (cell, app):
        app.locator("[data-cy=wbr-chat]").wait_for()
        said = cell.locator(".jp-OutputArea-output pre").first.inner_text()
        assert "the App is at http://127.0.0.1:" in said, said


def test_failures_appear_below_the_cell_and_nothing_else(browser: Any, dataset: Dataset, tmp_path: Path) -> None:
    pictures = [conversation.images[0] for conversation in dataset.conversations(tasks=["caption"])[:3]]
    answers = ["red", "blue", "blue"]
    dataset.add_conversations(
        Conversation(
            answer + str(n),
            (Message("user", (image, "Which color?")), Message("assistant", answer)),
            "test",
            "question",
        )
        for n, (image, answer) in enumerate(zip(pictures, answers, strict=True))
    )
    results = evaluate(ScriptedModel(lambda one: "red"), dataset, out=tmp_path / "tuned")
    assert results.failures["id"].to_list() == ["blue1", "blue2"]
    source = SHOW.format(results=str(tmp_path / "tuned"), dataset=str(dataset.path))
    with lab(tmp_path, source) as address, shown(browser, address, tmp_path) as (_, app):
        app.get_by_text("2 samples").first.wait_for()
        assert app.locator("[data-cy=fo-grid] [data-cy=looker]").count() == 2
