"""The Parquet files of a table: one, or shards in order, each with how it was made in its footer.

Knows: frames to bytes and back, rows counted without reading them, a damaged file.
Does not know: what a row must look like (`tables.py`), or which files are the current ones (`folder.py`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import polars as pl

from workbench.errors import DataError

_META = "workbench"


def to_parquet(frame: pl.DataFrame, meta: Mapping[str, Any]) -> bytes:
    """A zstd Parquet file of the frame; `meta` (JSON-able) travels in its footer, so that both change in one rename."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", metadata={_META: json.dumps(meta)})
    return buffer.getvalue()


def read_parquet(files: list[Path]) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The rows of one table from its file, or its shards in order, and the `meta` of the first.

    Raises `DataError` where a file is damaged.
    """
    frames = []
    for file in files:
        with _reading(file), open(file, "rb") as handle:  # one handle: a writer may replace the file meanwhile
            meta = _meta(handle)
            handle.seek(0)
            frames.append((pl.read_parquet(handle), meta))
    return pl.concat([frame for frame, _ in frames], how="diagonal_relaxed"), frames[0][1]


def each_parquet(files: list[Path]) -> Iterator[pl.DataFrame]:
    """The rows of the shards, one shard in memory at a time. What a writer does meanwhile is not seen.

    Raises `DataError` where a file is damaged.
    """
    with ExitStack() as open_files:
        handles = []
        for file in files:
            with _reading(file):
                handles.append(open_files.enter_context(open(file, "rb")))
        for file, handle in zip(files, handles, strict=True):
            with _reading(file):
                frame = pl.read_parquet(handle)
            yield frame


def one_schema(files: list[Path]) -> bool:
    """Whether all files have the same columns. Raises `DataError` where one is damaged."""
    schemas = []
    for file in files:
        with _reading(file):
            schemas.append(pl.read_parquet_schema(file))
    return all(schema == schemas[0] for schema in schemas)


def count_rows(files: list[Path]) -> int:
    """How many rows the files hold, from their footers alone."""
    return sum(pl.scan_parquet(file, glob=False).select(pl.len()).collect().item() for file in files)


def read_meta(file: Path) -> dict[str, Any]:
    """What `to_parquet` put into the footer. Raises `DataError` where the file is damaged."""
    with _reading(file), open(file, "rb") as handle:
        return _meta(handle)


def _meta(handle: IO[bytes]) -> dict[str, Any]:
    """Nothing done and no edits taken in, for a file that another tool wrote."""
    return {"operations": [], "edits": 0, **json.loads(pl.read_parquet_metadata(handle).get(_META, "{}"))}


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, ValueError) as problem:
        first = (str(problem).splitlines() or [type(problem).__name__])[0]
        found = f"a damaged or truncated Parquet file ({first})"
        fix = "copy the dataset again, take the file from snapshots/, or import again into a new folder"
        raise DataError(str(file), found=found, fix=fix) from problem
