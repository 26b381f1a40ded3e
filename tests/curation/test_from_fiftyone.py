"""FiftyOne datasets come in: ours as they went out, other people's by their labels, boxes, captions and tags."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
from PIL import Image as PILImage

from tests.videos import moving
from workbench.conversation import Conversation, Image, Message, Video, to_chat
from workbench.curation.from_fiftyone import import_fiftyone
from workbench.curation.in_and_out import export_dataset, import_dataset
from workbench.curation.table import to_fiftyone
from workbench.data import scene_files
from workbench.data.dataset import Dataset
from workbench.data.formats import import_folder
from workbench.errors import DataError

pytestmark = pytest.mark.usefixtures("fiftyone")


@pytest.fixture
def theirs(tmp_path: Path, fiftyone: ModuleType):
    """Four photographs of somebody who has never heard of us, one of them broken."""
    fo = fiftyone
    made = fo.Dataset("theirs")
    for number in range(4):
        path = tmp_path / "photos" / ("cats" if number % 2 else "dogs") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (200, 100), (40 * number, 90, 20)).save(path)
        if number == 3:
            path.write_bytes(path.read_bytes()[:200])
        sample = fo.Sample(str(path), tags=[["train"], ["validation", "Good one"], [], ["test"]][number])
        sample["caption"] = f"animal {number}" if number else None
        sample["kind"] = fo.Classification(label="cat" if number % 2 else "dog")
        thing = fo.Detection(label="ear", bounding_box=[0.25, 0.5, 0.5, 0.25], confidence=0.5, iscrowd=1, tags=["left"])
        sample["ground_truth"] = fo.Detections(detections=[thing] if number < 2 else [])
        sample["score"] = 0.5
        made.add_sample(sample)
    yield made
    made.delete()


def test_ours_out_and_in_again_is_equal(shapes: Dataset, tmp_path: Path) -> None:
    first = shapes.conversations()[0]
    both = Message("user", (Image("shape-0.png"), "or ", Image("shape-1.png"), "?"))
    more = Conversation("two", (Message("system", "Be brief."), both, Message("assistant", "One.")), "val")
    shapes.add_conversations([more, replace(first, id="bad")], rejected={"bad": "check empty: no words"})
    shapes.update_images(
        pl.DataFrame({"id": ["shape-2"], "status": ["removed"], "reason": ["too dark"], "tags": [["night"]]}),
        operation={"name": "review"},
    )
    again = import_fiftyone(to_fiftyone(shapes), tmp_path / "again", workers=1)
    before, after = (ds.images.drop("objects", "reason").sort("id") for ds in (shapes, again))
    assert after.with_columns(pl.col("tags").fill_null([])).equals(
        before.select(after.columns).with_columns(pl.col("tags").fill_null([]))
    )
    read = [[json.loads(text or "[]") for text in ds.images.sort("id")["objects"]] for ds in (shapes, again)]
    assert read[0] == read[1] and read[0][0][0]["box"] == [12, 24, 36, 72]
    assert dict(again.images.filter(status="removed").select("id", "reason").rows()) == {"shape-2": "too dark"}
    assert {one.id: one for one in again.conversations()} == {one.id: one for one in shapes.conversations()}
    states = [ds.conversation_rows.sort("id").select("id", "status", "reason").rows() for ds in (shapes, again)]
    assert states[0] == states[1] and ("bad", "removed", "check empty: no words") in states[0]
    assert again.roots == shapes.roots and again.name == "shapes"


def test_a_verdict_comes_along(shapes: Dataset, tmp_path: Path) -> None:
    view = to_fiftyone(shapes)
    view.select_by("workbench_id", ["shape-0"]).tag_labels("accept", "conversations")
    again = import_fiftyone(view.select_by("workbench_id", ["shape-0", "shape-2"]), tmp_path / "again", workers=1)
    assert again.images["id"].to_list() == ["shape-0", "shape-2"]
    assert [one.metadata for one in again.conversations()] == [{"verdict": "accept"}] * 2


def test_a_dataset_of_somebody_else(theirs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = import_fiftyone("theirs", tmp_path / "ds", workers=1)
    assert made.images.select("path", "label", "split", "captions", "tags", "status").rows() == [
        ("dogs/0.jpg", "dog", "train", [], [], "ok"),
        ("cats/1.jpg", "cat", "val", ["animal 1"], ["Good one"], "ok"),
        ("dogs/2.jpg", "dog", None, ["animal 2"], [], "ok"),
        ("cats/3.jpg", "cat", "test", ["animal 3"], [], "quarantined"),
    ]
    thing = {"label": "ear", "box": [50, 50, 150, 75], "confidence": 0.5, "iscrowd": 1, "tags": ["left"]}
    assert json.loads(made.images["objects"][0]) == [thing] and made.images["objects"][2] is None
    assert made.roots == {"images": tmp_path / "photos"}
    assert json.loads((tmp_path / "ds/import.json").read_text())["fields left out"] == ["score"]
    assert "ground_truth as objects" in capsys.readouterr().out


def test_a_field_video_of_somebody_else_is_told_as_left_out_or_taken(theirs, tmp_path: Path) -> None:
    theirs.set_values("video", [f"film {number}" for number in range(4)])
    import_fiftyone(theirs, tmp_path / "ds", workers=1)
    assert json.loads((tmp_path / "ds/import.json").read_text())["fields left out"] == ["score", "video"]
    made = import_fiftyone(theirs, tmp_path / "named", captions="video", workers=1)
    assert made.images["captions"].to_list()[0] == ["film 0"] and set(made.images["media"]) == {"image"}


def test_the_caller_says_which_of_several_fields_is_meant(theirs, tmp_path: Path, fiftyone: ModuleType) -> None:
    theirs.set_values("guess", [fiftyone.Classification(label="fox")] * 4)
    with pytest.raises(DataError, match="several fields for label: kind, guess; expected one; name the one to take"):
        import_fiftyone(theirs, tmp_path / "ds", workers=1)
    with pytest.raises(DataError, match="no field 'kin' for label; expected kind, guess"):
        import_fiftyone(theirs, tmp_path / "ds", label="kin", workers=1)
    assert not (tmp_path / "ds").exists()
    made = import_fiftyone(theirs, tmp_path / "ds", label="guess", workers=1)
    assert made.images["label"].to_list() == ["fox"] * 4


def test_what_cannot_come_in_is_one_error(theirs, tmp_path: Path, fiftyone: ModuleType) -> None:
    with pytest.raises(DataError, match="'their': found none of that name; did you mean 'theirs'?"):
        import_fiftyone("their", tmp_path / "ds")
    with pytest.raises(DataError, match="found no sample"):
        import_fiftyone(theirs.match_tags("nobody"), tmp_path / "ds")
    theirs.match_tags("train").tag_samples("val")
    with pytest.raises(DataError, match="dogs/0.jpg: found the splits train, val as tags"):
        import_fiftyone(theirs, tmp_path / "ds", workers=1)
    theirs.untag_samples("val")
    theirs.add_sample(fiftyone.Sample(theirs.first().filepath))
    with pytest.raises(DataError, match="0.jpg: found two samples of this file"):
        import_fiftyone(theirs, tmp_path / "ds", workers=1)
    both = fiftyone.Dataset("both")
    both.add_group_field("group", default="left")
    group = fiftyone.Group()
    for name, file in (("left", "a.png"), ("right", "a.mp4")):
        both.add_sample(fiftyone.Sample(str(tmp_path / file), group=group.element(name)))
    told = r"media type group; expected images or videos; take one of its slices: view.select_group_slices\('left'\)"
    with pytest.raises(DataError, match=told):
        import_fiftyone("both", tmp_path / "ds")
    both.delete()
    assert not (tmp_path / "ds").exists()


def test_a_dataset_of_videos(tmp_path: Path, fiftyone: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    fo = fiftyone
    made = fo.Dataset("clips")
    (tmp_path / "clips").mkdir()
    for number in range(3):
        file = tmp_path / "clips" / f"{number}.mp4"
        moving(file, 4, seed=number)
        sample = fo.Sample(str(file), tags=[["train", "night"], ["test"], []][number])
        sample["caption"] = f"thing {number} moves"
        sample["ground_truth"] = fo.Classification(label="jump")
        sample["events"] = fo.TemporalDetections(detections=[fo.TemporalDetection(label="up", support=[1, 2])])
        sample.frames[1] = fo.Frame(
            boxes=fo.Detections(detections=[fo.Detection(label="x", bounding_box=[0, 0, 1, 1])])
        )
        asked = Message("user", (Video(f"{number}.mp4", "images"), "What moves?"))
        said = Conversation(f"talk {number}", (asked, Message("assistant", ("A patch.",))))
        label = fo.Classification(label="question", conversation_id=said.id, messages=json.dumps(to_chat(said)))
        sample["conversations"] = fo.Classifications(classifications=[label])
        made.add_sample(sample, dynamic=True)
    (tmp_path / "clips" / "2.mp4").write_text("no video")
    try:
        dataset = import_fiftyone("clips", tmp_path / "ds", workers=1)
    finally:
        made.delete()
    told = dataset.images.select("path", "media", "label", "split", "captions", "tags", "status").rows()
    assert told == [
        ("0.mp4", "video", "jump", "train", ["thing 0 moves"], ["night"], "ok"),
        ("1.mp4", "video", "jump", "test", ["thing 1 moves"], [], "ok"),
        ("2.mp4", "video", "jump", None, ["thing 2 moves"], [], "quarantined"),
    ]
    out = capsys.readouterr().out
    assert "clips: 3 videos in" in out and "quarantined videos, a video that cannot be read: 1: 2.mp4" in out
    left = json.loads((tmp_path / "ds/import.json").read_text())["fields left out"]
    assert left == ["events", "frames.boxes"]
    talks = dataset.conversations()
    assert [one.id for one in talks] == ["talk 0", "talk 1"], "that about a broken video is kept and not used"
    assert all(isinstance(one.media[0], Video) and dataset.resolve(one.media[0]).is_file() for one in talks)
    assert [one.id for one in dataset.iter_conversations("test")] == ["talk 1"]


def test_videos_of_ours_out_and_in_again_are_videos(tmp_path: Path) -> None:
    (tmp_path / "things").mkdir()
    moving(tmp_path / "things" / "a.mp4", 4), PILImage.new("RGB", (8, 8)).save(tmp_path / "things" / "b.png")
    dataset = import_folder(tmp_path / "things", tmp_path / "data")
    again = import_fiftyone(to_fiftyone(dataset), tmp_path / "again", workers=1)
    columns = ["id", "root", "path", "media", "hash", "phash", "width", "height", "status"]
    assert again.images.select(columns).equals(dataset.images.select(columns))
    assert again.images["media"].to_list() == ["video", "image"]


def test_scenes_out_and_in_again_are_equal_through_the_front_door(tmp_path: Path) -> None:
    scenes = scene_files.make(tmp_path / "ds", count=8, seed=3, planted=scene_files.Planted(1, 1, 1))
    assert export_dataset(scenes, "scenes-out", format="fiftyone") == 11
    again = import_dataset("scenes-out", tmp_path / "again", format="fiftyone", workers=1)
    shown = ["id", "root", "path", "width", "height", "hash", "phash", "split", "label", "captions", "status", "reason"]
    assert again.images.select(shown).equals(scenes.images.select(shown))
    for before, after in zip(scenes.images["objects"], again.images["objects"], strict=True):
        assert json.loads(before or "[]") == json.loads(after or "[]")
    with pytest.raises(DataError, match="option split: found it for FiftyOne"):
        export_dataset(scenes, "other", format="fiftyone", split="train")
    with pytest.raises(DataError, match="option dpi: found it for the format fiftyone; expected name, workers, card"):
        import_dataset("scenes-out", tmp_path / "x", format="fiftyone", dpi=9)
