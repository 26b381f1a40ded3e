"""The two tables of a dataset: their columns, and values to rows and back.

Knows: the columns of images and conversations, changes laid over a table by id, the content hash.
Does not know: files (`parquet.py`), folders, locks or roots (`folder.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import polars as pl
import pyarrow as pa

from workbench.conversation import (
    SPLITS,
    Conversation,
    Image,
    Media,
    Video,
    check_conversation,
    from_record,
    to_chat,
    to_record,
)
from workbench.errors import DataError, not_unicode

STATUSES = ("ok", "quarantined", "removed")
MEDIA = ("image", "video")

IMAGE_COLUMNS: dict[str, Any] = {
    "id": pl.String,
    "root": pl.String,
    "path": pl.String,
    "width": pl.Int64,
    "height": pl.Int64,
    "hash": pl.String,
    "phash": pl.String,
    "split": pl.String,
    "label": pl.String,
    "captions": pl.List(pl.String),
    "objects": pl.String,
    "status": pl.String,
    "reason": pl.String,
    "media": pl.String,
}
PART = {
    "type": pl.String,
    "text": pl.String,
    "path": pl.String,
    "root": pl.String,
    "width": pl.Int64,
    "height": pl.Int64,
    "hash": pl.String,
}
CONVERSATION_COLUMNS: dict[str, Any] = {
    "id": pl.String,
    "messages": pl.List(pl.Struct({"role": pl.String, "content": pl.List(pl.Struct(PART))})),
    "split": pl.String,
    "task": pl.String,
    "source": pl.String,
    "metadata": pl.String,
    "status": pl.String,
    "reason": pl.String,
}
COLUMNS = {"images": IMAGE_COLUMNS, "conversations": CONVERSATION_COLUMNS}
MEANING = {
    "images": {
        "id": "assigned once, kept for ever",
        "root": "name of a folder under roots",
        "path": "POSIX path below the root",
        "width": "pixels, after rotation",
        "height": "pixels, after rotation",
        "hash": "SHA-256 of the file",
        "phash": "64-bit perceptual hash, hexadecimal; of a video its first frame's",
        "split": "train, val, test or none",
        "label": "class name",
        "captions": "what people wrote about it",
        "objects": "exact annotations, JSON",
        "status": "ok, quarantined or removed",
        "reason": "why it is not ok, or what was odd",
        "media": "image or video",
    },
    "conversations": {
        "messages": "role and content (text, image and video parts), the Hugging Face / OpenAI shape",
        "source": "where it came from, JSON",
        "metadata": "anything else, JSON",
    },
}
"""What the card says about the columns."""

SHARD = 10_000
"""Conversations in one file of a table that is written as they come."""
_CHUNK = 1_000
"""Conversations that are Python values at a time: they take many times the room of a table."""
_DEFAULTS: dict[str, Any] = {"root": "images", "status": "ok", "captions": [], "media": "image"}


# --- frames -----------------------------------------------------------------------------------------------------


def as_images(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with every column of `IMAGE_COLUMNS` in order, then its own further columns.

    Raises `DataError` for a missing id or path, a wrong type, an unknown status, split or medium, or a repeated row.
    """
    return check_table(complete(frame, "images"), "images")


def complete(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """Missing columns added with their defaults, known columns cast to their types."""
    for column in ("id", "path" if table == "images" else "messages"):
        if column not in frame.columns:
            raise DataError(f"table {table}", found=f"no column {column!r}", expected=", ".join(COLUMNS[table]))
    known = []
    for column, kind in COLUMNS[table].items():
        default = pl.lit(_DEFAULTS.get(column), dtype=kind)
        known.append(pl.col(column).cast(kind).fill_null(default) if column in frame.columns else default.alias(column))
    try:
        return frame.select(*known, pl.exclude(list(COLUMNS[table])))
    except pl.exceptions.PolarsError as problem:
        raise DataError(f"table {table}", found=f"a column of the wrong type ({_first_line(problem)})") from problem


def check_table(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """The frame, if ids are unique and status, split and media are known words."""
    where = f"table {table}"
    if frame["id"].null_count() or (frame["id"] == "").any():
        raise DataError(where, found="a row without id", expected="an id in every row")
    key = ["root", "path"] if table == "images" else ["id"]
    for columns in (["id"], key):
        _check_unique(frame, columns, where)
    words_of = {"status": STATUSES, "split": (*SPLITS, None), **({"media": MEDIA} if table == "images" else {})}
    for column, words in words_of.items():
        wrong = frame.filter(~pl.col(column).is_in(list(words), nulls_equal=True))
        if wrong.height:
            found = f"{column} {wrong[column][0]!r} in {wrong['id'][0]}"
            raise DataError(where, found=found, expected=", ".join(str(word or "none") for word in words))
    return frame


def _check_unique(frame: pl.DataFrame, columns: list[str], where: str) -> None:
    repeated = frame.filter(pl.struct(columns).is_duplicated())
    if repeated.height:
        names = ", ".join(dict.fromkeys("/".join(row) for row in repeated.select(columns).head(6).rows()))
        raise DataError(where, found=f"the same {' and '.join(columns)} twice: {names}", expected="each once")


def overlay(frame: pl.DataFrame, changes: pl.DataFrame) -> pl.DataFrame:
    """The frame with the changed rows' values put in by id; a null in `changes` sets null. New columns are added.

    Raises `DataError` for a value that does not fit its column.
    """
    changed = [column for column in changes.columns if column != "id"]
    marked = changes.rename({column: f"new {column}" for column in changed}).with_columns(pl.lit(True).alias("new row"))
    joined = frame.join(marked, on="id", how="left", maintain_order="left")
    take = pl.col("new row").fill_null(False)
    values = []
    for column in changed:
        old = pl.col(column) if column in frame.columns else pl.lit(None)
        kind = frame.schema.get(column) or changes.schema[column]
        values.append(pl.when(take).then(pl.col(f"new {column}").cast(kind)).otherwise(old).alias(column))
    try:
        return joined.with_columns(values).select(*frame.columns, *(c for c in changed if c not in frame.columns))
    except pl.exceptions.PolarsError as problem:
        raise DataError("changes", found=f"a value of the wrong type ({_first_line(problem)})") from problem


def apply_edits(frame: pl.DataFrame, edits: Sequence[Mapping[str, Any]], table: str) -> pl.DataFrame:
    """The edits laid over the frame, the later over the earlier."""
    values: dict[str, dict[str, Any]] = {}
    for edit in edits:
        for column, value in edit["set"].items():
            packed = json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else value
            values.setdefault(column, {})[edit["id"]] = packed
    for column, by_id in values.items():
        schema: dict[str, Any] = {"id": pl.String, column: frame.schema[column]}
        try:
            changes = pl.DataFrame({"id": list(by_id), column: list(by_id.values())}, schema=schema)
        except (pl.exceptions.PolarsError, TypeError, UnicodeEncodeError) as problem:
            where = f"edit of {table}, column {column}"
            raise DataError(where, found=str(problem), expected=f"a value of type {schema[column]}") from problem
        frame = overlay(frame, changes)
    return frame


def check_edit(frame: pl.DataFrame, record: Mapping[str, Any]) -> None:
    """Raise `DataError` for what is wrong with an edit of the frame, or with its row after it."""
    where, table, values = f"edit of {record.get('id')!r}", record["table"], record.get("set")
    if not isinstance(values, Mapping) or not values or "id" in values:
        raise DataError(where, found=f"set {values!r}", expected="a mapping of columns to new values, without id")
    unknown = [column for column in values if column not in frame.columns]
    if unknown:
        raise DataError(where, found=f"column {unknown[0]!r}", expected=", ".join(frame.columns))
    row = frame.filter(pl.col("id") == record.get("id"))
    if not row.height:
        raise DataError(where, found=f"no such id in {table}", expected="the id of a row")
    edited = check_table(apply_edits(row, [record], table), table)
    if table == "conversations":
        check_conversation(next(frame_to_conversations(edited)))


def with_history(frame: pl.DataFrame, record: Mapping[str, Any], time: str) -> dict[str, Any]:
    """The edit of a conversation, with what it said before added to `source["edits"]`: it travels with the row."""
    row = frame.filter(pl.col("id") == record["id"])
    old = {column: row[column][0] for column in record["set"] if column != "messages"}
    if "messages" in record["set"]:
        old["messages"] = to_chat(next(frame_to_conversations(row)))
    known = json.loads(row["source"][0])
    given = record["set"].get("source", known)
    source = {"edits": known.get("edits", []), **(given if isinstance(given, Mapping) else json.loads(given))}
    if "source" in old:  # without its edits, which stay where they are
        old["source"] = {key: value for key, value in known.items() if key != "edits"}
    edit = {"who": record.get("who", record.get("by")), "why": record.get("why"), "time": time, "before": old}
    source["edits"] = [*source["edits"], {key: value for key, value in edit.items() if value is not None}]
    return {**record, "set": {**record["set"], "source": source}}


def content_hash(frame: pl.DataFrame) -> str:
    """SHA-256 over the rows, whatever their order and whatever the order of further columns.

    Without `media` where all are images: a dataset of pictures keeps the versions it had before there was that column.
    """
    digest = hashlib.sha256()
    if "media" in frame.columns and (frame["media"] == "image").all():
        frame = frame.drop("media")
    ordered = frame.select(sorted(frame.columns)).sort("id")
    for part in ordered.iter_slices(20_000):
        digest.update(part.write_ndjson().encode())
    return digest.hexdigest()


# --- conversations ----------------------------------------------------------------------------------------------


def conversations_to_frame(conversations: Iterable[Conversation]) -> pl.DataFrame:
    """One row per conversation. Raises `ConversationError` or `DataError` naming the one that cannot be kept."""
    return pl.concat(conversation_frames(conversations))


def conversation_frames(conversations: Iterable[Conversation]) -> Iterator[pl.DataFrame]:
    """As `conversations_to_frame`, in frames of `SHARD` rows, each made when it is asked for; one of none is empty.

    Raises also where an id comes twice; after the last frame, if it came in two of them.
    """
    waiting = iter(conversations)
    ids: list[pl.Series] = []
    while (parts := [_frame(list(islice(waiting, _CHUNK))) for _ in range(SHARD // _CHUNK)])[0].height or not ids:
        frame = check_table(pl.concat(parts), "conversations")
        ids.append(frame["id"])
        yield frame
    if len(ids) > 1:
        _check_unique(pl.DataFrame({"id": pl.concat(ids)}), ["id"], "table conversations")


def _frame(conversations: Sequence[Conversation]) -> pl.DataFrame:
    rows = [_row(conversation) for conversation in conversations]
    try:
        return _as_frame(rows)
    except (ValueError, TypeError):  # of pyarrow and of str.encode; which row it is costs time, so it is asked now
        for row in rows:
            _check_kept(row)
        raise


def _as_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    schema = pl.DataFrame(schema=CONVERSATION_COLUMNS).to_arrow().schema
    return pl.DataFrame(pa.Table.from_pylist(rows, schema=schema))  # three times as fast as polars' own way


def _check_kept(row: dict[str, Any]) -> None:
    where = f"conversation {row['id']}"
    try:
        _as_frame([row])
    except UnicodeEncodeError as problem:
        raise DataError(where, found=not_unicode(problem), expected="text that can be saved") from problem
    except (ValueError, TypeError) as problem:
        raise DataError(where, found=_first_line(problem), expected="text where text belongs") from problem


def _row(conversation: Conversation) -> dict[str, Any]:
    record = to_record(check_conversation(conversation))
    where = f"conversation {conversation.id}"
    try:
        packed = {key: json.dumps(record[key], ensure_ascii=False) for key in ("source", "metadata")}
    except (TypeError, ValueError) as problem:
        expected = "text, numbers, lists and mappings in source and metadata"
        raise DataError(where, found=str(problem), expected=expected) from problem
    return {**record, **packed, "status": "ok", "reason": None}


def with_rejected(frame: pl.DataFrame, rejected: Mapping[str, str]) -> pl.DataFrame:
    """The rows with status removed and the reason where `rejected` names their id; all others are ok."""
    reason = pl.col("id").replace_strict(dict(rejected), default=None, return_dtype=pl.String)
    status = pl.when(reason.is_null()).then(pl.lit("ok")).otherwise(pl.lit("removed"))
    return frame.with_columns(status=status, reason=reason)


def frame_to_conversations(frame: pl.DataFrame) -> Iterator[Conversation]:
    """The conversations of a frame, in its order."""
    for row in frame.iter_rows(named=True):
        yield from_record({**row, "source": json.loads(row["source"]), "metadata": json.loads(row["metadata"])})


def media_of(row: Mapping[str, Any]) -> Media:
    """The image or video of a row of `images`, as a message names it."""
    if row["media"] == "video":
        return Video(row["path"], row["root"], row["hash"])
    return Image(row["path"], row["root"], row["width"], row["height"], row["hash"])


def images_of(frame: pl.DataFrame) -> pl.DataFrame:
    """The images and videos of conversations in their order.

    Columns: `row` (number in the frame), `id`, `type` (image or video), `root`, `path`, `hash`, `width`, `height`.
    """
    parts = (
        frame.lazy()
        .with_row_index("row")
        .select("row", "id", pl.col("messages").list.eval(pl.element().struct.field("content")))
        .explode("messages")
        .explode("messages")
        .filter(pl.col("messages").struct.field("type").is_in(["image", "video"]))
    )
    fields = [pl.col("messages").struct.field(name) for name in ("type", "root", "path", "hash", "width", "height")]
    return parts.select("row", "id", *fields).collect()


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
