"""The gallery: what conversations, results and datasets have in common to be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workbench.chat_model import ScriptedModel
from workbench.conversation import Conversation, Image, Message
from workbench.data.dataset import Dataset
from workbench.data.scene_files import Planted, make
from workbench.errors import DataError
from workbench.evaluation.task import evaluate
from workbench.instruct.generator import generate
from workbench.widgets.gallery import IN_HTML, GalleryView, gallery


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    made = make(tmp_path_factory.mktemp("gallery") / "scenes", count=30, seed=5, planted=Planted(0, 0, 0))
    generate(made, tasks={"caption": 1}, questions_per_image=1)
    return made


def pictures(view: GalleryView, *numbers: int) -> dict[str, Any]:
    sent: list[Any] = []
    view.send = lambda content, buffers=None: sent.append(content)  # type: ignore[method-assign]
    view._asked(view, {"do": "pictures", "numbers": list(numbers)}, [])
    return sent[0]["pictures"]


def test_a_dataset_shows_every_conversation_and_opens_pictures_when_asked(dataset: Dataset) -> None:
    view = gallery(dataset.path)
    assert len(view.items) == len(dataset.conversations()) and view.opens
    assert {item["task"] for item in view.items} == {"caption", "question"}
    assert view.items[0]["turns"][0][0] == "user"
    got = pictures(view, 3, 0, 10**6)
    assert set(got) == {"3", "0"} and got["3"].startswith("data:image/jpeg") and got["3"] != got["0"]
    data, _ = view._repr_mimebundle_()
    assert data["text/html"].count("<img") == IN_HTML and f"the first {IN_HTML}" in data["text/html"]


def test_results_show_what_was_right_and_what_was_expected(dataset: Dataset, tmp_path: Path) -> None:
    asked = [one for one in dataset.conversations() if one.task == "question"][:6]
    first = asked[0].reference
    results = evaluate(
        ScriptedModel(lambda one: first if one.id == asked[0].id else "no idea"), asked, out=tmp_path / "results"
    )
    for view in (gallery(results), gallery(tmp_path / "results")):
        assert view.items[0]["tags"] == ["right"] and view.items[0]["score"] == 1
        wrong = next(item for item in view.items if item["tags"] == ["wrong"])
        assert [role for role, _ in wrong["turns"]] == ["user", "assistant", "expected"]


def test_a_picture_that_is_gone_and_markup_do_no_harm(tmp_path: Path) -> None:
    turns = Message("user", (Image("nowhere.png"), "<script>?")), Message("assistant", "x")
    view = gallery([Conversation("a", turns), Conversation("b", (Message("user", "no picture"),))])
    assert pictures(view, 0, 1) == {"0": None, "1": None} and not view.opens
    assert "<script>" not in view.html()
    with pytest.raises(DataError):
        gallery(tmp_path)
