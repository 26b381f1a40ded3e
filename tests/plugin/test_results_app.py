"""`workbench open DATASET --results RESULTS` shows exactly the pictures that were failed on, with what was said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.data.dataset import Dataset

pytestmark = [pytest.mark.timeout(600), pytest.mark.flaky(reruns=1)]


def test_the_app_opens_on_exactly_the_failures(dataset: Dataset, open_app: Any, browser: Any, tmp_path: Path) -> None:
    paths = dataset.images["path"].to_list()
    rows = [
        {
            "id": f"q{n}",
            "type": "color",
            "question": "Which color?",
            "reference": "red",
            "image": path,
            "root": "images",
        }
        | {"answer": "a wrong word", "earned": float(n not in (2, 5))}
        for n, path in enumerate(paths)
    ]
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open_app(dataset, tmp_path / "plugins", "--results", str(folder)) as url:
        context = browser.new_context(viewport={"width": 1500, "height": 950})
        context.set_default_timeout(60_000)
        context.add_init_script("localStorage.setItem('fiftyone-enterprise-tooltip-seen', 'true')")
        context.route(lambda asked: not asked.startswith(url), lambda route: route.abort())
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("[data-cy=fo-grid] [data-cy=looker]")
        page.wait_for_function("document.querySelectorAll('[data-cy=looker]').length == 2")
        assert "2 samples" in page.locator("[data-cy=entry-counts]").first.inner_text().lower()
        page.wait_for_selector("text=wrong_tuned")
        context.close()
