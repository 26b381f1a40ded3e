"""Where a conversation comes from is printed from what travels with it, and what is not known is not made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workbench.chat_model import ScriptedModel
from workbench.conversation import Conversation, Image, Message, to_chat
from workbench.data.dataset import Dataset
from workbench.data.scene_files import Planted, make
from workbench.data.tables import frame_to_conversations
from workbench.instruct.explain import explain
from workbench.instruct.generator import generate
from workbench.instruct.tasks import TASKS


@pytest.fixture
def scenes(tmp_path: Path) -> Dataset:
    return make(tmp_path / "scenes", count=4, planted=Planted(exact=0, near=0, broken=0))


def with_source(**source: Any) -> Conversation:
    messages = (Message("user", (Image("a.jpg"), "What?")), Message("assistant", ("A cat.",)))
    return Conversation("abc", messages, source=source)


def test_everything_a_teacher_leaves_behind_is_printed(scenes: Dataset) -> None:
    generate(
        scenes, teacher=ScriptedModel(lambda _: "A small picture with shapes.", name="my-teacher"), tasks=["caption"]
    )
    one = scenes.conversations()[0]
    text = explain(one)
    for part in (
        one.id,
        "my-teacher",
        "task: caption",
        "prompt: version 1",
        TASKS["caption"].prompt_hash,
        "max_tokens",
    ):
        assert part in text
    assert one.source["reply"] in text and one.source["key"] in text
    assert f"checks passed: {', '.join(one.source['checks'])}" in text and "hallucination" in text
    assert "check failed" not in text and "changed by" not in text


def test_a_rejected_one_says_which_check_what_it_means_and_what_was_found(scenes: Dataset) -> None:
    told = ScriptedModel(lambda _: "As an AI language model, I cannot see images of this kind.")
    generate(scenes, teacher=told, tasks=["caption"])
    rows = scenes.conversation_rows
    assert set(rows["status"]) == {"removed"}
    one = next(frame_to_conversations(rows))
    text = explain(one)
    assert "check failed: refusal, the teacher declined to answer" in text
    assert one.source["rejected"][0]["found"] in text
    assert "refusal" not in text.partition("checks passed: ")[2].partition("\n")[0]


def test_the_rules_teacher_is_explained_as_well(scenes: Dataset) -> None:
    generate(scenes, tasks=["caption"], seed=3)
    text = explain(scenes.conversations(tasks=["caption"])[0])
    assert "teacher: rules" in text and "seed: 3" in text and "version of the rules: " in text
    assert "prompt" not in text and "parameters" not in text


def test_each_edit_says_who_when_and_what_it_said_before_and_after(scenes: Dataset) -> None:
    generate(scenes, tasks=["caption"])
    one = scenes.conversations(tasks=["caption"])[0]
    first = one.messages[-1].text
    for who, said in (("ann", "Second <text>."), ("bob", "Third.")):
        messages = to_chat(replace(one, messages=(one.messages[0], Message("assistant", (said,)))))
        scenes.edit({"table": "conversations", "id": one.id, "set": {"messages": messages}, "who": who, "why": "wrong"})
    scenes.edit({"table": "conversations", "id": one.id, "set": {"split": "val"}, "who": "cat"})
    edited = next(other for other in scenes.conversations() if other.id == one.id)
    lines = [line.strip() for line in explain(edited).splitlines()]
    start = next(index for index, line in enumerate(lines) if line.startswith("changed by ann at 20"))
    assert lines[start].endswith("(wrong)")
    assert lines[start + 1 : start + 3] == [
        f"message 1 before: assistant: {first}",
        "message 1 after:  assistant: Second <text>.",
    ]
    assert lines[start + 3].startswith("changed by bob")
    assert lines[start + 4 : start + 6] == [
        "message 1 before: assistant: Second <text>.",
        "message 1 after:  assistant: Third.",
    ]
    assert lines[start + 6].startswith("changed by cat") and lines[start + 7] == f"split before: {one.split}"
    assert "Second &lt;text&gt;." in explain(edited)._repr_html_()


def test_a_conversation_of_which_nothing_is_known_says_so() -> None:
    assert explain(with_source()) == "conversation abc\n  nothing is known about where it comes from"


def test_parents_and_keys_of_others_are_printed_and_missing_ones_left_out() -> None:
    text = explain(with_source(parents=["p1", "p2"], foreign_id="000000033471", licence="CC-BY", seed=None))
    assert "made from: p1, p2" in text and "000000033471" in text and "licence: CC-BY" in text
    assert "seed" not in text and "None" not in text


def test_an_answer_that_an_edit_took_away_is_shown() -> None:
    before = [
        {"role": role, "content": text}
        for role, text in (("user", "What?"), ("assistant", "A cat."), ("user", "Why?"), ("assistant", "So."))
    ]
    text = explain(with_source(edits=[{"time": "2026-11-25", "before": {"messages": before}}]))
    assert "changed by somebody at 2026-11-25" in text
    assert "message 3 before: assistant: So.\n    message 3 after:  nothing" in text
    assert "message 1" not in text
