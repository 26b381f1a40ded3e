"""A run folder as training leaves it: the shipped tiny parts, an adapter moved at random, scenes; and a browser."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def small_run(folder: Path, *more: str, load: str = "fp32") -> Path:
    """A finished run `folder/run` with a checkpoint, trained on the scenes in `folder/scenes`; returns it. more: what
    its recipe says besides."""
    import torch

    from workbench.data.scene_files import Planted, make
    from workbench.instruct.generator import generate
    from workbench.model.checkpoint import save
    from workbench.model.llava import build
    from workbench.model.stages import prepare
    from workbench.recipe import Recipe
    from workbench.run import Run

    dataset = make(folder / "scenes", count=12, seed=3, planted=Planted(0, 0, 0))
    generate(dataset, tasks={"conversation": 1}, questions_per_image=1)
    changes = [
        f"data.dataset={dataset.path}",
        "data.tasks=[conversation]",
        f"model.load={load}",
        "model.projector_from=null",
        "model.device=cpu",
        *more,
    ]
    recipe = Recipe.load("tiny-finetune-qlora", changes)
    llava = build(recipe.model, template=recipe.template, image_mode=recipe.image_mode, seed=1)
    prepare(llava, recipe.train, say=lambda text: None)
    generator = torch.Generator().manual_seed(7)
    for parameter in llava.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    with Run.create(folder / "run", recipe, kind="train") as run:
        save(llava, run.path / "checkpoints" / "best", recipe=recipe)
    return run.path


@contextmanager
def page_of(url: str, **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """A page of a real Chromium at `url`, and every address it asked for. No other machine can be reached."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(path).is_file():
        pytest.skip(f"no browser at {path}: apt-get install chromium, or set CHROMIUM")
    pytest.importorskip("playwright", reason="no Playwright: pip install 'llava-workbench[test]'")
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with sync_playwright() as playing:
        browser = playing.chromium.launch(executable_path=path, args=FLAGS)
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 1000}} | options))
        context.set_default_timeout(60_000)
        context.route(re.compile(r"^https?://(?!127\.0\.0\.1[:/])"), lambda route: route.abort())
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        try:
            page.goto(url)
            page.locator("#box textarea").wait_for()
            yield page, asked
        finally:
            browser.close()


def ask(page: Any, question: str, picture: Path | None = None) -> None:
    """Add a picture or a video, type a question, press Enter."""
    if picture is not None:
        page.locator("#box input[type=file]").set_input_files(str(picture))
        page.locator("#box .thumbnail-item").first.wait_for()
    page.locator("#box textarea").fill(question)
    page.locator("#box textarea").press("Enter")


def answers(page: Any, chat: int = 0) -> list[str]:
    """What a model has said so far, failures too."""
    said = page.locator("#chats .bubble-wrap").nth(chat).locator("[data-testid=bot]")
    return [text.strip() for text in said.all_inner_texts()]


def wait_until_done(page: Any, count: int) -> None:
    """Every conversation has so many answers, and the box offers to submit again."""
    done = """count => document.querySelector('#box .submit-button') &&
        [...document.querySelectorAll('#chats .bubble-wrap')].every(
            chat => chat.querySelectorAll('[data-testid=bot]').length == count)"""
    page.wait_for_function(done, arg=count)
