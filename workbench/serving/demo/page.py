"""The page of a demo: pictures, videos and questions, answers of one model or of two side by side, and votes on them.

Knows: Gradio; streaming, stop, regenerate, edit, settings, examples, and how a failure is told to the person who asked.
Does not know: workbench, torch, how answers are made: a `Model` is handed in. This file is also copied into exported
demos.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from .feedback import Feedback
from .turns import FAILED, VIDEOS, History, Model, Settings, Writing, messages_of, question

FLAGS = ("Wrong", "Made up", "Offensive", "Cut or broken")
"""What an answer can be flagged as, beside the thumbs."""
REFRESH = 0.05
"""Seconds between two updates of the page while an answer is written."""
LONGEST = 2048
"""Tokens of an answer, at most."""


def build(
    models: Sequence[Model], *, title: str, about: str, feedback: Feedback, examples: Sequence[tuple[str, Path]] = ()
) -> gr.Blocks:
    """The page for one model, or for two side by side. examples: (question, picture)."""
    return _Page(models, feedback).blocks(title, about, examples)


def launch(page: gr.Blocks, *, host: str | None = None, port: int | None = None, block: bool = True) -> str:
    """Show the page to browsers; returns its address. Raises `OSError` where the port is taken.

    It asks nothing of any other machine. What was uploaded is removed after a day, and when the page ends.
    """
    settings: dict[str, Any] = {
        "share": False, "quiet": True, "ssr_mode": False, "footer_links": [], "mcp_server": False, "run_history": False,
        "max_file_size": "50mb", "css_paths": Path(__file__).with_name("page.css"), "theme": gr.themes.Default(),
    }  # fmt: skip
    queued = page.queue(max_size=64)
    _, url, _ = queued.launch(server_name=host, server_port=port, prevent_thread_lock=not block, **settings)
    return url


class _Page:
    def __init__(self, models: Sequence[Model], feedback: Feedback) -> None:
        self.models = list(models)
        self.feedback = feedback
        self._stops: dict[str | None, threading.Event] = {}
        self._votes: dict[str | None, tuple[int, str, list[dict[str, Any]]]] = {}
        """A visitor's last vote: Gradio 6 tells a flag twice for one click."""
        self._voting = threading.Lock()

    # --- how it looks -------------------------------------------------------------------------------------------

    def blocks(self, title: str, about: str, examples: Sequence[tuple[str, Path]]) -> gr.Blocks:
        cards = [{"text": text, "files": [str(path)]} for text, path in examples]
        with gr.Blocks(title=title, analytics_enabled=False, fill_height=True, delete_cache=(3600, 86400)) as page:
            gr.Markdown(f"# {title}\n{about}", elem_id="title")
            with gr.Row(elem_id="chats"):
                chats = [self._chat(model, cards) for model in self.models]
            note = gr.Markdown("", elem_id="note")
            box = gr.MultimodalTextbox(
                sources=["upload"], file_types=["image", *VIDEOS], file_count="multiple", show_label=False,
                placeholder="Add a picture or a video and ask about it", elem_id="box", autofocus=True,
                max_plain_text_length=20_000,
            )  # fmt: skip
            with gr.Accordion("Settings", open=False, elem_id="settings"), gr.Row():
                controls = self._controls()
            gr.Markdown(
                f"What you vote on or flag is kept with what it shows in `{self.feedback.shown}`, nothing else is.",
                elem_id="kept",
            )
            self._wire(box, chats, controls, note)
            page.unload(self._left)
        return page

    def _chat(self, model: Model, cards: list[Any]) -> gr.Chatbot:
        return gr.Chatbot(
            label=model.name, height=520, editable="user", feedback_options=("Like", "Dislike", *FLAGS),
            examples=cards, buttons=["copy", "copy_all"], render_markdown=False, layout="bubble",
            group_consecutive_messages=False,  # a question in one bubble with its picture cannot be edited (Gradio 6)
            placeholder="Ask about a picture or a video" + (", or take one of these" if cards else ""),
        )  # fmt: skip

    def _controls(self) -> list[Any]:
        usual = Settings()
        modes = [mode for mode in self.models[0].image_modes if all(mode in one.image_modes for one in self.models)]
        trained = "the first is how it was trained"
        return [
            gr.Slider(0, 2, usual.temperature, step=0.05, label="Temperature", info="0: always the likeliest word"),
            gr.Slider(0.05, 1, usual.top_p, step=0.05, label="Top-p", info="share of the likely words to choose from"),
            gr.Slider(1, LONGEST, usual.max_tokens, step=1, label="Longest answer", info="tokens"),
            gr.Textbox("", label="Seed", info="a number: the same answer again; empty: another"),
            gr.Dropdown(modes, value=next(iter(modes), None), label="Image mode", info=trained, visible=len(modes) > 1),
        ]

    def _wire(self, box: Any, chats: list[Any], controls: list[Any], note: Any) -> None:
        quick: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        many = min(model.concurrent for model in self.models)
        slow = {**quick, "queue": True, "concurrency_id": "answers", "concurrency_limit": many}
        asked = [box, note, *chats]
        starts = [box.submit(self._ask, [box, *chats], asked, **quick)]
        for number, chat in enumerate(chats):
            starts.append(chat.retry(self._again, chats, asked, **quick))
            starts.append(chat.edit(self._edit, chats, asked, **quick))
            starts.append(chat.example_select(self._example, None, asked, **quick))
            chat.clear(lambda: ["", *([] for _ in chats)], None, [note, *chats], **quick)
            chat.like(self._voter(number), [chat, *controls], note, **quick)
        for start in starts:
            answered = start.success(self._answer, [*chats, *controls], [note, *chats], **slow)
            answered.then(lambda: gr.update(submit_btn=True, stop_btn=False), None, box, **quick)
        box.stop(self._stop, None, None, **quick)

    # --- what a person does -------------------------------------------------------------------------------------

    def _ask(self, asked: dict[str, Any], *histories: History) -> list[Any]:
        text = (asked["text"] or "").strip()
        if not text:
            return [gr.update(), "Write a question about the picture or video.", *histories]
        return self._start(histories, question(text, asked["files"]))

    def _example(self, example: gr.SelectData) -> list[Any]:
        paths = [file["path"] for file in example.value["files"]]
        return self._start([[] for _ in self.models], question(example.value["text"], paths))

    def _again(self, retry: gr.RetryData, *histories: History) -> list[Any]:
        return self._start([history[: place(retry) + 1] for history in histories], [])

    def _edit(self, edit: gr.EditData, *histories: History) -> list[Any]:
        changed = question(str(edit.value).strip(), [])  # its pictures stand before it and stay
        return self._start([history[: place(edit)] for history in histories], changed)

    def _start(self, histories: Sequence[History], asked: History) -> list[Any]:
        """The question stands in every conversation, the box is empty and offers to stop."""
        waiting = gr.update(value={"text": "", "files": []}, submit_btn=False, stop_btn=True)
        return [waiting, "", *([*history, *asked] for history in histories)]

    def _stop(self, request: gr.Request) -> None:
        if request.session_hash in self._stops:
            self._stops[request.session_hash].set()

    def _left(self, request: gr.Request) -> None:
        self._votes.pop(request.session_hash, None)

    def _answer(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """Every model answers its own conversation, a piece of each in turn, until all have ended or a person stops."""
        count = len(self.models)
        if not values[0] or values[0][-1]["role"] != "user":  # nothing was asked
            yield [gr.skip()] * (count + 1)
            return
        settings, stop = _settings(values[count:]), threading.Event()
        self._stops[request.session_hash] = stop
        writing = [Writing(model, history, settings) for model, history in zip(self.models, values, strict=False)]
        shown = 0.0
        try:
            while any([one.step() for one in writing if not one.ended]) and not stop.is_set():
                if time.monotonic() - shown > REFRESH:
                    shown = time.monotonic()
                    yield ["", *(one.history for one in writing)]
        finally:  # also where the person has left
            self._stops.pop(request.session_hash, None)
            for one in writing:
                one.end()
        yield [self._noted([one.note for one in writing]), *(one.history for one in writing)]

    def _noted(self, notes: Sequence[str]) -> str:
        """What there is to say of the answers, with the model's name where there are several."""
        if len(notes) == 1:
            return notes[0]
        return " · ".join(f"{model.name}: {note}" for model, note in zip(self.models, notes, strict=True) if note)

    def _voter(self, number: int) -> Callable[..., str]:
        def vote(like: gr.LikeData, request: gr.Request, history: History, *values: Any) -> str:
            index = place(like)
            if (history[index].get("metadata") or {}).get("id") == FAILED:
                return "There is no answer here to vote on."
            said, about = verdict(like), messages_of(history[: index + 1])
            settings = asdict(_settings(values))
            with self._voting:
                if self._votes.get(request.session_hash) != (number, said, about):
                    try:
                        self.feedback.add(about, model=self.models[number].name, vote=said, settings=settings)
                    except OSError as error:
                        cause = error.strerror or error
                        return f"Your vote could not be kept: {cause}. Whoever runs this demo has to make room."
                    self._votes[request.session_hash] = number, said, about
            return f"Kept: {said}. Thank you."

        return vote


def place(event: gr.RetryData | gr.EditData | gr.LikeData) -> int:
    """Which message of the conversation an event is about."""
    return int(event.index[0] if isinstance(event.index, (list, tuple)) else event.index)


def verdict(like: gr.LikeData) -> str:
    """up, down, flag: one of `FLAGS`; or withdrawn, where a thumb or flag that was set is clicked once more."""
    if isinstance(like.liked, str):
        return f"flag: {like.liked}" if like.liked else "withdrawn"
    return "up" if like.liked else "down"


def _settings(values: Sequence[Any]) -> Settings:
    temperature, top_p, max_tokens, seed, image_mode = values
    seed = int(seed) if str(seed).strip().isdecimal() else None
    return Settings(float(temperature), float(top_p), int(max_tokens), seed, image_mode or None)
