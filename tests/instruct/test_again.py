from __future__ import annotations

import sys
from pathlib import Path

import pytest

from workbench.data.dataset import Dataset
from workbench.data.scene_files import Planted, make
from workbench.errors import DataError
from workbench.instruct.again import write_again
from workbench.instruct.generator import generate

sys.path.insert(0, str(Path(__file__).parents[1]))
from teacher_server import serving  # noqa: E402


@pytest.fixture
def scenes(tmp_path: Path) -> Dataset:
    dataset = make(tmp_path / "scenes", count=6, seed=2, planted=Planted(0, 0, 0))
    generate(dataset, tasks={"conversation": 1})
    return dataset


def test_rules_write_another_conversation_under_the_same_id(scenes: Dataset) -> None:
    old = next(one for one in scenes.conversations() if one.task == "conversation")
    new, rejected = write_again(scenes, old.id)
    assert rejected is None and new.id == old.id and new.images == old.images
    assert new.messages != old.messages and new.source["attempt"] == 1
    assert write_again(scenes, old.id)[0] == new  # as nothing was kept, it is the same go
    assert scenes.conversations()[0] == old or old in scenes.conversations()


def test_a_model_is_asked_once_and_its_reply_is_kept(scenes: Dataset) -> None:
    name = next(one.id for one in scenes.conversations() if one.task == "conversation")
    with serving() as (server, url):
        new, rejected = write_again(scenes, name, teacher=f"teacher@{url}")
        assert "It is the number" in new.messages[1].text and new.source["model"] == "teacher-1"
        assert rejected is None or rejected.startswith("check ")
        write_again(scenes, name, teacher=f"teacher@{url}")
        assert len(server.calls) == 1
        server.reply = lambda prompt: "I have nothing to say"
        other = [one.id for one in scenes.conversations() if one.task == "conversation"][1]
        with pytest.raises(DataError, match="a reply without turns"):
            write_again(scenes, other, teacher=f"teacher@{url}")


def test_what_no_teacher_can_write_is_said(scenes: Dataset) -> None:
    with pytest.raises(DataError, match="no such id"):
        write_again(scenes, "none")
    question = next((one for one in scenes.conversations() if one.task == "question"), None)
    if question is not None:
        with pytest.raises(DataError, match="task 'question', which no teacher writes"):
            write_again(scenes, question.id)
