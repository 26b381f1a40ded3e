"""A dataset as the last value of a cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.conversation import Image
from workbench.data import preview
from workbench.data.dataset import Dataset
from workbench.data.scene_files import Planted, make
from workbench.data.video import load_media


def test_it_shows_counts_and_opens_a_handful_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make(tmp_path / "scenes", count=50, planted=Planted(exact=2, near=2, broken=2))
    opened = []
    monkeypatch.setattr(preview, "load_media", lambda *given: opened.append(given) or load_media(*given))
    text = dataset._repr_html_()
    assert len(opened) == preview.THUMBNAILS == text.count("<img ")
    assert "54 ok" in text and "2 quarantined" in text and "<script" not in text


def test_what_is_missing_or_written_by_others_breaks_nothing(tmp_path: Path) -> None:
    dataset = make(tmp_path / "scenes", count=10, planted=Planted(exact=0, near=0, broken=0))
    for image in dataset.images["path"][:5]:
        dataset.resolve(Image(image)).unlink()
    first = dataset.images["id"][0]
    dataset.edit({"table": "images", "id": first, "set": {"label": "<script>alert(1)</script>"}})
    text = dataset._repr_html_()
    assert "no such file" in text and "<script" not in text
    assert "none" in Dataset.create(tmp_path / "empty", name="empty")._repr_html_()
