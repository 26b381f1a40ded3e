"""COCO's files: captions and instances in and out, and every id that does not fit named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image as PILImage

from workbench.data.dataset import Dataset
from workbench.data.formats import export_coco, import_coco
from workbench.errors import DataError

IMAGES = [
    {"id": 391895, "file_name": "train2017/000000391895.jpg", "width": 64, "height": 36, "license": 3},
    {"id": 522418, "file_name": "train2017/000000522418.jpg", "width": 64, "height": 48},
    {"id": 7, "file_name": "train2017/empty.jpg", "width": 20, "height": 20},
]
CATEGORIES = [
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "vehicle", "id": 4, "name": "motorcycle"},
    {"supercategory": "animal", "id": 90, "name": "never seen"},
]
INSTANCES = [
    {"id": 151091, "image_id": 391895, "category_id": 4, "bbox": [35.98, 16.58, 11.1, 9.44], "area": 32.5,
     "iscrowd": 0, "segmentation": [[35.9, 16.6, 47.1, 16.6, 40.0, 26.0]]},
    {"id": 202758, "image_id": 391895, "category_id": 1, "bbox": [3, 4, 10, 20], "area": 200, "iscrowd": 0},
    {"id": 9001, "image_id": 522418, "category_id": 1, "bbox": [0, 0, 64, 48], "area": 99.5, "iscrowd": 1,
     "segmentation": {"counts": [0, 5, 3], "size": [48, 64]}},
]  # fmt: skip
CAPTIONS = [
    {"id": 1, "image_id": 522418, "caption": "A woman cutting a large white sheet cake."},
    {"id": 3, "image_id": 522418, "caption": "Ein Käse, 漢字"},
    {"id": 2, "image_id": 391895, "caption": "A man on a moped."},
]


def held(annotations: list[Any], **more: Any) -> dict[str, Any]:
    return {"info": {}, "licenses": [], "images": IMAGES, "annotations": annotations, **more}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for image in IMAGES:
        path = tmp_path / "coco" / str(image["file_name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (int(str(image["width"])), int(str(image["height"]))), "red").save(path)
    return tmp_path / "coco"


@pytest.fixture
def both(tmp_path: Path, root: Path) -> Dataset:
    instances = write(tmp_path / "instances.json", held(INSTANCES, categories=CATEGORIES))
    captions = write(tmp_path / "captions.json", held(CAPTIONS))
    return import_coco([instances, captions], root, tmp_path / "ds")


def test_captions_and_instances_are_rows_of_their_images(both: Dataset) -> None:
    moped, cake, empty = both.images.to_dicts()
    assert both.name == "instances" and both.card["counts"]["status"] == {"ok": 3}
    assert (moped["path"], moped["coco_id"]) == ("train2017/000000391895.jpg", 391895)
    assert moped["captions"] == ["A man on a moped."] and len(cake["captions"]) == 2
    assert json.loads(moped["objects"]) == [
        {"label": "motorcycle", "box": [35.98, 16.58, 47.08, 26.02], "id": 151091, "area": 32.5,
         "segmentation": INSTANCES[0]["segmentation"]},
        {"label": "person", "box": [3, 4, 13, 24], "id": 202758},
    ]  # fmt: skip
    assert json.loads(cake["objects"])[0]["iscrowd"] == 1
    assert (empty["captions"], empty["objects"], empty["status"]) == ([], None, "ok"), "an image without annotations"
    assert both.card["import"]["images without annotation"] == 1


def test_a_file_that_came_in_goes_out_equal(both: Dataset, tmp_path: Path) -> None:
    assert export_coco(both, tmp_path / "out.json") == 3
    out = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    keys = ("id", "file_name", "width", "height")
    assert [{key: image[key] for key in keys} for image in IMAGES] == out["images"]
    assert out["categories"] == CATEGORIES
    found = sorted((one for one in out["annotations"] if "bbox" in one), key=lambda one: one["id"])
    assert found == sorted(INSTANCES, key=lambda one: one["id"])  # type: ignore[arg-type, return-value]
    said = [(one["image_id"], one["caption"]) for one in out["annotations"] if "caption" in one]
    assert sorted(said) == sorted((one["image_id"], one["caption"]) for one in CAPTIONS)
    assert len({one["id"] for one in out["annotations"]}) == len(out["annotations"])


def test_a_dataset_that_goes_out_comes_in_equal(both: Dataset, root: Path, tmp_path: Path) -> None:
    things = [[{"label": "cat", "box": [0.1, 0.2, 19.99, 3.3], "color": "grey", "id": 5}, {"label": "sky", "id": 6}]]
    rows = both.images.with_columns(
        id=pl.Series(["mine", *both.images["id"][1:]]), split=pl.Series(["val", None, "train"]),
        label=pl.Series([None, "x", None]),
        objects=pl.Series([*both.images["objects"][:2], json.dumps(things[0])]),
    )  # fmt: skip
    both.write_images(rows)
    export_coco(both, tmp_path / "out.json")
    again = import_coco(tmp_path / "out.json", root, tmp_path / "again").images
    assert again.drop("objects").equals(rows.drop("objects"))
    assert [json.loads(text) for text in again["objects"]] == [json.loads(text) for text in rows["objects"]]


def test_a_dataset_that_never_was_coco_gets_ids(root: Path, tmp_path: Path) -> None:
    from workbench.data.formats import import_folder

    dataset = import_folder(root, tmp_path / "ds")
    objects = json.dumps([{"label": "cat", "box": [1, 2, 3, 5]}])
    dataset.write_images(dataset.images.with_columns(objects=pl.lit(objects)))
    export_coco(dataset, tmp_path / "out.json")
    out = json.loads((tmp_path / "out.json").read_text())
    assert [image["id"] for image in out["images"]] == [1, 2, 3]
    assert out["categories"] == [{"id": 1, "name": "cat"}]
    assert out["annotations"][2] == {
        "id": 3, "image_id": 3, "category_id": 1, "bbox": [1, 2, 2, 3], "area": 6, "iscrowd": 0,
    }  # fmt: skip


def test_missing_and_outside_images_are_quarantined(root: Path, tmp_path: Path) -> None:
    (root / "train2017/empty.jpg").unlink()
    PILImage.new("RGB", (36, 64)).save(root / "train2017/000000391895.jpg")
    images = [*IMAGES, {"id": 8, "file_name": "../secret.jpg", "width": 5, "height": 5}]
    file = write(tmp_path / "a.json", {"images": images, "annotations": []})
    dataset = import_coco(file, root, tmp_path / "ds")
    assert dataset.images["status"].to_list() == ["ok", "ok", "quarantined", "quarantined"]
    report = json.loads((tmp_path / "ds/import.json").read_text())
    assert report["quarantined images"] == {
        "no such file": ["train2017/empty.jpg"], "a path that climbs out of its root": ["../secret.jpg"],
    }  # fmt: skip
    assert report["sizes that differ from the file's"] == [
        "train2017/000000391895.jpg (is 36 x 64, annotated as 64 x 36)"
    ]


def instance(**changes: Any) -> dict[str, Any]:
    return held([{**INSTANCES[1], **changes}], categories=CATEGORIES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "found a list; expected {"),
        ({}, "found no list 'images'"),
        ({"images": IMAGES}, "found no list 'annotations'"),
        ({"images": [], "annotations": []}, "found no image"),
        ({"images": [5], "annotations": []}, "found no list 'images'"),
        ({"images": [{"id": 1}], "annotations": []}, "images[0]: found {'id': 1}; expected id, a whole number, and"),
        ({"images": [IMAGES[0], IMAGES[0]], "annotations": []}, "images[1]: found the id 391895 a second time"),
        ({"images": [IMAGES[0], {**IMAGES[0], "id": 9}], "annotations": []}, "as the images 391895 and 9"),
        (instance(category_id=5), "annotation 202758: found category_id 5; expected one of 1, 4, 90"),
        (instance(category_id=None), "found category_id None"),
        (instance(image_id=1), "annotations[0]: found image_id 1; expected the id of an image"),
        (instance(id="x"), "annotations[0]: found id 'x'; expected a whole number"),
        (instance(bbox=[1, 2, 3]), "found bbox [1, 2, 3]; expected x, y, width and height"),
        (instance(bbox=[1, 2, 3, "x"]), "found bbox [1, 2, 3, 'x']"),
        (held([CAPTIONS[0], CAPTIONS[0]]), "annotations[1]: found the id 1 a second time"),
        (held([{**CAPTIONS[0], "caption": " "}]), "annotation 1: found caption ' '; expected a text"),
        (held([], categories=[CATEGORIES[0], CATEGORIES[0]]), "categories[1]: found the id 1 a second time"),
        (held([], categories=[{"id": 1}]), "categories[0]"),
    ],
)
def test_a_file_that_does_not_fit_is_one_error_and_leaves_nothing(
    tmp_path: Path, root: Path, content: Any, words: str
) -> None:
    file = write(tmp_path / "a.json", content)
    with pytest.raises(DataError) as caught:
        import_coco(file, root, tmp_path / "out")
    assert words in str(caught.value) and str(file) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"{oops", b'{"images": ["\xff"]}'])
def test_what_is_no_json_says_so(tmp_path: Path, root: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a.json: found broken JSON .* get it again"):
        import_coco(tmp_path / "a.json", root, tmp_path / "out")


def test_files_that_disagree_and_folders_that_lack(tmp_path: Path, root: Path) -> None:
    one = write(tmp_path / "a.json", held([]))
    other = write(tmp_path / "b.json", {"images": [{**IMAGES[0], "file_name": "other.jpg"}], "annotations": []})
    with pytest.raises(DataError, match=r"b.json: found id 391895 for 'other.jpg', and in an earlier file"):
        import_coco([one, other], root, tmp_path / "out")
    with pytest.raises(DataError, match="found no such folder; expected the folder that file_name starts from"):
        import_coco(one, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match=r"gone.json: found No such file"):
        import_coco(tmp_path / "gone.json", root, tmp_path / "out")
