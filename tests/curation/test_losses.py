"""Bad data is found by its loss: planted in scenes, trained on, and seen in FiftyOne."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from workbench.conversation import Conversation, Message, to_chat
from workbench.curation.losses import SAVED, show_losses, write_losses
from workbench.curation.refresh import view_of
from workbench.data.dataset import Dataset
from workbench.data.formats import import_llava
from workbench.data.scene_files import Planted, make
from workbench.errors import DataError, RunError
from workbench.losses import LossFile
from workbench.recipe import Recipe
from workbench.run import Run
from workbench.training.mixture import read_sources
from workbench.training.worst import worst

pytestmark = pytest.mark.usefixtures("fiftyone")
WRONG = (
    "There is a purple heart.",
    "Nine yellow rings.",
    "A red bicycle and a green car stand in front of a house.",
    "There are four blue diamonds and a white arrow.",
    "Nothing at all is drawn in this picture.",
)
LOSS, EXCESS = "conversations.classifications.loss", "conversations.classifications.loss_excess"


def test_planted_wrong_answers_are_the_worst_of_a_short_training(tmp_path: Path) -> None:
    from workbench.instruct.generator import generate
    from workbench.training.trainer import train

    dataset = make(tmp_path / "scenes", count=80, seed=5, planted=Planted(0, 0, 0))
    generate(dataset, tasks={"caption": 1}, questions_per_image=0)
    said = dataset.conversations("train")
    planted = dict(zip((one.id for one in said[3::9]), WRONG, strict=False))
    lied = [_answered(one, planted.get(one.id)) for one in said]
    dataset.write_conversations(lied)
    changed = ["train.epochs=2", "train.batch_size=8", "train.threads=1", "data.val_fraction=0"]
    run = train(Recipe.load("tiny-align", [f"data.dataset={dataset.path}", *changed]), out=tmp_path / "run")
    assert set(worst(run, 5)["id"]) == set(planted)
    made = write_losses(run, dataset)
    shown = made.load_saved_view(SAVED)
    assert set(_flat(shown.limit(5).values("conversations.classifications.conversation_id"))) == set(planted)
    largest = shown.values("worst_loss_excess")
    assert largest == sorted(largest, reverse=True) and len(largest) == len(said)


def _answered(conversation: Conversation, text: str | None) -> Conversation:
    if text is None:
        return conversation
    return replace(conversation, messages=(conversation.messages[0], Message("assistant", text)))


def _flat(lists: list[list[Any]]) -> list[Any]:
    return [one for inner in lists for one in inner or []]


def losses(**excess: float) -> pl.DataFrame:
    return pl.DataFrame({"id": list(excess), "loss": [2.0] * len(excess), "excess": list(excess.values())})


def test_labels_and_images_show_the_losses_of_the_last_run_only(shapes: Dataset) -> None:
    view = view_of(shapes)
    ids = [one.id for one in shapes.conversations()]
    show_losses(view, losses(**{name: float(place) for place, name in enumerate(ids)}))
    show_losses(view, losses(**{ids[0]: 0.5, ids[1]: -0.5, "of-another-dataset": 9.0}))
    found = dict(zip(*map(_flat, view.values(["conversations.classifications.conversation_id", EXCESS])), strict=True))
    assert found == {ids[0]: 0.5, ids[1]: -0.5, ids[2]: None, ids[3]: None}
    assert [value for value in view.values("worst_loss_excess") if value is not None] == [0.5]
    assert len(view.load_saved_view(SAVED)) == 1


def test_losses_stay_when_the_view_is_brought_up_to_date(shapes: Dataset) -> None:
    view = view_of(shapes)
    name = shapes.conversations()[0].id
    show_losses(view, losses(**{name: 0.5}))
    chat = to_chat(shapes.conversations()[0])
    chat[-1]["content"] = [{"type": "text", "text": "Another answer."}]
    shapes.edit({"table": "conversations", "id": name, "set": {"messages": chat}, "who": "ada"})
    again = view_of(Dataset.open(shapes.path))
    found = dict(zip(*map(_flat, again.values(["conversations.classifications.conversation_id", LOSS])), strict=True))
    assert found[name] == 2.0
    assert "Another answer." in _flat(again.values("conversations.classifications.text"))[0]


def test_a_run_on_a_mixture_shows_each_dataset_its_own(shapes: Dataset, tmp_path: Path) -> None:
    ids = [one.id for one in shapes.conversations()]
    (tmp_path / "run").mkdir()
    LossFile(tmp_path / "run").append(1, 1.0, [f"{shapes.path.name}:{ids[0]}", "another:c"], [3.0, 1.0], [4, 4])
    made = write_losses(tmp_path / "run", shapes.path)
    found = dict(zip(*map(_flat, made.values(["conversations.classifications.conversation_id", LOSS])), strict=True))
    assert found == {ids[0]: 3.0, ids[1]: None, ids[2]: None, ids[3]: None}


def test_a_mixture_of_datasets_of_like_names_shows_each_its_own(shapes: Dataset, tmp_path: Path) -> None:
    """Their ids begin with what a mixture calls them, `llava-v1:` and `mine-2:`, not with the folders' names."""
    places = [tmp_path / "mine", tmp_path / "llava-v1.5-extra", tmp_path / "other" / "mine"]
    for place in places:
        shutil.copytree(shapes.path, place, ignore=shutil.ignore_patterns(*(one.name for one in places), "other"))
    mixed = f"data.mix=[{', '.join(f'{{dataset: {place}}}' for place in places[1:])}]"
    recipe = Recipe.load("tiny-align", [f"data.dataset={places[0]}", mixed, "data.tasks=null", "data.val_fraction=0"])
    ids = list(read_sources(recipe.data, seed=0, say=lambda text: None).train.frame["id"])
    assert {"caption-shape-0.png", "llava-v1:caption-shape-0.png", "mine-2:caption-shape-0.png"} < set(ids)
    run = Run.create(tmp_path / "run", recipe, kind="train")
    LossFile(run.path).append(1, 1.0, ids, [float(number) for number in range(len(ids))], [4] * len(ids))
    run.close()
    shutil.move(places[1], tmp_path / "moved" / places[1].name)
    for place, mark in ((places[0], ""), (tmp_path / "moved" / places[1].name, "llava-v1:"), (places[2], "mine-2:")):
        made = write_losses(run.path, place)
        shown = zip(*map(_flat, made.values(["conversations.classifications.conversation_id", LOSS])), strict=True)
        assert dict(shown) == {one.id: float(ids.index(mark + one.id)) for one in shapes.conversations()}


def test_a_run_on_a_llava_file_is_shown_in_the_dataset_imported_from_it(shapes: Dataset, tmp_path: Path) -> None:
    image = shapes.conversations()[0].images[0]
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}]
    file, folder = tmp_path / "mine.json", shapes.resolve(image).parent
    name = shapes.resolve(image).name
    file.write_text(json.dumps([{"id": each, "image": name, "conversations": turns} for each in ("r1", "r2")]))
    dataset = import_llava(file, folder, tmp_path / "imported")
    (tmp_path / "run").mkdir()
    LossFile(tmp_path / "run").append(1, 1.0, ["r2"], [3.0], [4])
    made = write_losses(tmp_path / "run", dataset)
    assert _flat(made.values(LOSS)) == [None, 3.0]
    mixed = f"data.mix=[{{dataset: {file}, images: {folder}}}]"
    run = Run.create(
        tmp_path / "mixed", Recipe.load("tiny-align", [f"data.dataset={shapes.path}", mixed]), kind="train"
    )
    LossFile(run.path).append(1, 1.0, ["mine:r1"], [2.0], [4])
    run.close()
    made = write_losses(run, import_llava(file, folder, tmp_path / "mine"))
    assert _flat(made.values(LOSS)) == [2.0, None]


def test_a_run_of_another_dataset_is_named(shapes: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no conversation of that run; expected the dataset it was trained on"):
        show_losses(view_of(shapes), losses(unknown=1.0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="found no losses"):
        write_losses(tmp_path / "empty", shapes)
