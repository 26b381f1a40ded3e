"""What a person marks in FiftyOne reaches the dataset folder, whatever became of the folder meanwhile."""

from __future__ import annotations

from types import ModuleType

import polars as pl
import pytest

import workbench as wb
from workbench.curation.filters import broken, curate
from workbench.curation.refresh import view_of
from workbench.curation.table import changes, ids_of
from workbench.data.dataset import Dataset
from workbench.errors import DataError


def row(dataset: Dataset, name: str) -> dict[str, object]:
    return dict(Dataset.open(dataset.path).images.row(by_predicate=pl.col("id") == name, named=True))


def test_what_was_marked_is_taken_in_by_one_call(
    shapes: Dataset, fiftyone: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wb.take_in(shapes.path) == 0, "nothing was ever shown"
    view = view_of(shapes)
    assert wb.take_in(shapes) == 0
    view.select_by("workbench_id", ["shape-0"]).tag_samples(["removed", "too dark"])
    view.select_by("workbench_id", ["shape-1"]).tag_samples("val")  # and `train` is left there
    view.select_by("workbench_id", ["shape-2"]).set_values("label.label", ["c"])
    assert wb.take_in(str(shapes.path)) == 3
    assert "what was marked on 3 of 7" in capsys.readouterr().out
    one = row(shapes, "shape-0")
    assert (one["status"], one["reason"], one["tags"]) == ("removed", "removed by hand", ["too dark"])
    assert (row(shapes, "shape-1")["split"], row(shapes, "shape-2")["label"]) == ("val", "c")
    assert wb.take_in(shapes) == 0, "once"
    assert view_of(shapes).select_by("workbench_id", ["shape-1"]).first().tags == ["val"]
    assert changes(view_of(shapes), shapes).is_empty()


def test_nothing_marked_is_lost_when_the_folder_changed_meanwhile(shapes: Dataset, fiftyone: ModuleType) -> None:
    view = view_of(shapes)
    view.select_by("workbench_id", ["shape-0"]).tag_samples("removed")
    view.select_by("workbench_id", ["shape-1"]).tag_samples("test")
    view.select_by("workbench_id", ["shape-3"]).tag_samples("odd")
    new = pl.DataFrame({"id": ["shape-2", "shape-3"], "split": ["val", "test"], "label": ["x", "y"]})
    shapes.update_images(new, operation={"name": "elsewhere"})
    again = view_of(shapes)
    assert again.name == view.name and row(shapes, "shape-0")["status"] == "removed"
    assert row(shapes, "shape-1")["split"] == "test"
    three = row(shapes, "shape-3")
    assert (row(shapes, "shape-2")["split"], three["split"], three["label"], three["tags"]) == (
        "val",
        "test",
        "y",
        ["odd"],
    )
    assert again.select_by("workbench_id", ["shape-2"]).first().tags == ["val"], "what changed in the folder is shown"
    again.untag_samples("removed")
    again.untag_samples("odd")
    assert wb.take_in(shapes) == 2 and row(shapes, "shape-0")["status"] == "ok" and row(shapes, "shape-3")["tags"] == []


def test_nothing_marked_is_lost_when_images_went_and_the_view_is_built_anew(
    shapes: Dataset, fiftyone: ModuleType
) -> None:
    view = view_of(shapes)
    view.select_by("workbench_id", ["shape-0"]).tag_samples("night")
    view.tag_labels(["funny"], "conversations")
    tagged = view.count_label_tags("conversations")
    shapes.write_images(shapes.images.filter(pl.col("id") != "shape-5"))
    again = view_of(shapes)
    assert len(again) == 6 and row(shapes, "shape-0")["tags"] == ["night"]
    assert ids_of(again.match_tags("night")) == ["shape-0"] and again.count_label_tags("conversations") == tagged


def test_a_cleaning_sees_what_was_marked_in_its_view(shapes: Dataset, fiftyone: ModuleType) -> None:
    view = view_of(shapes)
    view.select_by("workbench_id", ["shape-4"]).tag_samples("removed")
    funnel = curate(shapes, [broken()], view=view)
    assert row(shapes, "shape-4")["status"] == "removed" and funnel.table["before"].to_list() == [6]
    assert "removed" in view.select_by("workbench_id", ["shape-4"]).first().tags


def test_two_splits_name_dataset_file_and_what_to_do(shapes: Dataset, fiftyone: ModuleType) -> None:
    view_of(shapes).select_by("workbench_id", ["shape-2"]).tag_samples(["val", "test"])
    told = rf"{shapes.path}: found shape-2.png: the splits val, test as tags; expected one at most; take all but one"
    with pytest.raises(DataError, match=told):
        wb.take_in(shapes)
    assert row(shapes, "shape-2")["split"] == "train"
