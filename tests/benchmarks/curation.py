"""Seconds and peak memory of curating many small generated pictures: import, measures, funnel, duplicates, the App and
the review in it.

    python tests/benchmarks/curation.py [5000 50000]

Each step runs in a process of its own; the memory is the largest that it and its workers held together, looked at ten
times a second. The last column is the time per picture in proportion to that of the first count: 1.00 is linear growth.
`fiftyone` makes the FiftyOne dataset with its measures. `app` is the time from opening that dataset until a headless
Chromium ($CHROMIUM, or the one on PATH) shows the first pictures of the grid; its memory is that of the App's server,
without the browser, and it is left out where there is no Chromium or no Playwright. The database's memory is in
neither.

Then every picture gets four conversations (`converse`), and FiftyOne's dataset is brought up to date with them
(`refresh`). `panel` is the time from `wb.open` of that dataset, which looks whether it is still up to date, until the
panel Conversations shows the bubbles of the first one; `verdict` is the slowest of five from the key A until the panel
says that it is on the disk. The memory of these two is the most that the App's server process itself held.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
from PIL import Image

from workbench.conversation import Conversation, new_id
from workbench.curation.app import open as open_app
from workbench.curation.database import open_fiftyone
from workbench.curation.duplicates import near_groups
from workbench.curation.filters import curate
from workbench.curation.image_measures import image_measures
from workbench.curation.refresh import view_of
from workbench.curation.server import free_port
from workbench.curation.splits import check_leakage, split
from workbench.curation.table import to_fiftyone
from workbench.data.dataset import Dataset
from workbench.data.formats import import_folder
from workbench.instruct.plan import about

STEPS = ("import", "measures", "funnel", "duplicates", "leakage", "fiftyone", "app", "converse", "refresh", "panel")
IN_BROWSER = ("app", "panel")
EACH = 4
"""Conversations about each picture."""
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
WORDS = "a the small large red blue old dog house tree river street person on in beside under walks stands".split()
GRID = '[data-cy="looker"]'
CHAT = "[data-cy=wbr-chat]"
SERVER = ["main.py", "--port"]
"""How the command line of the App's server process goes on after Python."""
NOT_OURS = ("mongod", "chrom", "node")
"""Processes whose memory does not count: the database, the browser and what drives it."""
RECIPE = """
kind: curate
name: benchmark
filters:
  broken: true
  aspect: {min: 0.333, max: 3.0}
  width: {max: 727}
  sharpness: {min: 1}
  entropy: {min: 1}
  alphanumeric: {min: 0.6}
  character_repetition: {max: 0.094}
  word_repetition: {max: 0.031}
  special_characters: {max: 0.42}
"""


def draw(folder: Path, count: int) -> None:
    """Pictures of coarse and fine patches with a caption each; one of every hundred is copied, one copied resized."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        picture = Image.new("RGB", (64, 64))
        for side, weight in ((3, 1.0), (7, 0.5), (15, 0.4)):  # weaker where finer, as in photographs
            patches = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
            picture = Image.blend(picture, patches.resize((64, 64), Image.Resampling.BICUBIC), weight)
        name = f"{number:06}.jpg"
        picture.save(folder / name, quality=85)
        rows.append((name, " ".join(rng.choice(WORDS, 12))))
        if number % 100 == 0:
            (folder / f"copy-{name}").write_bytes((folder / name).read_bytes())
        elif number % 100 == 1:
            picture.resize((80, 80)).save(folder / f"again-{name}", quality=75)
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("file", "caption"), *rows])


def step(name: str, folder: Path) -> dict[str, Any]:
    """Run one step in this process."""
    start = time.perf_counter()
    if name == "import":
        found = import_folder(folder / "pictures", folder / "dataset").images.height
    else:
        dataset = Dataset.open(folder / "dataset")
        if name == "measures":
            found = image_measures(dataset).height
        elif name == "funnel":
            (folder / "recipe.yaml").write_text(RECIPE)
            found = int(curate(dataset, folder / "recipe.yaml").table["removed"].sum())
        elif name == "duplicates":
            found = near_groups(dataset, dataset.images).height
        elif name == "leakage":
            split(dataset)
            found = check_leakage(dataset).height
        elif name == "fiftyone":
            found = to_fiftyone(dataset, measures=image_measures(dataset)).count()
        elif name == "converse":
            found = converse(dataset)
        elif name == "refresh":
            found = view_of(dataset).count("conversations.classifications")
        else:
            return app(dataset) if name == "app" else panel(dataset)
    return {"seconds": time.perf_counter() - start, "found": found}


def converse(dataset: Dataset) -> int:
    """Conversations of random words about every picture that is ok; returns how many there are."""
    rng = np.random.default_rng(1)
    made: list[Conversation] = []
    for row in dataset.images.filter(status="ok").iter_rows(named=True):
        for number in range(EACH):
            texts = [" ".join(words) for words in rng.choice(WORDS, (4, 8 + 4 * number))]
            turns = [(f"{question}?", f"{answer}.") for question, answer in zip(texts[::2], texts[1::2], strict=True)]
            name = new_id(dataset.name, row["id"], number)
            made.append(about(row, name, "conversation", turns, {"dataset": dataset.name, "teacher": "benchmark"}))
    dataset.write_conversations(made)
    return len(made)


def app(dataset: Dataset) -> dict[str, Any]:
    """Seconds until the grid is there, from a running Python to pictures in the browser."""
    from playwright.sync_api import sync_playwright

    fiftyone, port = open_fiftyone(), free_port()
    start = time.perf_counter()
    session = fiftyone.launch_app(fiftyone.load_dataset(dataset.name), address="127.0.0.1", port=port, remote=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page()
        page.goto(session.url)
        page.wait_for_selector(GRID, timeout=300_000)
        seconds = time.perf_counter() - start
        found = page.locator(GRID).count()
        browser.close()
    session.close()
    return {"seconds": seconds, "found": found}


def panel(dataset: Dataset) -> dict[str, Any]:
    """Seconds until the first conversation can be read, and of a verdict on five."""
    from playwright.sync_api import sync_playwright

    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        session: Any = open_app(dataset, port=free_port(), browser=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(300_000)
        page.add_init_script("localStorage.setItem('fiftyone-enterprise-tooltip-seen', 'true')")
        page.goto(session.url)
        page.wait_for_selector(f"{CHAT} [data-cy=wbr-says-1]")
        seconds = time.perf_counter() - start
        page.wait_for_selector(GRID)
        spent = [verdict(page) for _ in range(5)]
        browser.close()
    session.close()
    said = dataset.conversation_rows.filter(pl.col("metadata").str.contains('"verdict": "accept"')).height
    found = dataset.conversation_rows.height
    return {"seconds": seconds, "found": found, "then": {"name": "verdict", "seconds": max(spent), "found": said}}


def verdict(page: Any) -> float:
    """Accept what is shown; seconds from the key until the panel says that it is on the disk and shows the next one."""
    before = page.locator(CHAT).get_attribute("data-id")
    page.locator(CHAT).hover()
    start = time.perf_counter()
    page.keyboard.press("a")
    page.wait_for_selector(f"{CHAT}:not([data-id='{before}'])")
    page.wait_for_selector("[data-saved-ms]")
    return time.perf_counter() - start


def chromium() -> str | None:
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


def watched(command: list[str], *, server: bool = False) -> tuple[dict[str, Any], int]:
    """What a step told, and the most memory of its processes together, or of the App's `server` alone, in MB."""
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    first, most = psutil.Process(running.pid), 0
    while running.poll() is None:
        with contextlib.suppress(psutil.Error):  # one may end while it is looked at
            every = [first, *first.children(recursive=True)]
            ours = [one for one in every if not one.name().startswith(NOT_OURS)]
            held = sum(one.memory_info().rss for one in ours if not server or one.cmdline()[1:3] == SERVER)
            most = max(most, held // 2**20)
        time.sleep(0.1)
    assert running.stdout is not None
    return json.loads(running.stdout.read().splitlines()[-1]), most


def main(counts: list[int]) -> None:
    base: dict[str, float] = {}
    print(f"{'pictures':>8}  {'step':10} {'seconds':>8} {'MB':>6} {'found':>7} {'growth':>6}")
    for count in counts:
        with tempfile.TemporaryDirectory() as temporary:
            draw(Path(temporary) / "pictures", count)
            os.environ["WORKBENCH_HOME"] = str(Path(temporary) / "home")
            browser = chromium() and find_spec("playwright")
            for name in STEPS if browser else [name for name in STEPS if name not in IN_BROWSER]:
                told, memory = watched([sys.executable, __file__, "--step", name, temporary], server=name == "panel")
                for row in [{"name": name, **told}, *([told["then"]] if "then" in told else [])]:
                    each = row["seconds"] / count
                    growth = each / base.setdefault(row["name"], each)
                    numbers = f"{row['seconds']:8.2f} {memory:6} {row['found']:7} {growth:6.2f}"
                    print(f"{count:8}  {row['name']:10} {numbers}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        print(json.dumps(step(sys.argv[2], Path(sys.argv[3]))))
    else:
        main([int(text) for text in sys.argv[1:]] or [5000, 50000])
