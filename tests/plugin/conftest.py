"""Scenes with conversations, the App as a process of its own, and a real browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from workbench.conversation import Conversation, Message
from workbench.curation.database import open_fiftyone, stop_database
from workbench.data.dataset import Dataset
from workbench.data.scene_files import Planted, make
from workbench.instruct.generator import generate

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
WAIT = 60_000
"""Milliseconds: a busy machine with two processors may take long for the App's first picture."""
WRONG = "There is a purple heart and there are nine yellow rings."
OWN_PLUGIN = {
    "fiftyone.yml": 'name: "@ada/own"\nversion: "1"\noperators:\n  - own_step\n',
    "__init__.py": """
import fiftyone.operators as foo

class Own(foo.Operator):
    @property
    def config(self):
        return foo.OperatorConfig(name="own_step", label="Ada's own step")

def register(plugin):
    plugin.register(Own)
""",
}


@pytest.fixture(scope="session")
def fiftyone() -> Iterator[ModuleType]:
    yield open_fiftyone()
    stop_database()


def scenes(folder: Path, count: int = 8) -> Dataset:
    """Scenes, two conversations each, and one more about the first that its annotations contradict."""
    dataset = make(folder, count=count, seed=5, planted=Planted(0, 0, 0))
    generate(dataset, tasks={"caption": 1, "conversation": 1}, questions_per_image=0)
    first = dataset.conversations()[0]
    wrong = Message("user", (*first.images, "What do you see?")), Message("assistant", WRONG)
    source = {"dataset": dataset.name, "teacher": "somebody", "model": "somebody-7b"}
    dataset.add_conversations([Conversation("contradicts", wrong, first.split, "detail", source)])
    return dataset


@pytest.fixture(scope="session")
def make_scenes() -> Callable[..., Dataset]:
    """The function above; test modules cannot import each other."""
    return scenes


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return scenes(tmp_path / "scenes")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where Debian's Chromium lies, or `$CHROMIUM`; a browser is never downloaded."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(path).is_file():
        pytest.skip(f"no browser at {path}: apt-get install chromium, or set CHROMIUM")
    pytest.importorskip("playwright", reason="no Playwright: pip install 'llava-workbench[test]'")
    return path


@dataclass
class App:
    """A dataset that the command `workbench open` shows."""

    dataset: Dataset
    url: str
    plugins: Path


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("app")
    dataset, plugins = scenes(folder / "shown"), folder / "plugins"
    for name, text in OWN_PLUGIN.items():
        (plugins / "own").mkdir(parents=True, exist_ok=True)
        (plugins / "own" / name).write_text(text)
    with opened(dataset, plugins) as url:
        yield App(dataset, url, plugins)


class opened:
    """`workbench open` while the block lasts; gives the App's address."""

    def __init__(self, dataset: Dataset, plugins: Path, *more: str) -> None:
        command = [sys.executable, "-u", "-m", "workbench.cli", "open", str(dataset.path), "--no-browser", *more]
        self.log = plugins.with_name("app.log")
        settings = {**os.environ, "FIFTYONE_PLUGINS_DIR": str(plugins), "OPENAI_API_KEY": "a-key-of-this-machine"}
        with open(self.log, "w") as log:
            streams: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
            self.process = subprocess.Popen(command, env=settings, **streams)

    def __enter__(self) -> str:
        limit = time.monotonic() + 120
        while time.monotonic() < limit and self.process.poll() is None:
            if found := re.search(r"http://127\.0\.0\.1:\d+/", self.log.read_text()):
                return found[0]
            time.sleep(0.2)
        self.__exit__()
        raise AssertionError(f"the App did not start: {self.log.read_text()}")

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture(scope="session")
def open_app() -> type[opened]:
    """The class above; test modules cannot import each other."""
    return opened


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """Closed after each module: Playwright keeps an event loop in this thread, in which nobody else could run one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=FLAGS, headless=True)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, app: App) -> Iterator[Any]:
    """The App, with the panel beside the images; a page that has asked another host for anything fails its test."""
    asked: list[str] = []
    context = browser.new_context(viewport={"width": 1500, "height": 950})
    context.set_default_timeout(WAIT)
    context.add_init_script("localStorage.setItem('fiftyone-enterprise-tooltip-seen', 'true')")
    context.route(lambda url: not url.startswith(app.url), lambda route: route.abort())
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(app.url)
    page.wait_for_selector("[data-cy=fo-grid] [data-cy=looker]")
    page.wait_for_selector("[data-cy=wbr-chat]")
    if page.locator("[data-cy=modal]").count():  # the App opens again what was open last
        page.mouse.click(8, 500)
        page.wait_for_selector("[data-cy=modal]", state="detached")
    yield page
    context.close()
    assert [url for url in asked if url.startswith("http") and not url.startswith(app.url)] == []
