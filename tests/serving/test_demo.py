"""`workbench demo` in a real browser: it answers, stops, edits, flags, tells failures, and asks nobody outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image as PILImage

from workbench import cli
from workbench.chat_model import Answer, Ending, Pieces, SamplingOptions, ScriptedModel, Usage
from workbench.conversation import Conversation, Image
from workbench.data.dataset import Dataset
from workbench.data.formats import import_llava
from workbench.data.images import load_image
from workbench.errors import WorkbenchError
from workbench.serving.demo.feedback import Feedback
from workbench.serving.demo.turns import FAILED, NotAnswered, messages_of, text_message
from workbench.serving.demo_run import PageModel, demo

sys.path.insert(0, str(Path(__file__).parent))
from small_run import answers, ask, page_of, small_run, wait_until_done  # noqa: E402

browser_test = pytest.mark.flaky(reruns=1)


class SlowModel(ScriptedModel):
    """Says what it was asked, word by word, and goes on counting until somebody stops it."""

    def __init__(self, name: str = "slow") -> None:
        super().__init__(lambda asked: "", name=name)
        self.options: list[SamplingOptions] = []
        self.written = self.running = 0

    def reply(self, conversation: Conversation, options: SamplingOptions = SamplingOptions()) -> Answer:  # noqa: B008
        self.asked.append(conversation)
        self.options.append(options)
        question = conversation.messages[-1].text
        for image in conversation.images:
            load_image(image.path, where=Path(image.path).name)
        if "memory" in question:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        if "bug" in question:
            raise KeyError("lost")

        def write(cancelled: threading.Event) -> Pieces:
            self.running += 1
            try:
                yield f"You said {question}"
                for number in range(10_000 if "count" in question else 3):
                    time.sleep(0.05)
                    self.written += 1
                    yield f" {number}"
            finally:
                self.running -= 1
            return Ending("stop", Usage(5, number))

        return Answer(write)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    PILImage.new("RGB", (80, 60), (200, 30, 30)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[tuple[SlowModel, str, Path]]:
    """(the model, the page's address, where feedback goes)"""
    model = SlowModel()
    page = demo(model, feedback=tmp_path / "feedback", block=False)
    yield model, page.local_url, tmp_path / "feedback" / "feedback.jsonl"
    page.close(verbose=False)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- in the browser -------------------------------------------------------------------------------------------


@browser_test
def test_a_person_asks_regenerates_edits_and_flags(shown: Any, picture: Path, tmp_path: Path) -> None:
    model, url, kept = shown
    with page_of(url) as (page, asked):
        ask(page, "what is this?", picture)
        wait_until_done(page, 1)
        assert answers(page) == ["You said what is this? 0 1 2"]
        ask(page, "and now?")
        wait_until_done(page, 2)
        assert [message.text for message in model.asked[-1].messages] == [
            "what is this?", "You said what is this? 0 1 2", "and now?",
        ]  # fmt: skip
        assert len(model.asked[-1].images) == 1

        page.get_by_label("Retry").last.click()
        wait_for(lambda: len(model.asked) == 3, page=page)
        wait_until_done(page, 2)
        assert model.asked[2].messages == model.asked[1].messages

        page.get_by_label("Edit").first.click()
        page.locator("textarea.edit-textarea").fill("what colour?")
        page.locator("#chats").get_by_label("Submit").click()
        wait_for(lambda: len(model.asked) == 4, page=page)
        wait_until_done(page, 1)
        assert [message.text for message in model.asked[3].messages] == ["what colour?"]
        assert len(model.asked[3].images) == 1, "the picture stays with an edited question"
        assert answers(page) == ["You said what colour? 0 1 2"]

        page.get_by_label("Like", exact=True).last.click()
        page.get_by_text("Kept: up").wait_for()
        page.get_by_label("Feedback").last.click()
        page.locator(".extra-feedback-option", has_text="Made up").last.click()
        page.get_by_text("Kept: flag: Made up").wait_for()
        page.locator(".extra-feedback-option", has_text="Made up").last.click()
        page.get_by_text("Kept: withdrawn").wait_for()
        page.get_by_label("Like", exact=True).last.click()
        page.get_by_text("Kept: up").wait_for()
    votes = records(kept)
    assert [one["vote"] for one in votes] == ["up", "flag: Made up", "withdrawn", "up"], "one line for one click"
    assert votes[0]["conversations"] == [
        {"from": "human", "value": "<image>\nwhat colour?"}, {"from": "gpt", "value": "You said what colour? 0 1 2"},
    ]  # fmt: skip
    assert (
        votes[0]["model"] == "slow"
        and votes[0]["settings"]["max_tokens"] == 256
        and votes[0]["settings"]["seed"] is None
    )
    dataset = import_llava(kept, kept.parent, tmp_path / "imported")
    assert dataset.conversations()[0].messages[-1].text == "You said what colour? 0 1 2"
    assert load_image(dataset.resolve(dataset.conversations()[0].images[0])).getpixel((0, 0)) == (200, 30, 30)
    outside = [one for one in asked if not one.startswith((url, "data:", "blob:"))]
    assert outside == [] and len(asked) > 10


@browser_test
def test_stop_ends_the_answer_in_the_model_too_and_leaving_does(shown: Any) -> None:
    model, url, _ = shown
    with page_of(url) as (page, _):
        ask(page, "count on")
        page.get_by_text("You said count on 0 1").first.wait_for()
        page.locator("#box .stop-button").click()
        wait_until_done(page, 1)
        assert model.running == 0
        written, said = model.written, answers(page)
        page.get_by_text("stopped", exact=True).wait_for()
        time.sleep(0.5)
        assert model.written == written and answers(page) == said and said[0].startswith("You said count on 0 1")
        ask(page, "count again")
        page.get_by_text("You said count again 0 1").first.wait_for()
        assert model.asked[-1].messages[1].text == said[0], "what was written before the stop belongs to the talk"
    wait_for(lambda: model.running == 0)


@browser_test
def test_a_failure_names_its_cause_and_no_model_ever_sees_it(
    shown: Any, picture: Path, tmp_path: Path, capfd: Any
) -> None:
    model, url, kept = shown
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    with page_of(url) as (page, _):
        ask(page, "", picture)
        page.get_by_text("Write a question about the picture or video.").wait_for()
        page.get_by_label("Remove file").click()
        failures = (
            ("memory?", None, "Not answered: the memory is full (RuntimeError: CUDA out of memory. Tried to allocate"),
            ("what?", tmp_path / "broken.png", "broken.png: found a damaged or truncated image"),
            ("a bug?", None, "KeyError: 'lost'. This is a fault of the demo, not of your question"),
        )
        for count, (question, file, told) in enumerate(failures, 1):
            ask(page, question, file)
            wait_until_done(page, count)
            assert told in answers(page)[-1]
        page.get_by_label("Like", exact=True).last.click()
        page.get_by_text("There is no answer here to vote on.").wait_for()
        ask(page, "well?")
        page.get_by_text("You said well? 0 1 2").first.wait_for()
    assert [message.text for message in model.asked[-1].messages] == ["well?"]
    assert not kept.exists()
    assert "KeyError: 'lost'" in capfd.readouterr().err


@browser_test
def test_two_models_answer_side_by_side_and_settings_reach_both(tmp_path: Path) -> None:
    first, second = SlowModel("tuned"), SlowModel("base")
    shown = demo(first, compare=second, feedback=tmp_path, block=False)
    try:
        with page_of(shown.local_url) as (page, _):
            page.locator("#settings button").first.click()
            page.get_by_label("Seed").fill("11")
            page.get_by_label("Seed").press("Tab")
            ask(page, "who are you?")
            wait_until_done(page, 1)
            assert answers(page, 0) == answers(page, 1) == ["You said who are you? 0 1 2"]
            page.get_by_label("Dislike", exact=True).last.click()
            page.get_by_text("Kept: down").wait_for()
    finally:
        shown.close(verbose=False)
    assert first.options == second.options == [SamplingOptions(max_tokens=256, seed=11)]
    assert records(tmp_path / "feedback.jsonl")[0]["model"] == "base"


# --- a real run -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("trained"))


@browser_test
def test_the_command_shows_a_run_with_examples_of_its_validation_set(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "workbench.cli", "demo", str(run), "--feedback", str(tmp_path / "kept")]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path, env={**os.environ})
    try:
        wait_for(lambda: "demo of run at http://127.0.0.1:" in (tmp_path / "log").read_text(), process, 120)
        url = (tmp_path / "log").read_text().split("demo of run at ")[1].split()[0]
        with page_of(url) as (page, asked):
            page.locator("#chats .example").first.click()
            wait_until_done(page, 1)
            said, question = answers(page), page.locator("[data-testid=user]").last.inner_text().strip()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
    assert [one for one in asked if not one.startswith((url, "data:", "blob:"))] == []
    model = PageModel(run)
    from workbench.serving.examples import validation_examples

    shown = dict(validation_examples(run, 6))
    conversation = Conversation("asked", ()).add("user", Image(str(shown[question])), question)
    assert said == [model.model.reply(conversation, SamplingOptions(max_tokens=256)).text.strip()]


@browser_test
@pytest.mark.parametrize(("count", "width"), [(1, 390), (2, 1200)])
def test_six_examples_are_seen_without_scrolling(count: int, width: int, picture: Path, tmp_path: Path) -> None:
    from workbench.serving.demo.page import build, launch

    examples = [
        (f"What is at the far left of picture {number}, and what colour is it? " * 2, picture) for number in range(6)
    ]
    models = [PageModel(SlowModel(f"model {number}")) for number in range(count)]
    page_of_six = build(models, title="six", about="", feedback=Feedback(tmp_path), examples=examples)
    try:
        with page_of(launch(page_of_six, block=False), viewport={"width": width, "height": 900}) as (page, _):
            page.locator("#chats .example").nth(6 * count - 1).wait_for()
            assert page.locator("#chats .example").count() == 6 * count
            for number in range(count):
                wrap = page.locator("#chats .bubble-wrap").nth(number).bounding_box()
                cards = [page.locator("#chats .example").nth(6 * number + n).bounding_box() for n in range(6)]
                assert all(wrap["y"] <= one["y"] for one in cards), "the first is not hidden above"
                assert all(one["y"] + one["height"] <= wrap["y"] + wrap["height"] for one in cards)
                assert page.get_by_text("or take one of these").nth(number).bounding_box()["y"] >= wrap["y"]
    finally:
        page_of_six.close(verbose=False)


def test_every_image_mode_shows_the_model_what_that_mode_makes(run: Path, tmp_path: Path) -> None:
    from workbench.model.images import ImageMode

    wide = PILImage.effect_noise((120, 40), 80).convert("RGB")
    wide.save(tmp_path / "wide.png")
    model = PageModel(run)
    assert model.image_modes == ("square", "pad", "crop")
    llava = model.model.llava  # type: ignore[attr-defined]
    for mode in model.image_modes:
        seen = llava.image_mode.pixels(model._open(Image(str(tmp_path / "wide.png"), mode)))
        wanted = ImageMode(mode, llava.spec["image_settings"]).pixels(wide)
        assert seen.equal(wanted), mode


# --- without a browser ----------------------------------------------------------------------------------------


def test_a_question_without_an_answer_is_left_out_of_what_a_model_sees() -> None:
    file = {"role": "user", "content": [{"type": "file", "file": {"path": "/p/a.png"}}]}
    failed = text_message("assistant", "Not answered: ...", id=FAILED)
    history = [
        text_message("user", "lost"),
        failed,
        file,
        text_message("user", "kept"),
        text_message("assistant", "yes"),
    ]
    assert messages_of(history) == [
        {"role": "user", "content": [{"type": "image", "path": "/p/a.png"}, {"type": "text", "text": "kept"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]


def test_a_vote_after_a_torn_line_begins_a_line_of_its_own(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "kept")
    said = [text_message("user", "a?"), text_message("assistant", "b.")]
    feedback.add(said, model="m", vote="up", settings={})
    with open(feedback.path, "ab") as file:
        file.write(b'{"id": "torn')
    feedback.add(said, model="m", vote="down", settings={})
    lines = feedback.path.read_text().splitlines()
    assert [json.loads(lines[index])["vote"] for index in (0, 2)] == ["up", "down"]


def test_the_last_vote_on_an_answer_says_whether_it_is_imported_as_good(
    picture: Path, tmp_path: Path, capsys: Any
) -> None:
    feedback = Feedback(tmp_path / "kept")

    def vote(answer: str, vote: str, model: str = "m") -> None:
        asked = {"role": "user", "content": [{"type": "image", "path": str(picture)}, {"type": "text", "text": "a?"}]}
        feedback.add([asked, text_message("assistant", answer)], model=model, vote=vote, settings={})

    for answer, said in (
        ("good", "up"), ("bad", "down"), ("odd", "flag: Made up"), ("turned", "up"), ("turned", "down"),
        ("saved", "flag: Wrong"), ("saved", "up"), ("gone", "up"), ("gone", "withdrawn"),
    ):  # fmt: skip
        vote(answer, said)
    vote("bad", "up", model="other")
    assert cli.main(["import", str(feedback.path), "--out", str(tmp_path / "data")]) == 0
    told = capsys.readouterr().out
    assert "votes, up: 3\n" in told and "votes, down: 2\n" in told and "votes, flag: Made up: 1\n" in told
    assert "votes, withdrawn: 1\n" in told and "votes, earlier votes on the same answers: 3\n" in told
    dataset = Dataset.open(tmp_path / "data")
    assert [one.reference for one in dataset.conversations()] == ["good", "saved", "bad"]
    assert {one.metadata["verdict"] for one in dataset.conversations()} == {"accept"}
    rows = dataset.conversation_rows.filter(pl.col("status") == "removed")
    assert rows["reason"].to_list() == [
        "rejected by a vote: down", "rejected by a vote: flag: Made up", "rejected by a vote: down",
        "rejected by a vote: withdrawn",
    ]  # fmt: skip
    verdicts = [json.loads(metadata).get("verdict") for metadata in rows["metadata"]]
    assert verdicts == ["reject", "reject", "reject", None]


def test_what_a_conversation_is_too_long_for_is_told_in_plain_words(run: Path) -> None:
    model = PageModel(run)
    from workbench.serving.demo.turns import Settings

    with pytest.raises(NotAnswered, match=r"this conversation: found a prompt of \d+ tokens; expected fewer than \d+"):
        list(model.answer([{"role": "user", "content": [{"type": "text", "text": "word " * 3000}]}], Settings()))


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, capsys: Any) -> None:
    page = demo(SlowModel(), feedback=tmp_path, block=False)
    try:
        assert cli.main(["demo", str(tmp_path), "--port", str(page.server_port)]) == 1
    finally:
        page.close(verbose=False)
    assert f"error: port {page.server_port}: found Address already in use; choose another" in capsys.readouterr().err
    with pytest.raises(WorkbenchError, match="port 70000"):
        demo(SlowModel(), port=70000, block=False)


def wait_for(true: Any, process: Any = None, seconds: float = 60, page: Any = None) -> None:
    """A page works on only while Playwright is called."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit and (process is None or process.poll() is None), "it took too long, or ended"
        page.wait_for_timeout(50) if page else time.sleep(0.05)
