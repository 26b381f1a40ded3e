"""The pictures of published rows: files below a folder, however it is laid out, or bytes that came inside the rows.

Knows: the names that benchmarks give their pictures, base64, and where bytes are kept by their hash.
Does not know: what is asked about them, or what is in them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from workbench.conversation import Conversation, Image, Media, Video
from workbench.data.images import SUFFIXES
from workbench.data.video import SUFFIXES as VIDEOS
from workbench.errors import DataError, ImageError
from workbench.evaluation import fields
from workbench.inference.attachments import attached, frames_read
from workbench.resources import state_folder, write_atomic

if TYPE_CHECKING:
    from workbench.chat_model import ChatModel
    from workbench.evaluation.task import Evaluation

NAMES = (
    "image",
    "image_path",
    "image_source",
    "imgname",
    "img",
    "file_name",
    "filename",
    "data_id",
    "image_id",
    "imageid",
)
"""Fields that name a picture, the surest first."""
COCO = ("COCO_val2014_{:012d}", "COCO_train2014_{:012d}", "COCO_test2015_{:012d}", "{:012d}")
"""How COCO's files are named by number."""
_BEGINNINGS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp", b"GI": ".gif", b"BM": ".bmp"}


class Pictures:
    """Finds the pictures of a row. `folder`: where files lie; those inside rows are kept in the state folder.

    frames: of a video, at even distances; one is the middle, as LLaVA takes it, and so is None (see `for_model`).
    """

    def __init__(self, folder: Path | str | None, *, frames: int | None = None) -> None:
        self.frames = frames or 1
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and not self.folder.is_dir():
            raise DataError(str(folder), found="no such folder", expected="the folder of the pictures")
        self.media = state_folder() / "evaluation" / "media"
        self._files: dict[str, list[str]] | None = None

    @property
    def roots(self) -> dict[str, Path]:
        found = {"images": self.folder.resolve()} if self.folder else {}
        return {**found, "media": self.media}

    def resolve(self, image: Media) -> Path:
        """Where the file of a picture lies."""
        return self.roots[image.root] / image.path

    def keep(self, picture: bytes | str) -> str:
        """Keep bytes, or base64, under the name of their hash. What is no picture is found out when it is opened."""
        data = picture if isinstance(picture, bytes) else _decoded(picture)
        name = hashlib.sha256(data).hexdigest()
        path = f"{name[:2]}/{name}{_BEGINNINGS.get(data[:2], '.img')}"
        if not (self.media / path).is_file():
            (self.media / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.media / path, data)
        return path

    def of(self, row: Mapping[str, Any]) -> list[Image]:
        """The picture of a row as a list of one, the frames of its video, or nothing where the row names neither.

        One that cannot be found is named as the row names it: the row says so when its turn comes.
        """
        if row.get("media"):
            return [Image(str(row["media"][0]), "media")]
        wanted = [
            text for name in NAMES if (text := fields.plain(row.get(name))) and text.lower() not in ("none", "nan")
        ]
        if not wanted:
            return []
        found = next((path for text in wanted for path in self._look(text, row)), None)
        if found is not None and Path(found).suffix.lower() in VIDEOS:
            return self._frames(found)
        return [Image(found or wanted[0], "images")]

    def _frames(self, video: str) -> list[Image]:
        try:
            moments = [frame.path.partition("#")[2] for frame in attached(self._below(video), frames=self.frames)]
        except ImageError:  # the row says so when its turn comes
            return [Image(video, "images")]
        return [Image(f"{video}#{moment}", "images") for moment in moments]

    def _below(self, path: str) -> Path:
        return (self.folder or Path()) / path

    def _look(self, text: str, row: Mapping[str, Any]) -> Sequence[str]:
        """Files that a name may mean, the likeliest first: those below a folder that the row names."""
        path = PurePosixPath(text.strip().replace("\\", "/"))
        names = [path.name, *(form.format(int(path.name)) for form in COCO if path.name.isdigit())]
        known = self._index()
        found = [file for name in names for file in known.get(name.lower(), ())]
        about = {path.parent.name, fields.category(row), fields.identity(row), fields.plain(row.get("split"))}
        folders = {str(name).lower() for name in about if name}
        return sorted(found, key=lambda file: -len(folders & set(file.lower().split("/")[:-1])))

    def _index(self) -> dict[str, list[str]]:
        """Pictures below the folder by name, with and without ending; read once."""
        if self._files is None:
            self._files = {}
            for place, _, names in os.walk(self.folder or os.devnull):
                below = os.path.relpath(place, self.folder)
                for name in sorted(names):
                    stem, ending = os.path.splitext(name.lower())
                    if ending in SUFFIXES or ending in VIDEOS:
                        path = name if below == "." else f"{Path(below).as_posix()}/{name}"
                        for key in {stem, name.lower()}:
                            self._files.setdefault(key, []).append(path)
        return self._files


def for_model(evaluation: Evaluation, model: ChatModel) -> Evaluation:
    """A benchmark's questions as this model is asked them. Where nobody said how many frames of a video: whole videos
    if it reads them, else their middle frame."""
    if evaluation.settings.get("frames", 1) is not None:
        return evaluation
    reads = frames_read(model)
    settings = {**evaluation.settings, "frames": f"as the model: {reads}" if reads else 1}
    conversations = [_whole(one) for one in evaluation.conversations] if reads else evaluation.conversations
    return replace(evaluation, conversations=conversations, settings=settings)


def _whole(asked: Conversation) -> Conversation:
    """The conversation with videos in place of the one frame of each."""

    def part_of(part: Any) -> Any:
        file, mark, _ = part.path.partition("#t=") if isinstance(part, Image) else ("", "", "")
        return Video(file, part.root) if mark and Path(file).suffix.lower() in VIDEOS else part

    messages = [replace(one, content=tuple(map(part_of, one.content))) for one in asked.messages]
    return replace(asked, messages=tuple(messages))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.partition("base64,")[2] or text)
    except binascii.Error:
        return text.encode()
