from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.conversation import Conversation, Image, Message
from workbench.curation.splits import _assign, check_benchmark, check_leakage, split
from workbench.data.dataset import Dataset
from workbench.errors import DataError

FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


@pytest.fixture
def copies(tmp_path: Path, helpers: SimpleNamespace) -> Dataset:
    """40 images, each of the first ten with an exact and a near copy; two labels."""
    folder = tmp_path / "images"
    folder.mkdir()
    names = []
    for number in range(40):
        names.append(f"p{number}.png")
        helpers.draw(number).save(folder / names[-1])
        if number < 10:
            names += [f"x{number}.png", f"y{number}.jpg"]
            (folder / names[-2]).write_bytes((folder / f"p{number}.png").read_bytes())
            helpers.draw(number).resize((80, 80)).save(folder / names[-1], quality=85)
    return helpers.dataset_of(tmp_path, names, label=pl.Series([["cat", "dog"][len(name) % 2] for name in names]))


def test_no_copy_crosses_a_split(copies: Dataset) -> None:
    rows = split(copies, FRACTIONS, seed=3)
    chosen = dict(rows.rows())
    assert rows.height == 60 and copies.images["split"].null_count() == 0
    for number in range(10):
        assert chosen[f"p{number}"] == chosen[f"x{number}"] == chosen[f"y{number}"]
    assert check_leakage(copies).is_empty()
    counts = Counter(chosen.values())
    assert abs(counts["train"] - 36) <= 3 and abs(counts["val"] - 12) <= 3


def test_the_same_seed_gives_the_same_splits_and_another_others(copies: Dataset) -> None:
    first = split(copies, FRACTIONS, seed=1)
    assert split(copies, FRACTIONS, seed=1).equals(first)
    assert not split(copies, FRACTIONS, seed=2).equals(first)


def test_leaks_are_told_with_their_kind(copies: Dataset) -> None:
    split(copies, {"train": 1.0})
    moved = pl.DataFrame({"id": ["x0", "y1"], "split": ["test", "val"]})
    copies.update_images(moved, operation={"name": "move"})
    leaks = check_leakage(copies).sort("id")
    assert leaks.rows() == [("x0", "p0", "test", "train", "exact"), ("y1", "p1", "val", "train", "near")]


def test_images_of_one_conversation_stay_together(copies: Dataset) -> None:
    copies.write_conversations([_about("both", "p20.png", "p21.png"), _about("other", "p21.png", "p22.png")])
    for seed in range(4):
        chosen = dict(split(copies, FRACTIONS, seed=seed).rows())
        assert chosen["p20"] == chosen["p21"] == chosen["p22"]
    moved = {"train": "test", "val": "test", "test": "train"}[chosen["p22"]]
    copies.update_images(pl.DataFrame({"id": ["p22"], "split": [moved]}), operation={"name": "move"})
    assert check_leakage(copies).select("id", "other", "kind").rows() == [("p22", "p21", "conversation")]


def test_a_conversation_in_another_split_than_its_image_leaks(copies: Dataset) -> None:
    split(copies, {"train": 1.0})
    copies.write_conversations([_about("held out", "p30.png", split="test"), _about("same", "p31.png", split="train")])
    assert check_leakage(copies).rows() == [("p30", "p30", "test", "train", "conversation")]


def test_each_label_is_parted_in_the_same_fractions(tmp_path: Path) -> None:
    names = [f"i{number:03d}" for number in range(200)]
    labels = ["rare"] * 20 + ["common"] * 180
    frame = pl.DataFrame({"id": names, "path": names, "label": labels})
    dataset = Dataset.create(tmp_path, name="labels", images=frame)
    split(dataset, stratify="label")
    counted = dataset.images.group_by("label", "split").len().sort("label", "split").rows()
    assert [row[2] for row in counted] == [18, 144, 18, 2, 16, 2]


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.5, "dev": 0.5}, "found a split named 'dev'; expected train, val, test"),
        ({"train": 0.5, "val": 0.4}, "expected 0 or more each, 1 together"),
        ({"train": 1.5, "val": -0.5}, "expected 0 or more each, 1 together"),
    ],
)
def test_impossible_fractions_are_refused(tmp_path: Path, fractions: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(Dataset.create(tmp_path, name="n"), fractions)


def test_an_empty_dataset_has_nothing_to_split(tmp_path: Path) -> None:
    dataset = Dataset.create(tmp_path, name="n")
    assert split(dataset).is_empty() and check_leakage(dataset).is_empty()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=120))
def test_every_stretch_keeps_the_fractions_within_one_unit(sizes: list[int]) -> None:
    fractions = {"train": 0.8, "val": 0.1, "test": 0.1}
    chosen = _assign(sizes, fractions)
    total = sum(sizes)
    for name, part in fractions.items():
        count = sum(size for size, split in zip(sizes, chosen, strict=True) if split == name)
        assert abs(count - part * total) <= 2 * max(sizes)


def _about(name: str, *paths: str, split: str | None = None) -> Conversation:
    question = Message("user", (*(Image(path) for path in paths), "What differs?"))
    return Conversation(name, (question, Message("assistant", "Nothing.")), split=split)


def test_copies_of_a_benchmarks_images_are_found_in_the_dataset(tmp_path: Path, helpers: SimpleNamespace) -> None:
    (tmp_path / "images").mkdir()
    names = [f"{number}.png" for number in range(8)]
    for number, name in enumerate(names):
        helpers.draw(number).save(tmp_path / "images" / name)
    dataset = helpers.dataset_of(tmp_path, names, split=pl.Series(["train"] * 6 + ["test"] * 2))
    benchmark = tmp_path / "benchmark"
    (benchmark / "inner").mkdir(parents=True)
    (benchmark / "same.png").write_bytes((tmp_path / "images" / "2.png").read_bytes())
    helpers.draw(7).resize((120, 120)).save(benchmark / "inner" / "again.jpg", quality=85)
    helpers.draw(50).save(benchmark / "new.png")
    (benchmark / "torn.png").write_bytes(b"nothing")
    found = check_benchmark(dataset, benchmark)
    assert found.rows() == [
        ("2", "2.png", "train", "same.png", "exact"),
        ("7", "7.png", "test", "inner/again.jpg", "near"),
    ]
    dataset.update_images(pl.DataFrame({"id": ["2", "7"], "status": ["removed"] * 2}), operation={"name": "test"})
    assert check_benchmark(dataset, benchmark).is_empty()
    with pytest.raises(DataError, match="found no images; expected the folder of a benchmark's images"):
        check_benchmark(dataset, tmp_path / "nowhere")


def test_two_copies_in_the_benchmark_are_both_told(tmp_path: Path, helpers: SimpleNamespace) -> None:
    (tmp_path / "images").mkdir()
    benchmark = tmp_path / "benchmark"
    benchmark.mkdir()
    helpers.draw(1).save(tmp_path / "images" / "mine.png")
    for name in ("a.png", "b.png"):
        helpers.draw(1).save(benchmark / name)
    found = check_benchmark(helpers.dataset_of(tmp_path, ["mine.png"]), benchmark)
    assert found["file"].to_list() == ["a.png", "b.png"] and set(found["split"]) == {None}
