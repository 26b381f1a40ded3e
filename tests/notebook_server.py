"""A real JupyterLab that shows one notebook, and how a person runs a cell of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.curation.server import free_port


@contextmanager
def notebook(folder: Path, cells: Mapping[str, str], log: Path, **environment: str) -> Iterator[str]:
    """The page of a notebook in `folder` with these cells (id -> source), while the block lasts."""
    made = [
        {"cell_type": "code", "execution_count": None, "id": name, "metadata": {}, "outputs": [], "source": source}
        for name, source in cells.items()
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    text = json.dumps({"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})
    (folder / "look.ipynb").write_text(text)
    port = free_port()
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
        "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None",
        "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    with open(log, "w") as out:
        settings = {**os.environ, **environment}
        server = subprocess.Popen(command, env=settings, stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/api", server, log)
        yield f"http://127.0.0.1:{port}/lab/tree/look.ipynb?reset"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def run_cell(page: Any, number: int) -> Any:
    """Run one cell as a person does: once the kernel is idle, and again where the key was lost on a page still busy."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(number)
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first
    asks = page.locator(".jp-Dialog", has_text="Select Kernel").first  # where JupyterLab has not yet seen its kernels
    idle.or_(asks).first.wait_for(state="attached")
    for _ in range(20):
        try:
            if asks.is_visible():  # on a busy machine also after the page looked ready
                asks.locator(".jp-mod-accept").click(timeout=10_000)
            idle.wait_for(state="attached")
            cell.locator(".cm-content").click(timeout=10_000)
            page.keyboard.press("Control+Enter")
            cell.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*\d]+\]")).wait_for(timeout=10_000)
            return cell
        except Exception as error:
            lost = error
    raise lost


def _wait_until_up(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + 90
    while time.monotonic() < limit and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"JupyterLab did not start: {log.read_text()}")
