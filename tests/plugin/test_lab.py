"""`wb.open` in a cell of a real JupyterLab: the App appears below it, with the panel Conversations."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench.curation.server import free_port
from workbench.data.dataset import Dataset

# Once more where a busy machine made the page wait too long; what is broken fails twice.
pytestmark = [pytest.mark.timeout(600), pytest.mark.flaky(reruns=1)]
WAIT = 200_000


@pytest.fixture
def lab(tmp_path: Path, dataset: Dataset) -> Iterator[str]:
    """The address of a notebook with one cell that opens the dataset."""
    cell = {
        "cell_type": "code", "execution_count": None, "id": "one", "metadata": {}, "outputs": [],
        "source": f"import workbench as wb\nsession = wb.open({str(dataset.path)!r})\n",
    }  # fmt: skip
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "look.ipynb").write_text(json.dumps(notebook))
    port = free_port()
    settings = {**os.environ, "FIFTYONE_PLUGINS_DIR": str(tmp_path / "plugins"), "JUPYTER_CONFIG_DIR": str(tmp_path)}
    settings["FIFTYONE_CONTEXT"] = "NONE"  # as FiftyOne leaves it in a process that starts Jupyter
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
        "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path / 'lab'}", "--LabApp.news_url=None",
    ]  # fmt: skip
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=settings, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/api", server, tmp_path / "lab.log")
        yield f"http://127.0.0.1:{port}/lab/tree/look.ipynb?reset"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_until_up(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + 90
    while time.monotonic() < limit and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"JupyterLab did not start: {log.read_text()}")


def test_the_app_appears_below_the_cell_with_images_and_conversations(browser: Any, lab: str, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 1500, "height": 1100})
    context.set_default_timeout(WAIT)
    context.add_init_script("localStorage.setItem('fiftyone-enterprise-tooltip-seen', 'true')")
    context.route(lambda url: "://127.0.0.1" not in url, lambda route: route.abort())
    page = context.new_page()
    try:
        page.goto(lab)
        cell = page.locator(".jp-Notebook .jp-CodeCell").first
        _run(page, cell)
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


def _run(page: Any, cell: Any) -> None:
    """Run the cell as a person does: once the kernel is idle, and again where the key was lost on a page still busy."""
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for(state="attached")
    for _ in range(5):
        cell.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        try:
            cell.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*\d]+\]")).wait_for(timeout=10_000)
            return
        except Exception as error:
            lost = error
    raise lost
