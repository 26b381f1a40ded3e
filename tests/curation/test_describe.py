"""What is in a dataset, counted and drawn without opening a picture."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from workbench.conversation import Conversation, Image, Message
from workbench.curation.describe import describe
from workbench.data.dataset import Dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three images of which no file exists: two with boxes, one removed."""
    boxes = '[{"label": "dog", "box": [0, 0, 50, 50]}, {"label": "dog", "box": [0, 0, 10, 10]}, {"label": "cat"}]'
    images = pl.DataFrame(
        {"id": ["a", "b", "c"], "path": ["a.png", "b.png", "c.png"], "width": [100] * 3, "height": [100] * 3,
         "objects": [boxes, None, boxes], "status": ["ok", "ok", "removed"]}
    )  # fmt: skip

    def said(name: str, image: str, answer: str) -> Conversation:
        question = Message("user", (Image(f"{image}.png"), "What is it?"))
        return Conversation(name, (question, Message("assistant", (answer,))), task="caption")

    talk = [said("1", "a", "A brown dog runs."), said("2", "a", "A dog."), said("3", "c", "A zebra.")]
    return Dataset.create(tmp_path / "d", name="d", images=images, conversations=talk)


def test_it_counts_what_is_ok_and_nothing_else(dataset: Dataset) -> None:
    found = describe(dataset)
    assert found.images == 2 and found.tokens.rows() == [("caption", 1, 7), ("caption", 1, 5)]
    assert found.per_image.rows() == [(0, 1), (2, 1)]
    assert dict(found.words.rows()) == {"dog": 2, "brown": 1, "runs": 1}
    assert found.objects.rows() == [("dog", 2, 1), ("cat", 1, 1)]
    assert found.boxes.rows() == [("dog", 0.25), ("dog", 0.01)]
    assert "2 images, 2 conversations" in str(found)


def test_tokens_are_counted_by_whoever_knows_them(dataset: Dataset) -> None:
    found = describe(dataset, count_tokens=len)
    assert found.unit == "tokens" and found.tokens["tokens"].to_list() == [28, 17]


def test_it_is_a_picture_in_a_notebook(dataset: Dataset, tmp_path: Path) -> None:
    assert describe(dataset)._repr_png_().startswith(b"\x89PNG")
    empty = Dataset.create(tmp_path / "empty", name="empty")
    assert describe(empty)._repr_png_().startswith(b"\x89PNG") and "0 images" in str(describe(empty))
