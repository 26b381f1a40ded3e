"""`wb.worst`: the conversations of a run's datasets beside their losses, by the ids that a person knows them by."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import DataError
from workbench.losses import LossFile
from workbench.run import Run
from workbench.training.source import read_source
from workbench.training.worst import worst

Made = Callable[..., Any]


def _record(answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "What\nis it?"}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **more}


def _losses(run: Run, ids: list[str]) -> None:
    """Each is worse than the one after it."""
    LossFile(run.path).append(1, 1.0, ids, [float(len(ids) - place) for place in range(len(ids))], [4] * len(ids))


def test_conversations_of_a_llava_file_have_its_ids_and_their_text(make_recipe: Made, tmp_path: Path) -> None:
    """They had ids of ours, which are nowhere in the file, and no text."""
    file = tmp_path / "mine.json"
    bad = {"id": "bad", "conversations": []}
    records = [_record("A.", id="r7"), bad, _record("B.", id="r7"), _record("C."), _record("D.", id="")]
    file.write_text(json.dumps(records[:1] + records[2:]))
    recipe = make_recipe(file, "data.val_fraction=0")
    ids = read_source(recipe.data, seed=0).train.frame["id"].to_list()
    assert ids == ["r7", "r7#2", "record 3", "record 4"]
    with Run.create(tmp_path / "run", recipe, kind="train") as run:
        _losses(run, ids)
    table = worst(run)
    assert table["id"].to_list() == ids
    assert table["text"].to_list() == [f"What is it? | {letter}." for letter in "ABCD"]
    file.unlink()
    assert worst(run.path, 2)["text"].to_list() == ["", ""], "the losses are there all the same"


def test_every_dataset_of_a_mixture_is_looked_through(make_dataset: Made, make_recipe: Made, tmp_path: Path) -> None:
    one, other = make_dataset(images=2, each=1), make_dataset(images=2, each=1, name="more")
    file = tmp_path / "general.json"
    file.write_text(json.dumps([_record("A.", id="r7")]))
    recipe = make_recipe(one, f"data.mix=[{{dataset: {other.path}}}, {{dataset: {file}}}]")
    with Run.create(tmp_path / "run", recipe, kind="train") as run:
        _losses(run, ["c0.0", "more:c1.0", "general:r7", "of-none"])
    assert worst(run)["text"].to_list() == ["Which colour? | red", "Which colour? | green", "What is it? | A.", ""]
    moved = shutil.move(one.path, tmp_path / "moved")
    assert worst(run, 1)["text"].to_list() == [""]
    assert worst(run, 1, dataset=moved)["text"].to_list() == ["Which colour? | red"]
    for named in ("nope", "nope.json"):  # what a person names has to be there
        with pytest.raises(DataError, match=f"{named}: found "):
            worst(run, 1, dataset=named)
