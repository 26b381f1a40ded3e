"""The chat as a notebook holds it: what is asked, stopped, edited, attached and kept, and what the browser is told."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from workbench import progress
from workbench.chat_model import Answer, Ending, Pieces, SamplingOptions, ScriptedModel
from workbench.conversation import Conversation
from workbench.data.dataset import Dataset
from workbench.widgets import chat as module
from workbench.widgets.chat import ChatView, chat


def echo(conversation: Conversation) -> str:
    said = [message.text for message in conversation.messages if message.role == "assistant"]
    return f"{len(conversation.messages)} messages, {len(conversation.images)} images, said {said}"


class Slow:
    """Says a word at a time, each when it is let."""

    name = "slow"

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)

    def reply(self, conversation: Conversation, options: SamplingOptions = SamplingOptions()) -> Answer:  # noqa: B008
        def write(cancelled: threading.Event) -> Pieces:
            for number in range(1000):
                self.go.acquire(timeout=10)
                if cancelled.is_set():
                    return Ending("cancelled")
                yield f"w{number} "
            return Ending("stop")

        return Answer(write)


class Told(ChatView):
    """Remembers what it sent."""

    def __init__(self, *given: Any, **more: Any) -> None:
        self.sent: list[dict[str, Any]] = []
        super().__init__(*given, **more)

    def send(self, content: Any, buffers: Any = None) -> None:
        self.sent.append(content)

    def do(self, action: str, **given: Any) -> None:
        self._asked(self, {"do": action, **given}, [])
        if action in ("ask", "edit", "regenerate"):
            self.session.wait(20)


def replayed(sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `chat.js` makes of the messages."""
    exchanges: list[dict[str, Any]] = []
    for one in sent:
        if "put" in one:
            exchanges[one["number"] :] = [{**one["put"], "replies": list(one["put"]["replies"])}]
        elif isinstance(one["reply"], str):
            replies = exchanges[one["number"]]["replies"]
            replies[one["model"]] = {**replies[one["model"]], "text": replies[one["model"]]["text"] + one["reply"]}
        else:
            exchanges[one["number"]]["replies"][one["model"]] = one["reply"]
    return exchanges


@pytest.fixture
def red(tmp_path: Path) -> Path:
    PIL.Image.new("RGB", (20, 10), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def texts(view: ChatView) -> list[str]:
    return [exchange["replies"][0]["text"] for exchange in view.exchanges]


def test_questions_edits_and_regeneration_make_the_conversation(red: Path) -> None:
    view = Told([ScriptedModel(echo)])
    view.do("attach", path=f"'{red}'")
    assert [one["name"] for one in view.waiting] == ["red.png"]
    view.do("ask", text="what?")
    assert view.waiting == [] and texts(view) == ["1 messages, 1 images, said []"]
    view.do("ask", text="and?")
    view.do("edit", number=0, text="really?")
    assert texts(view) == ["1 messages, 1 images, said []"], "what followed is gone, the picture stays"
    view.do("regenerate")
    assert [message.text for message in view.conversation().messages][::2] == ["really?"]
    assert replayed(view.sent) == view.exchanges
    view.do("clear")
    view.do("ask", text="new")
    view.do("restore", number=0)
    assert [one["question"] for one in view.exchanges] == ["what?", "and?"], "what an edit cut off is an earlier chat"
    assert view.earlier == ["really?", "new"]


def test_an_answer_is_told_word_by_word_and_stopped() -> None:
    slow = Slow()
    view = Told([slow])
    view._asked(view, {"do": "ask", "text": "go"}, [])
    for _ in range(3):
        slow.go.release()
    while not any(isinstance(one.get("reply"), str) for one in view.sent):
        threading.Event().wait(0.02)
    view.do("ask", text="too early")
    assert "being written" in view.problem and len(view.session.exchanges) == 1
    view.do("stop")
    slow.go.release()
    view.session.wait(20)
    (reply,) = view.exchanges[0]["replies"]
    assert reply["state"] == "cancelled" and reply["text"].startswith("w0")
    assert replayed(view.sent) == view.exchanges
    assert view.conversation().reference == reply["text"].strip()


def test_models_side_by_side_each_remember_what_they_said() -> None:
    view = Told([ScriptedModel(lambda asked: f"a{len(asked.messages)}"), ScriptedModel(lambda asked: "b")])
    view.do("ask", text="one")
    view.do("ask", text="two")
    assert [message.text for message in view.conversation(0).messages] == ["one", "a1", "two", "a3"]
    assert [message.text for message in view.conversation(1).messages] == ["one", "b", "two", "b"]


def test_a_failure_is_shown_and_its_question_is_not_kept(red: Path) -> None:
    def broken(asked: Conversation) -> str:
        if asked.messages[-1].text == "boom":
            raise ValueError("no such luck")
        return echo(asked)

    view = Told([ScriptedModel(broken)])
    view.do("ask", text="boom")
    assert view.exchanges[0]["replies"][0]["problem"] == "ValueError: no such luck"
    view.do("ask", text="again")
    assert texts(view)[1].startswith("1 messages")
    for action, given, said in (
        ("attach", {"path": "nowhere.png"}, "nowhere.png"), ("attach", {"path": ""}, "no path"),
        ("set", {"key": "temperature", "value": "hot"}, "temperature"), ("ask", {"text": " "}, "no text"),
        ("edit", {"number": 9, "text": "x"}, "question 10"), ("save", {"number": 0, "dataset": ""}, "no dataset"),
    ):  # fmt: skip
        view.do(action, **given)
        assert said in view.problem, action
    view.do("set", key="temperature", value="0.5")
    assert view.options["temperature"] == 0.5 and view.problem == ""


def test_files_come_in_parts_and_good_answers_go_to_a_dataset(red: Path, home: Path, tmp_path: Path) -> None:
    view, data = Told([ScriptedModel(["A red field.", "Yes."])]), red.read_bytes()
    for start, last in ((0, False), (20, True)):
        part = {"do": "upload", "key": "k", "name": "../up.png", "last": last}
        view._asked(view, part, [memoryview(data[start : 20 if not last else None])])
    assert view.problem == "" and [one["name"] for one in view.waiting] == ["up.png"]
    view.do("ask", text="What is it?")
    view.do("ask", text="Sure?")
    view.do("save", number=0, dataset=str(tmp_path / "kept"))
    assert view.problem == "" and "kept" in view.saved
    dataset = Dataset.open(tmp_path / "kept")
    (kept,) = dataset.conversations()
    assert [message.text for message in kept.messages] == ["What is it?", "A red field."]
    assert kept.task == "chat" and kept.source["model"] == "scripted"
    assert dataset.resolve(kept.images[0]).read_bytes() == data
    assert dataset.images["status"].to_list() == ["ok"]
    view.do("save", number=1)
    assert len(Dataset.open(tmp_path / "kept").conversations()) == 2 and dataset.images.height == 1
    view._asked(view, {"do": "upload", "key": "x", "name": "no.png", "last": True}, [b"no picture"])
    assert "no.png" in view.problem


def test_the_plain_page_escapes_what_models_write(red: Path) -> None:
    view = Told([ScriptedModel(["<img src=x onerror=alert(1)>"])])
    view.ask("<script>?", red)
    page = view._repr_mimebundle_()[0]["text/html"]
    assert "<script" not in page and "<img src=x" not in page and "&lt;img" in page and "data:image/jpeg" in page


def test_a_notebook_gets_the_widget_a_terminal_the_prompt(monkeypatch: pytest.MonkeyPatch, red: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(module.terminal, "chat", lambda *given, **more: asked.append((given, more)))
    assert chat(ScriptedModel(["x"]), image=red) is None and len(asked) == 1
    monkeypatch.setattr(module, "in_notebook", lambda: True)
    view = chat(ScriptedModel(["x"]), image=[red, red], compare=ScriptedModel(["y"], name="other"))
    assert view is not None and view.names == ["scripted", "other"] and len(view.waiting) == 2
    assert not progress.in_notebook()
