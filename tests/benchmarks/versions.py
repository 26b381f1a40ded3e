"""Seconds of keeping, comparing and undoing versions of a generated dataset, and how much room the versions take.

    python tests/benchmarks/versions.py [5000 50000]

Each count is one of images, with three conversations each. A tenth of the images change between the two versions that
are compared, and a tenth of the conversations. The last column is the time per image in proportion to the first count.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from workbench.data import tables
from workbench.data.dataset import Dataset

WORDS = "a the small large red blue old dog house tree river street person on in beside under walks stands".split()
PER_IMAGE = 3


def images(count: int) -> pl.DataFrame:
    numbers = range(count)
    objects = [json.dumps([{"label": "dog", "box": [1, 2, 3, number % 100]}] * 3) for number in numbers]
    return pl.DataFrame(
        {
            "id": [f"i{number:06}" for number in numbers],
            "path": [f"{number:06}.jpg" for number in numbers],
            "width": [640] * count,
            "height": [480] * count,
            "hash": [f"{number * 7919:064x}" for number in numbers],
            "captions": [[said(12)] for _ in numbers],
            "objects": objects,
        }
    )


def conversations(count: int) -> pl.DataFrame:
    """Two questions and two answers about each image, three times."""
    rows = []
    for number in range(count * PER_IMAGE):
        picture = {"type": "image", "path": f"{number // PER_IMAGE:06}.jpg", "root": "images"}
        asked = [picture, text("what is there?")]
        turns = [("user", asked), ("assistant", [text(said(40))]), ("user", [text(said(8))])]
        turns += [("assistant", [text(said(30))])]
        messages = [{"role": role, "content": content} for role, content in turns]
        source = json.dumps({"teacher": "none", "prompt": f"{number:064x}"})
        rows.append({"id": f"c{number:06}", "messages": messages, "task": "conversation", "source": source})
    parts = [rows[start : start + 10_000] for start in range(0, len(rows), 10_000)]
    schema = tables.CONVERSATION_COLUMNS
    return tables.complete(
        pl.concat([pl.DataFrame(part, schema=schema) for part in parts]), "conversations"
    ).with_columns(metadata=pl.lit("{}"))


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def said(count: int) -> str:
    return " ".join(random.choices(WORDS, k=count))


def steps(path: Path, count: int) -> list[tuple[str, Callable[[], Any]]]:
    """The steps in order, each to be timed; each opens the dataset anew, as a command would."""
    tenth = [f"i{number:06}" for number in range(0, count, 10)]
    changes = pl.DataFrame({"id": tenth, "status": ["removed"] * len(tenth)})

    def change() -> None:
        Dataset.open(path).update_images(changes, operation={"name": "filter"})
        folder = Dataset.open(path)._folder
        with folder.lock():  # what many edits of a review come to, without the review
            rows = folder.table("conversations")
            other = pl.when(pl.int_range(pl.len()) % 10 == 0).then(pl.lit("removed")).otherwise("status")
            folder.commit("conversations", rows.with_columns(status=other), {"name": "review"})

    def first() -> str:
        return Dataset.open(path).lineage[0]["version"]

    return [
        ("snapshot", lambda: Dataset.open(path).snapshot()),
        ("change", change),
        ("diff to now", lambda: str(Dataset.open(path).diff(first()))),
        ("undo", lambda: Dataset.open(path).undo()),
        ("undo the undo", lambda: Dataset.open(path).undo()),
        ("nothing to keep", lambda: Dataset.open(path).snapshot()),
        ("lineage", lambda: str(Dataset.open(path).lineage)),
    ]


def room(path: Path) -> tuple[float, float]:
    """MB of the tables as counted by name, and as they lie on the disk, where a hard link takes no room."""
    files = [file.stat() for file in path.rglob("*.parquet")]
    once = {stat.st_ino: stat.st_size for stat in files}
    return sum(stat.st_size for stat in files) / 2**20, sum(once.values()) / 2**20


def main(counts: list[int]) -> None:
    base: dict[str, float] = {}
    print(f"{'images':>8} {'conversations':>13}  {'step':16} {'seconds':>8} {'growth':>6}")
    for count in counts:
        random.seed(0)
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "dataset"
            Dataset.create(path, name="versions", images=images(count), conversations=conversations(count))
            for name, step in steps(path, count):
                start = time.perf_counter()
                step()
                took = time.perf_counter() - start
                growth = took / count / base.setdefault(name, took / count)
                print(f"{count:8} {count * PER_IMAGE:13}  {name:16} {took:8.2f} {growth:6.2f}", flush=True)
            named, real = room(path)
            print(f"tables of three states: {named:.0f} MB by name, {real:.0f} MB on the disk")


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [5000, 50000])
