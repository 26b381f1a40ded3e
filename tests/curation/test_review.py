from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image as Picture

from workbench.conversation import Conversation, Image, Message, to_chat
from workbench.curation.review import conversations, dataset_of, edit_messages, give_verdict
from workbench.curation.table import to_fiftyone, verdicts
from workbench.data.dataset import Dataset
from workbench.errors import ConversationError, DataError

pytestmark = pytest.mark.usefixtures("fiftyone")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    (tmp_path / "images").mkdir()
    names = ["a.png", "b.png"]
    for name in names:
        Picture.new("RGB", (32, 32)).save(tmp_path / "images" / name)
    rows = [{"id": name[0], "path": name, "width": 32, "height": 32, "status": "ok"} for name in names]
    made = Dataset.create(tmp_path, name="reviewed", images=pl.DataFrame(rows))
    made.write_conversations(
        Conversation(
            f"{task}-{name[0]}",
            (Message("user", (Image(name), "What is this?")), Message("assistant", ("A red star.",))),
            task=task,
        )
        for name in names
        for task in ("caption", "detail")
    )
    return made


def label(view: Any, name: str) -> Any:
    view.reload()
    labels = [one for sample in view for one in sample.conversations.classifications]
    return next(one for one in labels if one.conversation_id == name)


def test_a_verdict_is_in_the_folder_and_in_the_view(dataset: Dataset) -> None:
    view = to_fiftyone(dataset)
    start = time.perf_counter()
    give_verdict(view, "detail-a", "reject", who="ada")
    print(f"verdict to saved: {time.perf_counter() - start:.3f} s")
    give_verdict(view, "caption-a", "accept", who="ada")
    again = Dataset.open(dataset.path)
    assert [one.id for one in again.conversations()] == ["caption-a", "caption-b", "detail-b"]
    row = again.conversation_rows.row(by_predicate=_id("detail-a"), named=True)
    assert (row["status"], row["reason"]) == ("removed", "rejected by ada")
    assert (label(view, "detail-a").status, label(view, "detail-a").verdict) == ("removed", "reject")
    assert (label(view, "caption-a").status, label(view, "caption-a").verdict) == ("ok", "accept")
    assert label(view, "detail-b").verdict is None
    give_verdict(view, "detail-a", "accept", who="bob")
    assert "detail-a" in [one.id for one in dataset.conversations()]
    assert label(view, "detail-a").reason is None


def test_the_persons_text_and_the_teachers_are_both_kept(dataset: Dataset) -> None:
    view = to_fiftyone(dataset)
    turns = to_chat(dataset.conversations()[0])
    new = [turns[0], {"role": "assistant", "content": [{"type": "text", "text": "A blue star."}]}]
    edit_messages(view, "caption-a", new, who="ada")
    edit_messages(view, "caption-a", new, who="ada")  # as it is already
    found = Dataset.open(dataset.path).conversations()[0]
    assert found.messages[1].text == "A blue star."
    (edit,) = found.source["edits"]
    assert edit["who"] == "ada" and edit["before"]["messages"] == turns
    assert label(view, "caption-a").text == "user: [image] What is this?\nassistant: A blue star."
    assert label(view, "detail-a").text.endswith("A red star.")


def test_turns_that_make_no_conversation_change_nothing(dataset: Dataset) -> None:
    view = to_fiftyone(dataset)
    turns = to_chat(dataset.conversations()[0])
    with pytest.raises(ConversationError):
        edit_messages(view, "caption-a", [*turns, turns[1]], who="ada")
    assert to_chat(dataset.conversations()[0]) == turns
    assert label(view, "caption-a").text.endswith("A red star.")


def test_a_tag_given_before_does_not_outlive_the_verdict(dataset: Dataset) -> None:
    view = to_fiftyone(dataset)
    view.tag_labels(["accept", "funny"], "conversations")
    give_verdict(view, "detail-a", "reject", who="ada")
    found = {name: (verdict, tags) for name, verdict, tags in verdicts(view).rows()}
    assert found["detail-a"] == ("reject", ["funny"]) and found["detail-b"] == ("accept", ["funny"])


def test_conversations_of_a_view_are_those_it_shows_and_that_are_ok(dataset: Dataset) -> None:
    from fiftyone import ViewField

    view = to_fiftyone(dataset)
    give_verdict(view, "detail-b", "reject", who="ada")
    assert [one.id for one in conversations(view)] == ["caption-a", "detail-a", "caption-b"]
    details = view.filter_labels("conversations", ViewField("label") == "detail")
    assert [one.id for one in conversations(details)] == ["detail-a"]
    assert conversations(view.limit(1)) == dataset.conversations()[:2]
    assert conversations(dataset) == conversations(view)


def test_what_cannot_be_done_is_said(dataset: Dataset, fiftyone: Any) -> None:
    view = to_fiftyone(dataset)
    with pytest.raises(DataError, match="verdict 'maybe'; expected accept or reject"):
        give_verdict(view, "caption-a", "maybe", who="ada")
    with pytest.raises(DataError, match="conversation none: found no such id"):
        give_verdict(view, "none", "accept", who="ada")
    with pytest.raises(DataError, match="not made from a dataset folder"):
        dataset_of(fiftyone.Dataset())


def _id(name: str) -> Any:
    return pl.col("id") == name
