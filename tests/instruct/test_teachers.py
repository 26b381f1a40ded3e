"""Conversations by any teacher: kept with their provenance, never paid twice, checked, never over a person's work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from workbench.chat_model import ScriptedModel
from workbench.conversation import Conversation, to_chat
from workbench.data.dataset import Dataset
from workbench.data.scene_files import Planted, make
from workbench.errors import DataError, RecipeError
from workbench.instruct.checks import Check
from workbench.instruct.generator import generate, show_prompt
from workbench.instruct.limits import Budget
from workbench.instruct.tasks import TASKS, Task
from workbench.instruct.teacher import TeacherSpec, find_teacher, read_teacher

sys.path.insert(0, str(Path(__file__).parents[1]))
from teacher_server import serving  # noqa: E402


@pytest.fixture
def scenes(tmp_path: Path) -> Dataset:
    return make(tmp_path / "scenes", count=12, planted=Planted(exact=0, near=0, broken=0))


def told(conversation: Conversation) -> str:
    """Two true pairs, read off the boxes that the prompt names."""
    lines = conversation.messages[-1].text.splitlines()
    things = [line.split(". ")[1].split(":")[0] for line in lines if line[:1].isdigit() and ": [" in line]
    pairs = [(f"Is there a {things[0]}?", f"Yes, there is a {things[0]}."), ("How many objects?", str(len(things)))]
    return json.dumps({"turns": [{"question": question, "answer": answer} for question, answer in pairs]})


def teacher(answer: str | Callable[[Conversation], str] = told, name: str = "scripted") -> ScriptedModel:
    return ScriptedModel(answer if callable(answer) else lambda conversation: answer, name=name)


def test_replies_become_conversations_that_say_where_they_come_from(scenes: Dataset) -> None:
    made = generate(scenes, teacher=teacher(), tasks=["conversation"])
    found = scenes.conversations()
    assert made.counts == {"conversation": len(found)} and len(found) == 12
    for one in found:
        assert one.images and len(one.messages) == 4
        source = dict(one.source)
        assert (source["teacher"], source["task"]) == ("scripted", "conversation")
        assert source["prompt_version"] == TASKS["conversation"].version
        assert source["prompt_hash"] == TASKS["conversation"].prompt_hash and len(source["reply"]) == 64
        assert "format" in source["checks"] and "rejected" not in source
    assert made.funnel["left"].to_list()[-1] == 12
    assert "12" in str(made)


def test_the_card_says_what_the_conversations_are_like(scenes: Dataset) -> None:
    generate(scenes, teacher=teacher(), tasks=["conversation"])
    section = scenes.card["conversations"]
    assert section["tasks"] == {"conversation": 12}


def test_the_exact_prompt_for_one_image_can_be_printed(scenes: Dataset) -> None:
    model, row = teacher(), scenes.images.row(3, named=True)
    generate(scenes, teacher=model, tasks=["detail"])
    text = show_prompt(scenes, "detail", image=row["path"], structured=False)
    sent = next(one for one in model.asked if one.images[0].path == row["path"])
    assert all(message.text in text for message in sent.messages) and "[user] [image]" in text
    with pytest.raises(DataError, match="no image none.png"):
        show_prompt(scenes, "detail", image="none.png")


def test_a_second_run_asks_for_nothing_and_changes_nothing(scenes: Dataset) -> None:
    generate(scenes, teacher=teacher(), tasks=["conversation"])
    first, again = scenes.conversations(), teacher()
    made = generate(scenes, teacher=again, tasks=["conversation"])
    assert again.asked == [] and scenes.conversations() == first
    assert made.counts == {"conversation": 12}


def test_several_conversations_of_an_image_are_several_questions(scenes: Dataset) -> None:
    model = teacher()
    generate(scenes, teacher=model, tasks={"conversation": 2, "detail": 2}, checks=[])
    assert len(model.asked) == 48 and len({one.id for one in model.asked}) == 48


def test_two_teachers_write_beside_each_other_and_beside_the_rules(scenes: Dataset) -> None:
    generate(scenes, tasks=["conversation"])
    for name in ("one", "two"):
        generate(scenes, teacher=teacher(name=name), tasks=["conversation"])
    kept = scenes.conversation_rows.filter(pl.col("task") == "conversation", pl.col("status") == "ok")
    teachers = [json.loads(source)["teacher"] for source in kept["source"]]
    assert [teachers.count(name) for name in ("rules", "one", "two")] == [12, 12, 12]


def test_what_a_check_rejects_is_kept_with_the_reason_and_can_be_asked_for_again(scenes: Dataset) -> None:
    bad = teacher("I'm sorry, but I can't help with that.")
    made = generate(scenes, teacher=bad, tasks=["conversation"])
    rows = scenes.conversation_rows
    assert made.counts == {} and sum(made.rejected.values()) == 12 and scenes.conversations() == []
    told = ["  wanted: 12", "  answered: 12", "  passed the check format: 0 (12 rejected)", "  kept: 0"]
    assert str(made).splitlines()[-4:] == told
    assert made.funnel.rows()[-2:] == [("passed the check format", 12, 0), ("kept", 0, 0)]
    assert set(rows["status"]) == {"removed"} and all(reason.startswith("check ") for reason in rows["reason"])
    assert all("sorry" in messages[-1]["content"][0]["text"] for messages in rows["messages"])
    same = teacher("unused")
    generate(scenes, teacher=same, tasks=["conversation"])
    assert same.asked == [], "a rejected reply is a reply: nobody pays for it twice"
    generate(scenes, teacher=teacher(), tasks=["conversation"], again=True)
    assert len(scenes.conversations()) == 12
    assert {one.source["attempt"] for one in scenes.conversations()} == {1}
    final = teacher("unused")
    generate(scenes, teacher=final, tasks=["conversation"])
    assert final.asked == [] and len(scenes.conversations()) == 12


def test_what_a_person_changed_or_rejected_stays(scenes: Dataset) -> None:
    generate(scenes, teacher=teacher(), tasks=["conversation"])
    edited, rejected = scenes.conversations()[:2]
    messages = [*to_chat(edited)[:-1], {"role": "assistant", "content": [{"type": "text", "text": "Mine."}]}]
    scenes.edit({"table": "conversations", "id": edited.id, "set": {"messages": messages}, "who": "Ada"})
    no = {"status": "removed", "reason": "dull"}
    scenes.edit({"table": "conversations", "id": rejected.id, "set": no, "who": "Ada"})
    generate(scenes, teacher=teacher(), tasks=["conversation"], again=True)
    kept = {one.id: one for one in scenes.conversations()}
    assert kept[edited.id].reference == "Mine." and rejected.id not in kept and len(kept) == 11


def test_a_budget_ends_cleanly_and_the_next_run_goes_on(scenes: Dataset) -> None:
    first = teacher()
    made = generate(scenes, teacher=first, tasks=["conversation"], budget=Budget(calls=5))
    assert len(first.asked) == 5 == len(scenes.conversations())
    assert made.outcome is not None and "budget" in str(made.outcome.stopped)
    second = teacher()
    generate(scenes, teacher=second, tasks=["conversation"])
    assert len(second.asked) == 7 and len(scenes.conversations()) == 12


def test_the_command_killed_and_started_again_ends_like_one_that_was_not(tmp_path: Path, scenes: Dataset) -> None:
    copy = Dataset(shutil.copytree(scenes.path, tmp_path / "copy" / "scenes"))
    with serving(latency=0.1) as (server, url):
        for dataset, kills in ((scenes, 4), (copy, 0)):
            words = ["generate", str(dataset.path), "--teacher", f"m@{url}", "--tasks", "conversation=4"]
            command = [sys.executable, "-m", "workbench.cli", *words]
            for number in range(kills):
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                wanted = len(server.calls) + 3 * number + 1
                while len(server.calls) < wanted and process.poll() is None:
                    time.sleep(0.01)
                process.kill()
                process.wait()
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
    undisturbed = {one.id: (one.messages, one.source) for one in copy.conversations()}
    assert len(undisturbed) == 48
    assert {one.id: (one.messages, one.source) for one in scenes.conversations()} == undisturbed


def test_a_check_of_ones_own_is_one_function(scenes: Dataset) -> None:
    loud = Check("loud", "shouts", lambda conversation, material, context: "a shout")
    made = generate(scenes, teacher=teacher(), tasks=["conversation"], checks=[loud])
    assert made.rejected == {"loud": 12}


def test_a_teacher_that_sees_gets_the_picture_and_a_text_model_does_not(scenes: Dataset) -> None:
    model = teacher()
    generate(scenes, teacher=model, tasks=["conversation"], limit=2)
    assert [len(one.images) for one in model.asked] == [1, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modle: x", ["unknown key", "model"]),
        ("model: x\nendpoints: [{url: http://a/v1, concurency: 3}]", ["concurency", "unknown key"]),
        ("model: x\nlocal: true\nendpoints: [{url: http://a/v1}]", ["local: true"]),
        ("model: x\nadapter: mine", ["adapter", "local: true"]),
        ("model: x\ntemperature: hot", ["temperature", "'hot'", "a number"]),
    ],
)
def test_a_teacher_file_with_a_mistake_names_it(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "teacher.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_teacher(file)
    assert all(word in str(caught.value) for word in ["teacher.yaml", *words])


def test_the_short_forms_of_the_command_line(tmp_path: Path) -> None:
    assert read_teacher("gpt@http://127.0.0.1:1/v1") == TeacherSpec.model_validate(
        {"model": "gpt", "endpoints": [{"url": "http://127.0.0.1:1/v1"}]}
    )
    assert read_teacher("local:some/model").local
    with pytest.raises(RecipeError, match="MODEL@URL"):
        read_teacher("gpt4")


def test_the_key_of_a_teacher_is_never_shown(
    scenes: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1234")
    found = find_teacher("gpt@http://127.0.0.1:9/v1", scenes)
    made = generate(scenes, teacher="gpt@http://127.0.0.1:9/v1", tasks=["detail"], limit=1, budget=Budget(seconds=3))
    text = f"{found} {found.endpoints} {made} {capsys.readouterr()}"
    assert "sk-secret" not in text
    assert scenes.conversations() == []


def test_a_key_goes_to_no_endpoint_but_its_own(
    scenes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another")
    with serving(key="sk-of-another") as (_, url):
        for name, answered in (("MY_OWN_KEY", 0), ("OPENAI_API_KEY", 1)):
            file = tmp_path / "teacher.yaml"
            file.write_text(f"model: m\nendpoints: [{{url: {url}, api_key_env: {name}}}]")
            made = generate(scenes, teacher=file, tasks=["conversation"], limit=1)
            assert made.outcome is not None and made.outcome.asked == answered


def test_a_task_that_a_teacher_cannot_do_is_told_before_anything_is_asked(scenes: Dataset) -> None:
    with pytest.raises(DataError, match="no prompt"):
        generate(scenes, teacher=teacher(), tasks=["classify"])
    with pytest.raises(DataError, match="with teacher rules"):
        generate(scenes, tasks=[Task("own", ("pixels",), prompt="What is it?")])
