"""A chat as a person works on it: questions with pictures, answers of one model or several, all of it editable.

Knows: exchanges and how they make each model's conversation, earlier chats, which answers are being written, and by
which threads. Tells what changed to a listener, from those threads.
Does not know: widgets or browsers, how models answer, how a conversation is kept (`data/adopt.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.chat_model import Answer, ChatModel, SamplingOptions, as_options
from workbench.conversation import Conversation, Media, new_id
from workbench.errors import WorkbenchError
from workbench.inference.attachments import Attached, attached_for
from workbench.inference.chat import LONG, changed

EACH = 0.04
"""Seconds of an answer that are told at once."""


@dataclass
class Reply:
    """One model's answer, finished or on the way."""

    text: str = ""
    state: str = "writing"
    """writing, stop, length, cancelled, or failed."""
    problem: str = ""
    seconds: float = 0.0
    tokens: int = 0
    answer: Answer | None = None
    stopped: bool = False

    def stop(self) -> None:
        self.stopped = True
        if self.answer is not None:
            self.answer.cancel()

    def shown(self) -> dict[str, Any]:
        seconds = round(self.seconds, 2)
        return {
            "text": self.text,
            "state": self.state,
            "problem": self.problem,
            "seconds": seconds,
            "tokens": self.tokens,
        }


@dataclass
class Exchange:
    """A question and what each model answered."""

    text: str
    images: list[Media]
    replies: list[Reply]


@dataclass
class Session:
    """A chat with `models`, each of which remembers what it said itself.

    heard: called, from the thread that writes, with (number of the exchange, number of the model, more of its text):
    no model where a question begins to be answered, no text where the model's answer has ended.
    """

    models: Sequence[ChatModel]
    heard: Callable[[int, int | None, str | None], None]
    options: SamplingOptions = LONG
    waiting: list[Media] = field(default_factory=list)
    """Pictures that go with the next question."""
    exchanges: list[Exchange] = field(default_factory=list)
    earlier: list[list[Exchange]] = field(default_factory=list)
    """Chats before this one, the latest last."""
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.options = as_options(self.options)

    @property
    def busy(self) -> bool:
        """Whether an answer is being written."""
        return any(reply.state == "writing" for exchange in self.exchanges[-1:] for reply in exchange.replies)

    def attach(self, given: Attached) -> None:
        """An image, pages of a PDF file, a video or frames of it, for the next question. Raises `ImageError`."""
        given = given.strip().strip("'\"") if isinstance(given, str) else given
        if isinstance(given, str) and not given:
            raise WorkbenchError("attach", found="no path", expected="a path of an image, a video or a PDF file")
        self.waiting += attached_for(given, *self.models)

    def ask(self, text: str) -> None:
        """Ask all models; what they answer is told as it comes. Raises `WorkbenchError` while an answer is written."""
        self._free()
        if not text.strip():
            raise WorkbenchError("question", found="no text", expected="a question")
        images, self.waiting = self.waiting, []
        self.exchanges.append(Exchange(text.strip(), images, []))
        self._answer(len(self.exchanges) - 1)

    def edit(self, number: int, text: str) -> None:
        """Ask an earlier question anew in other words, with its pictures; what followed stays as an earlier chat."""
        self._free()
        images = [*self._exchange(number).images, *self.waiting]
        if not text.strip():
            raise WorkbenchError("question", found="no text", expected="a question")
        self.waiting = []
        if number + 1 < len(self.exchanges):
            self.earlier.append([*self.exchanges])
        self.exchanges[number:] = [Exchange(text.strip(), images, [])]
        self._answer(number)

    def regenerate(self) -> None:
        """Answer the last question again."""
        self._free()
        self._exchange(len(self.exchanges) - 1)
        self._answer(len(self.exchanges) - 1)

    def stop(self) -> None:
        """End the answers that are being written; what there is stays. Callable from any thread."""
        for exchange in self.exchanges[-1:]:
            for reply in exchange.replies:
                reply.stop()

    def set(self, key: str, value: object) -> None:
        """Change one of the options. Raises `WorkbenchError` for an unknown one, or a value it cannot have."""
        self.options = changed(self.options, f"{key}={value}")

    def clear(self) -> None:
        """Begin a new chat; the present one can be taken up again."""
        self._free()
        if self.exchanges:
            self.earlier.append(self.exchanges)
        self.exchanges, self.waiting = [], []

    def restore(self, number: int) -> None:
        """Take up an earlier chat."""
        self._free()
        if not 0 <= number < len(self.earlier):
            raise WorkbenchError("earlier chats", found=f"number {number}", expected=f"below {len(self.earlier)}")
        taken = self.earlier.pop(number)
        self.clear()
        self.exchanges = taken

    def conversation(self, model: int = 0, end: int | None = None) -> Conversation:
        """What `model` was told and said, up to and with exchange `end`; questions it has no answer to are left out."""
        told = Conversation(new_id(), (), task="chat", source={"teacher": "chat", "model": self.models[model].name})
        for exchange in self.exchanges[: None if end is None else end + 1]:
            reply = exchange.replies[model] if model < len(exchange.replies) else Reply()
            if reply.state not in ("writing", "failed") and reply.text.strip():
                told = told.add("user", *exchange.images, exchange.text).add("assistant", reply.text.strip())
        return told

    def wait(self, seconds: float | None = None) -> None:
        """Until nothing is being written."""
        for thread in list(self._threads):
            thread.join(seconds)

    # --- answers ------------------------------------------------------------------------------------------------

    def _free(self) -> None:
        if self.busy:
            raise WorkbenchError("chat", found="an answer being written", expected="none", fix="stop it, or wait")

    def _exchange(self, number: int) -> Exchange:
        if not 0 <= number < len(self.exchanges):
            found = f"question {number + 1}" if self.exchanges else "no question yet"
            raise WorkbenchError("chat", found=found, expected=f"one of {len(self.exchanges)}")
        return self.exchanges[number]

    def _answer(self, number: int) -> None:
        exchange = self.exchanges[number]
        asked = []
        for model in range(len(self.models)):
            before = self.conversation(model, number - 1) if number else Conversation(new_id(), ())
            asked.append(before.add("user", *exchange.images, exchange.text))
        exchange.replies = [Reply() for _ in self.models]
        self.heard(number, None, None)
        self._threads = [
            threading.Thread(target=self._write, args=(number, model, one), name=f"chat {model}", daemon=True)
            for model, one in enumerate(asked)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, number: int, model: int, asked: Conversation) -> None:
        reply, began = self.exchanges[number].replies[model], time.perf_counter()
        try:
            state, problem = self._read(number, model, reply, self.models[model].reply(asked, self.options))
        except WorkbenchError as error:
            state, problem = "failed", str(error)
        except Exception as error:  # of a model that is not ours: shown, or the answer would stay on the way for ever
            state, problem = "failed", f"{type(error).__name__}: {error}"
        reply.seconds, reply.problem, reply.state = time.perf_counter() - began, problem, state
        self.heard(number, model, None)

    def _read(self, number: int, model: int, reply: Reply, answer: Answer) -> tuple[str, str]:
        """Read it to its end; (how it ended, what is wrong with it)."""
        reply.answer = answer
        if reply.stopped:  # before there was anything to cancel
            answer.cancel()
        held, told = "", 0.0
        for piece in answer:
            reply.text += piece
            held += piece
            if time.perf_counter() - told > EACH:
                self.heard(number, model, held)
                held, told = "", time.perf_counter()
        reply.tokens = answer.usage.completion_tokens
        if reply.text.strip() or answer.finish_reason == "cancelled":
            return answer.finish_reason, ""
        return "failed", "an empty answer; ask again"
