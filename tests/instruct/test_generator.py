"""Conversations made by the rules teacher: right, repeatable, and only where something is known."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

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


def test_class_folders_give_class_questions(tmp_path: Path, picture_bytes: bytes) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "in" / label).mkdir(parents=True)
        (tmp_path / "in" / label / "one.png").write_bytes(picture_bytes)
    dataset = import_folder(tmp_path / "in", tmp_path / "out")
    generate(dataset)
    answers = {one.reference for one in dataset.conversations(tasks=["conversation"])}
    assert answers == {"cat", "dog"}


def test_nothing_known_is_one_clear_error(tmp_path: Path, picture_bytes: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.png").write_bytes(picture_bytes)
    dataset = import_folder(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match=r"captions\.csv"):
        generate(dataset)


def test_an_unknown_task_names_the_known_ones(scenes: Dataset) -> None:
    with pytest.raises(DataError, match="caption, conversation"):
        generate(scenes, tasks=["poem"])


@pytest.fixture
def picture_bytes() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()
