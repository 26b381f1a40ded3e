"""A dataset: one folder of Parquet tables, a card, and a log of edits. The folder is the truth.

    card.yaml               name, roots, source, licence, columns, counts, how it was made, snapshots
    images.parquet          one row per image or video (or images/*.parquet, shards)
    conversations.parquet   one row per conversation (or conversations/*.parquet; so many are written as they come)
    edits.jsonl             changes by people, undo among them, one by one; laid over the tables when they are read
    snapshots/VERSION/      the dataset as it was, itself a dataset folder

Knows: images and conversations, roots, splits and status on read.
Does not know: how the files stay whole (`folder.py`), how versions are kept (`versions.py`) and compared (`diff.py`),
where rows come from (`formats.py`), pixels, FiftyOne.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from workbench.conversation import Conversation, Image, Video
from workbench.data import parquet, tables, versions
from workbench.data.diff import Diff, difference
from workbench.data.folder import CARD, Folder, inside, now, resolve_inside
from workbench.errors import DataError, kind_of
from workbench.resources import state_folder


class Dataset:
    """A dataset folder. Reading sees what other processes wrote; writing holds the folder's lock."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._folder = Folder(path)

    @staticmethod
    def create(
        path: str | Path,
        *,
        name: str,
        roots: Mapping[str, str] | None = None,
        card: Mapping[str, Any] | None = None,
        images: pl.DataFrame | None = None,
        conversations: Iterable[Conversation] | pl.DataFrame = (),
    ) -> Dataset:
        """A new dataset in `path`; pictures may already lie there. `roots` are relative to it, or absolute.

        Conversations are written as they come, in shards where they are many. The card is written last: a folder
        without one is not a dataset yet. Raises `DataError` where one exists.
        """
        frame = tables.as_images(images if images is not None else pl.DataFrame(schema=tables.IMAGE_COLUMNS))
        if isinstance(conversations, pl.DataFrame):
            frames = iter([conversations])
        else:
            frames = tables.conversation_frames(conversations)
        folder = Folder(path)
        with folder.begin():
            folder.fill("images", [frame])
            folder.fill("conversations", frames)
            folder.write_card(new_card(name, roots or {"images": "images"}, card or {}))
        return Dataset(path)

    @staticmethod
    def open(path: Dataset | str | Path) -> Dataset:
        """An existing dataset: a folder, or the name of one in the state folder, such as the quickstart's `scenes`.

        One that is open already is given back. Raises `DataError` for anything else, and where the folder is missing,
        half written or damaged.

        >>> wb.Dataset.open("data").card["counts"]["images"]
        24
        """
        if isinstance(path, Dataset):
            return path
        if not isinstance(path, (str, Path)):
            raise DataError("dataset", found=kind_of(path), expected="a Dataset, or its folder")
        path = Path(path)
        if len(path.parts) == 1 and not path.exists() and (state_folder() / "datasets" / path).exists():
            path = state_folder() / "datasets" / path
        if path.is_file():
            raise DataError(str(path), found="a file", expected="the folder of a dataset")
        dataset = Dataset(path)
        dataset._folder.card()
        for table in tables.COLUMNS:
            for file in dataset._folder.files(table):
                parquet.read_meta(file)
        return dataset

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows: counts and a few thumbnails; the other pictures are not opened."""
        from workbench.data.preview import preview

        return preview(self)

    # --- the card -----------------------------------------------------------------------------------------------

    @property
    def card(self) -> dict[str, Any]:
        """What `card.yaml` says, with the counts as they are now."""
        return {**self._folder.present_card(), "counts": self._folder.counts()}

    def describe(self, **sections: Any) -> None:
        """Write sections into the card: facts about the dataset, such as `conversations` by `generate`."""
        with self._folder.lock():
            self._folder.write_card({**self._folder.card(), **sections})

    @property
    def name(self) -> str:
        return str(self._folder.card()["name"])

    @property
    def roots(self) -> dict[str, Path]:
        """Absolute folders by name."""
        return self._folder.roots()

    def resolve(self, media: Image | Video) -> Path:
        """Where the file of an image or video lies now. Raises `DataError` for an unknown root or a climbing path."""
        roots = self.roots
        if media.root not in roots:
            fix = f"add {media.root!r} under roots: in {self.path / CARD}"
            raise DataError(media.path, found=f"root {media.root!r}", expected=", ".join(sorted(roots)), fix=fix)
        return resolve_inside(roots[media.root], media.path)

    def resolver(self, *, there: bool = False) -> Callable[[Image | Video], Path]:
        """`resolve` for many: the card is read once, and each folder looked at once. there: no file raises, too."""
        finders = {name: inside(root, there=there) for name, root in self.roots.items()}
        return lambda media: finders[media.root](media.path) if media.root in finders else self.resolve(media)

    # --- reading ------------------------------------------------------------------------------------------------

    @property
    def images(self) -> pl.DataFrame:
        """One row per image or video, edits applied. Columns: `tables.IMAGE_COLUMNS`, then whatever was added."""
        return self._folder.table("images")

    @property
    def conversation_rows(self) -> pl.DataFrame:
        """One row per conversation, edits applied, whatever its status. Columns: `tables.CONVERSATION_COLUMNS`."""
        return self._folder.table("conversations")

    def find(self, name: str) -> tuple[Conversation, str, str | None]:
        """The conversation with the id `name`, its status and the reason. Raises `DataError` for an unknown id."""
        rows = self.conversation_rows.filter(pl.col("id") == name)
        if not rows.height:
            raise DataError(f"conversation {name}", found="no such id", expected=f"one of {self.path}")
        return next(tables.frame_to_conversations(rows)), rows["status"][0], rows["reason"][0]

    def conversations(self, split: str | None = None, tasks: Sequence[str] | None = None) -> list[Conversation]:
        """The conversations that are ok, in the order written.

        Left out are those whose own status, or the status of one of their images or videos, is not ok. A conversation
        without a split of its own counts to the split of its first image or video.
        """
        return list(self.iter_conversations(split, tasks))

    def iter_conversations(
        self, split: str | None = None, tasks: Sequence[str] | None = None
    ) -> Iterator[Conversation]:
        """As `conversations`, made one by one; of a table in shards one shard is in memory at a time."""
        for rows in self.conversation_parts():
            rows = rows.filter("usable")
            if split is not None:
                rows = rows.filter(pl.col("part") == split)
            if tasks is not None:
                rows = rows.filter(pl.col("task").is_in(list(tasks)))
            yield from tables.frame_to_conversations(rows)

    def conversation_parts(self) -> Iterator[pl.DataFrame]:
        """The rows of `conversation_rows`, a shard of the table at a time, with two more columns.

        `usable`: whether `conversations` gives it; `part`: the split it counts to, or null.
        """
        images = self.images.lazy().select("root", "path", "status", pl.col("split").alias("image split"))
        # An image that is ok and of no split says nothing: each shard is joined with the others alone.
        images = images.filter((pl.col("status") != "ok") | pl.col("image split").is_not_null()).collect().lazy()
        for rows in self._folder.parts("conversations"):
            usable = (pl.col("status") == "ok") & pl.col("images ok")
            held = _with_images(rows, images).with_columns(usable=usable, part=pl.coalesce("split", "image split"))
            yield held.drop("images ok", "image split")

    # --- writing ------------------------------------------------------------------------------------------------

    def write_images(self, frame: pl.DataFrame, *, operation: Mapping[str, Any] | None = None) -> None:
        """Replace the whole table of images, edits so far included. To change some rows use `update_images`."""
        frame = tables.as_images(frame)
        with self._folder.lock():
            self._folder.commit("images", frame, operation or {"name": "write"})

    def add_images(self, frame: pl.DataFrame, *, operation: Mapping[str, Any] | None = None) -> None:
        """Append rows; those whose root and path are there already are left as they are."""
        with self._folder.lock():
            old = self.images
            new = tables.as_images(frame).join(old, on=["root", "path"], how="anti", maintain_order="left")
            if new.height:
                rows = pl.concat([old, new], how="diagonal")
                self._folder.commit("images", rows, operation or {"name": "add images", "count": new.height})

    def update_images(self, changes: pl.DataFrame, *, operation: Mapping[str, Any]) -> None:
        """Put the values of `changes` (a column `id` and those to change) into the rows of these ids.

        `operation` says what was done, for the lineage: `{"name": "split", "seed": 0, ...}`. Columns that the table
        lacks are added. Raises `DataError` for an unknown or repeated id.
        """
        with self._folder.lock():
            frame = self.images
            _check_ids(changes, frame)
            self._folder.commit("images", tables.as_images(tables.overlay(frame, changes)), operation)

    def write_conversations(
        self, conversations: Iterable[Conversation], *, operation: Mapping[str, Any] | None = None
    ) -> None:
        """Replace all conversations. Raises `DataError` or `ConversationError` naming one that cannot be kept.

        Status and edits start anew; to keep what is there use `add_conversations`.
        """
        frame = tables.conversations_to_frame(conversations)
        with self._folder.lock():
            self._folder.commit("conversations", frame, operation or {"name": "write"})

    def add_conversations(
        self,
        conversations: Iterable[Conversation],
        *,
        rejected: Mapping[str, str] | None = None,
        operation: Mapping[str, Any] | None = None,
    ) -> None:
        """Append conversations; one whose id is there already takes its place and keeps its status: rejected stays so.

        `rejected`: ids of those that are kept but not used, with the reason; all others are then ok, whatever they
        were before. Raises as `write_conversations` does.
        """
        new = tables.conversations_to_frame(conversations)
        if rejected:
            new = tables.with_rejected(new, rejected)
        with self._folder.lock():
            old = self.conversation_rows
            known = new.filter(pl.col("id").is_in(old["id"].implode()))
            known = known if rejected is not None else known.drop("status", "reason")
            rows = pl.concat([tables.overlay(old, known), new.join(known, on="id", how="anti", maintain_order="left")])
            self._folder.commit("conversations", rows, operation or {"name": "add", "count": new.height})

    def edit(self, record: Mapping[str, Any]) -> None:
        """Append one change by a person: `{"table": "images", "id": ..., "set": {"status": "removed", ...}}`.

        `table` is `images` or `conversations`; `messages` of a conversation are in the chat shape. The change is on
        the disk when this returns. Further keys (who, why) are kept. A conversation remembers its edits itself, each
        with who, time and what it said before, in `source["edits"]`. Raises `DataError` for what cannot be applied.
        """
        with self._folder.lock():
            table = record.get("table")
            if table not in tables.COLUMNS:
                where = f"edit of {record.get('id')!r}"
                raise DataError(where, found=f"table {table!r}", expected=" or ".join(tables.COLUMNS))
            frame = self._folder.table(table)
            tables.check_edit(frame, record)
            self._folder.append_edit(tables.with_history(frame, record, now()) if table == "conversations" else record)

    # --- versions -----------------------------------------------------------------------------------------------

    def snapshot(self) -> str:
        """Fix the present state under a version named by its content, and compact the edits.

        The same content gives the same version, whatever the order of rows. It is kept in `snapshots/VERSION`, itself
        a dataset folder (hard links where the disk allows).
        """
        with self._folder.lock():
            return versions.snapshot(self._folder)

    @property
    def lineage(self) -> versions.Lineage:
        """Snapshots in order, each with `version`, `parent` and the `operations` (name and parameters) between them.

        What happened since the last snapshot is a final entry with version None. `print` shows them as a tree.
        """
        return versions.lineage(self._folder)

    def diff(self, a: str, b: str | None = None) -> Diff:
        """What came, went and changed from version `a` to version `b`, or to the present state.

        The first characters of a version are enough. Raises `DataError` for an unknown or ambiguous one.
        """
        return difference(self._folder, a, b)

    def undo(self, version: str | None = None) -> str:
        """Go back to a snapshot: by default the last one that differs from the present state. Returns its version.

        The present state is kept as a snapshot first, so `undo()` once more brings it back. The card's sections on the
        content go back too; name, roots, source and licence stay. Raises `DataError` where there is nothing to go
        back to, and for an unknown or ambiguous version.
        """
        with self._folder.lock():
            return versions.undo(self._folder, version)


def new_card(name: str, roots: Mapping[str, str], card: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a dataset that is made now; `card` has further sections, and cannot change name, roots, snapshots."""
    given = {"name": name, "roots": dict(roots)}
    empty = {"source": None, "licence": None, "made": None, "columns": tables.MEANING}
    return {**given, **empty, **card, **given, "snapshots": [], "created": now()}


def _check_ids(changes: pl.DataFrame, frame: pl.DataFrame) -> None:
    where = "changes to images"
    if "id" not in changes.columns:
        raise DataError(where, found="no column 'id'", expected="id and the columns to change")
    unknown = changes.filter(~pl.col("id").is_in(frame["id"].implode()))["id"].head(3).to_list()
    if unknown:
        raise DataError(where, found=f"ids that it lacks: {unknown}", expected="ids of rows")
    if changes["id"].is_duplicated().any():
        raise DataError(where, found="an id twice", expected="one row per id")


def _with_images(rows: pl.DataFrame, images: pl.LazyFrame) -> pl.DataFrame:
    """The rows with `images ok` and `image split`, looked up by root and path."""
    if images.first().collect().is_empty():
        return rows.with_columns(pl.lit(None, pl.String).alias("image split"), pl.lit(True).alias("images ok"))
    parts = (
        tables.images_of(rows)
        .lazy()
        .join(images, on=["root", "path"], how="left", maintain_order="left")
        .group_by("id", maintain_order=True)
        .agg(
            (pl.col("status").fill_null("ok") == "ok").all().alias("images ok"),
            pl.col("image split").drop_nulls().first(),
        )
    )
    joined = rows.lazy().join(parts, on="id", how="left", maintain_order="left")
    return joined.with_columns(pl.col("images ok").fill_null(True)).collect()
