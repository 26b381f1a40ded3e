"""Makes the README's pictures of the App again: python tests/plugin/screenshots.py docs/images

Needs Chromium (`$CHROMIUM`) and Playwright; draws its own scenes in a temporary folder.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

STATE = tempfile.mkdtemp(prefix="workbench-screenshots-")
os.environ.update(WORKBENCH_HOME=STATE, FIFTYONE_PLUGINS_DIR=os.path.join(STATE, "plugins"), WORKBENCH_PROGRESS="off")

from workbench.curation.database import ensure_database  # noqa: E402

ensure_database()
import fiftyone as fo  # noqa: E402

from workbench.conversation import Conversation, to_chat  # noqa: E402
from workbench.curation.app import open as open_app  # noqa: E402
from workbench.curation.brain import embedding_map, show_measures  # noqa: E402
from workbench.curation.image_measures import image_measures  # noqa: E402
from workbench.curation.measures import vectors  # noqa: E402
from workbench.curation.refresh import view_of  # noqa: E402
from workbench.curation.review import edit_messages, give_verdict  # noqa: E402
from workbench.curation.turns import with_text  # noqa: E402
from workbench.data.dataset import Dataset  # noqa: E402
from workbench.data.scene_files import Planted, make  # noqa: E402
from workbench.instruct.generator import generate  # noqa: E402

SIZE = {"width": 1440, "height": 860}
WRONG = "There is a green star beside a large purple heart, and nine small black rings stand at the bottom right."
LARGEST = 200_000
"""Bytes of one picture."""


def colors(pictures: list[Image.Image]) -> np.ndarray:
    """(N, 512) a histogram of each picture's colors: enough for a map that means something."""
    made = []
    for picture in pictures:
        pixels = np.asarray(picture.convert("RGB")) // 32
        codes = pixels[..., 0].astype(int) * 64 + pixels[..., 1] * 8 + pixels[..., 2]
        made.append(np.bincount(codes.ravel(), minlength=512) ** 0.5)
    return np.array(made, np.float32)


def prepared() -> Dataset:
    """Scenes whose review has begun: some verdicts, one correction that is wrong."""
    dataset = make(Path(STATE) / "scenes", count=240, seed=11, planted=Planted(0, 0, 0))
    generate(dataset, tasks={"caption": 1, "conversation": 1, "detail": 1}, questions_per_image=0)
    view = view_of(dataset)
    show_measures(view, image_measures(dataset))
    embedding_map(view, vectors(dataset, colors, name="colors"))
    names = view.values("conversations.classifications.conversation_id", unwind=True)
    known = {one.id: one for one in dataset.conversations()}
    here = next(n for n, name in enumerate(names) if n > 150 and known[name].task == "detail" and _crowded(known[name]))
    for number, name in enumerate(names[:here]):
        give_verdict(view, name, "reject" if number % 7 == 4 else "accept", who="ada")
    edit_messages(view, names[here], with_text(to_chat(known[names[here]]), 1, WRONG), who="ada")
    return dataset


def _crowded(one: Conversation) -> bool:
    """Whether there is something to look at."""
    return len(one.messages[1].text) > 180


def save(page: Page, path: Path) -> None:
    """As a PNG of at most 200 KB: fewer colors until it fits."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for count in (256, 128, 64, 32):
        picture.quantize(count, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= LARGEST:
            break
    print(f"{path}: {path.stat().st_size / 1000:.0f} KB")


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    session: Any = open_app(prepared(), browser=False)
    review = session.spaces
    with sync_playwright() as playwright:
        program = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport=SIZE)
        context.set_default_timeout(60_000)
        context.add_init_script("localStorage.setItem('fiftyone-enterprise-tooltip-seen', 'true')")
        page = context.new_page()
        session.spaces = fo.Space(children=[fo.Panel(type="Samples", pinned=True)])
        page.goto(session.url)
        page.wait_for_selector("[data-cy=fo-grid] [data-cy=looker]")
        settled(page)
        save(page, out / "grid.png")
        session.spaces = beside("Embeddings")
        page.get_by_text("pre-computed embeddings (PCA)").click()
        page.get_by_text("240 points").wait_for()
        page.locator(".emb-colorby button").click()
        page.locator(".emb-colorby").get_by_text("brightness").last.click()
        settled(page)
        save(page, out / "map.png")
        session.spaces = review
        page.wait_for_selector("[data-cy=wbr-mark]")
        page.wait_for_selector("[data-cy=fo-grid] [data-cy=looker]")
        page.hover("[data-cy=wbr-chat]")
        settled(page)
        save(page, out / "review.png")
        browser.close()
    session.close()
    shutil.rmtree(STATE, ignore_errors=True)


def beside(panel: str) -> fo.Space:
    """A panel to the right of the images."""
    panels = [fo.Panel(type="Samples", pinned=True), fo.Panel(type=panel)]
    spaces = [fo.Space(children=[one], active_child=one.component_id) for one in panels]
    return fo.Space(children=spaces, orientation="horizontal", active_child=spaces[0].component_id)


def settled(page: Page) -> None:
    """Nothing is drawn any more: two pictures in a row are equal."""
    last = b""
    for _ in range(10):
        page.wait_for_timeout(1500)
        if (now := page.screenshot()) == last:
            return
        last = now


if __name__ == "__main__":
    main(Path(sys.argv[1]))
