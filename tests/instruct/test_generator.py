"""Conversations made by the rules teacher: right, repeatable, and only where something is known."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from workbench.conversation import check_conversation
from workbench.data.dataset import Dataset
from workbench.data.formats import import_folder
from workbench.data.scene_files import Planted, make
from workbench.data.scenes import Scene
from workbench.errors import DataError
from workbench.instruct.generator import QUESTION, generate


@pytest.fixture
def scenes(tmp_path: Path) -> Dataset:
    dataset = make(tmp_path / "scenes", count=24, planted=Planted(exact=2, near=2, broken=2))
    rows = dataset.images.with_row_index("number").with_columns(
        split=pl.when(pl.col("number") % 4 == 0).then(pl.lit("test")).otherwise(pl.lit("train"))
    )
    dataset.update_images(rows.select("id", "split"), operation={"name": "split"})
    return dataset


def test_every_task_is_made_for_every_annotated_image(scenes: Dataset) -> None:
    made = generate(scenes, seed=1)
    annotated = scenes.images.filter(pl.col("status") == "ok", pl.col("objects").is_not_null())
    assert made.counts["caption"] == made.counts["detail"] == len(annotated)
    assert made.counts["conversation"] == 3 * len(annotated)
    for conversation in scenes.conversations():
        check_conversation(conversation)
        assert conversation.source["teacher"] == "rules"
        assert scenes.resolve(conversation.images[0]).is_file()


def test_a_second_run_changes_nothing_and_doubles_nothing(scenes: Dataset) -> None:
    generate(scenes, seed=1)
    first = scenes.conversations()
    generate(scenes, seed=1)
    assert scenes.conversations() == first


def test_single_questions_are_held_out_only_and_carry_their_type(scenes: Dataset) -> None:
    generate(scenes, seed=1, questions_per_image=3)
    questions = scenes.conversations(tasks=[QUESTION])
    assert questions and {one.split for one in questions} == {"test"}
    assert all(one.metadata["type"] and len(one.messages) == 2 for one in questions)
    types_per_image: dict[str, list[str]] = {}
    for one in questions:
        types_per_image.setdefault(one.images[0].path, []).append(one.metadata["type"])
    assert all(len(types) == len(set(types)) for types in types_per_image.values())


def test_planted_near_copies_carry_no_boxes_that_would_be_wrong(scenes: Dataset) -> None:
    near = scenes.images.filter(pl.col("path").str.starts_with("near"))
    assert len(near) == 2 and near["objects"].is_null().all()
    exact = scenes.images.filter(pl.col("path").str.starts_with("exact"))
    assert all(Scene.from_json(text).objects for text in exact["objects"])


def test_broken_files_are_quarantined_with_a_reason(scenes: Dataset) -> None:
    broken = scenes.images.filter(pl.col("path").str.starts_with("broken"))
    assert broken["status"].to_list() == ["quarantined"] * 2
    assert all(broken["reason"].str.len_chars() > 10)


def test_a_made_folder_is_opened_and_not_made_again(tmp_path: Path) -> None:
    planted = Planted(exact=0, near=0, broken=0)
    first = make(tmp_path / "s", count=3, planted=planted)
    before = (tmp_path / "s" / "pictures" / "scene-00000.png").stat().st_mtime_ns
    assert make(tmp_path / "s", count=3, planted=planted).images.equals(first.images)
    assert (tmp_path / "s" / "pictures" / "scene-00000.png").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="another dataset"):
        make(tmp_path / "s", count=2, planted=planted)
    assert Dataset.open(tmp_path / "s").images.equals(first.images), "a refusal changes nothing"
    assert make(tmp_path / "s", count=2, planted=planted, replace=True).images.height == 2


def test_a_folder_with_a_card_is_complete_whenever_the_making_was_killed(tmp_path: Path) -> None:
    """The annotations used to follow the card: killed between the two, scenes stayed without any."""
    (tmp_path / "s" / "pictures").mkdir(parents=True)  # killed after the pictures, before the card
    dataset = make(tmp_path / "s", count=3, planted=Planted(exact=0, near=0, broken=0))
    assert dataset.images["objects"].null_count() == 0 and all(len(texts) == 1 for texts in dataset.images["captions"])


def test_class_folders_give_class_questions(tmp_path: Path, picture_bytes: bytes) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "in" / label).mkdir(parents=True)
        (tmp_path / "in" / label / "one.png").write_bytes(picture_bytes)
    dataset = import_folder(tmp_path / "in", tmp_path / "out")
    generate(dataset)
    answers = {one.reference for one in dataset.conversations(tasks=["conversation"])}
    assert answers == {"cat", "dog"}


def test_held_out_class_questions_list_the_classes_and_images_get_splits(tmp_path: Path, picture_bytes: bytes) -> None:
    for label in ("0", "1", "2"):
        (tmp_path / "in" / label).mkdir(parents=True)
        for number in range(8):
            mosaic(int(label) * 8 + number).save(tmp_path / "in" / label / f"{number}.png")
    dataset = import_folder(tmp_path / "in", tmp_path / "out")
    generate(dataset, question="Which digit is this?")
    asked = dataset.conversations("test", tasks=[QUESTION])
    assert asked and {one.metadata["type"] for one in asked} == {"class"}
    for one in asked:
        text = one.prompt.messages[-1].text.strip()
        assert text.startswith("Which digit is this? Choose from: ") and {"0", "1", "2"} <= set(
            text[:-1].split(", ")
        ) | {text.split(": ")[1].split(",")[0]}
    assert {"train", "val", "test"} == set(dataset.images["split"])


def test_captions_alone_give_a_question_that_can_be_scored(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines = ["file,caption"]
    for number in range(20):
        mosaic(number).save(tmp_path / "in" / f"{number}.png")
        lines.append(f"{number}.png,picture number {number}")
    (tmp_path / "in" / "captions.csv").write_text("\n".join(lines))
    dataset = import_folder(tmp_path / "in", tmp_path / "out")
    generate(dataset)
    asked = dataset.conversations("test", tasks=[QUESTION])
    assert asked and {one.metadata["type"] for one in asked} == {"caption"}
    assert all(
        one.reference in one.prompt.messages[-1].text and one.prompt.messages[-1].text.count(";") == 3 for one in asked
    )
    trained = dataset.conversations("train", tasks=["conversation"])
    assert all(one.messages[0].text.strip().startswith("Which caption fits?") for one in trained)


def mosaic(seed: int) -> Image.Image:
    """A picture that is like no other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((60, 60), Image.Resampling.NEAREST)


def test_nothing_known_is_one_clear_error(tmp_path: Path, picture_bytes: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.png").write_bytes(picture_bytes)
    dataset = import_folder(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match=r"captions\.csv"):
        generate(dataset)


def test_a_task_that_captions_are_not_enough_for_is_named(tmp_path: Path, picture_bytes: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.png").write_bytes(picture_bytes)
    (tmp_path / "in" / "one.txt").write_text("A red ball.")
    dataset = import_folder(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="no image with what rules write grounding from.*another task"):
        generate(dataset, tasks=["grounding"])
    with pytest.raises(DataError, match="caption=0; expected 1 or more"):
        generate(dataset, tasks={"caption": 0})


def test_an_unknown_task_names_the_known_ones(scenes: Dataset) -> None:
    with pytest.raises(DataError, match="caption, conversation"):
        generate(scenes, tasks=["poem"])


@pytest.fixture
def picture_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()
