"""The conversations that a run found hardest to learn, with what is said in them: where bad data is found.

Knows: how the datasets of a run's recipe are looked through for its conversations. Does not know: how losses of early
and late steps compare (`losses.py`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

import polars as pl

from workbench.conversation import Conversation
from workbench.data import tables
from workbench.data.conversation_file import named
from workbench.data.dataset import Dataset
from workbench.data.formats import read_conversations
from workbench.errors import WorkbenchError
from workbench.losses import hardest
from workbench.recipe import mix_marks
from workbench.recipe_yaml import is_file
from workbench.run import Run


def worst(
    run: Run | str | os.PathLike[str], n: int | None = 20, *, dataset: Dataset | str | Path | None = None
) -> pl.DataFrame:
    """The `n` conversations that a run found hardest to learn, worst first; None: all. Look there for bad data.

    Columns: id (in a LLaVA JSON file its own one), excess, loss, tokens, times as of `losses.by_conversation`, and
    `text`: question and answer of every turn, empty where its dataset is not found. `dataset` takes the place of the
    recipe's. Raises `RunError` for a run that recorded no losses, `DataError` for a `dataset` that is not there.

    >>> wb.worst("runs/align", 2).columns
    ['id', 'excess', 'loss', 'tokens', 'times', 'text']
    """
    table = hardest(run)
    table = table if n is None else table.head(n)
    said = _texts(Run.open(run) if isinstance(run, Run) else Run(run), table["id"].to_list(), dataset)
    return table.with_columns(text=pl.Series([said.get(id, "") for id in table["id"]], dtype=pl.String))


def _texts(run: Run, ids: Collection[str], dataset: Dataset | str | Path | None) -> dict[str, str]:
    """What is said in these conversations, as far as the datasets of the run's recipe are where it says."""
    try:
        data = run.recipe.data
    except WorkbenchError:
        return {}
    places: list[Dataset | str | Path] = [dataset or data.dataset, *(part.dataset for part in data.mix)]
    marks = mix_marks([data.dataset, *map(str, places[1:])])
    found: dict[str, str] = {}
    for mark, place in zip(marks, places, strict=True):
        wanted = {id.removeprefix(mark) for id in ids if id.startswith(mark)}
        try:
            found |= {mark + id: one_line(one) for id, one in _conversations(place, wanted)}
        except WorkbenchError:
            if dataset is not None and place is dataset:
                raise
            continue  # it may have been moved since
    return found


def _conversations(place: Dataset | str | Path, wanted: Collection[str]) -> Iterator[tuple[str, Conversation]]:
    """Those with these ids in a dataset, or with these names in a LLaVA JSON file."""
    if not isinstance(place, Dataset) and is_file(str(place)):
        for name, one in named(read_conversations(place)):
            if name in wanted and isinstance(one, Conversation):
                yield name, one
        return
    for rows in Dataset.open(place).conversation_parts():
        for one in tables.frame_to_conversations(rows.filter(pl.col("id").is_in(list(wanted)))):
            yield one.id, one


def one_line(conversation: Conversation) -> str:
    """All that is said in it, message by message."""
    return " | ".join(" ".join(message.text.split()) for message in conversation.messages)
