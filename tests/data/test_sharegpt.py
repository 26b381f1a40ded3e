"""ShareGPT's two shapes: in, out, equal; images at their place in the text; every broken record named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from workbench.conversation import Conversation, Image, Message, new_id
from workbench.data.dataset import Dataset
from workbench.data.formats import BadRecord, export_sharegpt, import_folder, import_sharegpt, read_sharegpt
from workbench.data.marked_text import marked, parts_of
from workbench.errors import DataError


def said(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


CONVERSATIONS: list[Any] = [
    {"conversations": [said("human", "<image>What is this?"), said("gpt", "A cat.")], "images": ["a.png"]},
    {"id": "two", "conversations": [said("human", "<image>\n<image>\nSame?"), said("gpt", "No."),
                                    said("human", "Is <image> a dog?"), said("gpt", "Yes, ä 漢字.\n")],
     "images": ["a.png", "sub/b.png", "a.png"], "system": "Be brief.", "tools": "[]"},
    {"id": 5, "conversations": [said("human", "Hello"), said("gpt", "Hi")]},
]  # fmt: skip
MESSAGES: list[Any] = [
    {"messages": [turn("user", "<image>\nWhat?"), turn("assistant", "A cat.")], "images": ["a.png"], "id": "m"},
    {"messages": [turn("system", "Be brief."), turn("user", "Hello"), turn("assistant", "Hi")]},
    {"messages": [turn("user", [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "?"}]),
                  turn("assistant", [{"type": "text", "text": "Seen."}])], "images": ["sub/b.png"]},
    {"messages": [turn("user", [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]),
                  turn("assistant", "A cat.")]},
]  # fmt: skip


def write(path: Path, records: list[Any]) -> Path:
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records) if lines else json.dumps(records))
    return path


def read(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a.png", "sub/b.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (8, 6), "red").save(tmp_path / "pictures" / name)
    return tmp_path / "pictures"


@pytest.mark.parametrize("records", [CONVERSATIONS, MESSAGES], ids=["conversations", "messages"])
@pytest.mark.parametrize(("came", "goes"), [(".json", ".jsonl"), (".jsonl", ".json")])
def test_what_came_in_goes_out_equal(tmp_path: Path, pictures: Path, records: list[Any], came: str, goes: str) -> None:
    dataset = import_sharegpt(write(tmp_path / f"in{came}", records), pictures, tmp_path / "ds")
    assert len(dataset.conversations()) == len(records) == export_sharegpt(dataset, tmp_path / f"out{goes}")
    assert read(tmp_path / f"out{goes}") == records
    again = import_sharegpt(tmp_path / f"out{goes}", pictures, tmp_path / "again")
    assert again.conversations() == dataset.conversations()
    assert again.images.equals(dataset.images)


def test_images_stand_where_their_marks_are(tmp_path: Path) -> None:
    one, two, _ = read_sharegpt(write(tmp_path / "a.json", CONVERSATIONS))
    a, b = Image("a.png"), Image("sub/b.png")
    assert isinstance(one, Conversation) and isinstance(two, Conversation)
    assert one.messages == (Message("user", (a, "What is this?")), Message("assistant", "A cat."))
    assert two.messages[:2] == (Message("system", "Be brief."), Message("user", (a, b, "Same?")))
    assert two.messages[3] == Message("user", ("Is ", a, " a dog?")) and two.source == {"foreign_id": "two"}
    _, _, parts, named = read_sharegpt(write(tmp_path / "b.json", MESSAGES))
    assert isinstance(parts, Conversation) and isinstance(named, Conversation)
    assert parts.messages[0].content == ("Look: ", b, "?") and named.messages[0].content == (a, "What?")


@pytest.mark.parametrize("shape", ["conversations", "messages"])
def test_a_dataset_that_goes_out_comes_in_equal(tmp_path: Path, pictures: Path, shape: str) -> None:
    dataset = import_folder(pictures, tmp_path / "ds")
    asked = Message("user", (Image("a.png"), "What?")), Message("assistant", "Red.")
    inside = Message("user", ("Is ", Image("sub/b.png"), " red?")), Message("assistant", "Yes.")
    text = Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hi")
    made = [
        Conversation(new_id(1), asked, "val", "vqa"),
        Conversation(new_id(2), inside),
        Conversation(new_id(3), text),
    ]
    dataset.write_conversations(made)
    export_sharegpt(dataset, tmp_path / "out.json", shape=shape)
    assert all(shape in record for record in read(tmp_path / "out.json"))
    again = import_sharegpt(tmp_path / "out.json", pictures, tmp_path / "again")
    assert again.conversations() == dataset.conversations()


def test_one_shape_becomes_the_other(tmp_path: Path, pictures: Path) -> None:
    dataset = import_sharegpt(write(tmp_path / "in.json", CONVERSATIONS), pictures, tmp_path / "ds")
    export_sharegpt(dataset, tmp_path / "out.json", shape="messages")
    assert all("messages" in record and "conversations" not in record for record in read(tmp_path / "out.json"))
    again = import_sharegpt(tmp_path / "out.json", pictures, tmp_path / "again").conversations()
    assert [one.messages for one in again] == [one.messages for one in dataset.conversations()]


def test_the_split_of_an_image_goes_out_with_its_conversations(tmp_path: Path, pictures: Path) -> None:
    dataset = import_sharegpt(write(tmp_path / "in.json", MESSAGES[:2]), pictures, tmp_path / "ds")
    dataset.write_images(dataset.images.with_columns(split=dataset.images["path"].replace({"a.png": "test"})))
    export_sharegpt(dataset, tmp_path / "out.json")
    assert [record.get("split") for record in read(tmp_path / "out.json")] == ["test", None]
    assert export_sharegpt(dataset, tmp_path / "test.json", split="test") == 1


BAD: list[tuple[Any, str]] = [
    (5, "record 2: record: found 5"),
    ({"id": "x", "text": "hm"}, "x: record: found"),
    ({"id": "x", "messages": "hm"}, "found messages"),
    ({"id": "x", "messages": [turn("user", "hm")], "images": [5]}, "found images '[5]'; expected a list of paths"),
    ({"id": "x", "messages": [turn("user", "<image>")]}, "more <image> marks than images"),
    ({"id": "x", "messages": [turn("user", "hm")], "images": ["a.png"]}, "1 images without an <image> mark"),
    ({"id": "x", "messages": [turn("tool", "hm")]}, "found role 'tool'; expected user or assistant or system"),
    ({"id": "x", "conversations": [said("observation", "hm")]}, "from 'observation'; expected human or gpt or system"),
    ({"id": "x", "messages": [turn("user", 5)]}, "content '5'; expected a text, or a list of parts"),
    ({"id": "x", "messages": [turn("user", [{"type": "audio"}])]}, "expected type text, image or video"),
    ({"id": "x", "messages": [turn("user", "a"), turn("user", "b")]}, "user and assistant alternate"),
    ({"id": "x", "messages": []}, "no user message"),
]


@pytest.mark.parametrize(("record", "words"), BAD)
def test_a_record_that_breaks_the_shape_is_named_and_the_others_are_read(
    tmp_path: Path, pictures: Path, record: Any, words: str
) -> None:
    good, bad, last = read_sharegpt(write(tmp_path / "a.json", [MESSAGES[0], record, MESSAGES[1]]))
    assert isinstance(good, Conversation) and isinstance(last, Conversation)
    assert isinstance(bad, BadRecord) and words in f"{bad.id}: {bad.error}"
    dataset = import_sharegpt(tmp_path / "a.json", pictures, tmp_path / "ds")
    assert dataset.card["import"]["bad records"] == 1 and len(dataset.conversations()) == 2


def test_missing_images_are_quarantined(tmp_path: Path, pictures: Path) -> None:
    record = {"messages": [turn("user", "<image>hm"), turn("assistant", "a")], "images": ["../gone.png"]}
    dataset = import_sharegpt(write(tmp_path / "a.json", [MESSAGES[0], record]), pictures, tmp_path / "ds")
    assert len(dataset.conversations()) == 1 and dataset.conversation_rows.height == 2
    assert dataset.images["status"].to_list() == ["ok", "quarantined"]


def test_what_the_shape_cannot_hold_is_named(tmp_path: Path) -> None:
    dataset = Dataset.create(tmp_path / "ds", name="x")
    dataset.write_conversations([Conversation("c1", (Message("user", "What does <image> mean?"),))])
    with pytest.raises(DataError, match="conversation c1: found the text <image>"):
        export_sharegpt(dataset, tmp_path / "out.json")
    with pytest.raises(DataError, match="shape 'alpaca'"):
        export_sharegpt(dataset, tmp_path / "out.json", shape="alpaca")


texts = st.text(alphabet="ab <>\n", min_size=1, max_size=8).filter(lambda text: "<image>" not in text)


@given(st.lists(st.booleans(), max_size=6), st.lists(texts, min_size=6, max_size=6))
def test_parts_come_back_from_marked_text(kinds: list[bool], words: list[str]) -> None:
    """Texts beside each other are one part, and a line break behind marks at the front is theirs."""
    parts: list[Any] = []
    for is_image, word in zip(kinds, words, strict=False):
        if is_image:
            parts.append(Image("a.png"))
        elif not parts or isinstance(parts[-1], Image):
            parts.append(word)
    text = marked(parts)
    assert text.count("<image>") == sum(kinds)
    if not parts:
        assert parts_of(text, iter([])) == ("",)
    else:
        assert parts_of(text, iter([Image("a.png")] * sum(kinds))) == tuple(parts)
