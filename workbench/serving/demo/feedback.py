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
    """A folder with `feedback.jsonl`, and in `images/` the pictures and videos it names. Nothing is there before the
    first vote."""

    def __init__(self, folder: str | os.PathLike[str], *, shown: str | None = None) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "feedback.jsonl"
        self.shown = shown or str(self.path)
        """How the page names the file: strangers need not know where it lies."""
        self._lock = threading.Lock()

    def add(self, messages: list[dict[str, Any]], *, model: str, vote: str, settings: dict[str, Any]) -> None:
        """Write one line with its pictures and videos, whole and flushed to the disk. Raises `OSError`.

        messages: as `turns.Model` is asked; the last is the answer that `vote` is about.
        """
        with self._lock:
            (self.folder / "images").mkdir(parents=True, exist_ok=True)
            record: dict[str, Any] = {"id": uuid.uuid4().hex[:20]}
            for kind in ("image", "video"):
                kept = [self._keep(Path(path)) for message in messages for path in paths_of(message, kind)]
                if kept:
                    record[kind] = kept[0] if len(kept) == 1 else kept
            marks = {"image": "<image>", "video": "<video>" if "image" in record else "<image>"}
            record["conversations"] = [
                {"from": NAMES[message["role"]], "value": _value(message, marks)} for message in messages
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
        """Copy a picture or video under the hash of its bytes; returns its path below the folder."""
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


def paths_of(message: dict[str, Any], kind: str) -> list[str]:
    """The paths of a message's pictures (`image`) or videos (`video`), in order."""
    return [part["path"] for part in message["content"] if part["type"] == kind]


def text_of(message: dict[str, Any]) -> str:
    """A message's text parts, joined."""
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def _value(message: dict[str, Any], marks: dict[str, str]) -> str:
    """As LLaVA's JSON has it: where there are both, a video has a mark of its own."""
    shown = [marks[part["type"]] for part in message["content"] if part["type"] != "text"]
    return "\n".join([*shown, text_of(message)])
