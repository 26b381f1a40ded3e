"""Versions of a dataset: the tree of snapshots, what differs between two, and undo, also when it is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from workbench.conversation import Conversation, Image, Message, to_chat
from workbench.data import tables
from workbench.data.dataset import Dataset
from workbench.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[1]))
from killing import COUNTED  # noqa: E402


def asked(name: str, image: str | None = None, answer: str = "a cat", **fields: Any) -> Conversation:
    media = (Image(f"{image}.png"),) if image else ()
    return Conversation(name, (Message("user", (*media, "what?")), Message("assistant", answer)), **fields)


def rows(*names: str, **columns: Any) -> pl.DataFrame:
    return pl.DataFrame({"id": list(names), "path": [f"{name}.png" for name in names], **columns})


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    conversations = [asked("1", "a"), asked("2", "b")]
    return Dataset.create(tmp_path / "ds", name="pets", images=rows("a", "b", "c"), conversations=conversations)


def change(dataset: Dataset) -> None:
    """A little of everything: an operation, a person's edits of both tables, new conversations, a fact on the card."""
    changes = pl.DataFrame({"id": ["a"], "split": ["test"]})
    dataset.update_images(changes, operation={"name": "split", "seed": 7, "fractions": {"train": 0.9}})
    dog = to_chat(asked("1", "a", "a dog"))
    dataset.edit({"table": "conversations", "id": "1", "who": "Ada", "set": {"messages": dog}})
    dataset.edit({"table": "images", "id": "c", "by": "Bob", "set": {"status": "removed", "reason": "blurred"}})
    dataset.add_conversations([asked("3", "c"), asked("4")], operation={"name": "generate", "teacher": "qwen"})
    dataset.describe(conversations={"count": 4})


def state(dataset: Dataset) -> tuple[Any, ...]:
    """All that an undo brings back."""
    read = Dataset.open(dataset.path)
    card = read.card
    return read.images.rows(), read.conversation_rows.rows(), card["counts"], card.get("conversations")


# --- lineage ----------------------------------------------------------------------------------------------------


def test_the_lineage_prints_as_a_tree_and_stays_a_list_for_programs(dataset: Dataset) -> None:
    assert "dataset.snapshot() keeps the present state" in str(dataset.lineage)
    first = dataset.snapshot()
    change(dataset)
    lines = str(dataset.lineage).splitlines()
    assert lines[0].startswith(f"* {first}  20") and lines[0].endswith("UTC  3 images, 2 conversations")
    assert lines[1] == "* now, not kept yet"
    assert {line.removeprefix("|     ") for line in lines[2:]} == {
        'split: seed 7, fractions {"train": 0.9} (images)',
        "edits: count 1, who Ada (conversations)",
        "edits: count 1, who Bob (images)",
        "generate: teacher qwen (conversations)",
    }
    assert isinstance(dataset.lineage, list) and dataset.lineage[0]["version"] == first
    second = dataset.snapshot()
    assert str(dataset.lineage).splitlines()[1].startswith(f"* {second}")
    assert "3 images (1 removed), 4 conversations  <- now" in str(dataset.lineage)


def test_what_an_undo_left_behind_is_a_branch_beside_what_came_after(dataset: Dataset) -> None:
    first = dataset.snapshot()
    change(dataset)
    left = dataset.snapshot()
    dataset.undo()
    dataset.update_images(pl.DataFrame({"id": ["a"], "label": ["<b>"]}), operation={"name": "<label>"})
    after = dataset.snapshot()
    heads = [line.split("  ")[0] for line in str(dataset.lineage).splitlines() if "* " in line]
    assert heads == [f"* {first}", f"| * {left}", f"* {after}"]
    assert f"undo: from {left}, to {first}" in str(dataset.lineage)
    assert "&lt;label&gt;" in dataset.lineage._repr_html_() and "<label>" not in dataset.lineage._repr_html_()


def test_a_thousand_snapshots_are_drawn_without_indentation(dataset: Dataset) -> None:
    from workbench.data.versions import Lineage

    entries = [{"version": f"{n}", "parent": f"{n - 1}" if n else None, "operations": []} for n in range(1500)]
    lines = str(Lineage(entries)).splitlines()
    assert lines[:2] == ["* 0", "* 1"] and lines[-1] == "* 1499  <- now"


def test_long_parameters_are_cut(dataset: Dataset) -> None:
    dataset.update_images(pl.DataFrame({"id": ["a"], "label": ["x"]}), operation={"name": "label", "with": "y" * 5000})
    assert max(map(len, str(dataset.lineage).splitlines())) < 200


# --- diff -------------------------------------------------------------------------------------------------------


def test_a_diff_tells_what_came_went_and_changed(dataset: Dataset) -> None:
    first = dataset.snapshot()
    change(dataset)
    dataset.write_images(pl.concat([dataset.images.filter(pl.col("id") != "b"), tables.as_images(rows("d"))]))
    diff = dataset.diff(first)
    assert (diff.before, diff.after) == (first, "now")
    assert diff.images.select("id", "name", "change", "column", "before", "after").rows() == [
        ("d", "images/d.png", "came", None, None, None),
        ("b", "images/b.png", "went", None, None, None),
        ("a", "images/a.png", "changed", "split", None, "test"),
        ("c", "images/c.png", "changed", "status", "ok", "removed"),
        ("c", "images/c.png", "changed", "reason", None, "blurred"),
    ]
    assert diff.summary()["conversations"] == {
        "came": 2, "went": 0, "changed": 1, "columns": {"messages": 1, "source": 1},
    }  # fmt: skip
    text = str(diff)
    assert "images: 1 came, 1 went, 2 changed (reason 1, split 1, status 1)" in text
    assert "  ~ c  images/c.png  status: ok > removed; reason: none > blurred" in text
    assert "message 1: assistant: a cat > assistant: a dog; edited by Ada, 20" in text
    assert "a cat &gt; assistant: a dog" in diff._repr_html_()


def test_a_diff_between_two_versions_is_the_same_both_ways(dataset: Dataset) -> None:
    first = dataset.snapshot()
    change(dataset)
    second = dataset.snapshot()
    dataset.write_conversations([])
    there, back = dataset.diff(first[:6], second[:6]), dataset.diff(second, first)
    for one, other in ((there.images, back.images), (there.conversations, back.conversations)):
        turned = other.rename({"before": "after", "after": "before"}).select(one.columns)
        turned = turned.with_columns(pl.col("change").replace({"came": "went", "went": "came"}))
        assert sorted(one.rows(), key=str) == sorted(turned.rows(), key=str)
    assert "without the edit by Ada" in str(back)
    assert "images: no difference\nconversations: no difference" in str(dataset.diff(first, first))


def test_columns_that_were_added_or_changed_type_and_order_of_rows(dataset: Dataset) -> None:
    dataset.write_images(rows("a", "b", "c", score=[1, 2, 3], tags=[["x"], [], None]))
    first = dataset.snapshot()
    tags = [["y"], [], None]
    dataset.write_images(rows("a", "b", "c", score=["1", "2", "4"], tags=tags, sharp=[None, 0.5, None]).reverse())
    changed = dataset.diff(first).images.select("id", "column", "before", "after").rows()
    assert changed == [
        ("c", "score", "3", "4"),
        ("b", "sharp", None, "0.5"),
        ("a", "tags", '["x"]', '["y"]'),
    ]


def test_a_long_diff_shows_the_first_few_and_frames_hold_all(dataset: Dataset) -> None:
    first = dataset.snapshot()
    dataset.write_conversations([asked(f"n{number}", answer="word " * 200) for number in range(500)])
    diff = dataset.diff(first)
    assert len(str(diff).splitlines()) == 11 and "  + and 495 more" in str(diff)
    assert diff.conversations.filter(pl.col("change") == "came").height == 500


def test_an_unknown_version_is_told_with_the_nearest(dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"no snapshot yet; dataset.snapshot\(\) keeps"):
        dataset.diff("abc")
    first = dataset.snapshot()
    change(dataset)
    second = dataset.snapshot()
    typo = first[:5] + ("0" if first[5] != "0" else "1")
    with pytest.raises(DataError, match=f"version '{typo}': found no such version; .* did you mean {first}"):
        dataset.diff(typo)
    with pytest.raises(DataError, match="no such version; expected .*lineage"):
        dataset.undo("")
    card = (dataset.path / "card.yaml").read_text()
    (dataset.path / "card.yaml").write_text(card.replace(second, first[:8] + "0" * 8))
    with pytest.raises(DataError, match=f"2 versions that begin so; expected {first} or {first[:8]}0"):
        dataset.diff(first[:8])


# --- undo -------------------------------------------------------------------------------------------------------


def test_an_undo_goes_back_and_can_be_undone(dataset: Dataset) -> None:
    first, before = dataset.snapshot(), state(dataset)
    change(dataset)
    after = state(dataset)
    other = Dataset.open(dataset.path)
    other.images  # noqa: B018 - a reader that has read already
    assert dataset.undo() == first
    assert state(dataset) == before and other.images.rows() == before[0]
    kept = dataset.lineage[-2]["version"]
    assert [entry["version"] for entry in dataset.lineage] == [first, kept, first]
    assert dataset.lineage[-1]["operations"][0].items() >= {"name": "undo", "from": kept, "to": first}.items()
    assert dataset.snapshot() == first and len(dataset.lineage) == 3, "what is there is what was kept"
    assert dataset.undo() == kept and state(dataset) == after
    assert dataset.undo(first[:6]) == first and state(dataset) == before
    assert dataset.undo(first) == first and len(dataset.lineage) == 5, "already there"


def test_edits_before_an_undo_do_not_come_back_and_those_after_it_count(dataset: Dataset) -> None:
    dataset.edit({"table": "images", "id": "a", "set": {"label": "cat"}})
    dataset.snapshot()
    dataset.edit({"table": "images", "id": "a", "set": {"label": "dog"}})
    dataset.edit({"table": "images", "id": "b", "set": {"label": "dog"}})
    dataset.undo()
    assert Dataset.open(dataset.path).images["label"].to_list() == ["cat", None, None]
    dataset.edit({"table": "images", "id": "c", "set": {"label": "fox"}})
    assert Dataset.open(dataset.path).images["label"].to_list() == ["cat", None, "fox"]
    assert pl.read_parquet(dataset.path / "images.parquet")["label"].to_list() == ["cat", None, None]


def test_an_undo_leaves_what_a_person_says_about_the_dataset(dataset: Dataset, tmp_path: Path) -> None:
    dataset.snapshot()
    change(dataset)
    dataset.describe(licence="CC0", roots={"images": str(tmp_path / "moved")})
    dataset.undo()
    card = Dataset.open(dataset.path).card
    assert card["licence"] == "CC0" and "snapshot" not in card and "conversations" not in card
    assert dataset.resolve(Image("a.png")) == (tmp_path / "moved" / "a.png").resolve()


def test_there_must_be_something_to_go_back_to(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no snapshot yet"):
        dataset.undo()
    assert list(dataset.lineage) == []
    version = dataset.snapshot()
    with pytest.raises(DataError, match=f"nothing but version {version}; nothing changed since"):
        dataset.undo()


def _removed(folder: Path) -> None:
    shutil.rmtree(folder)


def _damaged(folder: Path) -> None:
    (folder / "conversations.parquet").unlink()
    (folder / "conversations.parquet").write_bytes(b"PAR1")


@pytest.mark.parametrize(("damage", "words"), [(_removed, "removed by hand"), (_damaged, "damaged or truncated")])
def test_a_snapshot_that_is_gone_or_damaged_undoes_nothing(
    dataset: Dataset, damage: Callable[[Path], None], words: str
) -> None:
    first = dataset.snapshot()
    change(dataset)
    before = state(dataset)
    damage(dataset.path / "snapshots" / first)
    for act in (dataset.undo, dataset.diff):
        with pytest.raises(DataError, match=words):
            act(first)
    assert state(dataset) == before


def test_a_dataset_in_shards_is_kept_and_undone(dataset: Dataset) -> None:
    frame = dataset.images
    (dataset.path / "images").mkdir()
    for number in range(3):
        frame.slice(number, 1).write_parquet(dataset.path / f"images/{number}.parquet")
    (dataset.path / "images.parquet").unlink()
    first = dataset.snapshot()
    dataset.update_images(pl.DataFrame({"id": ["a"], "label": ["cat"]}), operation={"name": "label"})
    assert [one["name"] for one in dataset.lineage[-1]["operations"]] == ["label"]
    dataset.undo()
    assert dataset.images.equals(frame)
    assert Dataset.open(dataset.path / "snapshots" / first).images.equals(frame)


def test_a_snapshot_opens_with_its_roots_wherever_the_dataset_is_moved(dataset: Dataset, tmp_path: Path) -> None:
    dataset.describe(roots={"images": "../pictures", "far": str(tmp_path / "far")})
    first = dataset.snapshot()
    change(dataset)
    second = dataset.snapshot()
    moved = dataset.path.rename(tmp_path / "sub")
    kept = Dataset.open(moved / "snapshots" / first)
    assert kept.roots == Dataset.open(moved).roots == {
        "images": (tmp_path / "pictures").resolve(), "far": (tmp_path / "far").resolve(),
    }  # fmt: skip
    assert [entry["version"] for entry in kept.lineage] == [first]
    for act in (kept.snapshot, kept.undo):
        with pytest.raises(DataError, match="a snapshot; snapshots do not change"):
            act()
    with pytest.raises(DataError, match="open the dataset that this snapshot belongs to"):
        Dataset.open(moved / "snapshots" / second).diff(first)


def test_a_table_that_did_not_change_takes_no_room_in_a_snapshot(dataset: Dataset) -> None:
    versions = [dataset.snapshot()]
    dataset.update_images(pl.DataFrame({"id": ["a"], "label": ["cat"]}), operation={"name": "label"})
    versions.append(dataset.snapshot())
    files = [dataset.path / "snapshots" / version / "conversations.parquet" for version in versions]
    assert len({file.stat().st_ino for file in (*files, dataset.path / "conversations.parquet")}) == 1


# --- killed -----------------------------------------------------------------------------------------------------

KILLED = f"""
{COUNTED}
import sys
from workbench.data.dataset import Dataset

dataset = Dataset.open(sys.argv[1])
kill_before(int(sys.argv[2]), "replace", "fsync", "link")
dataset.undo()
print(left)
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_killed_before_any_step_on_the_disk_an_undo_has_happened_or_not(dataset: Dataset, tmp_path: Path) -> None:
    first, before = dataset.snapshot(), state(dataset)
    change(dataset)
    after = state(dataset)
    steps = 10_000 - int(_undo(dataset.path, tmp_path / "whole", 10_000).stdout)
    assert steps > 20
    undone = []
    for step in range(1, steps + 1, 2):
        path = tmp_path / f"killed-{step}"
        assert _undo(dataset.path, path, step).returncode == -signal.SIGKILL
        copy = Dataset.open(path)
        found = state(copy)
        assert found in (before, after)
        undone.append(found == before)
        names = [one["name"] for entry in copy.lineage for one in entry["operations"]]
        assert ("undo" in names) == undone[-1]
        copy.edit({"table": "images", "id": "b", "set": {"label": "seen"}})  # the next writer takes it in
        assert state(copy)[1:] == found[1:] and copy.images["label"].to_list() == [None, "seen", None]
        assert pl.read_parquet(path / "conversations.parquet").height == len(found[1]), "also for other tools"
        assert not [*path.glob(".*.tmp"), *path.glob("snapshots/.*")]
        assert names == [one["name"] for entry in copy.lineage for one in entry["operations"]][: len(names)]
        copy.undo(first)
        assert state(copy) == before
    assert undone == sorted(undone) and set(undone) == {False, True}


def _undo(source: Path, copy: Path, step: int) -> subprocess.CompletedProcess[str]:
    """Undo in a copy of the dataset, by a process that is killed at the given step on the disk."""
    shutil.copytree(source, copy)
    here = {**os.environ, "PYTHONPATH": str(Path(tables.__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(copy), str(step)]
    return subprocess.run(command, capture_output=True, text=True, env=here)


TOGGLE = """
import sys
from workbench.data.dataset import Dataset

dataset = Dataset.open(sys.argv[1])
print("ready", flush=True)
while True:
    dataset.undo()
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_killed_at_random_moments_while_it_goes_to_and_fro(dataset: Dataset) -> None:
    dataset.snapshot()
    states = [state(dataset)]
    change(dataset)
    states.append(state(dataset))
    here = {**os.environ, "PYTHONPATH": str(Path(tables.__file__).parents[2])}
    for round_number in range(6):
        command = [sys.executable, "-c", TOGGLE, str(dataset.path)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=here)
        assert writer.stdout is not None
        writer.stdout.readline()
        try:
            writer.wait(timeout=0.05 + 0.037 * round_number)
        except subprocess.TimeoutExpired:
            writer.kill()
        writer.wait()
        writer.stdout.close()
        assert writer.returncode == -signal.SIGKILL
        assert state(dataset) in states
    entries = [entry["version"] for entry in dataset.lineage]
    assert len(set(entries)) == 2 and all(one != two for one, two in zip(entries, entries[1:], strict=False))
