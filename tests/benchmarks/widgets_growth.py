"""What one more message costs in a long chat, and one more look in a large gallery, in JupyterLab in a real browser.

    python tests/benchmarks/widgets_growth.py [--messages 500] [--samples 2000] [--browser /usr/bin/chromium]

A model that answers at once is asked question after question in `wb.chat`; timed in the page is the way from Enter to
the finished answer, and a frame drawn after it. A gallery of 40 and one of `--samples` conversations are paged and
searched in turn. Wanted: the last message at most twice the first, the large gallery at most twice the small one.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from notebook_server import notebook, run_cell

from workbench.data.scene_files import Planted, make
from workbench.instruct.generator import generate
from workbench.resources import PACKAGE

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PART = 20
"""Messages, or looks, that a median is of."""
WANTED = 2.0
CELLS = {
    "one": "import workbench as wb\nchat = wb.chat(wb.ScriptedModel(lambda asked: 'It is **red**, I think.'))\nchat",
    "two": "wb.gallery(wb.Dataset.open('small'))",
    "three": "wb.gallery(wb.Dataset.open('large'))",
}
ASK = """async (chat) => {
    const area = chat.querySelector(".wb-composer textarea"), count = chat.querySelectorAll(".wb-exchange").length;
    const began = performance.now();
    area.value = `What colour is it, for the ${count}th time?`;
    area.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true }));
    const frame = () => new Promise((drawn) => requestAnimationFrame(drawn));
    while (chat.querySelectorAll(".wb-exchange").length <= count || chat.querySelector("[data-state=writing]")) {
        await frame();
    }
    await frame();
    return performance.now() - began;
}"""
LOOK = """async (gallery) => {
    const settled = () => new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
    const status = gallery.querySelector("[role=status]"), search = gallery.querySelector("input[type=search]");
    const until = async (changes) => {
        const before = status.textContent, began = performance.now();
        changes();
        while (status.textContent === before) await settled();
        return performance.now() - began;
    };
    const typed = (text) => () => {
        search.value = text;
        search.dispatchEvent(new Event("input", { bubbles: true }));
    };
    let took = await until(() => gallery.querySelector("button[aria-label='next page']").click());
    took += await until(typed("no such words"));
    return took + await until(typed(""));
}"""


def chat_times(page: Any, messages: int) -> list[float]:
    """Milliseconds of each question with its answer: two messages."""
    chat = run_cell(page, 0).locator(".wb-chat").element_handle()
    return [page.evaluate(ASK, chat) for _ in range(messages // 2)]


def gallery_times(page: Any) -> dict[str, list[float]]:
    """Milliseconds of paging and searching, small and large in turn."""
    shown = {name: run_cell(page, number).locator(".wb-gallery") for number, name in ((1, "small"), (2, "large"))}
    for gallery in shown.values():
        gallery.locator(".wb-thumb img").first.wait_for()
    handles = {name: gallery.element_handle() for name, gallery in shown.items()}
    times: dict[str, list[float]] = {name: [] for name in handles}
    for _ in range(PART):
        for name, handle in handles.items():
            times[name].append(page.evaluate(LOOK, handle))
    return times


def told(what: str, first: float, last: float) -> bool:
    right = last <= WANTED * first
    print(
        f"{what}: {first:.1f} ms, then {last:.1f} ms: {last / first:.2f} times (wanted: at most {WANTED:g})", flush=True
    )
    return right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--browser", default=shutil.which("chromium") or "/usr/bin/chromium")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as held, sync_playwright() as playwright:
        folder = Path(held) / "lab"
        for name, count in (("small", 40), ("large", given.samples)):
            dataset = make(folder / name, count=count, seed=5, planted=Planted(0, 0, 0))
            generate(dataset, tasks={"caption": 1}, questions_per_image=0)
        settings = {"JUPYTER_CONFIG_DIR": f"{held}/config", "PYTHONPATH": str(PACKAGE.parent)}
        browser = playwright.chromium.launch(executable_path=given.browser, args=FLAGS)
        with notebook(folder, CELLS, Path(held) / "lab.log", **settings) as address:
            page = browser.new_page(viewport={"width": 1300, "height": 1250})
            page.set_default_timeout(200_000)
            page.goto(address)
            times = chat_times(page, given.messages)
            ends = (statistics.median(times[:PART]), statistics.median(times[-PART:]))
            right = told(f"{given.messages} messages, the first {PART} questions and the last", *ends)
            looks = {name: statistics.median(all) for name, all in gallery_times(page).items()}
            right &= told(f"40 samples and {given.samples:,}", looks["small"], looks["large"])
        browser.close()
    return not right


if __name__ == "__main__":
    sys.exit(main())
