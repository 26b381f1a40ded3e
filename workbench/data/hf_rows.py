"""Rows of a Hugging Face dataset as plain mappings, with the bytes of pictures undecoded, a few at a time.

Knows: folders of `save_to_disk`, Parquet files, which files of a dataset on the Hub are wanted.
Does not know: what the columns mean (`hf_datasets.py`), or the Hub (`workbench.hub`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workbench.data.captions_file import SPLITS
from workbench.errors import DataError
from workbench.hub import describe, fetch, size_and_licence

NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""What a name on the Hub looks like; a path that exists is never taken for one."""
PARQUET = ".parquet"
_AT_ONCE = 50
"""Rows read at a time: each may hold several photographs."""

Row = tuple[str, str | None, dict[str, Any]]
"""Where it is, its split, and its values."""


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def hf_rows(path: Path) -> Iterator[Row]:
    """Every row of a folder of `save_to_disk`, a Parquet file, or a folder of them.

    Raises `DataError` where there is none of these, or a file is damaged.
    """
    if path.is_dir() and is_saved(path):
        yield from _saved(path)
        return
    files = [path] if path.is_file() else sorted(path.rglob(f"*{PARQUET}"))
    if not files:
        found = "no Parquet file and no saved dataset" if path.exists() else "no such file or folder"
        raise DataError(str(path), found=found, expected="a folder of save_to_disk, Parquet files, or owner/name")
    for file in files:
        yield from _parquet(file)


def _saved(path: Path) -> Iterator[Row]:
    import datasets

    try:
        held = datasets.load_from_disk(str(path))
    except Exception as problem:  # Arrow, JSON and file errors of many kinds
        raise _damaged(path, problem) from problem
    parts = held if isinstance(held, datasets.DatasetDict) else {"": held}
    for split, part in parts.items():
        number = 0
        for table in part.with_format("arrow").iter(_AT_ONCE):
            for row in table.to_pylist():
                number += 1
                yield f"{split or path.name} row {number}", split_of_file(split), row


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # train.parquet, train-00000-of-00002.parquet, or as the Hub converts them, train/0000.parquet
    split, number = split_of_file(file.stem) or split_of_file(file.parent.name), 0
    try:
        with pq.ParquetFile(file, pre_buffer=False) as opened:  # else every picture of the file stays in memory
            for batch in opened.iter_batches(_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file.name} row {number}", split, row
    except (pa.ArrowException, OSError) as problem:
        raise _damaged(file, problem) from problem


def split_of_file(name: str) -> str | None:
    """The split that the first word of a file's name says, where it says one."""
    return SPLITS.get(re.split(r"[-_.]", name)[0].lower())


def _damaged(path: Path, problem: Exception) -> DataError:
    first = (str(problem).splitlines() or [type(problem).__name__])[0]
    return DataError(str(path), found=f"a damaged dataset ({first})", fix="copy or download it again")


# --- the Hub ----------------------------------------------------------------------------------------------------


def download(name: str, say: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]]:
    """The Parquet files of a dataset on the Hub, and source and licence for the card; name and size are said first.

    Raises `DataError` where there is no connection to the Hub, no such dataset or none in Parquet, or the download
    breaks off.
    """
    info = describe(name, DataError, dataset=True)
    files = [file for file in info.siblings or [] if file.rfilename.endswith(PARQUET)]
    if not files:
        fix = "load it with the datasets library, call save_to_disk, and import that folder"
        raise DataError(name, found="no Parquet file on the Hub", expected="a dataset in Parquet", fix=fix)
    size, licence = size_and_licence(info, files)
    say(f"{name}: {size / 1e9:.2f} GB in {len(files)} files to download, licence {licence or 'not stated'}")
    path = fetch(name, DataError, repo_type="dataset", revision=info.sha, allow_patterns=[f"*{PARQUET}"])
    return path, {"source": f"Hugging Face Hub: {name} at {info.sha}", "licence": licence}
