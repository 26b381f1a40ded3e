"""The whole tour in a real JupyterLab, as `workbench lab` opens it, by key; no other host is asked."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from notebook_server import opened_lab, run_cell  # noqa: E402

# Once more where a busy machine made the page wait too long; what is broken fails twice.
pytestmark = [pytest.mark.timeout(2400), pytest.mark.flaky(reruns=1)]
WAIT = 900_000
"""Milliseconds: the longest cell trains, perhaps on a busy machine."""
SHOWS = {
    1: "img",  # thumbnails of the dataset
    2: "svg",  # the funnel
    5: ".wb-gallery .wb-thumb img",
    6: ".wb-strip",
    7: "text=finished",  # both stages of the training
    8: "text=finished",
    11: ".wb-heatmap .wb-heat",
    12: ".wb-chat .wb-reply",
}
"""What is seen below a cell, by its number among the code cells."""
FIFTYONE = 3


def test_the_whole_tour(tmp_path: Path, browser: Any) -> None:
    asked: list[str] = []
    with opened_lab(tmp_path / "mine", tmp_path / "lab.log", WORKBENCH_HOME=str(tmp_path / "home")) as url:
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        context.set_default_timeout(WAIT)
        context.add_init_script("localStorage.setItem('fiftyone-enterprise-tooltip-seen', 'true')")
        context.route(lambda where: "://127.0.0.1:" not in where, lambda route: route.abort())
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        try:
            page.goto(url)
            page.wait_for_selector(".jp-Notebook .jp-CodeCell")
            cells = json.loads((tmp_path / "mine" / "00_tour.ipynb").read_text())["cells"]
            for number in range(sum(cell["cell_type"] == "code" for cell in cells)):
                _run(page, number)
            _ask(page, page.locator(".wb-chat").last)
        finally:
            page.screenshot(path=str(tmp_path / "tour.png"))
            context.close()
    assert [one for one in asked if one.startswith("http") and "://127.0.0.1:" not in one] == []


def _run(page: Any, number: int) -> None:
    """Run a cell to its end and look at what it shows."""
    cell = run_cell(page, number)
    cell.locator(".jp-InputPrompt", has_text=re.compile(r"\[\d+\]")).wait_for()
    failed = cell.locator(".jp-OutputArea [data-mime-type*=error], .jp-OutputArea [data-mime-type*=stderr]")
    assert failed.count() == 0, failed.first.inner_text()
    if number == FIFTYONE:
        cell.locator(".jp-OutputArea iframe").first.scroll_into_view_if_needed()  # the App draws what can be seen
        app = cell.frame_locator(".jp-OutputArea iframe").first
        app.locator("[data-cy=fo-grid] [data-cy=looker]").first.wait_for()
    elif number in SHOWS:
        cell.locator(".jp-OutputArea").locator(SHOWS[number]).first.wait_for()


def _ask(page: Any, chat: Any) -> None:
    """The tuned model and its base have described the picture; a question that is typed in is answered by both."""
    ended = chat.locator(".wb-reply[data-state=stop], .wb-reply[data-state=length]")
    assert ended.count() == 2
    chat.locator(".wb-composer textarea").fill("How many objects are there?")
    page.keyboard.press("Enter")
    ended.nth(3).wait_for()
    assert chat.locator(".wb-said").nth(2).inner_text().strip()
