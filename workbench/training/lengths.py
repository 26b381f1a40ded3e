"""The length index: exact tokens of every conversation, measured once and kept, so that packing needs no rendering.

Knows: that a conversation's length follows from its messages, the renderer and the tokens of an image alone. An index
lies in the state folder, one for each dataset and way of rendering; a changed conversation is measured anew, alone.
Does not know: what packs are made of the lengths.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from workbench.errors import DiskError, WorkbenchError
from workbench.model.tiling import Tiling
from workbench.progress import Progress
from workbench.resources import state_folder, write_atomic
from workbench.training.example import Example
from workbench.training.examples import Examples
from workbench.training.packing import Entry
from workbench.training.rows import STAMPS, stamps
from workbench.training.source import Bad, reason_of, refuse

CHUNK = 1_000
VALIDATION = " (validation)"
"""Behind the name of a dataset: its validation conversations, whose index is one of their own, since an index forgets
conversations that are not among the last it was asked for."""
SAVE_EVERY = 100_000
"""Conversations measured between two saves, so that a build that is killed goes on."""
COLUMNS: dict[str, Any] = {
    "tokens": pl.Int32,
    "prefix": pl.Int32,
    "supervised": pl.Int32,
    "images": pl.Int32,
    "shared_images": pl.Int32,
    "key": pl.Int64,
    "tiles": pl.Int32,
    "shared_tiles": pl.Int32,
    "image_tokens": pl.Int32,
    "shared_image_tokens": pl.Int32,
    "squares": pl.Int32,
    "shared_squares": pl.Int32,
}


@dataclass(frozen=True)
class Lengths:
    """What packing has to know of n conversations, as columns of `COLUMNS` in their order."""

    frame: pl.DataFrame
    ids: pl.Series

    def __len__(self) -> int:
        return self.frame.height

    def longest(self) -> int:
        """Tokens of the longest conversation."""
        return int(self.frame["tokens"].max() or 0)  # type: ignore[arg-type]

    def entries(self) -> list[Entry]:
        columns = [self.frame[name].to_list() for name in COLUMNS]
        if self.ids.n_unique() < len(self):  # a mixture repeats some
            rows = self.ids.to_frame("id").with_row_index("number")
            columns.append(rows.select(pl.col("number").first().over("id"))["number"].to_list())
        return list(map(Entry, range(len(self)), *columns))

    def tiles(self, images: int, *, squares: bool = False) -> int:
        """Tiles (or squares that the tower sees) of so many different images, if these are like the images of the
        conversations."""
        tiles, shown = (int(self.frame[name].sum()) for name in ("squares" if squares else "tiles", "images"))
        return -(-images * tiles // shown) if shown else images

    def unfit(self, max_tokens: int) -> pl.DataFrame:
        """`number`, `id`, `tokens` and `long` of conversations that are too long or have nothing to train on."""
        frame = self.frame.select("tokens", "supervised").with_columns(id=self.ids, long=pl.col("tokens") > max_tokens)
        held = frame.with_row_index("number").filter(pl.col("long") | (pl.col("supervised") == 0))
        return held.select("number", "id", "tokens", "long")

    def refuse_unfit(self, max_tokens: int, mend: str) -> None:
        """Raise `TrainingError` that names conversations which are too long or have nothing to train on.

        mend: what to do about such ones, where raising `train.max_tokens` is not the answer.
        """
        bad = [
            (f"{id} with {tokens:,} tokens", f"more than train.max_tokens = {max_tokens}")
            if long
            else (id, "no token to train on")
            for _, id, tokens, long in self.unfit(max_tokens).iter_rows()
        ]
        if bad:
            refuse(bad, len(self), "conversations", f"{mend}, or raise train.max_tokens")


def measure(examples: Examples, *, name: str, bar: Progress | None = None, mend: str = "correct them") -> Lengths:
    """The lengths of these conversations, from the index where it has them; `name`: what the index is of, a path.

    mend: what to do about conversations that cannot be rendered.
    Raises `TrainingError` naming every conversation that cannot be rendered, with the reason. Where the state folder
    cannot be written (a full disk) lengths are measured all the same, and not kept.
    """
    frame, bar = examples.rows.frame, bar or Progress("lengths", total=len(examples))
    stamped = frame.select(STAMPS)
    if examples.sizes is not None:  # of images whose conversations do not carry their size
        sizes = [str([examples.sizes.get(key) for key in keys or ()]) for keys in frame["keys"].to_list()]
        stamped = pl.DataFrame(stamps(stamped.with_columns(sizes=pl.Series(sizes))))
    index = Index(examples, name)
    found = stamped.join(index.rows, on=STAMPS, how="left", maintain_order="left")
    absent = found["tokens"].is_null().arg_true().to_numpy()
    bar.advance(len(examples) - len(absent))
    problems: list[Bad] = []
    for start in range(0, len(absent), SAVE_EVERY):
        part = absent[start : start + SAVE_EVERY]
        index.add(stamped[part], _measured(examples, part, problems, bar))
    if problems:
        refuse(problems, len(examples), "conversations", mend)
    if len(absent):
        index.keep(stamped)
        found = stamped.join(index.rows, on=STAMPS, how="left", maintain_order="left")
    return Lengths(found.select(*COLUMNS), frame["id"])


def _measured(examples: Examples, numbers: np.ndarray, problems: list[Bad], bar: Progress) -> Iterator[Example | None]:
    for start in range(0, len(numbers), CHUNK):
        part = numbers[start : start + CHUNK]
        for number, conversation in zip(part.tolist(), examples.among(part), strict=True):
            try:
                yield examples.keep(number, examples.example(conversation))
            except WorkbenchError as error:
                problems.append((error.where, reason_of(error)))
                yield None
        bar.advance(len(part))


class Index:
    """The file of one dataset's lengths under one renderer."""

    def __init__(self, examples: Examples, name: str) -> None:
        reader = examples.reader
        self.tiling = reader.tiling
        settings = f"{reader.renderer.fingerprint()} {reader.tiling} polars {pl.__version__}"
        key = "-".join(hashlib.sha256(text.encode()).hexdigest()[:16] for text in (os.path.abspath(name), settings))
        self.path = state_folder() / "lengths" / f"{key}.parquet"
        self.rows = self._read()

    def add(self, stamps: pl.DataFrame, measured: Iterator[Example | None]) -> None:
        """Take in what was measured and save."""
        rows = [None if example is None else _row(example, self.tiling) for example in measured]
        good = np.array([row is not None for row in rows], bool)
        new = pl.DataFrame([row for row in rows if row is not None], schema=COLUMNS, orient="row")
        whole = stamps.filter(pl.Series(good)).hstack(new)
        self.rows = pl.concat([self.rows, whole]).unique(STAMPS, keep="last", maintain_order=True)
        self._save()

    def keep(self, stamps: pl.DataFrame) -> None:
        """Forget conversations that are no more, once they are as many as those that are."""
        if self.rows.height > 2 * stamps.height:
            self.rows = self.rows.join(stamps.unique(), on=STAMPS, how="semi")
            self._save()

    def _read(self) -> pl.DataFrame:
        empty = pl.DataFrame(schema={**dict.fromkeys(STAMPS, pl.UInt64), **COLUMNS})
        try:
            held = pl.read_parquet(self.path.read_bytes())
        except (OSError, pl.exceptions.PolarsError):
            return empty
        return held if held.schema == empty.schema else empty

    def _save(self) -> None:
        buffer = io.BytesIO()
        self.rows.write_parquet(buffer, compression="zstd")
        with suppress(DiskError):  # it saves time and is nobody's data
            write_atomic(self.path, buffer.getvalue())


def _row(example: Example, tiling: Tiling) -> tuple[int | None, ...]:
    """An example's `COLUMNS`."""
    shared = example.shared_images
    tiles = [tiling.tiles(size) for size in example.sizes] or [1] * len(example.images)
    squares = [tiling.squares(size) for size in example.sizes] or tiles
    return (
        *(example.tokens, example.prefix, example.supervised, len(example.images), shared, example.share_key),
        *(sum(tiles), sum(tiles[:shared]), sum(example.counts), sum(example.counts[:shared])),
        *(sum(squares), sum(squares[:shared])),
    )
