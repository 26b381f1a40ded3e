"""`wb.open` in a cell of a real JupyterLab: the App appears below it, with the panel Conversations."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench.data.dataset import Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from notebook_server import notebook, run_cell  # noqa: E402

# Once more where a busy machine made the page wait too long; what is broken fails twice.
pytestmark = [pytest.mark.timeout(600), pytest.mark.flaky(reruns=1)]
WAIT = 200_000


@pytest.fixture
def lab(tmp_path: Path, dataset: Dataset) -> Iterator[str]:
    """The address of a notebook with one cell that opens the dataset."""
    (tmp_path / "lab").mkdir()
    source = f"import workbench as wb\nsession = wb.open({str(dataset.path)!r})\n"
    settings = {"FIFTYONE_PLUGINS_DIR": str(tmp_path / "plugins"), "JUPYTER_CONFIG_DIR": str(tmp_path)}
    settings["FIFTYONE_CONTEXT"] = "NONE"  # as FiftyOne leaves it in a process that starts Jupyter
    with notebook(tmp_path / "lab", {"one": source}, tmp_path / "lab.log", **settings) as page:
        yield page


def test_the_app_appears_below_the_cell_with_images_and_conversations(browser: Any, lab: str, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 1500, "height": 1100})
    context.set_default_timeout(WAIT)
    context.add_init_script("localStorage.setItem('fiftyone-enterprise-tooltip-seen', 'true')")
    context.route(lambda url: "://127.0.0.1" not in url, lambda route: route.abort())
    page = context.new_page()
    try:
        page.goto(lab)
        cell = run_cell(page, 0)
        shown = cell.frame_locator(".jp-OutputArea iframe").first
        shown.locator("[data-cy=fo-grid] [data-cy=looker]").first.wait_for()
        shown.locator("[data-cy=wbr-chat]").wait_for()
        said = cell.locator(".jp-OutputArea-output pre").first.inner_text()
        assert "the App is at http://127.0.0.1:" in said, said
    except Exception as error:
        log = (tmp_path / "lab.log").read_text()[-4000:]
        raise AssertionError(f"{error}\n\nthe page: {page.inner_text('body')}\n\nJupyterLab: {log}") from error
    finally:
        page.screenshot(path=str(tmp_path / "lab.png"))
        context.close()
