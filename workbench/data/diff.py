"""What differs between two versions of a dataset: images and conversations that came, went, changed.

Knows: two tables compared by id, column by column; a short text of it, and all of it as polars frames.
Does not know: how a version is kept (`versions.py`, `folder.py`).
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from workbench.data import tables
from workbench.data.folder import Folder
from workbench.data.versions import find

CHANGES = {"came": "+", "went": "-", "changed": "~"}
SHOWN, LONGEST = 5, 60
"""Rows of a kind, and characters of a value, that the text shows."""
_VALUES = ("column", "before", "after")
_SCHEMA = dict.fromkeys(("id", "name", "change", *_VALUES), pl.String)


@dataclass(frozen=True)
class Diff:
    """The way from one version to another. Both frames have these columns, all text:

    `id`, `name` (an image's path, what a conversation asks first), `change` (came, went or changed) and, for what
    changed, one row per `column` with its value `before` and `after`: JSON where the column holds lists or structs.
    """

    before: str
    after: str
    """A version, or `now`."""
    images: pl.DataFrame
    conversations: pl.DataFrame

    def summary(self) -> dict[str, Any]:
        """Counts by table: came, went, changed, and of the changed ones by column."""
        parts = {"images": self.images, "conversations": self.conversations}
        return {"before": self.before, "after": self.after, **{name: _counts(part) for name, part in parts.items()}}

    def __str__(self) -> str:
        lines = [f"from {self.before} to {self.after}"]
        for name, frame in (("images", self.images), ("conversations", self.conversations)):
            lines += [_headline(name, _counts(frame)), *_rows(frame)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def difference(folder: Folder, a: str, b: str | None = None) -> Diff:
    """From version `a` to version `b`, or to the present state. See `Dataset.diff`."""
    first, second = find(folder, a), find(folder, b) if b is not None else None
    old, new = folder.kept(first), folder.kept(second) if second else folder
    frames = {table: _compare(old.table(table), new.table(table), table) for table in tables.COLUMNS}
    return Diff(first, second or "now", **frames)


# --- comparing --------------------------------------------------------------------------------------------------


def _compare(old: pl.DataFrame, new: pl.DataFrame, table: str) -> pl.DataFrame:
    """One row per id that came or went, and per column of an id that changed, as `Diff` tells."""
    came, went = (one.filter(~pl.col("id").is_in(two["id"].implode())) for one, two in ((new, old), (old, new)))
    changed = _changed(_plain(old), _plain(new))
    names = _named(new.filter(pl.col("id").is_in(changed["id"].implode())), table)
    parts = [
        _named(came, table).with_columns(change=pl.lit("came")),
        _named(went, table).with_columns(change=pl.lit("went")),
        changed.join(names, on="id", how="left", maintain_order="left").with_columns(change=pl.lit("changed")),
    ]
    return pl.concat([pl.DataFrame(schema=_SCHEMA), *parts], how="diagonal")


def _changed(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """What differs in rows that both have, in their order. Columns: id, column, before, after."""
    rows = pl.int_range(pl.len())
    both = new.select("id", rows.alias("new")).join(old.select("id", rows.alias("old")), on="id", maintain_order="left")
    before, after = old[both["old"]], new[both["new"]]
    parts = [pl.DataFrame(schema={"row": pl.Int64, "id": pl.String, **dict.fromkeys(_VALUES, pl.String)})]
    for column in dict.fromkeys((*new.columns, *old.columns)):
        pair = [_values(frame, column) for frame in (before, after)]
        if pair[0].dtype != pair[1].dtype:
            pair = [values.cast(pl.String) for values in pair]
        differs = pair[0].ne_missing(pair[1])
        was, now = (values.filter(differs).cast(pl.String) for values in pair)
        found = {"row": both["new"].filter(differs), "id": both["id"].filter(differs), "before": was, "after": now}
        parts.append(pl.DataFrame(found).with_columns(pl.lit(column).alias("column")).select(parts[0].columns))
    return pl.concat(parts).sort("row", maintain_order=True).drop("row")


def _values(frame: pl.DataFrame, column: str) -> pl.Series:
    """The column, or as many nulls where one of the two versions lacks it."""
    return frame[column] if column in frame.columns else pl.repeat(None, frame.height, dtype=pl.String, eager=True)


def _plain(frame: pl.DataFrame) -> pl.DataFrame:
    """Lists and structs as JSON: looking up and comparing rows of text is many times as fast."""
    nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
    packed = (pl.struct(pl.col(name).alias("value")).struct.json_encode() for name in nested)
    texts = (text.str.strip_prefix('{"value":').str.strip_suffix("}").replace("null", None) for text in packed)
    return frame.with_columns(**dict(zip(nested, texts, strict=True)))


def _named(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """Columns: id, name."""
    if table == "images":
        return frame.select("id", pl.concat_str("root", "path", separator="/").alias("name"))
    content = pl.col("messages").list.eval(pl.element().struct.field("content").list.explode()).list
    texts = content.eval(pl.element().struct.field("text").drop_nulls())
    return frame.select("id", texts.list.first().alias("name"))


# --- telling ----------------------------------------------------------------------------------------------------


def _counts(frame: pl.DataFrame) -> dict[str, Any]:
    numbers = dict(frame.group_by("change").agg(pl.col("id").n_unique()).iter_rows())
    columns = frame["column"].drop_nulls().value_counts().sort("count", "column", descending=[True, False])
    return {**{change: numbers.get(change, 0) for change in CHANGES}, "columns": dict(columns.iter_rows())}


def _headline(name: str, counts: Mapping[str, Any]) -> str:
    parts = [f"{counts[change]:,} {change}" for change in CHANGES if counts[change]]
    columns = ", ".join(f"{column} {count:,}" for column, count in counts["columns"].items())
    return f"{name}: {', '.join(parts) or 'no difference'}{f' ({columns})' if columns else ''}"


def _rows(frame: pl.DataFrame) -> Iterator[str]:
    """The first few of each kind, a line each."""
    for change, sign in CHANGES.items():
        part = frame.filter(pl.col("change") == change)
        ids = part["id"].unique(maintain_order=True)
        for one in ids.head(SHOWN):
            rows = part.filter(pl.col("id") == one).to_dicts()
            values = "; ".join(_told(**row) for row in rows if row["column"])
            name = "" if rows[0]["name"] is None else f"  {_short(rows[0]['name'])}"
            yield f"  {sign} {one}{name}{'  ' if values else ''}{values}"
        if len(ids) > SHOWN:
            yield f"  {sign} and {len(ids) - SHOWN:,} more"


def _told(column: str, before: str | None, after: str | None, **_: Any) -> str:
    """`label: cat > dog`; of messages the first that differs; of a source that an edit or its undo changed, whose."""
    if column == "messages" and before and after:
        for number, (was, now) in enumerate(zip(_spoken(before), _spoken(after), strict=False)):
            if was != now:
                return f"message {number}: {_short(was)} > {_short(now)}"
        return f"messages: {len(json.loads(before))} > {len(json.loads(after))}"
    if column == "source" and before and after:
        seen, edits = (json.loads(source).get("edits", []) for source in (before, after))
        if len(edits) != len(seen):
            last = max(edits, seen, key=len)[-1]
            told = f"by {last.get('who', 'somebody')}, {last['time'][:19].replace('T', ' ')} UTC"
            return f"edited {told}" if len(edits) > len(seen) else f"without the edit {told}"
    return f"{column}: {_short(before)} > {_short(after)}"


def _spoken(messages: str) -> list[str]:
    """The texts of messages in JSON, each with its role and `<image>` or `<video>` for media."""
    return [
        f"{message['role']}: "
        + " ".join(part["text"] or f"<{part['type']} {part['path']}>" for part in message["content"])
        for message in json.loads(messages)
    ]


def _short(value: str | None) -> str:
    text = "none" if value is None else " ".join(value.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
