"""What people think of answers, on the disk: one line of JSON per vote or flag, with the conversation and its pictures.

Knows: the file and its shape (LLaVA's JSON lines, so that it can be imported as data), and that a line is durable
before the page says so.
Does not know: the page, the model, workbench: this file is also copied into exported demos.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

NAMES = {"user": "human", "assistant": "gpt", "system": "system"}


class Feedback:
    """A folder with `feedback.jsonl` and the pictures it names in `images/`. Nothing is there before the first vote."""

    def __init__(self, folder: str | os.PathLike[str], *, shown: str | None = None) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "feedback.jsonl"
        self.shown = shown or str(self.path)
        """How the page names the file: strangers need not know where it lies."""
        self._lock = threading.Lock()

    def add(self, messages: list[dict[str, Any]], *, model: str, vote: str, settings: dict[str, Any]) -> None:
        """Write one line and its pictures, whole and flushed to the disk. Raises `OSError`.

        messages: in the Hugging Face shape, pictures as `{"type": "image", "path": ...}`; the last is the answer that
        `vote` is about.
        """
        with self._lock:
            (self.folder / "images").mkdir(parents=True, exist_ok=True)
            pictures = [self._keep(Path(path)) for message in messages for path in paths_of(message)]
            record: dict[str, Any] = {"id": uuid.uuid4().hex[:20]}
            if pictures:
                record["image"] = pictures[0] if len(pictures) == 1 else pictures
            record["conversations"] = [
                {"from": NAMES[message["role"]], "value": _value(message)} for message in messages
            ]
            record |= {"vote": vote, "model": model, "settings": settings}
            record["time"] = datetime.now(UTC).isoformat(timespec="seconds")
            self._append(json.dumps(record, ensure_ascii=False) + "\n")

    def _append(self, line: str) -> None:
        with open(self.path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line that a killed process left torn ends here
                    file.write(b"\n")
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def _keep(self, picture: Path) -> str:
        """Copy a picture under the hash of its bytes; returns its path below the folder."""
        with open(picture, "rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()[:20]
        kept = self.folder / "images" / (name + picture.suffix.lower())
        if not kept.exists():
            part = kept.with_name(f".{kept.name}.part")
            shutil.copyfile(picture, part)
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, kept)
        return f"images/{kept.name}"


def paths_of(message: dict[str, Any]) -> list[str]:
    """The paths of a message's pictures, in order."""
    return [part["path"] for part in message["content"] if part["type"] == "image"]


def text_of(message: dict[str, Any]) -> str:
    """A message's text parts, joined."""
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def _value(message: dict[str, Any]) -> str:
    return "\n".join(["<image>"] * len(paths_of(message)) + [text_of(message)])
