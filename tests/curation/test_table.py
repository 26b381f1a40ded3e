from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest

from workbench.conversation import Conversation, Image, Message
from workbench.curation.table import changes, from_fiftyone, ids_of, to_fiftyone, verdicts
from workbench.data.dataset import Dataset
from workbench.errors import DataError

pytestmark = pytest.mark.usefixtures("fiftyone")


def test_every_image_is_there_and_only_the_good_ones_are_ok(shapes: Dataset) -> None:
    view = to_fiftyone(shapes)
    assert len(view) == 7
    assert ids_of(view) == shapes.images["id"].to_list()
    assert ids_of(view.load_saved_view("ok")) == [f"shape-{number}" for number in range(6)]
    assert ids_of(view.match_tags("broken")) == ids_of(view.load_saved_view("broken")) == ["torn"]
    assert len(view.match_tags("train")) == 4
    assert view.media_type == "image" and view.persistent


def test_fields_hold_what_the_dataset_says(shapes: Dataset) -> None:
    sample = to_fiftyone(shapes).first()
    assert Path(sample.filepath) == shapes.resolve(Image("shape-0.png"))
    assert (sample.metadata.width, sample.metadata.height, sample.label.label) == (96, 96, "a")
    assert sample.captions == ["a red star"] and sample.status == "ok" and len(sample.phash) == 16
    thing = sample.objects.detections[0]
    assert thing.label == "red star" and thing.bounding_box == [0.125, 0.25, 0.25, 0.5]
    assert (thing.color, thing.score, thing.object_id, thing.object_mask) == ("red", 0.5, 7.0, "no")


def test_a_conversation_is_a_label_that_can_be_read_and_tagged_alone(shapes: Dataset) -> None:
    view = to_fiftyone(shapes)
    labels = view.first().conversations.classifications
    assert [label.label for label in labels] == ["caption", "detail"]
    assert labels[0].text == "user: [image] What is this?\nassistant: A red star."
    assert json.loads(labels[0].messages)[1] == {
        "role": "assistant",
        "content": [{"type": "text", "text": "A red star."}],
    }
    view.filter_labels("conversations", _field("label") == "detail").tag_labels("reject", "conversations")
    found = verdicts(view)
    assert dict(found.select("id", "verdict").rows()) == {
        "caption-shape-0.png": None,
        "detail-shape-0.png": "reject",
        "caption-shape-1.png": None,
        "detail-shape-1.png": "reject",
    }
    view.filter_labels("conversations", _field("label") == "detail").tag_labels("accept", "conversations")
    with pytest.raises(DataError, match="detail-shape-0.png: found tags accept and reject; expected one of them"):
        verdicts(view)


def test_a_rejected_conversation_is_there_with_its_reason(shapes: Dataset) -> None:
    bad = replace(shapes.conversations()[0], id="bad")
    shapes.add_conversations([bad], rejected={"bad": "check empty: no words"})
    labels = {label.conversation_id: label for label in to_fiftyone(shapes).first().conversations.classifications}
    assert (labels["bad"].status, labels["bad"].reason) == ("removed", "check empty: no words")
    assert labels["caption-shape-0.png"].status == "ok" and labels["caption-shape-0.png"].reason is None


def test_documents_have_the_shape_that_fiftyone_writes(shapes: Dataset, fiftyone: ModuleType) -> None:
    view = to_fiftyone(shapes)
    ours = view._sample_collection.find_one({"workbench_id": "shape-0"})
    copy = fiftyone.Dataset()
    copy.add_samples([view.first()], dynamic=True)
    theirs = copy._sample_collection.find_one()
    assert set(ours) == set(theirs)
    assert _without_ids(ours) == _without_ids(theirs)
    assert set(copy.get_field_schema(flat=True)) <= set(view.get_field_schema(flat=True))
    copy.delete()


def test_what_a_person_changes_comes_back_and_survives_a_rebuild(shapes: Dataset) -> None:
    view = to_fiftyone(shapes)
    assert changes(view, shapes).is_empty()
    view.select_by("workbench_id", ["shape-0"]).tag_samples(["removed", "too dark"])
    moved = view.select_by("workbench_id", ["shape-1"])
    moved.untag_samples("train")
    moved.tag_samples("test")
    moved.set_values("label.label", ["c"])
    shapes.update_images(changes(view, shapes), operation={"name": "review"})
    rows = {row["id"]: row for row in shapes.images.iter_rows(named=True)}
    assert (rows["shape-0"]["status"], rows["shape-0"]["reason"]) == ("removed", "removed by hand")
    assert rows["shape-0"]["tags"] == ["too dark"]
    assert (rows["shape-1"]["split"], rows["shape-1"]["label"]) == ("test", "c")
    assert rows["torn"]["status"] == "quarantined"
    again = to_fiftyone(shapes)
    assert ids_of(again.match_tags("too dark")) == ids_of(again.load_saved_view("removed")) == ["shape-0"]
    assert changes(again, shapes).is_empty()
    again.untag_samples("removed")
    shapes.update_images(changes(again, shapes), operation={"name": "review"})
    assert shapes.images.filter(id="shape-0")["status"].to_list() == ["ok"]


def test_two_splits_on_one_image_are_refused_by_name(shapes: Dataset) -> None:
    view = to_fiftyone(shapes)
    view.select_by("workbench_id", ["shape-2"]).tag_samples("val")
    with pytest.raises(DataError, match="'shapes': found image shape-2: the splits train, val as tags; expected one"):
        from_fiftyone(view)


def test_a_fiftyone_dataset_of_somebody_else_is_never_replaced(shapes: Dataset, fiftyone: ModuleType) -> None:
    mine = fiftyone.Dataset("precious")
    with pytest.raises(DataError, match="choose another name"):
        to_fiftyone(shapes, name="precious")
    assert fiftyone.dataset_exists("precious")
    mine.delete()


def test_an_image_without_size_label_or_objects_is_no_hindrance(tmp_path: Path) -> None:
    bare = Dataset.create(tmp_path, name="bare", images=pl.DataFrame({"id": ["x"], "path": ["x.png"]}))
    sample = to_fiftyone(bare).first()
    assert sample.label is None and sample.objects is None and sample.metadata is None and sample.status == "ok"


def test_two_thousand_images_with_conversations_take_less_than_four_seconds(tmp_path: Path) -> None:
    thing = [{"label": "red star", "box": [1, 2, 3, 4], "color": "red", "size": "small", "place": "top left"}] * 3
    count = 2000
    frame = pl.DataFrame({"id": [f"i{n}" for n in range(count)], "path": [f"{n}.png" for n in range(count)]})
    frame = frame.with_columns(
        width=96, height=96, label=pl.lit("a"), split=pl.lit("train"), objects=pl.lit(json.dumps(thing))
    )
    large = Dataset.create(tmp_path, name="large", images=frame)
    answer = Message("assistant", "A red star at the top left.")
    large.write_conversations(
        Conversation(f"{n}-{task}", (Message("user", (Image(f"{n}.png"), "What is there?")), answer))
        for n in range(count)
        for task in range(4)
    )
    before = time.process_time()  # not the wall clock: other processes may keep this machine busy
    view = to_fiftyone(large)
    assert len(view) == count and time.process_time() - before < 4
    assert sum(len(labels) for labels in view.values("conversations.classifications.text")) == 4 * count


def _without_ids(value: Any) -> Any:
    """The document without what is new in every copy."""
    if isinstance(value, dict):
        changing = ("_id", "_rand", "_dataset_id", "created_at", "last_modified_at")
        return {key: _without_ids(part) for key, part in value.items() if key not in changing}
    return [_without_ids(part) for part in value] if isinstance(value, list) else value


def _field(name: str) -> object:
    import fiftyone

    return fiftyone.ViewField(name)
