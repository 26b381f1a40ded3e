"""A folder of images becomes a dataset: every file is a row, a caption, or listed; nothing is skipped in silence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image as PILImage

from workbench.data.dataset import Dataset
from workbench.data.formats import export_folder, import_folder
from workbench.errors import DataError


def draw(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    PILImage.fromarray(noise).save(path)


def columns(dataset: Dataset, *names: str) -> list[tuple[object, ...]]:
    return dataset.images.select(*names).rows()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "b.jpg", "c.webp")):
        draw(tmp_path / "pictures" / name, number)
    return tmp_path / "pictures"


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for number, name in enumerate(("cat/1.png", "cat/deep/2.png", "dog/1.png", "loose.png")):
        draw(tmp_path / "pets" / name, number)
    dataset = import_folder(tmp_path / "pets", tmp_path / "out", workers=2)
    assert dataset.name == "pets"
    labels = [("cat/1.png", "cat"), ("cat/deep/2.png", "cat"), ("dog/1.png", "dog"), ("loose.png", None)]
    assert columns(dataset, "path", "label") == labels
    assert columns(dataset, "width", "height", "status")[0] == (16, 12, "ok")
    assert dataset.images["hash"].n_unique() == 4 and dataset.images["id"].n_unique() == 4
    assert dataset.roots == {"images": (tmp_path / "pets").resolve()}
    assert Dataset.open(tmp_path / "out").card["import"]["ok"] == 4
    assert not list((tmp_path / "out").rglob("*.png")), "images stay where they are"


def test_split_folders_around_classes_are_splits(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "Validation/dog/2.png", "test/cat/3.png"):
        draw(tmp_path / "pets" / name)
    dataset = import_folder(tmp_path / "pets", tmp_path / "out")
    assert sorted(columns(dataset, "split", "label")) == [("test", "cat"), ("train", "cat"), ("val", "dog")]


def test_a_loose_image_beside_split_folders_does_not_turn_them_into_classes(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "test/cat/3.png", "loose.png"):
        draw(tmp_path / "pets" / name)
    dataset = import_folder(tmp_path / "pets", tmp_path / "out")
    assert sorted(columns(dataset, "path", "split", "label")) == [
        ("loose.png", None, None), ("test/cat/3.png", "test", "cat"), ("train/cat/1.png", "train", "cat"),
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "import.json").read_text())["in no split folder"] == ["loose.png"]


def test_just_images(folder: Path, tmp_path: Path) -> None:
    dataset = import_folder(folder, tmp_path / "out", name="mine")
    assert columns(dataset, "path", "label", "split", "captions") == [
        (name, None, None, []) for name in ("a.png", "b.jpg", "c.webp")
    ]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("captions.csv", 'file,caption\na.png,"one, two"\nb.jpg, three \n./a.png,four\n'),
        ("captions.csv", "\ufefffile_name;Text\na.png;one, two\nb.jpg;three\na.png;four\n"),
        ("captions.csv", "id\timage\ttext\n1\ta.png\tone, two\n2\tb.jpg\tthree\n3\ta.png\tfour\n"),
        (
            "captions.jsonl",
            '{"image": "a.png", "caption": ["one, two", "four"]}\n\n{"image": "b.jpg", "caption": "three"}\n',
        ),
    ],
)
def test_a_captions_file_beside_the_images(folder: Path, tmp_path: Path, file: str, text: str) -> None:
    (folder / file).write_text(text, encoding="utf-8")
    dataset = import_folder(folder, tmp_path / "out")
    captions = dict(columns(dataset, "path", "captions"))
    assert captions == {"a.png": ["one, two", "four"], "b.jpg": ["three"], "c.webp": []}
    assert dataset.card["import"]["without caption"] == 1


def test_a_captions_file_finds_images_in_sub_folders_which_are_then_no_classes(tmp_path: Path) -> None:
    draw(tmp_path / "set/images/a.png")
    draw(tmp_path / "set/images/b.png")
    (tmp_path / "set/captions.csv").write_text("file,mine\na.png,one\nimages/b.png,two\n")
    dataset = import_folder(tmp_path / "set", tmp_path / "out", text_column="Mine")
    expected = [("images/a.png", ["one"], None), ("images/b.png", ["two"], None)]
    assert columns(dataset, "path", "captions", "label") == expected


def test_captions_that_name_missing_files_are_listed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "captions.csv").write_text("file,caption\na.png,one\ngone.png,two\nb.jpg,\n")
    import_folder(folder, tmp_path / "out")
    report = json.loads((tmp_path / "out/import.json").read_text())
    assert report["captions that name a missing file"] == ["gone.png"]
    assert report["empty captions"] == ["b.jpg"]
    assert report["without caption"] == ["b.jpg", "c.webp"]
    assert "captions that name a missing file: 1: gone.png" in capsys.readouterr().out


def test_sidecar_texts(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_text(" a red bus \n")
    (folder / "b.txt").write_bytes(b"\xff\xfe bad")
    (folder / "readme.txt").write_text("about this folder")
    dataset = import_folder(folder, tmp_path / "out")
    assert dict(columns(dataset, "path", "captions")) == {"a.png": ["a red bus"], "b.jpg": [], "c.webp": []}
    report = json.loads((tmp_path / "out/import.json").read_text())
    assert report["other files"] == {".txt": ["readme.txt"]}
    assert report["could not be read"][0].startswith("b.txt (")


def test_broken_images_keep_their_row_with_the_reason(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "text.png").write_text("this is text")
    (folder / "empty.gif").touch()
    (folder / "half.png").write_bytes((folder / "a.png").read_bytes()[:200])
    shutil.copy(folder / "a.png", folder / "wrong.jpg")
    dataset = import_folder(folder, tmp_path / "out")
    reasons = {path: (status, reason) for path, status, reason in columns(dataset, "path", "status", "reason")}
    assert reasons["a.png"] == ("ok", None)
    assert reasons["wrong.jpg"] == ("ok", "PNG named .jpg")
    assert reasons["empty.gif"] == ("quarantined", "an empty file")
    assert reasons["text.png"][0] == "quarantined" and "not an image: it begins with" in str(reasons["text.png"][1])
    assert reasons["half.png"][0] == "quarantined" and "truncated" in str(reasons["half.png"][1])
    out = capsys.readouterr().out
    assert "pictures: 7 images" in out and "ok: 4" in out and "not an image: 1: text.png" in out
    assert "accepted though odd: 1: wrong.jpg (PNG named .jpg)" in out
    assert dataset.card["counts"]["status"] == {"ok": 4, "quarantined": 3}


def test_hidden_and_other_files_are_counted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (".DS_Store", "Thumbs.db", "._a.png", "notes.pdf", "photo.psd", "Makefile"):
        (folder / name).write_bytes(b"x")
    draw(folder / ".thumbnails/a.png")
    draw(folder / "__MACOSX/a.png")
    dataset = import_folder(folder, tmp_path / "out")
    assert dataset.images.height == 3
    counted = dataset.card["import"]
    assert counted["hidden files"] == 5  # a hidden folder counts as one
    assert counted["other files"] == {".pdf": 1, ".psd": 1, "no extension": 1}
    assert ".psd: 1: photo.psd" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="links and such names need another system")
def test_links_and_names_that_cannot_be_used_are_said(folder: Path, tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere/x.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "outside.png").symlink_to(tmp_path / "elsewhere/x.png")
    shutil.copy(folder / "a.png", os.fsencode(folder) + b"/caf\xe9.png")
    dataset = import_folder(folder, tmp_path / "out")
    reasons = dict(columns(dataset, "path", "reason"))
    assert "a link that leads out" in str(reasons["outside.png"])
    said = json.loads((tmp_path / "out/import.json").read_text())["could not be read"]
    assert said == [
        "link/ (a link; import what it leads to by itself)",
        r"caf\xe9.png (a name that is not Unicode; rename it)",
    ]


def test_a_dataset_beside_its_pictures_can_be_moved(tmp_path: Path) -> None:
    draw(tmp_path / "ds/pictures/a.png")
    import_folder(tmp_path / "ds/pictures", tmp_path / "ds")
    shutil.move(tmp_path / "ds", tmp_path / "moved")
    dataset = Dataset.open(tmp_path / "moved")
    assert dataset.card["roots"] == {"images": "pictures"}
    assert (dataset.roots["images"] / dataset.images["path"][0]).exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["an empty folder", "expected pictures: JPEG, PNG"]),
        ({"a.psd": "x", "b.txt": "y"}, ["no picture or video, but a.psd, b.txt", "TIFF"]),
        (
            {"a.png": None, "captions.csv": "picture,words\na.png,x\n"},
            ["columns picture, words", "file_name", "caption"],
        ),
        ({"a.png": None, "captions.csv": b"file,caption\na.png,\xff\xff\n"}, ["a broken CSV file", "UTF-8"]),
        ({"a.png": None, "captions.csv": "file,caption\na.png,x,y,z\n"}, ["a broken CSV file"]),
        ({"a.png": None, "captions.csv": ""}, ["a broken CSV file"]),
        ({"a.png": None, "captions.jsonl": '{"file": "a.png", "caption": "x"}\n{oops\n'}, ["line 2", "broken JSON"]),
        ({"a.png": None, "captions.jsonl": "[1]\n"}, ["line 1", "found list"]),
        (
            {"a.png": None, "captions.jsonl": "{}", "captions.csv": "x"},
            ["captions.csv and captions.jsonl", "one captions file"],
        ),
    ],
)
def test_a_folder_that_cannot_be_imported_leaves_nothing(
    tmp_path: Path, files: dict[str, str | bytes | None], words: list[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in files.items():
        if content is None:
            draw(folder / name)
        else:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        import_folder(folder, tmp_path / "out")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_and_a_dataset_in_the_way(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; expected a folder of images; check the path"):
        import_folder(tmp_path / "nowhere", tmp_path / "out")
    import_folder(folder, tmp_path / "out")
    with pytest.raises(DataError, match="found a dataset; choose another folder, or delete this one"):
        import_folder(folder, tmp_path / "out")


def test_labels_and_splits_of_a_captions_file_beat_the_folders(tmp_path: Path) -> None:
    draw(tmp_path / "set/train/a.png")
    draw(tmp_path / "set/test/b.png")
    (tmp_path / "set/captions.csv").write_text("file,label,split\ntrain/a.png,cat,Validation\nb.png,,\n")
    dataset = import_folder(tmp_path / "set", tmp_path / "out")
    assert columns(dataset, "path", "label", "split") == [("test/b.png", None, None), ("train/a.png", "cat", "val")]


def test_an_unknown_split_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "captions.csv").write_text("file,caption,split\na.png,x,train\nb.jpg,y,holdout\n")
    with pytest.raises(DataError, match=r"captions.csv, row 2: found split 'holdout'; expected train \| val"):
        import_folder(folder, tmp_path / "out")


# --- and out ----------------------------------------------------------------------------------------------------

KEPT = ("id", "path", "width", "height", "hash", "phash", "split", "label", "captions")


@pytest.fixture
def known(tmp_path: Path) -> Dataset:
    """Images with everything that such a folder holds; one with an id of its own, one that is broken."""
    for number, name in enumerate(("cat/a.png", "dog/b.jpg", "c.webp", "cat/torn.png")):
        draw(tmp_path / "known" / name, number)
    (tmp_path / "known/cat/torn.png").write_bytes(b"torn")
    dataset = import_folder(tmp_path / "known", tmp_path / "ds")
    said = pl.DataFrame(
        {
            "captions": [[], ["ä, 漢", 'two "lines"\nand more'], [], ["a dog"]],
            "split": [None, "train", "val", "test"],
            "label": [None, None, "x", "dog"],
        }
    )
    dataset.write_images(
        dataset.images.with_columns(*said).with_columns(id=pl.col("id").replace(dataset.images["id"][1], "mine"))
    )
    return dataset


def test_what_goes_out_comes_in_equal(known: Dataset, tmp_path: Path) -> None:
    assert export_folder(known, tmp_path / "out") == 3
    again = import_folder(tmp_path / "out", tmp_path / "again")
    ok = known.images.filter(pl.col("status") == "ok")
    assert "mine" in ok["id"].to_list()
    assert again.images.select(KEPT).sort("id").equals(ok.select(KEPT).sort("id"))


def test_a_split_goes_out_alone_and_an_empty_one_says_so(known: Dataset, tmp_path: Path) -> None:
    assert export_folder(known, tmp_path / "out", split="test") == 1
    known.write_images(known.images.with_columns(split=pl.lit(None)))
    with pytest.raises(DataError, match="found no image that is ok in split test; expected something to export"):
        export_folder(known, tmp_path / "other", split="test")


def test_an_export_overwrites_nothing_and_leaves_no_half(known: Dataset, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    with pytest.raises(DataError, match="full: found something of that name; expected a new or empty folder"):
        export_folder(known, tmp_path / "full")
    (tmp_path / "known/dog/b.jpg").unlink()
    with pytest.raises(DataError, match=r"b.jpg: found no such file; restore it, or leave this image out"):
        export_folder(known, tmp_path / "out")
    assert not (tmp_path / "out").exists() and [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_a_file_in_place_of_a_folder_is_called_a_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="found a file; expected a folder of images; name the folder it is in"):
        import_folder(tmp_path / "notes.txt", tmp_path / "out")
