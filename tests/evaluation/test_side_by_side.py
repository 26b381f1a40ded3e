"""Several models about a person's pictures: every answer in its place, one model in memory, failures said."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image as PILImage

sys.path.insert(0, str(Path(__file__).parents[1]))
from teacher_server import serving  # noqa: E402

from tests.videos import moving  # noqa: E402
from workbench.chat_model import ScriptedModel  # noqa: E402
from workbench.cli import main  # noqa: E402
from workbench.conversation import Conversation  # noqa: E402
from workbench.errors import DataError, DiskError, ImageError, ModelError, WorkbenchError  # noqa: E402
from workbench.evaluation.side_by_side import compare_models  # noqa: E402
from workbench.model.checkpoint import save  # noqa: E402
from workbench.model.llava import build  # noqa: E402
from workbench.recipe import ModelSpec  # noqa: E402


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "inside").mkdir(parents=True)
    for name, color in (("a.png", "red"), ("inside/b.jpg", "blue"), ("c.png", "green")):
        PILImage.new("RGB", (40, 30), color).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_every_answer_stands_beside_its_picture_and_question(photos: Path, tmp_path: Path) -> None:
    one = ScriptedModel(lambda asked: f"one saw {Path(asked.images[0].path).name} & <b>{asked.messages[-1].text}</b>")

    def fails_on_blue(asked: Conversation) -> str:
        if asked.images[0].path.endswith("b.jpg"):
            raise WorkbenchError("two", found="a blue picture", expected="any other")
        return "two"

    other = ScriptedModel(fails_on_blue)
    found = compare_models([one, other], photos, ["What?", "Why?"], out=tmp_path / "page.html")
    page = found.page.read_text(encoding="utf-8")
    assert page.count("<section>") == page.count("data:image/") == 3 and "<script" not in page and "http" not in page
    assert "one saw b.jpg &amp; &lt;b&gt;Why?&lt;/b&gt;" in page and "<b>Why" not in page
    assert page.count("two: found a blue picture") == 2
    assert {each.model for each in found.answers} == {"scripted", "scripted (2)"}
    texts = [each.text for each in found.answers if each.model == "scripted (2)"]
    assert texts == ["two", "two", "two", "two", None, None]  # a.png, c.png, inside/b.jpg
    assert str(found).startswith("12 answers, 2 failed; written: ")


def test_a_video_is_asked_about_as_one_and_shown_as_each_model_takes_it(photos: Path, tmp_path: Path) -> None:
    moving(photos / "clip.mp4", 20)
    pictures = ScriptedModel(lambda asked: f"{len(asked.images)} pictures", name="pictures")
    films = ScriptedModel(lambda asked: f"{len(asked.media) - len(asked.images)} videos", name="films")
    films.frames = 8  # type: ignore[attr-defined]  # as of a model that reads videos
    found = compare_models([pictures, films], [photos / "a.png", photos / "clip.mp4"], out=tmp_path / "page.html")
    assert [one.text for one in found.answers] == ["1 pictures", "8 pictures", "0 videos", "1 videos"]
    notes = [
        "1 video was seen as 8 frames each by pictures",
        "frames of a video seen at most: 8 by films",
        "the page shows a video by its first frame",
    ]
    page = found.page.read_text(encoding="utf-8")
    assert page.count("<section>") == page.count("data:image/") == 2 and all(note in page for note in notes)
    assert "2 models about 1 picture and 1 video" in page and "<small>clip.mp4, a video</small>" in page
    assert str(found).endswith(f"note: {notes[-1]}") and found.summary()["notes"] == notes
    found = compare_models([pictures], photos, out=tmp_path / "folder.html")
    assert [Path(one.image).name for one in found.answers] == ["a.png", "c.png", "clip.mp4", "b.jpg"]


def test_a_broken_file_of_a_folder_is_left_out_with_its_reason(photos: Path, tmp_path: Path) -> None:
    (photos / "b.png").write_bytes((photos / "a.png").read_bytes()[:60])
    found = compare_models([ScriptedModel(lambda asked: "seen")], photos, out=tmp_path / "page.html", limit=3)
    assert [Path(one.image).name for one in found.answers] == ["a.png", "c.png", "b.jpg"]
    (note,) = found.notes
    assert note.startswith(f"left out: {photos / 'b.png'}: found") and note in found.page.read_text(encoding="utf-8")
    with pytest.raises(ImageError, match=r"b\.png"):
        compare_models([ScriptedModel(["never asked"])], [photos / "b.png"])


def test_a_model_at_an_endpoint_stands_beside_one_of_this_machine(photos: Path, tmp_path: Path) -> None:
    with serving(faults=()) as (server, url):
        server.reply = lambda prompt: "a red square, says the endpoint"
        here = ScriptedModel(lambda asked: "red", name="here")
        found = compare_models([here, f"gpt-4@{url}"], [photos / "a.png"], ["What?"], out=tmp_path / "page.html")
        assert "data:image/" in json.dumps(server.requests[0])
    assert [one.text for one in found.answers] == ["red", "a red square, says the endpoint"]
    assert "a red square, says the endpoint" in found.page.read_text(encoding="utf-8")


def test_models_are_opened_by_name_and_one_that_cannot_be_is_said(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llava = build(ModelSpec(vision="tiny", language="tiny", device="cpu"), template="tiny", image_mode="square")
    folder = str(save(llava, tmp_path / "mine"))
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "config.json").write_text("{}")
    command = ["compare-models", folder, str(tmp_path / "hollow"), "--images", str(photos), "--limit", "2"]
    assert main([*command, "--out", str(tmp_path / "page.html"), "--max-tokens", "4"]) == 1, "one said nothing"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("hollow: found") == 2 and "mine" in page and "Describe this image in detail." in page
    assert "2 failed; written: " in capsys.readouterr().out
    with pytest.raises(ModelError, match="hollow: found"):
        compare_models([tmp_path / "hollow"], photos, out=tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_what_cannot_be_asked_is_told_first(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = ScriptedModel(["never asked"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: found no picture"):
        compare_models([silent], tmp_path / "empty")
    with pytest.raises(ImageError, match=r"notes.txt"):
        compare_models([silent], [photos / "a.png", photos / "notes.txt"])
    with pytest.raises(DataError, match="found no question"):
        compare_models([silent], photos, [])
    with pytest.raises(ModelError, match="nowhere: found no such folder"):
        compare_models([silent, tmp_path / "nowhere"], photos)
    with pytest.raises(DataError, match="photos: found a folder; expected a file to write"):
        compare_models([silent], photos, out=photos)
    with pytest.raises(DiskError, match="choose another folder"):
        compare_models([silent], photos, out=photos / "a.png" / "page.html")
    assert silent.asked == []
    assert main(["compare-models", "nowhere", "--images", str(photos), "--json"]) == 1
    assert capsys.readouterr().out == ""
