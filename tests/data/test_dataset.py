"""The dataset folder: what is read back equals what was written, roots, edits, snapshots, and damaged folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.conversation import Conversation, Image, Message, Video, to_chat
from workbench.data import parquet, tables
from workbench.data.dataset import Dataset
from workbench.data.folder import resolve_inside
from workbench.errors import ConversationError, DataError


def rows(*names: str, **columns: Any) -> pl.DataFrame:
    return pl.DataFrame({"id": list(names), "path": [f"{name}.png" for name in names], **columns})


def asked(name: str, image: str | None = None, **fields: Any) -> Conversation:
    media = (Image(f"{image}.png"),) if image else ()
    return Conversation(name, (Message("user", (*media, "what?")), Message("assistant", "a cat")), **fields)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    images = rows("a", "b", "c", split=["train", "val", None])
    conversations = [asked("1", "a"), asked("2", "b"), asked("3", "c", split="val"), asked("4", task="text")]
    return Dataset.create(tmp_path / "ds", name="pets", images=images, conversations=conversations)


def ids(conversations: list[Conversation]) -> list[str]:
    return [conversation.id for conversation in conversations]


# --- conversations come back equal ------------------------------------------------------------------------------

words = st.text(max_size=12)
names = st.text(min_size=1, max_size=8)
sizes = st.none() | st.integers(1, 5000)
images = st.builds(Image, path=names, root=names, width=sizes, height=sizes, hash=st.none() | words)
videos = st.builds(Video, path=names, root=names, hash=st.none() | words)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
maps = st.dictionaries(words, json_values, max_size=3)
text = st.text(min_size=1, max_size=12).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages = [Message("system", draw(text))] if draw(st.booleans()) else []
    for number in range(draw(st.integers(1, 4))):
        if number % 2:
            messages.append(Message("assistant", draw(text)))
        else:
            parts = draw(st.lists(words | images | videos, max_size=3))
            messages.append(Message("user", (*parts, draw(text))))
    fields = {"split": draw(st.none() | st.sampled_from(["train", "val", "test"])), "task": draw(st.none() | words)}
    return Conversation(draw(names), tuple(messages), **fields, source=draw(maps), metadata=draw(maps))


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.create(tmp_path_factory.mktemp("law") / "ds", name="law")


@settings(max_examples=25, deadline=None)
@given(written=st.lists(conversations(), max_size=4, unique_by=lambda one: one.id))
def test_conversations_come_back_equal(rewritten: Dataset, written: list[Conversation]) -> None:
    dataset = rewritten
    dataset.write_conversations(written)
    read = Dataset.open(dataset.path).conversations()
    assert read == written
    for one, other in zip(read, written, strict=True):
        assert one.metadata == other.metadata  # left out of ==, as are the next
        assert [(i.width, i.height, i.hash) for i in one.images] == [(i.width, i.height, i.hash) for i in other.images]


def test_other_tools_read_the_messages(dataset: Dataset) -> None:
    table = pyarrow.parquet.read_table(dataset.path / "conversations.parquet")
    first = table["messages"][0].as_py()
    assert [message["role"] for message in first] == ["user", "assistant"]
    assert first[0]["content"][0]["type"] == "image" and first[0]["content"][0]["path"] == "a.png"
    assert first[1]["content"][0]["text"] == "a cat"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (asked("x", source={"when": object()}), ["conversation x", "not JSON serializable"]),
        (replace(asked("x"), messages=(Message("user", "\ud800"),)), ["conversation x", "not Unicode"]),
        (asked("x", "caf\udce9"), ["conversation x", "not Unicode"]),
        (replace(asked("x"), messages=(Message("assistant", "a"),)), ["x, message 0", "user and assistant alternate"]),
    ],
)
def test_a_conversation_that_cannot_be_kept_is_named(dataset: Dataset, broken: Conversation, words: list[str]) -> None:
    before = dataset.conversations()
    with pytest.raises((DataError, ConversationError)) as caught:
        dataset.write_conversations([asked("good"), broken])
    assert all(word in str(caught.value) for word in words)
    assert dataset.conversations() == before


def test_added_conversations_keep_what_is_there(dataset: Dataset) -> None:
    dataset.edit({"table": "conversations", "id": "2", "set": {"status": "removed"}})
    dataset.add_conversations([asked("2", "a"), asked("9", "a"), asked("1", "b")], operation={"name": "generate"})
    assert dataset.conversations() == [
        asked("1", "b"),
        asked("3", "c", split="val"),
        asked("4", task="text"),
        asked("9", "a"),
    ]
    assert dataset.conversation_rows["status"].to_list() == ["ok", "removed", "ok", "ok", "ok"]
    assert [operation["name"] for operation in dataset.lineage[-1]["operations"]] == ["edits", "generate"]


def test_the_same_id_twice_is_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="the same id twice: 7"):
        dataset.write_conversations([asked("7"), asked("7")])
    with pytest.raises(DataError, match="the same root and path twice: images/a.png"):
        dataset.write_images(pl.DataFrame({"id": ["x", "y"], "path": ["a.png", "a.png"]}))


# --- what is selected -------------------------------------------------------------------------------------------


def test_a_conversation_without_split_counts_to_its_images(dataset: Dataset) -> None:
    assert ids(dataset.conversations("train")) == ["1"]
    assert ids(dataset.conversations("val")) == ["2", "3"]
    assert ids(dataset.conversations(tasks=["text"])) == ["4"]
    assert ids(dataset.conversations()) == ["1", "2", "3", "4"]


def test_conversations_about_a_bad_image_are_left_out(dataset: Dataset) -> None:
    operation = {"name": "drop", "filter": "blurred"}
    dataset.update_images(
        pl.DataFrame({"id": ["b"], "status": ["removed"], "reason": ["blurred"]}), operation=operation
    )
    assert ids(dataset.conversations()) == ["1", "3", "4"]
    assert dataset.conversation_rows.height == 4
    assert dataset.card["counts"]["status"] == {"ok": 2, "removed": 1}


def test_an_update_changes_only_its_rows_and_adds_columns(dataset: Dataset) -> None:
    dataset.update_images(pl.DataFrame({"id": ["c", "a"], "split": ["test", None]}), operation={"name": "split"})
    dataset.update_images(pl.DataFrame({"id": ["b"], "sharpness": [0.5]}), operation={"name": "measure"})
    frame = Dataset.open(dataset.path).images
    assert frame["id"].to_list() == ["a", "b", "c"]
    assert frame["split"].to_list() == [None, "val", "test"]
    assert frame["sharpness"].to_list() == [None, 0.5, None]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": ["zz"], "split": ["val"]}, ["ids that it lacks: ['zz']"]),
        ({"id": ["a", "a"], "split": ["val", "val"]}, ["an id twice"]),
        ({"id": ["a"], "split": ["dev"]}, ["split 'dev' in a", "train, val, test, none"]),
        ({"id": ["a"], "status": ["gone"]}, ["status 'gone' in a", "ok, quarantined, removed"]),
        ({"id": ["a"], "width": ["wide"]}, ["wrong type"]),
        ({"split": ["val"]}, ["no column 'id'"]),
    ],
)
def test_an_update_that_makes_no_sense_changes_nothing(
    dataset: Dataset, changes: dict[str, Any], words: list[str]
) -> None:
    before = dataset.images
    with pytest.raises(DataError) as caught:
        dataset.update_images(pl.DataFrame(changes), operation={"name": "split"})
    assert all(word in str(caught.value) for word in words)
    assert dataset.images.equals(before)


# --- roots ------------------------------------------------------------------------------------------------------


def test_roots_are_relative_or_absolute_and_can_be_moved(tmp_path: Path) -> None:
    far = tmp_path / "far"
    roots = {"images": "pictures", "far": str(far)}
    dataset = Dataset.create(tmp_path / "ds", name="x", roots=roots)
    assert dataset.resolve(Image("sub/a.png")) == (tmp_path / "ds/pictures/sub/a.png").resolve()
    assert dataset.resolve(Video("v.mp4", "far")) == far.resolve() / "v.mp4"
    card = yaml.safe_load((dataset.path / "card.yaml").read_text())
    card["roots"]["images"] = "../moved"
    (dataset.path / "card.yaml").write_text(yaml.safe_dump(card))
    assert dataset.resolve(Image("a.png")) == (tmp_path / "moved/a.png").resolve()
    with pytest.raises(DataError, match=r"found root 'scans'; expected far, images; add 'scans' under roots:"):
        dataset.resolve(Image("a.png", "scans"))


@pytest.mark.parametrize("path", ["../x.png", "a/../../x.png", "a/../x.png", "/etc/passwd", "", ".", "a\0b"])
def test_a_path_that_climbs_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match="climbs out of its root; .* relative to its root"):
        resolve_inside(tmp_path, path)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_that_leaves_its_root_is_refused_and_one_that_stays_is_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").touch()
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    (root / "circle.png").symlink_to(root / "circle.png")
    (root / "in.png").symlink_to(root / "sub")
    (tmp_path / "alias").symlink_to(root)
    for path in ("out.png", "up/secret.png", "circle.png"):
        with pytest.raises(DataError, match="a link that leads out .* add the folder it leads to as a root"):
            resolve_inside(root, path)
    assert resolve_inside(root, "in.png") == root / "in.png"
    assert resolve_inside(tmp_path / "alias", "sub") == tmp_path / "alias/sub"


# --- edits ------------------------------------------------------------------------------------------------------


def test_edits_are_seen_by_every_reader_at_once(dataset: Dataset) -> None:
    other = Dataset.open(dataset.path)
    assert len(other.conversations()) == 4
    dataset.edit({"table": "images", "id": "a", "set": {"status": "removed", "reason": "a hand"}, "by": "Ada"})
    dataset.edit({"table": "conversations", "id": "2", "set": {"status": "removed"}})
    dataset.edit({"table": "conversations", "id": "3", "set": {"split": "test", "metadata": {"stars": 5}}})
    answer = [{"role": "user", "content": [{"type": "text", "text": "hm?"}]}]
    dataset.edit({"table": "conversations", "id": "4", "set": {"messages": answer}})
    read = other.conversations()
    assert ids(read) == ["3", "4"]
    assert (read[0].split, read[0].metadata) == ("test", {"stars": 5})
    assert read[1].messages == (Message("user", "hm?"),)
    assert json.loads((dataset.path / "edits.jsonl").read_text().splitlines()[0])["by"] == "Ada"


def test_rows_in_memory_are_those_of_a_new_reader_whatever_happens_to_the_log(dataset: Dataset) -> None:
    def label(id: str, text: str) -> None:
        Dataset.open(dataset.path).edit({"table": "images", "id": id, "set": {"label": text}})

    def read() -> list[str | None]:
        rows = dataset.images
        assert rows.equals(Dataset.open(dataset.path).images)
        return rows["label"].to_list()

    log = dataset.path / "edits.jsonl"
    version = dataset.snapshot()
    assert read() == [None, None, None]
    label("a", "dog")
    label("b", "cat")
    assert read() == ["dog", "cat", None]
    label("a", "cow")
    assert read() == ["cow", "cat", None]
    log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]).replace("cat", "hen"))  # by hand
    assert read() == ["cow", "hen", None]
    label("c", "pig")
    Dataset.open(dataset.path).snapshot()
    label("c", "fox")
    assert read() == ["cow", "hen", "fox"]
    Dataset.open(dataset.path).undo(version)
    assert read() == [None, None, None]


def test_two_writers_at_once_lose_nothing(dataset: Dataset) -> None:
    def write(writer: int) -> None:
        for turn in range(8):
            record = {"table": "images", "id": "abc"[turn % 3], "set": {"label": f"{writer}-{turn}"}}
            Dataset.open(dataset.path).edit(record)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    edits = [json.loads(line) for line in (dataset.path / "edits.jsonl").read_text().splitlines()]
    assert [edit["number"] for edit in edits] == list(range(1, 25))
    assert {edit["set"]["label"] for edit in edits} == {f"{writer}-{turn}" for writer in range(3) for turn in range(8)}


def test_a_conversation_remembers_who_changed_it_when_and_what_it_said_before(dataset: Dataset) -> None:
    def said() -> dict[str, Conversation]:
        return {one.id: one for one in dataset.conversations()}

    first = said()["4"]
    for text in ("Two.", "Three."):
        messages = [*to_chat(first)[:-1], {"role": "assistant", "content": [{"type": "text", "text": text}]}]
        dataset.edit({"table": "conversations", "id": "4", "set": {"messages": messages}, "who": "Ada"})
    for _ in range(2):
        edits = said()["4"].source["edits"]
        assert [edit["who"] for edit in edits] == ["Ada", "Ada"] and all(edit["time"] for edit in edits)
        assert edits[0]["before"]["messages"] == to_chat(first)
        assert edits[1]["before"]["messages"][-1]["content"][0]["text"] == "Two."
        assert said()["4"].reference == "Three."
        dataset.snapshot()  # which compacts the log of edits


def test_rejected_conversations_are_kept_with_the_reason_and_can_become_good(dataset: Dataset) -> None:
    one = replace(dataset.conversations()[0], id="new")
    dataset.add_conversations([one], rejected={"new": "check empty: no words"})
    assert "new" not in {kept.id for kept in dataset.conversations()}
    row = dataset.conversation_rows.filter(pl.col("id") == "new")
    assert row.select("status", "reason").row(0) == ("removed", "check empty: no words")
    dataset.add_conversations([one])
    assert "new" not in {kept.id for kept in dataset.conversations()}, "a rejection outlives a second run"
    dataset.add_conversations([one], rejected={})
    assert "new" in {kept.id for kept in dataset.conversations()}


def test_later_writes_win_over_earlier_edits_and_a_cut_log_loses_no_new_edit(dataset: Dataset) -> None:
    dataset.edit({"table": "images", "id": "a", "set": {"label": "dog"}})
    dataset.update_images(pl.DataFrame({"id": ["a"], "label": ["cat"]}), operation={"name": "label"})
    assert dataset.images["label"][0] == "cat"
    (dataset.path / "edits.jsonl").unlink()
    dataset.edit({"table": "images", "id": "a", "set": {"label": "fox"}})
    assert dataset.images["label"][0] == "fox"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"table": "image", "id": "a", "set": {"label": "x"}}, ["table 'image'", "images or conversations"]),
        ({"table": "images", "id": "zz", "set": {"label": "x"}}, ["edit of 'zz'", "no such id in images"]),
        ({"table": "images", "id": "a", "set": {"lable": "x"}}, ["column 'lable'", "label"]),
        ({"table": "images", "id": "a", "set": {"width": "x"}}, ["column width", "a value of type Int64"]),
        ({"table": "images", "id": "a", "set": {"status": "bad"}}, ["status 'bad'", "quarantined"]),
        ({"table": "images", "id": "a", "set": {}}, ["a mapping of columns to new values"]),
        ({"table": "conversations", "id": "1", "set": {"messages": []}}, ["1", "no user message"]),
        ({"table": "conversations", "id": "1", "set": {"messages": "hello"}}, ["column messages"]),
    ],
)
def test_an_edit_that_cannot_be_applied_is_refused(dataset: Dataset, record: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((DataError, ConversationError)) as caught:
        dataset.edit(record)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (dataset.path / "edits.jsonl").exists()


def test_a_torn_last_edit_does_not_count_and_is_replaced_by_the_next(dataset: Dataset) -> None:
    dataset.edit({"table": "images", "id": "a", "set": {"label": "dog"}})
    with open(dataset.path / "edits.jsonl", "a") as log:
        log.write('{"table": "images", "id": "b", "se')
    assert dataset.images["label"].to_list() == ["dog", None, None]
    dataset.edit({"table": "images", "id": "c", "set": {"label": "cat"}})
    assert Dataset.open(dataset.path).images["label"].to_list() == ["dog", None, "cat"]


@pytest.mark.parametrize(
    "line", ["{nonsense", '{"id": "a", "set": {"label": "x"}, "number": 1}', '{"undo": "abc"}', "7"]
)
def test_a_broken_edit_in_the_middle_is_named_by_line(dataset: Dataset, line: str) -> None:
    (dataset.path / "edits.jsonl").write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"edits.jsonl, line 1: found a broken edit .* correct or remove this line"):
        dataset.images  # noqa: B018


# --- snapshots --------------------------------------------------------------------------------------------------


def test_a_snapshot_is_named_by_its_content_whatever_the_order(dataset: Dataset, tmp_path: Path) -> None:
    version = dataset.snapshot()
    assert dataset.snapshot() == version
    again = Dataset.create(
        tmp_path / "other",
        name="other name",
        images=dataset.images.reverse(),
        conversations=list(reversed(dataset.conversations())),
    )
    assert again.snapshot() == version
    dataset.edit({"table": "images", "id": "a", "set": {"label": "dog"}})
    changed = dataset.snapshot()
    assert changed != version
    dataset.edit({"table": "images", "id": "a", "set": {"label": None}})
    assert dataset.snapshot() == version
    assert [entry["version"] for entry in dataset.lineage] == [version, changed, version]


def test_a_snapshot_stays_as_it_was_and_opens_as_a_dataset(dataset: Dataset) -> None:
    before = dataset.conversations()
    dataset.edit({"table": "images", "id": "b", "set": {"label": "dog"}})
    kept = Dataset.open(dataset.path / "snapshots" / dataset.snapshot())
    dataset.write_conversations([])
    dataset.edit({"table": "images", "id": "b", "set": {"label": "cat"}})
    assert kept.conversations() == before
    assert kept.images["label"].to_list() == [None, "dog", None]
    assert kept.resolve(Image("a.png")) == dataset.resolve(Image("a.png"))
    with pytest.raises(DataError, match="a snapshot; snapshots do not change"):
        kept.write_conversations([])
    with pytest.raises(DataError, match="a snapshot; snapshots do not change"):
        kept.edit({"table": "images", "id": "b", "set": {"label": "cat"}})


def test_the_lineage_tells_operations_with_their_parameters(dataset: Dataset) -> None:
    first = dataset.snapshot()
    split = {"name": "split", "seed": 7, "fractions": {"train": 0.9}}
    dataset.update_images(pl.DataFrame({"id": ["a"], "split": ["test"]}), operation=split)
    dataset.edit({"table": "images", "id": "a", "set": {"status": "removed"}})
    assert dataset.lineage[-1]["parent"] == first and dataset.lineage[-1]["version"] is None
    second = dataset.snapshot()
    entry = Dataset.open(dataset.path).lineage[-1]
    assert (entry["version"], entry["parent"]) == (second, first)
    assert entry["operations"][0].items() >= split.items()
    assert entry["operations"][1]["name"] == "edits" and entry["operations"][1]["count"] == 1
    assert len(dataset.lineage) == 2


# --- damaged and half written -----------------------------------------------------------------------------------


def _no_card(path: Path) -> None:
    (path / "card.yaml").unlink()


def _no_table(path: Path) -> None:
    (path / "images.parquet").unlink()


def _cut_table(path: Path) -> None:
    file = path / "conversations.parquet"
    file.write_bytes(file.read_bytes()[:-100])


def _empty_table(path: Path) -> None:
    (path / "images.parquet").write_bytes(b"")


def _broken_card(path: Path) -> None:
    (path / "card.yaml").write_text("name: [")


def _bare_card(path: Path) -> None:
    (path / "card.yaml").write_text("name: pets\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_card, ["no card.yaml", "a dataset folder", "if an import was interrupted, run it again: it goes on"]),
        (_no_table, ["no images.parquet", "half written", "import again into a new folder"]),
        (_cut_table, ["conversations.parquet", "damaged or truncated", "snapshots/"]),
        (_empty_table, ["images.parquet", "damaged or truncated"]),
        (_broken_card, ["card.yaml", "broken YAML", "correct it by hand"]),
        (_bare_card, ["card.yaml", "no roots", "a name and a folder per line"]),
        (shutil.rmtree, ["no such folder", "check the path"]),
    ],
)
def test_a_half_written_folder_says_what_to_do(dataset: Dataset, damage: Any, words: list[str]) -> None:
    damage(dataset.path)
    with pytest.raises(DataError) as caught:
        Dataset.open(dataset.path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_damage_inside_a_table_is_found_when_it_is_read(dataset: Dataset) -> None:
    file = dataset.path / "images.parquet"
    data = bytearray(file.read_bytes())
    data[4:200] = b"\xff" * 196
    file.write_bytes(data)
    with pytest.raises(DataError, match="images.parquet: found a damaged or truncated Parquet file"):
        Dataset.open(dataset.path).images  # noqa: B018


def test_a_dataset_in_the_way_is_not_overwritten_but_an_interrupted_one_is(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="found a dataset; open it, or choose another folder"):
        Dataset.create(dataset.path, name="again")
    (dataset.path / "card.yaml").unlink()  # the card is written last
    assert Dataset.create(dataset.path, name="again").images.height == 0


def test_shards_are_read_as_one_table(dataset: Dataset) -> None:
    frame = dataset.images
    (dataset.path / "images").mkdir()
    for number in range(3):
        frame.slice(number, 1).write_parquet(dataset.path / f"images/{number}.parquet")
    (dataset.path / "images.parquet").unlink()
    assert Dataset.open(dataset.path).images.equals(frame)


# --- many conversations: shards ---------------------------------------------------------------------------------


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SHARD", 4)
    monkeypatch.setattr(tables, "_CHUNK", 2)


def many(count: int) -> list[Conversation]:
    return [asked(f"{number:02}", "abc"[number % 3], source={"number": number}) for number in range(count)]


@pytest.mark.parametrize("count, files", [(0, 1), (3, 1), (4, 1), (5, 2), (11, 3)])
def test_conversations_are_written_in_shards_as_they_come(
    tmp_path: Path, small_shards: None, count: int, files: int
) -> None:
    dataset = Dataset.create(tmp_path / "ds", name="many", images=rows("a", "b", "c"), conversations=iter(many(count)))
    there = [*dataset.path.glob("conversations.parquet"), *dataset.path.glob("conversations/*.parquet")]
    assert len(there) == files
    again = Dataset.open(dataset.path)
    assert again.conversations() == many(count)
    assert again.card["counts"]["conversations"] == count == again.conversation_rows.height


def test_shards_are_edited_kept_undone_and_replaced_as_one_file_is(tmp_path: Path, small_shards: None) -> None:
    dataset = Dataset.create(tmp_path / "ds", name="many", images=rows("a", "b", "c"), conversations=many(11))
    one = Dataset.create(tmp_path / "one", name="one", images=rows("a", "b", "c"))
    one.write_conversations(many(11))
    first = dataset.snapshot()
    assert first == one.snapshot(), "a version is named by content, not by files"
    dataset.update_images(pl.DataFrame({"id": ["b"], "status": ["removed"]}), operation={"name": "filter"})
    dataset.edit({"table": "conversations", "id": "09", "set": {"split": "val"}, "who": "eva"})
    rest = [one for one in many(11) if one.images[0].path != "b.png"]
    assert ids(dataset.conversations()) == ids(rest)
    assert ids(dataset.conversations("val")) == ["09"]
    dataset.snapshot()
    assert (dataset.path / "conversations.parquet").exists(), "the edit is taken in"
    assert ids(dataset.conversations()) == ids(rest)
    assert dataset.diff(first).summary()["conversations"]["changed"] == 1
    assert dataset.undo(first) == first
    assert dataset.conversations() == many(11) == Dataset.open(dataset.path).conversations()
    assert not list(dataset.path.glob("conversations/*")), "shards that one file replaced are gone"
    assert len(list((dataset.path / "snapshots" / first).glob("conversations/*.parquet"))) == 3


def test_an_id_in_two_shards_is_refused_and_nothing_is_left(tmp_path: Path, small_shards: None) -> None:
    (tmp_path / "ds/conversations").mkdir(parents=True)
    (tmp_path / "ds/conversations/a.png").write_bytes(b"a picture of a class of this name")
    with pytest.raises(DataError, match="the same id twice: 00"):
        Dataset.create(tmp_path / "ds", name="many", conversations=[*many(9), many(1)[0]])
    assert [file.name for file in (tmp_path / "ds").rglob("*.p*")] == ["a.png"]


def test_shards_are_read_one_at_a_time_and_as_they_were_when_reading_began(tmp_path: Path, small_shards: None) -> None:
    dataset = Dataset.create(tmp_path / "ds", name="many", images=rows("a", "b", "c"), conversations=many(11))
    stream = dataset.iter_conversations()
    first = next(stream)
    assert "conversations" not in dataset._folder._tables, "the whole table was read"
    writer = Dataset.open(dataset.path)
    writer.write_conversations(many(2))
    writer.update_images(pl.DataFrame({"id": ["b"], "label": ["cat"]}), operation={"name": "label"})
    assert [first, *stream] == many(11)
    assert dataset.conversations() == many(2)


def test_a_writer_may_put_one_file_in_the_place_of_shards_while_they_are_read(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset.create(tmp_path / "ds", name="many", images=rows("a", "b", "c"), conversations=many(11))
    real, came = parquet.read_parquet, []

    def read(files: list[Path]) -> Any:
        if not came and len(files) > 1:
            came.append(True)
            writer = Dataset.open(dataset.path)
            writer.write_conversations(many(2))
            writer.update_images(pl.DataFrame({"id": ["b"], "label": ["cat"]}), operation={"name": "label"})
            assert not files[0].exists()
        return real(files)

    monkeypatch.setattr(parquet, "read_parquet", read)
    assert dataset.conversation_rows.height == 2 and came


# --- killed, or out of disk, at any moment ----------------------------------------------------------------------

WRITER = """
import sys
import polars as pl
from workbench.conversation import Conversation, Message
from workbench.data.dataset import Dataset

dataset = Dataset.open(sys.argv[1])
names = [str(number) for number in range(200)]
for turn in range(int(sys.argv[2]), 10**6):
    text = str(turn)
    dataset.update_images(pl.DataFrame({"id": names, "label": [text] * 200}), operation={"name": "turn", "turn": turn})
    dataset.write_conversations([Conversation(name, (Message("user", text),)) for name in names])
    dataset.edit({"table": "images", "id": "0", "set": {"reason": text}})
    print(turn, flush=True)
    if turn % 3 == 0:
        dataset.snapshot()
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_killed_at_any_moment_the_folder_holds_the_state_before_or_after(tmp_path: Path) -> None:
    count = 200
    start = rows(*map(str, range(count)), label=["0"] * count)
    path = Dataset.create(tmp_path / "ds", name="x", images=start).path
    here = {**os.environ, "PYTHONPATH": str(Path(tables.__file__).parents[2])}
    done = 0
    for round_number in range(8):
        command = [sys.executable, "-c", WRITER, str(path), str(done + 1)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=here)
        assert writer.stdout is not None
        done = int(writer.stdout.readline())  # acknowledged: must not be lost
        try:
            writer.wait(timeout=(0.003, 0.011, 0.029, 0.071)[round_number % 4])
        except subprocess.TimeoutExpired:
            writer.kill()
        rest = writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        done = int(rest[-1]) if rest else done
        dataset = Dataset.open(path)
        labels, texts = set(dataset.images["label"]), {one.messages[0].text for one in dataset.conversations()}
        assert len(labels) == len(texts) == 1 and dataset.images.height == count
        assert int(labels.pop()) in (done, done + 1) and int(texts.pop()) in (done, done + 1)
        assert int(dataset.images["reason"][0]) in (done, done + 1)
        turns = [op["turn"] for entry in dataset.lineage for op in entry["operations"] if op["name"] == "turn"]
        assert turns in (list(range(1, done + 1)), list(range(1, done + 2)))
        done = int(dataset.images["label"][0])
        dataset.edit({"table": "images", "id": "1", "set": {"reason": "seen"}})  # a dead writer's lock is no obstacle


def test_a_disk_that_is_full_at_any_step_leaves_the_state_before_or_after(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.errors import DiskError

    real, calls = os.fsync, {"left": 0}

    def full(handle: int) -> None:
        calls["left"] -= 1
        if calls["left"] == 0:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    for step in range(1, 9):
        before = dataset.images["label"].to_list()
        dataset_now = Dataset.open(dataset.path)
        calls["left"] = step
        after = [f"{step}", f"{step}", before[2]]
        try:
            dataset_now.update_images(
                pl.DataFrame({"id": ["a", "b"], "label": after[:2]}), operation={"name": "label", "step": step}
            )
            dataset_now.edit({"table": "images", "id": "c", "set": {"label": f"{step}"}})
        except DiskError as problem:
            assert "a full disk" in str(problem)
        calls["left"] = 0
        found = Dataset.open(dataset.path).images["label"].to_list()
        assert found in (before, after, [f"{step}"] * 3)
        assert not list(dataset.path.glob("*.tmp"))


def test_a_file_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="notes.txt: found a file; expected the folder of a dataset"):
        Dataset.open(tmp_path / "notes.txt")
