"""The front door: formats are told by what is in the files, what could be two things is refused, and every format that
goes both ways comes back equal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image as PILImage

import workbench as wb
from workbench.conversation import Conversation, Image, Message, new_id
from workbench.curation.in_and_out import export_dataset, import_dataset
from workbench.data import scene_files
from workbench.data.dataset import Dataset
from workbench.data.formats import IN, OUT
from workbench.data.images import load_image
from workbench.data.recognise import recognise
from workbench.errors import DataError


def turn(*texts: str) -> list[dict[str, str]]:
    return [{"from": speaker, "value": text} for speaker, text in zip(("human", "gpt") * 2, texts, strict=False)]


LLAVA = [{"id": "1", "image": "a.jpg", "conversations": turn("<image>\nWhat?", "A cat.")}]
SHAREGPT = [{"images": ["a.jpg"], "conversations": turn("<image>What?", "A cat.")}]
MESSAGES = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}]
COCO = {"info": {}, "images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []}
TEXT = [{"conversations": turn("Hi", "Ho")}]


def picture(path: Path, kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", (20, 10), "red").save(path, kind)


def parquet(path: Path) -> None:
    pl.DataFrame({"messages": [MESSAGES[0]["messages"]]}).write_parquet(path)


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# --- told by content --------------------------------------------------------------------------------------------

FILES: list[tuple[str, Callable[[Path], Any]]] = [
    ("llava", lambda path: path.write_text(json.dumps(LLAVA))),
    ("llava", lambda path: path.write_text(lines([TEXT[0], *LLAVA]))),
    ("llava", lambda path: path.write_text(json.dumps(TEXT))),
    ("sharegpt", lambda path: path.write_text(json.dumps(SHAREGPT, indent=2))),
    ("sharegpt", lambda path: path.write_text("﻿" + lines([*TEXT, *MESSAGES]), encoding="utf-8")),
    ("coco", lambda path: path.write_text(json.dumps(COCO))),
    ("coco", lambda path: path.write_text(json.dumps(COCO, indent=4))),
    ("coco", lambda path: path.write_text(json.dumps({**COCO, "x": "y" * 100_000}))),
    ("hf-dataset", parquet),
    ("pdf", lambda path: PILImage.new("RGB", (9, 9)).save(path, "PDF")),
]


@pytest.mark.parametrize(("kind", "write"), FILES)
@pytest.mark.parametrize("name", ["plain", "misleading.pdf", "misleading.json", "misleading.parquet"])
def test_a_file_is_what_it_holds_whatever_it_is_called(
    kind: str, write: Callable[[Path], Any], name: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    assert recognise(tmp_path / name) == kind


def test_a_folder_is_what_its_files_are(tmp_path: Path) -> None:
    picture(tmp_path / "pictures/cat/1.jpg")
    (tmp_path / "pictures/captions.jsonl").write_text('{"file": "cat/1.jpg", "caption": "A cat."}\n')
    (tmp_path / "pictures/notes.json").write_text("{}")
    (tmp_path / "documents/deep").mkdir(parents=True)
    PILImage.new("RGB", (9, 9)).save(tmp_path / "documents/deep/a.scan", "PDF")
    (tmp_path / "rows").mkdir()
    parquet(tmp_path / "rows/train.parquet")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/dataset_dict.json").write_text("{}")
    kinds = {name: recognise(tmp_path / name) for name in ("pictures", "documents", "rows", "saved")}
    assert kinds == {"pictures": "images", "documents": "pdf", "rows": "hf-dataset", "saved": "hf-dataset"}
    assert recognise("owner/name") == "hf-dataset"


def test_what_could_be_two_things_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    picture(tmp_path / "mixed/val/1.jpg")
    (tmp_path / "mixed/train.json").write_text(json.dumps(LLAVA))
    with pytest.raises(DataError) as caught:
        import_dataset(tmp_path / "mixed", tmp_path / "ds")
    said = str(caught.value)
    assert "pictures (val/1.jpg)" in said and "LLaVA conversations (train.json)" in said
    assert "--format images or the file" in said and "--images FOLDER" in said
    assert import_dataset(tmp_path / "mixed", tmp_path / "ds", format="images", workers=1).images.height == 1

    (tmp_path / "both.json").write_text(json.dumps(LLAVA + SHAREGPT))
    with pytest.raises(DataError, match="records with image .LLaVA. and with images.*--format llava or sharegpt"):
        import_dataset(tmp_path / "both.json", tmp_path / "ds2")


# --- what a person can get wrong ----------------------------------------------------------------------------------


def _broken(path: Path) -> Path:
    path.write_text(json.dumps(LLAVA * 3)[:-40])
    return path


BAD: list[tuple[str, Callable[[Path], dict[str, Any]], str]] = [
    ("nothing there", lambda p: {"source": p / "gone"}, "gone: found no such file or folder"),
    ("an empty folder", lambda p: {"source": p / "empty"}, "empty: found an empty folder; expected pictures"),
    ("an empty file", lambda p: {"source": p / "empty.json"}, "empty.json: found an empty file"),
    ("no format of ours", lambda p: {"source": p / "notes.doc"}, "notes.doc: found a file that begins with 'word"),
    ("other JSON", lambda p: {"source": p / "other.json"}, "found JSON with the keys question, answer"),
    ("captions alone", lambda p: {"source": p / "captions.jsonl"}, "name the folder instead"),
    ("one picture", lambda p: {"source": p / "in/a.jpg"}, "a single picture; expected a folder of them"),
    ("broken JSON", lambda p: {"source": _broken(p / "cut.json")}, "cut-off JSON behind record"),
    ("a dataset", lambda p: {"source": p / "made"}, "found a dataset already"),
    ("a typo", lambda p: {"source": p / "in", "format": "lava"}, "format: found 'lava'.*did you mean llava?"),
    ("another typo", lambda p: {"source": p / "in", "format": "PDFs"}, "did you mean pdf?"),
    ("two sources", lambda p: {"source": [p / "in", p / "empty"]}, "found 2 sources; expected one, or COCO files"),
    ("dpi of pictures", lambda p: {"source": p / "in", "dpi": 9}, "option dpi: found it for the format images"),
    (
        "images of pictures",
        lambda p: {"source": p / "in", "images": p},
        "option images: found it for the format images",
    ),
    ("no images folder", lambda p: {"source": p / "l.json", "images": p / "gone"}, "gone: found no such folder"),
]


@pytest.mark.parametrize(("_", "given", "message"), BAD, ids=[name for name, _, _ in BAD])
def test_bad_input_is_one_clear_error(_: str, given: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    picture(tmp_path / "in/a.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.json").touch()
    (tmp_path / "notes.doc").write_text("word" * 20)
    (tmp_path / "other.json").write_text('[{"question": 1, "answer": 2}]')
    (tmp_path / "captions.jsonl").write_text('{"file_name": "a.jpg", "text": "A cat."}\n')
    (tmp_path / "l.json").write_text(json.dumps(LLAVA))
    Dataset.create(tmp_path / "made", name="made")
    with pytest.raises(DataError, match=message) as caught:
        import_dataset(**given(tmp_path), out=tmp_path / "ds")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ds").exists()


def test_an_image_outside_the_folder_is_quarantined_by_every_format_with_paths(tmp_path: Path) -> None:
    picture(tmp_path / "outside.jpg")
    picture(tmp_path / "in/a.jpg")
    path = "../outside.jpg"
    for kind, held in {
        "llava": [{**LLAVA[0], "image": path}, {**LLAVA[0], "id": "1"}],  # the same id twice, as well
        "sharegpt": [{**SHAREGPT[0], "images": [path]}, *SHAREGPT],
        "coco": {**COCO, "images": [*COCO["images"], {"id": 2, "file_name": path}]},
    }.items():
        (tmp_path / f"{kind}.json").write_text(json.dumps(held))
        made = import_dataset(tmp_path / f"{kind}.json", tmp_path / kind, images=tmp_path / "in", workers=1)
        rows = made.images.filter(status="quarantined").select("path", "reason").rows()
        assert [row[0] for row in rows] == [path] and "a path that climbs out of its root" in rows[0][1]


# --- there and back -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Drawn scenes with exact boxes, captions, classes, splits, and conversations of every kind."""
    folder = tmp_path_factory.mktemp("scenes")
    made = scene_files.make(folder / "ds", count=12, seed=3, planted=scene_files.Planted(0, 0, 0))
    names = made.images["id"].to_list()
    splits = (["train"] * 3 + ["val"])[: len(names)] * 3
    classes = pl.DataFrame({"id": names, "label": ["few", "many"] * 6, "split": splits[: len(names)]})
    made.update_images(classes, operation={"name": "classes"})
    paths = made.images["path"].to_list()
    made.write_conversations(_talk(number, paths) for number in range(len(paths)))
    return made


def _talk(number: int, paths: list[str]) -> Conversation:
    first, second = Image(paths[number]), Image(paths[(number + 1) % len(paths)])
    messages = [
        (Message("user", (first, "What is there?")), Message("assistant", "Shapes, ä 漢字.")),
        (Message("user", (first, second, "The same?")), Message("assistant", "No.\n"),
         Message("user", "Sure?"), Message("assistant", "Yes.")),
    ][number % 2]  # fmt: skip
    return Conversation(new_id("talk", number), messages, task=None)


def _interleaved(dataset: Dataset) -> list[Conversation]:
    paths = dataset.images["path"].to_list()
    user = Message("user", ("Look: ", Image(paths[0]), " and ", Image(paths[1]), "."))
    both = (Message("system", "Be brief."), user, Message("assistant", "Seen."))
    return [Conversation(new_id("interleaved"), both, split="val", task="detail")]


def _things(dataset: Dataset, *dropped: str) -> dict[str, Any]:
    rows = dataset.images.select("path", "objects").rows()
    return {
        path: [{key: value for key, value in thing.items() if key not in dropped} for thing in json.loads(text or "[]")]
        for path, text in rows
    }


def _columns(dataset: Dataset, *columns: str) -> list[Any]:
    return sorted(dataset.images.select("path", *columns).rows())


def _pixels(dataset: Dataset) -> list[bytes]:
    """Of every picture, in order."""
    return [load_image(dataset.roots["images"] / path).tobytes() for path in dataset.images["path"]]


def _turns(dataset: Dataset, *fields: str) -> dict[str, Any]:
    return {
        one.id: ([(m.role, [getattr(p, "path", p) for p in m.content]) for m in one.messages],
                 *(getattr(one, field) for field in fields))
        for one in dataset.conversations()
    }  # fmt: skip


ROUND: dict[str, tuple[str, Callable[[Dataset], list[Any]]]] = {
    "images": ("out", lambda ds: [_columns(ds, "id", "captions", "label", "split", "hash", "width", "height")]),
    "coco": ("out.json", lambda ds: [_columns(ds, "id", "captions", "label", "split", "hash"), _things(ds, "id")]),
    "llava": ("out.json", lambda ds: [_turns(ds), _columns(ds, "id", "hash")]),
    "sharegpt": ("out.jsonl", lambda ds: [_turns(ds, "task"), _columns(ds, "id", "hash")]),
    "pdf": ("out.pdf", lambda ds: [_pixels(ds)]),
    "hf-dataset": ("out", lambda ds: [_turns(ds, "task", "source"), _columns(ds, "id", "hash")]),
}
"""Of every format that goes both ways: what to write, and what of a dataset has to come back equal."""


def test_the_round_trips_below_are_all_that_there_are() -> None:
    assert set(ROUND) == set(OUT) == set(IN)


@pytest.mark.parametrize("kind", ROUND)
def test_out_and_in_again_is_equal(kind: str, scenes: Dataset, tmp_path: Path) -> None:
    name, held = ROUND[kind]
    if kind in ("sharegpt", "hf-dataset"):
        shutil.copytree(scenes.path, tmp_path / "copy")
        scenes = Dataset.open(tmp_path / "copy")
        scenes.add_conversations(_interleaved(scenes))
    count = export_dataset(scenes, tmp_path / name, format=kind)
    assert count == (12 if kind in ("images", "pdf", "coco", "llava") else 13)
    options: dict[str, Any] = {"images": scenes.roots["images"]} if kind in ("coco", "llava", "sharegpt") else {}
    options |= {"dpi": 72} if kind == "pdf" else {}
    again = import_dataset(tmp_path / name, tmp_path / "again", workers=1, **options)
    for before, after in zip(held(scenes), held(again), strict=True):
        assert before == after and before


def test_splits_come_back_where_the_format_holds_them(scenes: Dataset, tmp_path: Path) -> None:
    def told(dataset: Dataset) -> dict[str, set[str]]:
        return {split: {one.id for one in dataset.conversations(split)} for split in ("train", "val", "test")}

    for kind, name in (("sharegpt", "s.json"), ("hf-dataset", "h")):
        export_dataset(scenes, tmp_path / name, format=kind)
        root = {"images": scenes.roots["images"]} if kind == "sharegpt" else {}
        assert told(import_dataset(tmp_path / name, tmp_path / f"again-{kind}", workers=1, **root)) == told(scenes)
    assert len(told(scenes)["val"]) == 3
    assert export_dataset(scenes, tmp_path / "val.json", format="llava", split="val") == 3


def test_the_library_has_both_as_public_names() -> None:
    assert wb.import_dataset is import_dataset and wb.export_dataset is export_dataset


def test_photographs_of_every_mode_come_in(tmp_path: Path) -> None:
    data = pytest.importorskip("skimage.data")
    import numpy as np

    folder = Path(data.__file__).parent
    files = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg", ".tif", ".gif", ".jpeg"))
    assert len(files) >= 3, "scikit-image ships a few with its package"
    (tmp_path / "in").mkdir()
    for path in files:
        shutil.copyfile(path, tmp_path / "in" / path.name)
    photograph = data.astronaut()
    alpha = np.dstack([photograph[:301, :203], np.full((301, 203), 128, np.uint8)])
    PILImage.fromarray(alpha).save(tmp_path / "in/alpha.png")
    PILImage.fromarray(data.camera()[:7, :501]).save(tmp_path / "in/grey.tif")
    made = import_dataset(tmp_path / "in", tmp_path / "ds", workers=1)
    rows = {row["path"]: row for row in made.images.iter_rows(named=True)}
    broken = set(made.images.filter(status="quarantined")["path"])
    assert len(rows) == len(files) + 2 and broken <= {"multipage_rgb.tif"}, "a TIFF of many bands, which is no picture"
    assert (rows["alpha.png"]["width"], rows["alpha.png"]["height"]) == (203, 301)
    assert rows["alpha.png"]["reason"] == "alpha flattened on white"
    assert (rows["grey.tif"]["width"], rows["grey.tif"]["height"]) == (501, 7)
    export_dataset(made, tmp_path / "out", format="images")
    again = import_dataset(tmp_path / "out", tmp_path / "again", workers=1)
    good = [row for row in _columns(made, "id", "hash", "phash") if row[0] not in broken]
    assert _columns(again, "id", "hash", "phash") == good
