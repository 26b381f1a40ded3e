"""Scores and failures are fields of the view: each image its accuracy, each wrong answer a label, failures a view."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from workbench.chat_model import ScriptedModel
from workbench.conversation import Conversation, Image, Message
from workbench.curation.refresh import view_of
from workbench.curation.scores import failed_view, write_results
from workbench.curation.showing import shown_view
from workbench.data.dataset import Dataset
from workbench.errors import DataError
from workbench.evaluation.slice_scores import slices
from workbench.evaluation.task import evaluate

pytestmark = pytest.mark.usefixtures("fiftyone")
ROW = {"type": "color", "root": "images", "question": "Which color?", "reference": "red", "said": None, "margin": 0.5}


def rows(earned: dict[str, list[float | None]]) -> pl.DataFrame:
    """Questions about pictures, by what each earned; a wrong answer is `blue`."""
    made = [
        {**ROW, "id": f"{name} {n}", "image": f"{name}.png", "answer": "red" if value else "blue", "earned": value}
        for name, values in earned.items()
        for n, value in enumerate(values)
    ]
    return pl.DataFrame(made, infer_schema_length=None)


def test_images_show_their_accuracy_and_what_was_said_wrongly(shapes: Dataset) -> None:
    told = rows({"shape-0": [1, 1], "shape-1": [1, 0], "shape-2": [0, 0], "shape-3": [None], "elsewhere": [0]})
    made = write_results(told, shapes, name="run-1")
    assert dict(zip(*made.values(["workbench_id", "accuracy_run_1"]), strict=True)) == {
        "shape-0": 1.0, "shape-1": 0.5, "shape-2": 0.0, **dict.fromkeys(("shape-3", "shape-4", "shape-5", "torn")),
    }  # fmt: skip
    wrong = made.load_saved_view("failures of run_1")
    assert wrong.values("workbench_id") == ["shape-2", "shape-1"], "the worst first"
    (label,) = wrong.last().wrong_run_1.classifications
    assert (label.label, label.reference, label.question, label.question_id) == (
        "blue", "red", "Which color?", "shape-1 1",
    )  # fmt: skip
    assert label.margin == 0.5 and label.tags == ["wrong"]
    assert made.count("wrong_run_1.classifications") == 3


def test_a_second_writing_replaces_the_first_and_stands_beside_another_name(shapes: Dataset) -> None:
    write_results(rows({"shape-0": [0], "shape-1": [0]}), shapes, name="before")
    write_results(rows({"shape-0": [0]}), shapes, name="after")
    made = write_results(rows({"shape-1": [1]}), shapes, name="before")
    assert made.values("accuracy_before")[:2] == [None, 1.0] and made.values("accuracy_after")[:2] == [0.0, None]
    assert made.count("wrong_before.classifications") == 0 and not made.has_saved_view("failures of before")
    again = view_of(Dataset.open(shapes.path))
    assert again.values("accuracy_after")[0] == 0.0, "they stay when the view is brought up to date"


def test_failures_are_exactly_the_pictures_failed_on_in_their_order(shapes: Dataset) -> None:
    told = rows({"shape-4": [0], "shape-0": [1], "shape-2": [0.4, 1]})
    view, placed = failed_view(told, shapes)
    assert view.values("workbench_id") == ["shape-4", "shape-2"] and placed.height == 2
    assert failed_view(rows({"shape-0": [1]}), shapes)[0].values("workbench_id") == ["shape-0"]
    with pytest.raises(DataError, match="none of the 1 pictures"):
        failed_view(rows({"elsewhere": [0]}), shapes)
    with pytest.raises(DataError, match="no word of their dataset"):
        write_results(told)


def test_a_result_folder_finds_its_dataset_and_its_failures_find_their_way_to_the_app(
    shapes: Dataset, tmp_path: Path
) -> None:
    names = ["shape-4", "shape-5"]
    asked = [Message("user", (Image(f"{name}.png"), "Which?")) for name in names]
    answers = [Message("assistant", "red"), Message("assistant", "blue")]
    shapes.add_conversations(
        Conversation(name, (one, other), "test", "question")
        for name, one, other in zip(names, asked, answers, strict=True)
    )
    made = evaluate(ScriptedModel(lambda one: "red"), shapes, out=tmp_path / "tuned")
    assert made.failures["id"].to_list() == ["shape-5"]
    view = shown_view(tmp_path / "tuned")
    assert view.values("workbench_id") == ["shape-5"] and view.values("accuracy_tuned") == [0.0]
    frame = made.failures.filter(pl.col("type") == "question")
    assert shown_view(frame).values("wrong_shown.classifications.label") == [["red"]]


def test_failures_of_a_benchmark_are_a_dataset_of_their_own(shapes: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "pope"
    folder.mkdir()
    told = rows({"shape-0": [1], "shape-3": [0, 0]}).to_dicts()
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    (folder / "evaluation.json").write_text(json.dumps({"roots": {"images": str(shapes.path / "images")}}))
    view: Any = shown_view(folder)
    assert [Path(file).name for file in view.values("filepath")] == ["shape-3.png"]
    assert view.values("wrong.classifications.label") == [["blue", "blue"]]
    with pytest.raises(DataError, match="do not say where their pictures lie"):
        shown_view(rows({"shape-0": [0]}))


def test_slices_take_the_tags_that_stand_in_fiftyone(shapes: Dataset) -> None:
    view = view_of(shapes)
    view.select_by("workbench_id", ["shape-0", "shape-1"]).tag_samples("night")
    told = slices(rows({"shape-0": [0], "shape-1": [1], "shape-2": [1]}), shapes, ["tag:night", "class"])
    scores = {part.name: (part.earned.mean, part.images) for part in told.parts}
    assert scores == {
        "tag night": (0.5, 2),
        "class a": (0.5, 2),
        "class b": (1.0, 1),
        "class red star": (pytest.approx(2 / 3), 3),
    }
