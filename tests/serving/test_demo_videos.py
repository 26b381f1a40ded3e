"""A demo is shown videos: the whole one where its model reads videos, else frames as chat and server give them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.videos import LEADING, leading_elsewhere, moving, painted, unknown_codec, video, written
from workbench.chat_model import SamplingOptions, ScriptedModel
from workbench.conversation import Conversation, Image, Video
from workbench.data.formats import import_llava
from workbench.data.video import Film
from workbench.inference.attachments import attached, open_file
from workbench.inference.opening import open_model
from workbench.serving.demo.answerer import Answerer
from workbench.serving.demo.feedback import Feedback
from workbench.serving.demo.films import sampled, spread
from workbench.serving.demo.page import build, launch
from workbench.serving.demo.turns import NotAnswered, Settings, messages_of, question, text_message
from workbench.serving.demo_run import PageModel
from workbench.serving.export_demo import export_demo

sys.path.insert(0, str(Path(__file__).parent))
from small_run import answers, ask, page_of, small_run, wait_until_done  # noqa: E402

QUESTION = "Describe it in detail."
MODES = {"next": "anyres_video_4", "onevision": "anyres_max_2_video_4", "pictures": "square"}


@pytest.fixture(scope="module", params=MODES)
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """(family, a run of it, its exported demo)"""
    folder = tmp_path_factory.mktemp(request.param)
    run = small_run(folder, f"image_mode={MODES[request.param]}", "train.max_tokens=2000")
    return request.param, run, export_demo(run, folder / "demo", examples=0, device="cpu")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Such as a browser plays, too."""
    return moving(tmp_path / "clip.mp4", 20, codec="libx264", options={"crf": "10"})


def turn(path: Path | str) -> list[dict[str, Any]]:
    return messages_of(question(QUESTION, [str(path)]))


# --- frames -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["short.mp4", "long.mp4", "web.webm", "shades.mp4", "b-frames.mp4"])
def test_frames_are_those_that_workbench_takes_bit_for_bit(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    made: dict[str, Any] = {
        "short.mp4": lambda: moving(path, 3),
        "long.mp4": lambda: moving(path, 47),
        "web.webm": lambda: moving(path, 20, codec="libvpx-vp9", kind="webm"),
        "shades.mp4": lambda: video(path, [10, 90, 200]),
        "b-frames.mp4": lambda: moving(path, 30, codec="libx264", gop=12, options={"bf": "3"}),
    }
    made[name]()
    for count in (1, 4, 8):
        expected = Film(path).frames(count)
        assert [one.tobytes() for one in sampled(str(path), count)] == [one.tobytes() for one in expected]
    expected = [open_file(one) for one in attached(path)]
    assert [one.tobytes() for one in spread(str(path))] == [one.tobytes() for one in expected]


def test_what_is_no_video_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("hello")
    unknown_codec(tmp_path / "odd.webm")
    for take in (lambda path: sampled(path, 4), spread):
        with pytest.raises(NotAnswered, match="^odd.webm is not a video that can be read .no decoder for its frames"):
            take(str(tmp_path / "odd.webm"))
        with pytest.raises(NotAnswered, match="^notes.mp4 is not a video that can be read") as told:
            take(str(tmp_path / "notes.mp4"))
        assert str(tmp_path) not in str(told.value)


@pytest.mark.parametrize("kind", LEADING)
def test_an_upload_that_leads_to_other_files_is_not_followed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "up.mp4").write_bytes(leading_elsewhere(tmp_path, kind))
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    for take in (lambda path: sampled(path, 4), spread):
        for path in ("up.mp4", str(tmp_path / "up.mp4")):
            with pytest.raises(NotAnswered, match=r"^up.mp4 is not a video that can be read"):
                take(path)
    assert time.monotonic() - began < 2, "no port is listened to"


def test_the_page_takes_the_videos_that_are_read_and_no_others(tmp_path: Path) -> None:
    made = build([PageModel(ScriptedModel(["x"]))], title="", about="", feedback=Feedback(tmp_path))  # type: ignore[arg-type]
    (taken,) = [one.file_types for one in made.blocks.values() if getattr(one, "file_types", None)]
    made.close(verbose=False)
    assert taken[0] == "image" and ".mpg" in taken
    for kind, codec, ending in (("vob", "mpeg4", ".mpg"), ("3gp", "mpeg4", ".3gp"), ("asf", "wmv2", ".wmv"),
                                ("ogg", "libvpx", ".ogv"), ("mpegts", "mpeg4", ".ts")):  # fmt: skip
        path = moving(tmp_path / f"clip{ending}", 9, codec=codec, kind=kind)
        (part, _) = turn(path)[0]["content"]
        assert ending in taken and part == {"type": "video", "path": str(path)}
        assert len(sampled(str(path), 4)) == 4 and len(spread(str(path))) == 8


# --- the model ----------------------------------------------------------------------------------------------------


def by_the_engine(run: Path, path: Path) -> str:
    """What `workbench chat` says: of the film, or of its frames."""
    model = open_model(run, device="cpu")
    media = [Video(str(path), root="")] if getattr(model, "frames", 0) else attached(path)
    asked = Conversation("asked", ()).add("user", *media, QUESTION)
    return model.reply(asked, SamplingOptions(max_tokens=24)).text.strip()


def test_a_demo_here_and_one_given_away_say_of_a_video_what_the_chat_says(given: Any, clip: Path) -> None:
    family, run, folder = given
    expected = by_the_engine(run, clip)
    other = moving(clip.with_name("other.mp4"), 20, seed=9, codec="libx264")
    assert "av==" in (folder / "requirements.txt").read_text()
    told = []
    for model in (PageModel(run, device="cpu"), Answerer(folder)):
        told.append(["".join(model.answer(turn(path), Settings(max_tokens=24))).strip() for path in (clip, other)])
    assert [one[0] for one in told] == [expected, expected] and told[0] == told[1]
    seen = Answerer(folder).inputs(turn(clip), Settings())
    shown = "pixel_values" if family == "pictures" else "pixel_values_videos"
    assert seen[shown].shape[: seen[shown].ndim - 3] == ((8,) if family == "pictures" else (1, 4))


def test_the_whole_video_is_shown_as_the_engine_shows_it_also_beside_a_picture(given: Any, clip: Path) -> None:
    family, run, folder = given
    if family == "pictures":
        pytest.skip("reads no videos")
    painted(3).save(clip.with_name("still.png"))
    llava = PageModel(run, device="cpu").model.llava  # type: ignore[attr-defined]
    messages = messages_of(question(QUESTION, [str(clip.with_name("still.png")), str(clip)]))
    seen = Answerer(folder).inputs(messages, Settings())
    film, still = llava.show(Film(clip)), llava.show(painted(3))
    assert torch.equal(seen["pixel_values_videos"][0], film.tiles)
    assert torch.equal(seen["pixel_values"][0][: len(still.tiles)], still.tiles)
    config = Answerer(folder).model.config
    assert (seen["input_ids"] == config.video_token_id).sum() == llava.tiling.tokens(film.size)
    assert (seen["input_ids"] == config.image_token_id).sum() == llava.tiling.tokens(still.size)


def test_videos_of_different_lengths_and_the_mark_of_one_are_told(given: Any, clip: Path) -> None:
    family, _, folder = given
    if family == "pictures":
        pytest.skip("reads no videos")
    short = moving(clip.with_name("short.mp4"), 2)
    with pytest.raises(NotAnswered, match="different numbers of frames"):
        Answerer(folder).inputs(messages_of(question(QUESTION, [str(clip), str(short)])), Settings())
    with pytest.raises(NotAnswered, match="'<video>', a mark of the model's own"):
        Answerer(folder).inputs(messages_of(question("What is <video>?", [str(clip)])), Settings())


def test_where_a_file_lies_is_not_told_to_who_asks(given: Any, tmp_path: Path) -> None:
    _, run, folder = given
    (tmp_path / "notes.mp4").write_text("hello")
    for model in (PageModel(run, device="cpu"), Answerer(folder)):
        with pytest.raises(NotAnswered, match="video") as told:
            list(model.answer(turn(tmp_path / "notes.mp4"), Settings()))
        assert str(tmp_path) not in str(told.value)


def test_a_vote_keeps_its_video_and_is_imported_with_it(clip: Path, tmp_path: Path) -> None:
    kept = Feedback(tmp_path / "kept")
    painted(3).save(tmp_path / "still.png")
    for files in ([clip], [tmp_path / "still.png", clip]):
        about = messages_of([*question(QUESTION, list(map(str, files))), text_message("assistant", "A patch.")])
        kept.add(about, model="m", vote="up", settings={})
    records = [json.loads(line) for line in kept.path.read_text().splitlines()]
    assert [one["conversations"][0]["value"] for one in records] == [
        f"<image>\n{QUESTION}", f"<image>\n<video>\n{QUESTION}",
    ]  # fmt: skip
    dataset = import_llava(kept.path, kept.folder, tmp_path / "imported")
    media = [[type(one) for one in talk.media] for talk in dataset.conversations()]
    assert media == [[Video], [Image, Video]]
    film = dataset.conversations()[0].media[0]
    assert dataset.resolve(film).read_bytes() == clip.read_bytes()


# --- in the browser -----------------------------------------------------------------------------------------------


@pytest.fixture
def page_url(given: Any, tmp_path: Path) -> Iterator[str]:
    made = build([Answerer(given[2])], title="films", about="", feedback=Feedback(tmp_path / "kept"))
    yield launch(made, block=False)
    made.close(verbose=False)


@pytest.mark.flaky(reruns=1)
def test_a_person_drops_a_video_in_sees_it_played_and_is_answered(given: Any, page_url: str, tmp_path: Path) -> None:
    _, run, _ = given
    patches = (painted(number // 5, (320, 240)) for number in range(20))
    clip = written(tmp_path / "clip.mp4", patches, (320, 240), codec="libx264", options={"crf": "18"})
    with page_of(page_url) as (page, asked):
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("number input for Longest answer").fill("24")
        ask(page, QUESTION, clip)
        wait_until_done(page, 1)
        page.wait_for_function("() => document.querySelector('#chats video')?.readyState >= 2")
        page.locator("#chats video").click()
        page.wait_for_function("() => document.querySelector('#chats video').currentTime > 0")
        told = page.evaluate("() => (v => [v.duration, v.videoWidth, v.videoHeight])(document.querySelector('video'))")
        said = answers(page)
        page.screenshot(path=tmp_path / "page.png")
    assert told == [pytest.approx(2.0, abs=0.2), 320, 240]
    assert said == [by_the_engine(run, clip)]
    assert [one for one in asked if not one.startswith((page_url, "data:", "blob:"))] == []
