"""Heat maps as a notebook shows and saves them, and answers of several models with a person's votes."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import PIL.Image
import pytest

from tests.videos import moving
from workbench.chat_model import ScriptedModel
from workbench.conversation import Conversation, Image, Message
from workbench.data.formats import import_llava
from workbench.errors import DataError, ModelError
from workbench.inference.attachments import open_file
from workbench.inference.engine import Engine
from workbench.model.llava import Llava
from workbench.widgets.differing import marked, said
from workbench.widgets.heatmap import SIDE, heatmap
from workbench.widgets.votes import compare_answers


@pytest.fixture
def asked(tmp_path: Path) -> Conversation:
    PIL.Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    return Conversation("asked", (Message("user", (Image(str(tmp_path / "red.png")), "What <b>?")),))


def test_a_heat_map_is_shown_changed_and_saved(llava: Llava, asked: Conversation, tmp_path: Path) -> None:
    view = heatmap(Engine(llava), asked, "red and blue")
    assert "".join(view.tokens).strip() == "red and blue", "and not the token that ends it"
    assert view.shown["method"] == "relevance" and view.map.shape == (1, 8, 8)
    first = view.shown["overlays"]
    view._wanted = (2, "occlusion", True)
    view._look()
    assert view.problem == "" and view.shown["token"] == 2 and view.shown["overlays"] != first
    assert not view.shown["relative"], "occlusion compares with the untouched image"
    view._asked(view, {"do": "look", "token": 99, "method": "attention"}, [])
    while not view.problem or view.busy:
        threading.Event().wait(0.02)
    assert "token 99" in view.problem
    for _ in range(2):  # over itself it may be written again
        assert PIL.Image.open(view.save(tmp_path / "map.png")).size == (SIDE, SIDE)
    before = (tmp_path / "red.png").read_bytes()
    for name, found in (("red.png", "a file that is no heat map"), ("map.jpg", "the ending '.jpg'")):
        with pytest.raises(DataError, match=found):
            view.save(tmp_path / name)
    assert (tmp_path / "red.png").read_bytes() == before
    data, _ = view._repr_mimebundle_()
    assert "&lt;b&gt;" in data["text/html"] and "data:image/jpeg" in data["text/html"]
    assert heatmap(llava, asked).tokens, "the model's own answer"
    with pytest.raises(ModelError, match="cannot be looked into"):
        heatmap(ScriptedModel(["x"]), asked)


def test_what_differs_is_marked_and_nothing_is_lost() -> None:
    texts = ["There is a red cat.", "There is a blue cat, asleep.", ""]
    one, two, three = marked(texts)
    assert [said(each) for each in (one, two, three)] == texts
    assert [text.strip() for text, differs in one if differs] == ["red"]
    assert [text.strip() for text, differs in two if differs] == ["blue", "asleep."]
    assert three == [] and marked(["same", "same"]) == [[["same", False]], [["same", False]]]


def test_votes_are_kept_and_found_again(asked: Conversation, tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"

    def made(**more: bool):  # type: ignore[no-untyped-def]
        models = {"base": ScriptedModel(lambda one: "a red field"), "tuned": ScriptedModel(lambda one: "<i>red")}
        return compare_answers(models, [asked, "Why?"], votes=file, **more).wait()

    view = made(blind=True)
    assert [said(answer) for answer in view.rows[0]["answers"]] == ["a red field", "<i>red"]
    assert view.rows[0]["picture"] and view.rows[1]["picture"] is None and view.tally == {}
    view._asked(view, {"do": "vote", "number": 0, "name": "tuned"}, [])
    view._asked(view, {"do": "vote", "number": 1, "name": "base"}, [])
    view._asked(view, {"do": "vote", "number": 1, "name": "equal"}, [])
    view._asked(view, {"do": "vote", "number": 1, "name": "somebody"}, [])
    assert "somebody" in view.problem and view.tally == {"tuned": 1, "equal": 1}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["vote"] for line in lines] == ["tuned", "base", "equal"]
    assert lines[0]["answers"] == {"base": "a red field", "tuned": "<i>red"}
    again = made()
    assert again.tally == {"tuned": 1, "equal": 1}, "the last vote on a question counts"
    assert "<i>" not in again.html() and "votes: " in again.html() and "tuned 1" in repr(again)


def test_models_of_one_name_are_told_apart_and_too_few_are_refused() -> None:
    view = compare_answers([ScriptedModel(["a"]), ScriptedModel(["b"])], "Why?", votes=None)
    assert len(set(view.names)) == 2
    with pytest.raises(DataError, match="at least two"):
        compare_answers([ScriptedModel(["a"])], "Why?", votes=None)
    with pytest.raises(DataError, match="no question"):
        compare_answers([ScriptedModel(["a"]), ScriptedModel(["b"])], [], votes=None)


def test_a_failure_is_no_answer(asked: Conversation, tmp_path: Path) -> None:
    def failing(one: Conversation) -> str:
        raise ModelError("<i>card", found="no room")

    def faulty(one: Conversation) -> str:
        raise KeyError("fault")

    file = tmp_path / "votes.jsonl"
    models = {
        name: ScriptedModel(says) for name, says in {"no": failing, "bad": faulty, "yes": lambda one: "red"}.items()
    }
    view = compare_answers(models, [asked], votes=file).wait()
    (row,) = view.rows
    assert row["answers"] == [None, None, [["red", False]]], "the answer is compared with no failure"
    assert row["failures"] == ["<i>card: found no room", "KeyError: 'fault'", None]
    page = view.html()
    assert (
        page.count("border:1px solid #dc2626") == 2 and "&lt;i&gt;card: found no room" in page and "<mark" not in page
    )
    for name in ("no", "bad", "equal"):
        view._asked(view, {"do": "vote", "number": 0, "name": name}, [])
        assert "expected a vote between answers" in view.problem
    assert view.tally == {} and not file.exists()
    view.vote(0, "yes")
    assert json.loads(file.read_text())["answers"] == {"yes": "red"}


@pytest.mark.parametrize(
    "text", ["buy milk\n", "", '{"id": "1", "vote": "a"}\nbuy milk', '{"step": 1, "loss": 2.0}\n', "[1]\n", "folder"]
)
def test_a_file_that_keeps_no_votes_is_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "notes.txt"
    models = [ScriptedModel(["a"]), ScriptedModel(["b"])]
    if text == "folder":
        file.mkdir()
    else:
        file.write_text(text)
    if not text:  # nobody's words are in it
        return compare_answers(models, "Why?", votes=file).wait().vote(0, "equal")
    with pytest.raises(DataError, match=r"notes.txt.*expected.*votes.*name a new file"):
        compare_answers(models, "Why?", votes=file)
    assert text == "folder" or file.read_text() == text


def test_a_vote_that_a_killed_writer_left_torn_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    for torn in ('{"i', '{"id": "question-1", "vo'):
        file.write_text(torn)
        compare_answers([ScriptedModel(["a"]), ScriptedModel(["b"])], "Why?", votes=file).wait().vote(0, "equal")
        view = compare_answers([ScriptedModel(["a"]), ScriptedModel(["b"])], "Why?", votes=file).wait()
        assert view.tally == {"equal": 1}


def test_what_was_said_before_the_question_is_shown_above_it(asked: Conversation) -> None:
    talk = asked.add("assistant", "A <u>field").add("user", "Which colour?").add("assistant", "red")
    models = [ScriptedModel(["red"], name="a"), ScriptedModel(["blue"], name="b")]
    view = compare_answers(models, [talk, "Why?"], votes=None).wait()
    first, second = view.rows
    assert first["earlier"] == [{"role": "user", "text": "What <b>?"}, {"role": "assistant", "text": "A <u>field"}]
    assert first["question"] == "Which colour?" and second["earlier"] == []
    page = view.html()
    assert 0 < page.index("What &lt;b&gt;?") < page.index("A &lt;u&gt;field") < page.index("Which colour?")


def test_a_video_is_shown_to_each_model_as_it_takes_it(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    clip = moving(tmp_path / "media" / "clip.mp4", 10)
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A patch."}]
    (tmp_path / "talks.json").write_text(json.dumps([{"id": "1", "video": "clip.mp4", "conversations": turns}]))
    dataset = import_llava(tmp_path / "talks.json", tmp_path / "media", tmp_path / "data")

    def reading(name: str, frames: int) -> ScriptedModel:
        model = ScriptedModel(
            lambda asked: ", ".join(open_file(one).__class__.__name__ for one in asked.media), name=name
        )
        model.frames, model.open_image = frames, open_file  # type: ignore[attr-defined]
        return model

    models = [reading("pictures", 0), reading("videos", 8)]
    for questions, given in ((dataset.conversations(), {"dataset": dataset}), ("What?", {"image": clip})):
        view = compare_answers(models, questions, votes=None, **given).wait()  # type: ignore[arg-type]
        (row,) = view.rows
        assert row["failures"] == [None, None] and row["picture"]
        assert [said(answer) for answer in row["answers"]] == [", ".join(["Image"] * 8), "Film"]
