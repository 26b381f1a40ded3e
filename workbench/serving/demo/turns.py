"""The conversation of a demo: as Gradio's chatbot shows it, as a model is asked, and one answer while it is written.

Knows: the shape of both, that a failure stands in the conversation for the person and is never shown to a model, and
what a failure means in plain words.
Does not know: the page, workbench, torch: this file is also copied into exported demos.
"""

from __future__ import annotations

import mimetypes
import sys
import time
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

FAILED = "not answered"
"""The metadata id of a message that says why there is no answer."""
History = list[dict[str, Any]]
"""Messages as Gradio's chatbot has them; a picture or a video is a message of its own before its question."""
VIDEOS = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "quicktime", ".3gp": "3gpp", ".webm": "webm", ".mkv": "x-matroska",
    ".avi": "x-msvideo", ".mpg": "mpeg", ".mpeg": "mpeg", ".ts": "mp2t", ".m2ts": "mp2t", ".wmv": "x-ms-wmv",
    ".flv": "x-flv", ".ogv": "ogg",
}  # fmt: skip
"""How files of videos are named, and their kind: not every system knows all of them. The page takes no others."""


class NotAnswered(Exception):
    """Why a question has no answer and what to do about it, in words for the person who asked."""


@dataclass(frozen=True)
class Settings:
    """How an answer is written."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int | None = None
    image_mode: str | None = None
    """One of the model's `image_modes`; None is the first."""


class Model(Protocol):
    """What answers."""

    @property
    def name(self) -> str: ...

    @property
    def image_modes(self) -> tuple[str, ...]:
        """How it can be shown a picture, the way it was trained with first; empty where there is no choice."""

    @property
    def concurrent(self) -> int:
        """How many answers it writes at the same time."""

    def answer(self, messages: list[dict[str, Any]], settings: Settings) -> Generator[str, None, str | None]:
        """Pieces of the answer to the last message; closing the generator ends it. Its value is a note, or nothing.

        messages: in the Hugging Face shape, pictures as `{"type": "image", "path": ...}`, videos likewise as `video`.
        Raises `NotAnswered`.
        """


def text_message(role: str, text: str, **metadata: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]} | ({"metadata": metadata} if metadata else {})


def question(text: str, files: Sequence[str]) -> History:
    """A person's turn; files: paths of pictures and videos."""
    return [*map(_file_message, files), text_message("user", text)]


def _file_message(path: str) -> dict[str, Any]:
    video = VIDEOS.get(Path(path).suffix.lower())
    # without a kind the page shows a file, not the picture
    kind = f"video/{video}" if video else mimetypes.guess_type(path)[0] or "image/png"
    file = {"path": path, "mime_type": kind, "meta": {"_type": "gradio.FileData"}}
    return {"role": "user", "content": [{"type": "file", "file": file}]}


def messages_of(history: History) -> list[dict[str, Any]]:
    """The conversation in the Hugging Face shape, without questions that were not answered."""
    messages: list[dict[str, Any]] = []
    for message in history:
        if (message.get("metadata") or {}).get("id") == FAILED:
            messages.pop()
            continue
        parts = [_part(part) for part in message["content"]]
        if messages and messages[-1]["role"] == message["role"]:
            parts = messages.pop()["content"] + parts
        messages.append({"role": message["role"], "content": parts})
    return messages


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    path = part["file"]["path"]
    return {"type": "video" if Path(path).suffix.lower() in VIDEOS else "image", "path": path}


class Writing:
    """One answer while it is written at the end of a conversation."""

    def __init__(self, model: Model, history: History, settings: Settings) -> None:
        self._asked, self._text, self._began = history, "", time.monotonic()
        self._pieces = model.answer(messages_of(history), settings)
        self.ended, self.note = False, ""

    @property
    def history(self) -> History:
        """The conversation with as much of the answer as there is."""
        return [*self._asked, self._message]

    @property
    def _message(self) -> dict[str, Any]:
        if self.note.startswith("Not answered"):
            return text_message("assistant", self.note, id=FAILED)
        return text_message("assistant", self._text.lstrip())

    def step(self) -> bool:
        """One piece more; False once the answer has ended, well or not."""
        try:
            self._text += next(self._pieces)
        except StopIteration as end:
            self.ended = True
            seconds = f"{time.monotonic() - self._began:.1f} s"
            self.note = f"{end.value}, {seconds}" if end.value else seconds
            self._refuse_empty("the model wrote nothing. Ask in other words, or change the settings.")
        except Exception as error:
            self.ended, self.note = True, f"Not answered: {told(error)}"
        return not self.ended

    def end(self) -> None:
        """Stop it here, if it has not ended by itself."""
        if not self.ended:
            self.ended, self.note = True, "stopped"
            self._pieces.close()
            self._refuse_empty("stopped before the first word.")

    def _refuse_empty(self, why: str) -> None:
        if not self._text.strip():
            self.note = f"Not answered: {why}"


def told(error: Exception) -> str:
    """The cause of a failure and what to do, for the person who asked; what nobody foresaw goes to the log too."""
    if isinstance(error, NotAnswered):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return f"the memory is full ({cause}). Ask about fewer pictures, or start anew with the bin above."
    return f"{cause}. This is a fault of the demo, not of your question; its log says where."
