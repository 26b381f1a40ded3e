"""Videos have rows as pictures do: checked when they come in, quarantined with the reason, split with what is said."""

from __future__ import annotations

import hashlib
import json
import wave
from dataclasses import replace
from pathlib import Path

import imagehash
import polars as pl
import pytest
from PIL import Image as PILImage

from tests.videos import decoded, moving
from workbench.conversation import Conversation, Image, Message, Video
from workbench.data import tables
from workbench.data.adopt import adopt
from workbench.data.dataset import Dataset
from workbench.data.formats import (
    export_coco,
    export_folder,
    export_hf,
    export_pdf,
    export_sharegpt,
    import_files,
    import_folder,
    import_llava,
    import_sharegpt,
)
from workbench.data.image_rows import image_rows
from workbench.data.recognise import recognise
from workbench.data.video import load_media
from workbench.data.video_check import check_video
from workbench.errors import DataError, ImageError


def _cut(path: Path, share: float) -> Path:
    """The first part of a file whose index stands at its beginning, as one breaks off while it is downloaded."""
    import av

    whole = moving(path.with_name(f"whole {path.name}"), 40, size=(320, 240))
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    whole.unlink()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def _sound(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        file.writeframes(bytes(16000))
    return path


def _damaged(path: Path) -> Path:
    data = bytearray(moving(path, 20, size=(320, 240)).read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 3000] = bytes(3000)
    path.write_bytes(data)
    return path


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _damaged_end(path: Path) -> Path:
    data = bytearray(moving(path, 20, size=(320, 240), codec="libx264", gop=10).read_bytes())
    end = data.index(b"moov") - 4
    data[end - 1500 : end] = b"\xff" * 1500
    path.write_bytes(data)
    return path


BROKEN = {
    "cut off": (lambda path: _cut(path, 0.6), r"a video that was cut off after \d+ frames"),
    "without its end": (
        lambda path: _written(path, moving(path, 20, size=(320, 240)).read_bytes()[:9000]),
        "cannot be read",
    ),
    "sound alone": (_sound, "sound and no pictures"),
    "empty": (lambda path: _written(path, b""), "an empty file"),
    "text": (lambda path: _written(path, b"not found, sorry\n" * 9), "cannot be read \\(it begins with 'not found"),
    "damaged": (_damaged, "a video that cannot be read|frames that can be read"),
    "damaged at its end": (_damaged_end, "a video that cannot be read|frames that can be read"),
    "gone": (lambda path: path, "no such file"),
    "a folder": (lambda path: path.mkdir(), "a folder"),
}


def _picture(path: Path, color: str = "red", kind: str = "PNG") -> Path:
    PILImage.new("RGB", (64, 48), color).save(path, kind)
    return path


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_video_is_a_quarantined_row_that_says_why(kind: str, tmp_path: Path) -> None:
    make, told = BROKEN[kind]
    make(tmp_path / "clip.mp4")
    frame = image_rows(tmp_path, ["clip.mp4"], videos=["clip.mp4"], workers=1)
    assert frame.select("media", "status").row(0) == ("video", "quarantined")
    with pytest.raises(ImageError, match=told) as error:
        check_video(tmp_path / "clip.mp4")
    assert frame["reason"][0].startswith(error.value.found)


@pytest.mark.parametrize("made", [{}, {"codec": "libvpx-vp9", "kind": "webm"}, {"kind": "avi"}], ids=str)
def test_a_video_has_the_row_of_its_first_frame(made: dict[str, str], tmp_path: Path) -> None:
    place = moving(tmp_path / "clip.mp4", 11, size=(96, 64), **made)
    row = image_rows(tmp_path, ["clip.mp4"], videos={"clip.mp4"}, workers=1).row(0, named=True)
    first = decoded(place, [0])[0]
    assert (row["media"], row["status"], row["reason"]) == ("video", "ok", None)
    assert (row["width"], row["height"]) == (96, 64)
    assert row["hash"] == hashlib.sha256(place.read_bytes()).hexdigest()
    assert row["phash"] == str(imagehash.phash(first))


def test_a_file_that_is_named_as_what_it_is_not_says_how_to_name_it(tmp_path: Path) -> None:
    moving(tmp_path / "a.mp4", 3), moving(tmp_path / "b.avi", 3, kind="avi")
    moving(tmp_path / "c.webm", 3, kind="webm", codec="libvpx-vp9")
    _picture(tmp_path / "d.mp4"), _picture(tmp_path / "e.mp4", kind="JPEG"), _picture(tmp_path / "f.mp4", kind="AVIF")
    videos, pictures = ["a.mp4", "b.avi", "c.webm"], ["d.mp4", "e.mp4", "f.mp4"]
    wrong = image_rows(tmp_path, [*videos, *pictures], videos=pictures, workers=1)
    assert set(wrong["status"]) == {"quarantined"}
    for reason in wrong["reason"][:3]:
        assert reason.startswith('not an image but a video; expected a picture; a video is named as one: "video"')
    for reason in wrong["reason"][3:]:
        assert reason.startswith('not a video but a picture; expected a video; a picture is named as one: "image"')
    right = image_rows(tmp_path, [*videos, *pictures], videos=videos, workers=1)
    assert set(right["status"]) == {"ok"}


def test_broken_videos_are_checked_again_and_whole_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving(tmp_path / "whole.mp4", 3), _written(tmp_path / "text.mp4", b"no video")
    names = ["whole.mp4", "text.mp4"]
    first = image_rows(tmp_path, names, tmp_path / "out", videos=names, workers=1)
    seen: list[str] = []
    from workbench.data import image_rows as module

    monkeypatch.setattr(module, "check_video", lambda path: seen.append(path.name) or check_video(path))
    again = image_rows(tmp_path, names, tmp_path / "out", videos=names, workers=1)
    assert again.equals(first) and seen == ["text.mp4"]


# --- the table ------------------------------------------------------------------------------------------------------


def test_a_table_without_videos_keeps_the_version_it_had(tmp_path: Path) -> None:
    old = pl.DataFrame({"id": ["1", "2"], "path": ["a.png", "b.png"], "hash": ["x", "y"]})
    before = tables.complete(old, "images").drop("media")
    assert tables.content_hash(tables.as_images(old)) == tables.content_hash(before)
    films = tables.as_images(old.with_columns(media=pl.Series(["image", "video"])))
    assert tables.content_hash(films) != tables.content_hash(before)


def test_a_dataset_from_before_there_were_videos_opens(tmp_path: Path) -> None:
    frame = pl.DataFrame({"id": ["1"], "path": ["a.png"]})
    dataset = Dataset.create(tmp_path / "data", name="old", images=frame)
    version = dataset.snapshot()
    for file in (tmp_path / "data").rglob("images.parquet"):
        from workbench.data import parquet

        rows, meta = parquet.read_parquet([file])
        file.unlink()
        file.write_bytes(parquet.to_parquet(rows.drop("media"), meta))
    found = Dataset.open(tmp_path / "data")
    assert found.images["media"].to_list() == ["image"]
    assert found.snapshot() == version and "videos" not in found.card["counts"]


def test_an_unknown_medium_is_refused() -> None:
    with pytest.raises(DataError, match="media 'sound' in 1; expected image, video"):
        tables.as_images(pl.DataFrame({"id": ["1"], "path": ["a.mp3"], "media": ["sound"]}))


# --- a file of conversations ----------------------------------------------------------------------------------------


def _record(name: str, *, question: str = "What is it?", **files: str) -> dict[str, object]:
    marks = "<image>\n" * len(files)
    turns = [{"from": "human", "value": f"{marks}{question}"}, {"from": "gpt", "value": "A thing."}]
    return {"id": name, **files, "conversations": turns}


def test_conversations_about_broken_videos_are_kept_and_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media = tmp_path / "media"
    media.mkdir()
    moving(media / "good.mp4", 5), _picture(media / "good.png"), _written(media / "text.mp4", b"no")
    moving(media / "misnamed.mp4", 5, seed=1)
    records = [
        _record("1", video="good.mp4"), _record("2", image="good.png"), _record("3", video="text.mp4"),
        _record("4", video="gone.mp4"), _record("5", image="misnamed.mp4"), _record("6", image="good.mp4"),
    ]  # fmt: skip
    file = tmp_path / "talks.json"
    file.write_text(json.dumps(records))
    dataset = import_llava(file, media, tmp_path / "data")
    said = capsys.readouterr().out
    assert "5 conversations about 2 images and 3 videos" in said
    assert "quarantined videos, a video that cannot be read: 1: text.mp4" in said
    assert "quarantined videos, no such file: 1: gone.mp4" in said
    assert "quarantined images, not an image but a video: 1: misnamed.mp4" in said
    assert "bad records: 1\n    6: good.mp4: named as an image and as a video" in said
    assert [one.source["foreign_id"] for one in dataset.conversations()] == ["1", "2"]
    assert dataset.card["counts"]["videos"] == 3 and dataset.card["counts"]["images"] == 2
    rows = dict(dataset.images.select("path", "media").iter_rows())
    assert rows["good.mp4"] == "video" and rows["good.png"] == "image"
    kinds = [type(one.media[0]) for one in dataset.conversations()]
    assert kinds == [Video, Image]


def test_a_file_whose_videos_are_all_missing_names_the_wrong_folder(tmp_path: Path) -> None:
    file = tmp_path / "talks.json"
    file.write_text(json.dumps([_record("1", video="gone.mp4")]))
    with pytest.raises(DataError, match="none of its 1 videos below .*; the first: gone.mp4"):
        import_llava(file, tmp_path, tmp_path / "data")


# --- folders, chats, exports ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "things"
    for name in ("cat", "dog"):
        (place / name).mkdir(parents=True)
        moving(place / name / "clip.mp4", 4, seed=len(name) + (name == "cat"))
        _picture(place / name / "still.png", color={"cat": "red", "dog": "blue"}[name])
    _written(place / "dog" / "broken.mov", b"no video")
    return place


def test_videos_in_a_folder_of_pictures_are_rows_with_label_and_caption(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "cat" / "clip.txt").write_text("a cat that jumps")
    assert recognise(folder) == "images"
    dataset = import_folder(folder, tmp_path / "data")
    assert "things: 5 images and videos in" in capsys.readouterr().out
    rows = {row["path"]: row for row in dataset.images.iter_rows(named=True)}
    assert {path: row["media"] for path, row in rows.items()} == {
        "cat/clip.mp4": "video", "cat/still.png": "image",
        "dog/clip.mp4": "video", "dog/still.png": "image", "dog/broken.mov": "video",
    }  # fmt: skip
    assert rows["cat/clip.mp4"]["captions"] == ["a cat that jumps"]
    assert rows["dog/broken.mov"]["status"] == "quarantined" and rows["dog/clip.mp4"]["label"] is None


def test_a_picture_that_is_named_as_a_video_is_a_picture_where_nobody_says_more(folder: Path, tmp_path: Path) -> None:
    _picture(folder / "cat" / "odd.mp4")
    row = import_folder(folder, tmp_path / "data").images.filter(path="cat/odd.mp4").row(0, named=True)
    assert (row["media"], row["status"], row["reason"]) == ("image", "ok", "PNG named .mp4")


def test_a_folder_of_videos_alone_comes_in_with_classes(folder: Path, tmp_path: Path) -> None:
    for picture in folder.rglob("*.png"):
        picture.unlink()
    dataset = import_files(folder, tmp_path / "data")
    ok = dataset.images.filter(status="ok")
    assert dict(ok.select("path", "label").iter_rows()) == {"cat/clip.mp4": "cat", "dog/clip.mp4": "dog"}


def test_exports_hold_the_videos_or_say_how_many_they_leave_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = import_folder(folder, tmp_path / "data")
    assert export_folder(dataset, tmp_path / "copy") == 4
    again = import_folder(tmp_path / "copy", tmp_path / "again")
    columns = ["path", "media", "hash", "label", "status"]
    assert again.images.select(columns).equals(dataset.images.filter(status="ok").select(columns))
    capsys.readouterr()
    assert export_coco(dataset, tmp_path / "all.json") == 2
    assert "left out: 2 videos, which this format cannot hold" in capsys.readouterr().out
    assert {one["file_name"] for one in json.loads((tmp_path / "all.json").read_text())["images"]} == {
        "cat/still.png", "dog/still.png",
    }  # fmt: skip
    assert export_pdf(dataset, tmp_path / "all.pdf") == 2
    assert "left out: 2 videos" in capsys.readouterr().out
    said = Message("assistant", ("It does.",))
    for part in (Video("cat/clip.mp4", "images"), Image("cat/still.png")):
        dataset.add_conversations([Conversation(part.path, (Message("user", (part, "Does it?")), said))])
    assert export_hf(dataset, tmp_path / "hf") == 1
    assert "left out: 1 conversations about videos" in capsys.readouterr().out
    assert [one.id for one in import_files(tmp_path / "hf", tmp_path / "back").conversations()] != []


def test_a_conversation_that_is_kept_brings_its_video_a_row(tmp_path: Path) -> None:
    clip = moving(tmp_path / "clip.mp4", 4)
    asked = Message("user", (Video(str(clip), root=""), "What moves?"))
    said = Conversation("1", (asked, Message("assistant", ("Patches.",))))
    added = adopt(tmp_path / "kept", said, lambda media: load_media(media, Path(media.path)))
    dataset = Dataset.open(tmp_path / "kept")
    row = dataset.images.row(0, named=True)
    assert (row["media"], row["root"], row["path"]) == ("video", added.media[0].root, added.media[0].path)
    assert (row["hash"], row["width"], row["height"]) == (hashlib.sha256(clip.read_bytes()).hexdigest(), 64, 48)
    assert dataset.conversations() == [added]
    dataset.update_images(pl.DataFrame({"id": [row["id"]], "status": ["removed"]}), operation={"name": "look"})
    assert dataset.conversations() == []


SHARED = [
    {"conversations": [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "A patch."}],
     "videos": ["a.mp4"]},
    {"messages": [{"role": "user", "content": "<image>\n<video>\nIs it in <video>?"},
                  {"role": "assistant", "content": "No."}],
     "images": ["c.png"], "videos": ["a.mp4", "b.mp4"], "id": "m"},
    {"messages": [{"role": "user", "content": [{"type": "video", "video": "b.mp4"}, {"type": "text", "text": "What?"}]},
                  {"role": "assistant", "content": "A patch."}]},
    {"conversations": [{"from": "human", "value": "What does <video> mean?"}, {"from": "gpt", "value": "A mark."}]},
    {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "?"}], "videos": ["a.mp4"]},
    {"conversations": [{"from": "human", "value": "<video>Which?"}, {"from": "gpt", "value": "?"}],
     "videos": ["gone.mp4"]},
]  # fmt: skip


def test_videos_of_sharegpt_come_in_have_rows_and_go_out_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media = tmp_path / "media"
    media.mkdir()
    moving(media / "a.mp4", 3), moving(media / "b.mp4", 4, seed=1), _picture(media / "c.png")
    file = tmp_path / "talks.json"
    file.write_text(json.dumps(SHARED))
    assert recognise(_written(tmp_path / "one.json", json.dumps(SHARED[:1]).encode())) == "sharegpt"
    dataset = import_sharegpt(file, media, tmp_path / "data")
    said = capsys.readouterr().out
    assert "1 videos without an <video> mark" in said and "quarantined videos, no such file: 1: gone.mp4" in said
    kinds = [[type(part).__name__ for part in one.messages[0].content] for one in dataset.conversations()]
    assert kinds == [["Video", "str"], ["Image", "Video", "str", "Video", "str"], ["Video", "str"], ["str"]]
    rows = dict(dataset.images.select("path", "media").iter_rows())
    assert rows == {"a.mp4": "video", "b.mp4": "video", "c.png": "image", "gone.mp4": "video"}
    assert export_sharegpt(dataset, tmp_path / "again.json") == 4
    assert json.loads((tmp_path / "again.json").read_text()) == SHARED[:4]
    told = [replace(one, metadata={}) for one in dataset.conversations()]
    dataset.write_conversations(told)
    export_sharegpt(dataset, tmp_path / "plain.json", shape="messages")
    again = import_sharegpt(tmp_path / "plain.json", media, tmp_path / "second")
    assert [one.messages for one in again.conversations()][:3] == [one.messages for one in told][:3]
