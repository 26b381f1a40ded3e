"""A conversation about pictures and videos from anywhere, taken into a dataset.

Knows: which of them the dataset has already, and that others are kept by content under `media/` in its folder.
Does not know: who talked, or how pages and frames become pictures: the caller's `open_image` does.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.conversation import Conversation, Image, Media, Video, check_conversation, new_id
from workbench.data.dataset import Dataset
from workbench.data.images import EXTENSIONS, check_image
from workbench.data.tables import IMAGE_COLUMNS
from workbench.data.video import Film, still
from workbench.data.video_check import check_video
from workbench.resources import expanded, state_folder, write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MEDIA = "media"
"""The root, and the folder in the dataset's, of what came without a place of its own."""


def adopt(path: str | Path, conversation: Conversation, open_image: Callable[[Any], Picture | Film]) -> Conversation:
    """Add a conversation about files of this disk to the dataset in `path`, which is made if need be.

    What lies below one of the dataset's roots is named there; any other is copied, a page or a frame written as PNG.
    Returns the conversation as it was added. Raises `DataError` or `ImageError` before anything is added.
    """
    check_conversation(conversation)
    place = expanded(path)
    files = {media: _bytes(media, open_image) for media in dict.fromkeys(conversation.media)}
    dataset = _opened(place)
    known = {media: _known(dataset, media) or _stored(dataset, media, data) for media, data in files.items()}
    rows = [_row(dataset, one) for one in known.values()]
    dataset.add_images(pl.DataFrame(rows, schema=IMAGE_COLUMNS))
    messages = tuple(
        replace(one, content=tuple(part if isinstance(part, str) else known[part] for part in one.content))
        for one in conversation.messages
    )
    source = {"dataset": dataset.name, **conversation.source}
    added = replace(conversation, messages=messages, source=source)
    dataset.add_conversations([added], operation={"name": "chat", "conversation": added.id})
    return added


def _opened(place: Path) -> Dataset:
    """The dataset there, or a new one where nothing is, in the state folder neither."""
    empty = not any(place.iterdir()) if place.is_dir() else not place.exists()
    named = len(place.parts) == 1 and (state_folder() / "datasets" / place).exists()
    if empty and not named:
        return Dataset.create(place, name=place.name, roots={MEDIA: MEDIA})
    return Dataset.open(place)


def _bytes(image: Media, open_image: Callable[[Any], Picture | Film]) -> bytes:
    picture = still(open_image(image))  # whole and readable, or an `ImageError`
    if Path(image.path).is_file():
        return Path(image.path).read_bytes()
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def _known(dataset: Dataset, image: Media) -> Media | None:
    """The image or video as the dataset names it, where its file lies below one of the roots."""
    place = Path(image.path).resolve()
    for name, root in dataset.roots.items():
        if place.is_file() and place.is_relative_to(root.resolve()):
            return replace(image, root=name, path=place.relative_to(root.resolve()).as_posix())
    return None


def _stored(dataset: Dataset, media: Media, data: bytes) -> Media:
    roots = dataset.card["roots"]
    if MEDIA not in roots:
        dataset.describe(roots={**roots, MEDIA: MEDIA})
    digest = hashlib.sha256(data).hexdigest()
    root = dataset.roots[MEDIA]
    video = isinstance(media, Video)
    target = root / f"{digest[:20]}{Path(media.path).suffix if video else _suffix(data)}"
    if not target.exists():
        write_atomic(target, data)
    return Video(target.name, MEDIA, digest) if video else Image(target.name, MEDIA, hash=digest)


def _suffix(data: bytes) -> str:
    from PIL import Image as PILImage

    with PILImage.open(io.BytesIO(data)) as opened:
        return EXTENSIONS.get(opened.format or "", (".png",))[0]


def _row(dataset: Dataset, one: Media) -> dict[str, Any]:
    video = isinstance(one, Video)
    facts = (check_video if video else check_image)(dataset.resolve(one))
    told = {key: getattr(facts, key) for key in ("width", "height", "hash", "phash")}
    identity = {"id": new_id("image", one.root, one.path), "root": one.root, "path": one.path}
    return {**identity, **told, "captions": [], "status": "ok", "media": "video" if video else "image"}
