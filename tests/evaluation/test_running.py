"""Benchmarks run end to end on the tiny LLaVA: shared and plain say the same, and nothing is lost or asked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests.asking import random_llava
from tests.videos import SIZE, moving
from workbench.chat_model import SamplingOptions, ScriptedModel
from workbench.conversation import Conversation, Message, Video
from workbench.errors import DataError, WorkbenchError
from workbench.evaluation import yes_no
from workbench.evaluation.questions import read_benchmark
from workbench.evaluation.reading import rules
from workbench.evaluation.results import NOT_ASKED, Results
from workbench.evaluation.scores import score_again
from workbench.evaluation.task import Evaluation
from workbench.inference.attachments import attached
from workbench.inference.engine import Engine

SHORT = SamplingOptions(max_tokens=12)

NAMES = ("pope", "mme", "seedbench", "mmbench")


@pytest.fixture(scope="module")
def both(engine: Engine, evaluations: dict[str, Evaluation]) -> dict[str, tuple[Results, Results]]:
    """Each benchmark with an image's cost shared, and one row after the other."""
    return {
        name: tuple(wb.evaluate(engine, evaluations[name], reuse=reuse, max_tokens=8) for reuse in (True, False))
        for name in NAMES
    }  # type: ignore[misc]


@pytest.mark.parametrize("name", NAMES)
def test_shared_and_plain_give_the_same_letters_and_scores(both: Any, name: str) -> None:
    shared, plain = both[name]
    asked = shared.rows["rule"] != NOT_ASKED
    assert shared.rows.filter(asked)["said"].to_list() == plain.rows.filter(asked)["said"].to_list()
    assert shared.scores["score"] == plain.scores["score"] and shared.scores["n"] == plain.scores["n"]
    assert len(set(plain.rows["said"].to_list()) - {None}) > 1, "a model that always says the same proves nothing"
    assert 0 < shared.rows["earned"].sum() < len(shared.rows)
    assert shared.rows.filter(asked)["margin"].min() > 0
    assert not len(shared.errors) and all("<image>" in prompt for prompt in shared.rows.filter(asked)["prompt"])
    assert not len(wb.diff(shared, plain).flips)


def test_a_question_ends_at_its_first_wrong_rotation(both: Any) -> None:
    shared, plain = both["mmbench"]
    left = shared.rows.filter(shared.rows["rule"] == NOT_ASKED)
    assert len(left) and left["answer"].null_count() == len(left)
    for item, rows in shared.rows.group_by("item"):
        earned = rows["earned"].to_list()
        skipped = [rule == NOT_ASKED for rule in rows["rule"]]
        first = earned.index(0.0) if 0.0 in earned else 4
        assert skipped == [place > first for place in range(4)], item
    assert plain.rows["answer"].null_count() == 0


def test_likelihood_chooses_among_the_options(engine: Engine, evaluations: dict[str, Evaluation]) -> None:
    ranked = wb.evaluate(engine, evaluations["seedbench"], likelihood=True)
    assert set(ranked.rows["answer"]) <= set("ABCD") and ranked.rows["margin"].min() > 0
    assert set(ranked.rows["rule"]) == {"the likeliest first token of the candidates"}


def test_any_chat_model_is_asked_and_its_next_rotation_only_after_a_right_one(
    evaluations: dict[str, Evaluation],
) -> None:
    circular = evaluations["mmbench"]
    right = {asked.prompt.messages[-1].text: asked.reference for asked in circular.conversations}
    first = circular.conversations[0].prompt.messages[-1].text
    model = ScriptedModel(
        lambda asked: "D" if asked.messages[-1].text == first else str(right[asked.messages[-1].text])
    )
    results = wb.evaluate(model, circular)
    assert len(model.asked) == len(circular.conversations) - 3
    assert results.scores["parts"]["every rotation"]["score"] == pytest.approx(75.0)
    assert all(Path(asked.images[0].path).is_file() for asked in model.asked)


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_a_result_folder_is_read_scored_again_and_compared(
    engine: Engine, evaluations: dict[str, Evaluation], tmp_path: Path
) -> None:
    made = wb.evaluate(engine, evaluations["pope"], out=tmp_path / "a", max_tokens=8)
    held = wb.Results.open(tmp_path / "a")
    assert held.rows.equals(made.rows) and held.scores == json.loads((tmp_path / "a" / "scores.json").read_text())
    assert held.settings["status"] == "done" and held.settings["counts"]["rows"] == len(held.rows)
    assert held.settings["model"]["weights"] and held.settings["questions"]["files"]["pope"]
    assert held.picture(held.rows.row(0, named=True)).size == (96, 96)
    assert held.failures["margin"].is_sorted(descending=True) and 0 < len(held.failures) < len(held.rows)
    part = held.scores["parts"]["random"]
    assert part["accuracy_low"] <= part["accuracy"] <= part["accuracy_high"]
    again = score_again(tmp_path / "a")
    assert again.scores == held.scores and again.rows.equals(held.rows)


KILLED = """
import sys, time
import workbench as wb
from workbench.evaluation.questions import read_benchmark

def slowly(asked):
    time.sleep(0.02)
    return "Yes"

if __name__ == "__main__":
    asked = read_benchmark("pope", sys.argv[1])
    print(wb.evaluate(wb.ScriptedModel(slowly), asked, out=sys.argv[2], reuse=False).scores["score"])
"""


def test_a_killed_evaluation_goes_on_where_it_was(published: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "job.py"), str(published["pope"]), str(tmp_path / "out")]
    rows = tmp_path / "out" / "rows.jsonl"
    process = subprocess.Popen(command, env=os.environ)
    deadline = time.monotonic() + 60
    while not (rows.is_file() and rows.stat().st_size > 2000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(rows, "ab") as file:
        file.write(b'{"id": "torn')  # as a kill in mid-write leaves it
    kept = len([line for line in rows.read_text().splitlines() if line.endswith("}")])
    assert 0 < kept < 36 and Results.open(tmp_path / "out").settings["status"] == "running"
    model = ScriptedModel(lambda asked: "Yes")
    results = wb.evaluate(model, read_benchmark("pope", published["pope"]), out=tmp_path / "out", reuse=False)
    assert len(model.asked) == 36 - kept, "what was answered is not asked again"
    ids = [line["id"] for line in (json.loads(text) for text in rows.read_text().splitlines() if text.endswith("}"))]
    assert len(ids) == 36 == len(set(ids)) and len(results.rows) == 36


def test_another_model_or_file_does_not_go_on(
    published: dict[str, Path], evaluations: dict[str, Evaluation], tmp_path: Path
) -> None:
    wb.evaluate(ScriptedModel(lambda asked: "Yes"), evaluations["pope"], out=tmp_path / "out")
    with pytest.raises(DataError, match="another setting .model.name: .scripted. there, .other. now"):
        wb.evaluate(ScriptedModel(lambda asked: "Yes", name="other"), evaluations["pope"], out=tmp_path / "out")
    with pytest.raises(DataError, match="another setting .questions.count: 36 there, 3 now"):
        wb.evaluate(ScriptedModel(lambda asked: "Yes"), evaluations["pope"], limit=3, out=tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(DataError, match="other things in it"):
        wb.evaluate(ScriptedModel(lambda asked: "Yes"), evaluations["pope"], out=tmp_path / "mine")


def test_a_template_that_leaves_questions_out_is_told(evaluations: dict[str, Evaluation]) -> None:
    asked = replace(evaluations["pope"], conversations=evaluations["pope"].conversations[:3])
    for template, told in (("plain", ["3 prompt(s) do not hold their question"]), ("tiny", [])):
        notes = wb.evaluate(Engine(random_llava(template)), asked, max_tokens=2).scores["notes"]
        assert [note.partition(":")[0] for note in notes if "do not hold" in note] == told


def test_a_row_that_fails_is_counted_and_takes_no_other_with_it(
    engine: Engine, evaluations: dict[str, Evaluation], tmp_path: Path
) -> None:
    pope = evaluations["pope"]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no picture")
    bad = {asked.images[0] for asked in pope.conversations[:1]}
    resolve = pope.resolve
    assert resolve is not None
    some = replace(pope, resolve=lambda image: broken if image in bad else resolve(image))
    for reuse in (True, False):
        results = wb.evaluate(engine, some, reuse=reuse, max_tokens=8)
        failed = results.errors
        assert len(failed) == sum(asked.images[0] in bad for asked in pope.conversations) < len(results.rows)
        assert "broken.jpg" in failed["error"][0] and results.scores["errors"] == len(failed)
        assert results.rows.filter(results.rows["error"].is_null())["answer"].null_count() == 0
    turns = (Message("user", (*pope.conversations[0].images, "word " * 3000)), Message("assistant", ("Yes",)))
    long = Conversation("long", turns, metadata=pope.conversations[0].metadata)
    mixed = replace(pope, conversations=(*pope.conversations[:3], long))
    results = wb.evaluate(engine, mixed, max_tokens=8)
    assert results.errors["id"].to_list() == ["long"] and results.rows["answer"].null_count() == 1


@pytest.mark.parametrize("reuse", [True, False])
def test_a_model_that_reads_pictures_only_is_shown_frames_of_a_video(reuse: bool, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        moving(tmp_path / f"{name}.mp4", 20, seed=seed)
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:300])

    def about(number: int, name: str) -> Conversation:
        turn = Message("user", (Video(name, "films"), f"what moves {'around ' * (number // 2)}?"))
        return Conversation(f"c{number:02}", (turn, Message("assistant", "a cube")))

    names = ["a.mp4", "b.mp4"] * 5 + ["broken.mp4"]
    asked = [about(number, name) for number, name in enumerate(names)]
    engine = Engine(random_llava(kind="qwen2", max_position_embeddings=512))
    where = {"films": tmp_path}
    some = Evaluation(
        "films", asked, rules("normalised"), SHORT.max_tokens, lambda media: tmp_path / media.path, roots=where
    )
    results = wb.evaluate(engine, some, reuse=reuse, out=tmp_path / "out")
    shown = [attached(tmp_path / one.media[0].path) for one in asked[:-1]]
    texts = [one.messages[0].text for one in asked[:-1]]
    chats = [Conversation("chat", ()).add("user", *frames, text) for frames, text in zip(shown, texts, strict=True)]
    rows = results.rows.sort("id").to_dicts()
    said = [engine.reply(chat, SHORT).text.strip() for chat in chats]
    assert [row["answer"] for row in rows[:-1]] == said
    assert said[::2] != said[1::2], "an answer that no video changes would show nothing"
    assert [row["image"] for row in rows] == names, "the video, and not its frames"
    assert all(text in row["prompt"] for text, row in zip(texts, rows, strict=False))
    assert [row["error"] is None for row in rows] == [True] * 10 + [False] and "broken.mp4" in rows[-1]["error"]
    assert results.picture(rows[0]).size == SIZE
    for scored in (results.scores, score_again(tmp_path / "out").scores):
        assert "3 videos were seen as 8 frames each: the model reads pictures only" in scored["notes"]


def test_a_video_whose_root_only_the_model_knows_is_left_to_it() -> None:
    turns = Message("user", (Video("a.mp4", "videos"), "what moves?")), Message("assistant", ("a cube",))
    model = ScriptedModel(lambda asked: str(asked.media))
    results = wb.evaluate(model, [Conversation("c", turns)])
    assert results.rows["answer"].to_list() == [str(turns[0].media)]
    assert "frames" not in str(results.scores.get("notes"))


def test_of_several_turns_the_last_is_asked_and_that_is_said_with_the_count() -> None:
    first = (Message("user", ("what?",)), Message("assistant", ("a cube",)))
    more = (*first, Message("user", ("what colour?",)), Message("assistant", ("red",)))
    model = ScriptedModel(lambda asked: str(len(asked.messages)))
    results = wb.evaluate(model, [Conversation("one", first), Conversation("two", more), Conversation("three", more)])
    assert results.rows.sort("id")["answer"].to_list() == ["1", "3", "3"]
    told = "2 conversations of several turns are asked the last question alone, with all before it as it stands there"
    assert str(results).count(told) == 1
    assert "several turns" not in str(wb.evaluate(model, [Conversation("one", first)]))


def test_failed_rows_are_asked_again(evaluations: dict[str, Evaluation], tmp_path: Path) -> None:
    pope = evaluations["pope"]
    bad = pope.conversations[2].prompt.messages[-1].text

    def fails(asked: Conversation) -> str:
        if asked.messages[-1].text == bad:
            raise WorkbenchError("the line", found="noise")
        return "Yes"

    first = wb.evaluate(ScriptedModel(fails), pope, out=tmp_path / "out")
    assert 0 < len(first.errors) < 5
    model = ScriptedModel(lambda asked: "No")
    again = wb.evaluate(model, pope, out=tmp_path / "out")
    assert len(model.asked) == len(first.errors) and not len(again.errors)


def test_a_model_that_never_answers_ends_the_evaluation(evaluations: dict[str, Evaluation]) -> None:
    def refuses(asked: Conversation) -> str:
        raise WorkbenchError("endpoint", found="401")

    with pytest.raises(WorkbenchError, match="25 rows in a row that failed.*401"):
        wb.evaluate(ScriptedModel(refuses), evaluations["pope"])


# --- comparing ------------------------------------------------------------------------------------------------------


def test_diff_tells_what_was_won_and_how_surely(evaluations: dict[str, Evaluation], tmp_path: Path) -> None:
    pope = evaluations["pope"]
    wb.evaluate(ScriptedModel(lambda asked: "No", name="before"), pope, out=tmp_path / "a")
    wb.evaluate(ScriptedModel(lambda asked: "Yes", name="after"), pope, out=tmp_path / "b", max_tokens=5)
    found = wb.diff(tmp_path / "a", tmp_path / "b")
    assert len(found.gained) == 18 == len(found.lost) and found.overall.difference == 0
    assert found.settings["model.name"] == "before -> after" and "asked.max_tokens" in found.settings
    assert set(found.by_type) == {"random", "popular", "adversarial"}
    some = wb.evaluate(ScriptedModel(lambda asked: "Yes"), pope, limit=9)
    part = wb.diff(tmp_path / "a", some)
    assert part.alone == (27, 0) and "questions that both have" in str(part)
    with pytest.raises(DataError, match="no question in common"):
        wb.diff(tmp_path / "a", wb.evaluate(ScriptedModel(lambda asked: "A"), evaluations["seedbench"]))


# --- one row as the whole file --------------------------------------------------------------------------------------


@given(st.text("YNyesnot. ,", max_size=12), st.text("YNyesnot. ,", max_size=12))
def test_a_settled_start_is_read_as_any_answer_that_begins_so(start: str, rest: str) -> None:
    if rules("pope").settled(start):
        assert yes_no.pope(start.strip()) == yes_no.pope((start + rest).strip())
    if rules("mme").settled(start):
        assert yes_no.mme(start) == yes_no.mme(start + rest)


@pytest.mark.parametrize("name", ["pope", "seedbench"])
def test_what_rows_earn_adds_up_to_the_score_of_the_file(both: Any, name: str) -> None:
    results = both[name][1]
    whole = results.scores["parts"]["all"]["accuracy"] if name == "pope" else results.scores["score"]
    assert 100 * results.rows["earned"].mean() == pytest.approx(whole)
