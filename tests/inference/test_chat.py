"""The chat: what lines do, mistakes that are one line and end nothing, and questions through a pipe."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from PIL import Image as PILImage

from workbench.chat_model import Answer, Ending, Pieces, SamplingOptions, ScriptedModel
from workbench.conversation import Conversation, from_llava
from workbench.errors import ImageError, WorkbenchError
from workbench.inference.attachments import open_file
from workbench.inference.chat import Chat, cancelled_by_interrupt, changed, chat


class Heard(Chat):
    """A chat that remembers what it said and noted."""

    def __init__(self, model: ScriptedModel) -> None:
        self.said: list[str] = []
        self.noted: list[str] = []
        super().__init__(model, say=self.said.append, note=self.noted.append)


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    path = tmp_path / "my cat.png"
    PILImage.new("RGB", (20, 10), "red").save(path)
    return path


def echo(conversation: Conversation) -> str:
    return f"{len(conversation.messages)} messages, {len(conversation.images)} images"


def test_the_conversation_grows_and_the_image_goes_with_the_next_question(cat: Path) -> None:
    session = Heard(ScriptedModel(echo))
    session.line(f"/image {cat}")
    assert session.noted == ["my cat.png, 20x10: ask about it"]
    session.line("what is it?")
    session.line("  and now? ")
    session.line("")
    assert "".join(session.said) == "1 messages, 1 images\n3 messages, 1 images\n"
    roles = [message.role for message in session.conversation.messages]
    assert roles == ["user", "assistant"] * 2
    assert session.conversation.messages[2].text == "and now?"
    session.line("/clear")
    session.line("hello")
    assert session.said[-1] == "\n" and "1 messages, 0 images" in "".join(session.said[-6:])


def test_regen_answers_the_last_question_again() -> None:
    session = Heard(ScriptedModel(["first", "second", "better"]))
    for line in ("one", "two", "/regen"):
        session.line(line)
    assert [message.text for message in session.conversation.messages] == ["one", "first", "two", "better"]


def test_save_writes_llava_json_that_reads_back(cat: Path, tmp_path: Path) -> None:
    session = Heard(ScriptedModel(["A red field.", "Yes: « naïve ».", "x"]))
    for line in (f"/image '{cat}'", "What is it?", "Sure?", f"/save {tmp_path / 'out' / 'chat.json'}"):
        session.line(line)
    (record,) = json.loads((tmp_path / "out" / "chat.json").read_text(encoding="utf-8"))
    assert record["image"] == "chat-pictures/0001.png"
    assert (tmp_path / "out" / record["image"]).read_bytes() == cat.read_bytes()
    assert record["conversations"][0] == {"from": "human", "value": "<image>\nWhat is it?"}
    read = from_llava(record)
    assert [message.text for message in read.messages] == [message.text for message in session.conversation.messages]


def test_save_writes_over_what_this_chat_saved_and_over_nothing_else(cat: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("train: {}\n")
    (tmp_path / "old-pictures").mkdir()
    (tmp_path / "old-pictures" / "0001.png").write_bytes(b"somebody's")
    session = Heard(ScriptedModel(echo))
    for line in (f"/image {cat}", "one", f"/save {tmp_path}/chat.json", "two", f"/save {tmp_path}/chat.json"):
        session.line(line)
    assert not session.failed
    assert len(json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))[0]["conversations"]) == 4
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, found in (
        ("recipe.yaml", "recipe.yaml: found a file that this chat did not write; choose another name"),
        ("old.json", "old-pictures: found a folder that this chat did not write; choose another name"),
        ("", f"{tmp_path}: found a folder; expected the name of a file, for example {tmp_path}/chat.json"),
    ):
        session.line(f"/save {tmp_path}/{name}")
        assert found in session.noted[-1]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/image", "no path"),
        ("/image nowhere.png", "nowhere.png"),
        ("/image {folder}/broken.png", "broken.png"),
        ("/image {folder}", "{folder}"),
        ("/image ~nobody-of-that-name/x.png", "no home folder of nobody-of-that-name on this machine"),
        ("/image a\0b.png", "found a NUL character"),
        (
            "/image https://example.org/cat.png",
            "https://example.org/cat.png: found a web address; expected a file of",
        ),
        ("/frobnicate", "no such command; expected /image"),
        ("/regen", "no question yet"),
        ("/save", "no file"),
        ("/save {folder}/chat.json", "nothing to save"),
        ("/set temperature=warm", "'warm'; expected a number"),
        ("/set temperature=-1", "expected a number, 0 (greedy) or more"),
        ("/set colour=red", "expected KEY VALUE with one of temperature, top_p"),
        ("/set temperature: 0.7", "found 'temperature: 0.7'; expected KEY VALUE with one of temperature, top_p"),
        ("/set temprature=1", "did you mean temperature?"),
        ("/set =", "found '='; expected KEY VALUE"),
    ],
)
def test_a_mistake_is_one_line_and_the_chat_goes_on(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    session = Heard(ScriptedModel(echo))
    assert session.line(line.format(folder=tmp_path))
    (note,) = session.noted
    assert note.startswith("error: ") and message.format(folder=tmp_path) in note and "\n" not in note
    assert session.line("still there?") and session.said[0] == "1"


def test_a_question_that_fails_is_not_kept_but_its_image_is(cat: Path) -> None:
    def answer(conversation: Conversation) -> str:
        if "bad" in conversation.messages[-1].text:
            raise WorkbenchError("the model", found="a bad question")
        return "fine"

    session = Heard(ScriptedModel(answer))
    for line in (f"/image {cat}", "bad one", "good one"):
        session.line(line)
    assert session.noted[-1] == "error: the model: found a bad question"
    assert [message.text for message in session.conversation.messages] == ["good one", "fine"]
    assert len(session.conversation.images) == 1


def test_an_empty_answer_is_said_and_not_kept() -> None:
    session = Heard(ScriptedModel(["", "here"]))
    session.line("one")
    assert "an empty answer" in session.noted[0] and session.conversation.messages == ()
    session.line("two")
    assert len(session.conversation.messages) == 2


def test_set_changes_one_option() -> None:
    options = SamplingOptions()
    for text in ("temperature=0.5", "top_p = 0.9", "top_k=5", "max_tokens=7", "seed=3", "stop=END now"):
        options = changed(options, text)
    assert options == SamplingOptions(0.5, 0.9, 5, 7, 3, ("END now",))
    assert changed(changed(options, "seed=none"), "stop=") == SamplingOptions(0.5, 0.9, 5, 7, None, ())
    session = Heard(ScriptedModel(["one two three"]))
    session.line("/set max_tokens=2")
    session.line("?")
    assert "max_tokens=2" in session.noted[0] and "".join(session.said) == "one two\n"
    assert "cut: max_tokens" in session.noted[1]


def test_options_may_be_a_mapping_and_a_misspelled_one_is_told_before_the_chat_begins() -> None:
    said: list[str] = []
    session = Chat(ScriptedModel(["one two three"]), options={"max_tokens": 2}, say=said.append, note=print)
    session.line("?")
    assert session.conversation.messages[-1].text == "one two" and said[-1] == "\n"
    for begin in (lambda **more: Chat(ScriptedModel(["x"]), say=print, note=print, **more), partial(chat, "no/folder")):
        with pytest.raises(WorkbenchError, match=r"options: found 'temprature'; .*did you mean temperature\?"):
            begin(options={"temprature": 0.5})


def test_options_are_set_by_their_names_on_the_command_line_too() -> None:
    options = changed(changed(SamplingOptions(), "max-tokens 5"), "--top-p=0.5")
    assert options == SamplingOptions(top_p=0.5, max_tokens=5)


def test_a_fault_that_nobody_foresaw_is_one_line_and_the_conversation_is_kept() -> None:
    def answer(conversation: Conversation) -> str:
        if "bug" in conversation.messages[-1].text:
            raise KeyError("lost")
        return "fine"

    session = Heard(ScriptedModel(answer))
    for line in ("one", "bug", "two"):
        assert session.line(line)
    assert session.failed and len(session.noted) == 1
    assert session.noted[0].startswith("error: KeyError: 'lost'; a fault of the program, not yours")
    assert [message.text for message in session.conversation.messages] == ["one", "fine", "two", "fine"]


def test_quit_ends_and_nothing_else_does() -> None:
    session = Heard(ScriptedModel(echo))
    assert session.line("/help") and "/regen" in session.noted[0]
    assert not session.line("/quit") and not session.line(" /exit ")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to oneself on Windows")
def test_an_interrupt_ends_the_answer_and_not_the_chat() -> None:
    def write(cancelled: threading.Event) -> Pieces:
        yield "some"
        while not cancelled.is_set():
            yield " more"
        return Ending("cancelled")

    answer = Answer(write)
    with cancelled_by_interrupt(answer):
        for number, _ in enumerate(answer):
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)
    assert answer.text.startswith("some more more") and answer.finish_reason == "cancelled"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_picture_in_memory_is_shown_as_its_file_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[PILImage.Image] = []

    def answer(conversation: Conversation) -> str:
        seen.extend(open_file(image) for image in conversation.images)
        return "seen"

    turned = PILImage.new("RGBA", (6, 4), (255, 0, 0, 0))
    turned.getexif()[0x0112] = 6
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it?\n"))
    assert chat(ScriptedModel(answer), image=[turned, PILImage.new("L", (3, 2), 7)])
    assert [one.size for one in seen] == [(4, 6), (3, 2)]
    assert seen[0].getpixel((0, 0)) == (255, 255, 255) and seen[1].getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(ImageError, match=r"image: found 7, of type int; expected a path .* or a PIL image"):
        chat(ScriptedModel(answer), image=7)


def test_a_first_image_that_is_missing_is_an_error_of_the_call(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.png"):
        chat(ScriptedModel(echo), image=tmp_path / "missing.png")


def test_piped_questions_give_answers_and_nothing_else_on_standard_output(cat: Path) -> None:
    script = (
        "import sys; from workbench.chat_model import ScriptedModel; from workbench.inference.chat import chat; "
        "chat(ScriptedModel(lambda asked: f'[é] {len(asked.images)} of {len(asked.messages)} ' + 'word ' * 60), "
        "image=sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(cat)],
        input="what is it?\n/image nowhere.png\nand?\n/quit\nnever asked\n",
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        timeout=60,
    )
    assert done.returncode == 0
    words = " word" * 60
    assert [line.rstrip() for line in done.stdout.splitlines()] == [f"[é] 1 of 1{words}", f"[é] 1 of 3{words}"]
    assert "my cat.png, 20x10" in done.stderr and "nowhere.png" in done.stderr and "Traceback" not in done.stderr


def test_two_models_are_asked_the_same_and_each_remembers_its_own() -> None:
    tuned, base = ScriptedModel(["a cat", "yes"], name="tuned"), ScriptedModel(["a dog", "no"], name="base")
    said: list[str] = []
    session = Chat(tuned, beside=base, say=said.append, note=said.append)
    for line in ("what is it?", "sure?"):
        session.line(line)
    assert "".join(said) == "tuned: a cat\nbase: a dog\ntuned: yes\nbase: no\n"
    assert [message.text for message in base.asked[1].messages] == ["what is it?", "a dog", "sure?"]
    assert [message.text for message in tuned.asked[1].messages] == ["what is it?", "a cat", "sure?"]


def test_set_takes_a_space_too() -> None:
    options = changed(SamplingOptions(), "temperature 0.7")
    assert changed(changed(options, "min_p 0.1"), "repetition_penalty=1.2") == SamplingOptions(
        0.7, min_p=0.1, repetition_penalty=1.2
    )
    with pytest.raises(WorkbenchError, match="expected KEY VALUE"):
        changed(options, "temperature")


def test_pages_are_shown_and_saved_as_files_that_import_reads(tmp_path: Path) -> None:
    from workbench.data.formats import import_llava

    pages = [PILImage.new("RGB", (60, 40), color) for color in ("red", "blue")]
    pages[0].save(tmp_path / "report.pdf", save_all=True, append_images=pages[1:])
    session = Heard(ScriptedModel(echo))
    for line in (f"/image {tmp_path / 'report.pdf'}", "What is on them?", f"/save {tmp_path / 'told.json'}"):
        session.line(line)
    assert session.noted[0] == "report.pdf, 2 pages: ask about it"
    (record,) = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    assert [(tmp_path / path).is_file() for path in record["image"]] == [True, True]
    dataset = import_llava(tmp_path / "told.json", tmp_path, tmp_path / "data")
    (conversation,) = dataset.conversations()
    assert len(conversation.images) == 2 and conversation.reference == "1 messages, 2 images"
