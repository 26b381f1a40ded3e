"""The conversations of a run in memory: light columns in a table, what was said in them compressed.

Knows: which images and videos each conversation shows, what tells two of them apart, and its messages, unpacked when
somebody asks. Does not know: datasets, recipes, token ids.

As nested columns the messages of LLaVA's 665K mix take 1.7 GB, compressed 0.3 GB; all are packed in four seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import polars as pl
import pyarrow as pa

from workbench.conversation import Conversation, Media, from_record
from workbench.data import tables

NEEDED = ("id", "messages", "split", "task")
"""Columns that training looks at. Where a conversation came from is left where it is."""
STAMPS = ("stamp", "stamp2")
"""Two hashes of 64 bits of a conversation's messages, and of which dataset of a mixture they are."""
KEY = pl.format("{}/{}", "root", "path")
"""How an image is named within a run."""
BLOCK = 64
"""Conversations that are compressed together."""
CODEC = "snappy"


def image_key(image: Media) -> str:
    return f"{image.root}/{image.path}"


class Messages:
    """Messages of conversations by number, JSON in compressed blocks. It grows by `add` alone."""

    def __init__(self) -> None:
        self._blocks: list[tuple[bytes, int, str]] = []  # compressed, bytes of it, what is put before media's roots

    def add(self, texts: pl.Series) -> pl.Series:
        """Take in messages as JSON texts; returns their numbers."""
        begin = len(self._blocks) * BLOCK
        for part in texts.to_frame().iter_slices(BLOCK):
            block = "\n".join(part.to_series()).encode()
            self._blocks.append((pa.compress(block, codec=CODEC, asbytes=True), len(block), ""))
        return pl.Series(np.arange(begin, begin + len(texts)), dtype=pl.UInt32)

    def of(self, numbers: Sequence[int]) -> Iterator[list[dict[str, Any]]]:
        """The messages of these numbers, in their order. Neighbours are unpacked together."""
        at, lines, mark = -1, [b""], ""
        for number in numbers:
            if number // BLOCK != at:
                at = number // BLOCK
                block, size, mark = self._blocks[at]
                lines = pa.decompress(block, size, codec=CODEC, asbytes=True).split(b"\n")
            messages = json.loads(lines[number % BLOCK])["messages"]
            yield _marked(messages, mark) if mark else messages

    def marked(self, mark: str) -> Messages:
        """The same with `mark` before the roots of all media."""
        made = Messages()
        made._blocks = [(block, size, mark + before) for block, size, before in self._blocks]
        return made

    def joined(self, other: Messages) -> tuple[Messages, int]:
        """These and the others in one, and the number of the first of the others."""
        made = Messages()
        made._blocks = [*self._blocks, *other._blocks]
        return made, len(self._blocks) * BLOCK


def _marked(messages: list[dict[str, Any]], mark: str) -> list[dict[str, Any]]:
    for message in messages:
        for part in message["content"]:
            if part.get("root") is not None:
                part["root"] = mark + part["root"]
    return messages


class Rows(Sequence[Conversation]):
    """Conversations as rows of a table; the n-th is made when it is asked for.

    `frame` has `id`, `split`, `task`, `part`; `media`: type, root, path, hash, width and height of each image and
    video in order, `keys`: their keys, and `about`: the content hash, or else the key, of the first; `STAMPS`; and
    `place`: the number of its messages. One that comes without `messages` beside it has a column of them, to be packed.
    """

    def __init__(self, frame: pl.DataFrame, messages: Messages | None = None) -> None:
        self.messages = messages or Messages()
        self.frame = pack(frame, self.messages) if messages is None else frame

    def __len__(self) -> int:
        return self.frame.height

    @overload
    def __getitem__(self, number: int) -> Conversation: ...
    @overload
    def __getitem__(self, number: slice) -> Rows: ...
    def __getitem__(self, number: int | slice) -> Conversation | Rows:
        if isinstance(number, slice):
            return self.having(self.frame[number])
        return next(self._values(self.frame[int(number)]))

    def __iter__(self) -> Iterator[Conversation]:
        for part in self.frame.iter_slices(1_000):
            yield from self._values(part)

    def _values(self, frame: pl.DataFrame) -> Iterator[Conversation]:
        light = frame.select("id", "split", "task").iter_rows(named=True)
        for row, messages in zip(light, self.messages.of(frame["place"].to_list()), strict=True):
            yield from_record({**row, "messages": messages})

    def having(self, frame: pl.DataFrame) -> Rows:
        """Those of a frame with the same messages."""
        return Rows(frame, self.messages)

    def where(self, wanted: pl.Expr | pl.Series) -> Rows:
        return self.having(self.frame.filter(wanted))

    def take(self, numbers: np.ndarray) -> Rows:
        return self.having(self.frame[numbers])

    def apart(self, mark: str) -> Rows:
        """The same with `mark` before the ids and before the roots of images and videos."""
        if not mark:
            return self
        media = pl.element().struct.with_fields(root=mark + pl.field("root"))
        frame = self.frame.with_columns(
            id=mark + pl.col("id"),
            media=pl.col("media").list.eval(media),
            keys=pl.col("keys").list.eval(mark + pl.element()),
            **stamps(self.frame.select(*STAMPS, mark=pl.lit(mark))),  # equal words about another image are others
        )
        return Rows(frame, self.messages.marked(mark))

    def of_dataset(self, name: str) -> Rows:
        """The same with a column `dataset`."""
        return self.having(self.frame.with_columns(dataset=pl.lit(name)))

    @property
    def fingerprint(self) -> str:
        """Of the conversations' ids, words and order, as this version of polars hashes them."""
        held = hashlib.sha256("\n".join(self.frame["id"]).encode())
        held.update(self.frame.select(STAMPS).to_numpy().tobytes())
        return held.hexdigest()

    @property
    def media(self) -> pl.DataFrame:
        """The images and videos in their order: columns `row`, `id`, `key` and those of `media`."""
        parts = self.frame.lazy().with_row_index("row").select("row", "id", "media", key="keys")
        return parts.explode("media", "key").drop_nulls("key").unnest("media").collect()

    @property
    def videos(self) -> set[str]:
        """The keys of videos among them."""
        return set(self.media.filter(pl.col("type") == "video")["key"])

    @property
    def keys(self) -> pl.DataFrame:
        """Every image once: its `key`, and the `id` of the first conversation that shows it."""
        pairs = self.frame.select("id", key="keys").explode("key").drop_nulls("key")
        return pairs.unique("key", keep="first", maintain_order=True)


def joined(parts: Sequence[Rows]) -> Rows:
    """One after the other. Columns that the first lacks are left out."""
    frames, messages = [], Messages()
    for rows in parts:
        messages, first = messages.joined(rows.messages)
        frames.append(rows.frame.with_columns(pl.col("place") + first).select(parts[0].frame.columns))
    return Rows(pl.concat(frames), messages)


def pack(frame: pl.DataFrame, messages: Messages) -> pl.DataFrame:
    """A table of conversations as `Rows` has it; what they say goes to `messages`."""
    parts = tables.images_of(frame)
    media = pl.struct("type", "root", "path", "hash", "width", "height")
    about = pl.coalesce("hash", KEY).first()
    held = parts.group_by("row", maintain_order=True).agg(media=media, keys=KEY, about=about)
    whole = frame.with_row_index("row").join(held, on="row", how="left", maintain_order="left").drop("row")
    texts = frame.select(text=pl.struct("messages").struct.json_encode())
    part = {} if "part" in frame.columns else {"part": pl.col("split")}
    return whole.drop("messages").with_columns(place=messages.add(texts["text"]), **stamps(texts), **part)


def stamps(told: pl.DataFrame) -> dict[str, pl.Series]:
    """`STAMPS` of each row: equal where all that is told of two is equal."""
    return {name: told.hash_rows(seed=number) for number, name in enumerate(STAMPS, 1)}
