"""Which frames of a file are taken, and that they are the very frames however they are found."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from tests.videos import LEADING, decoded, later_and_later, leading_elsewhere, moving, painted
from workbench.conversation import Image, Video
from workbench.data import video
from workbench.data.video import Film, load_media, numbers
from workbench.errors import ImageError
from workbench.serving.demo.films import sampled


@pytest.mark.parametrize(("total", "count"), [(8, 8), (100, 8), (1000, 32), (31, 7), (9, 8), (5, 1)])
def test_frames_are_those_that_transformers_takes(total: int, count: int) -> None:
    metadata = VideoMetadata(total_num_frames=total, fps=10.0, duration=total / 10)
    assert numbers(total, count) == default_sample_indices_fn(metadata, num_frames=count).tolist()


def test_a_short_video_gives_all_its_frames(tmp_path: Path) -> None:
    film = Film(moving(tmp_path / "short.mp4", 3))
    assert numbers(3, 8) == [0, 1, 2] and film.count(8) == len(film.frames(8)) == 3


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"gop": 100},
        {"gop": 1},
        {"codec": "libx264", "options": {"bf": "2"}, "gop": 6},
        {"codec": "libvpx-vp9", "kind": "webm"},
        {"codec": "mpeg4", "kind": "avi"},
    ],
    ids=str,
)
def test_frames_are_the_same_sought_and_one_after_the_other(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = moving(tmp_path / "clip", 23, **made)
    for count in (1, 4, 8, 23):
        expected = decoded(place, numbers(23, count))
        found = Film(place).frames(count)
        assert len(found) == count and all(map(_equal, found, expected))
        with monkeypatch.context() as patch:
            patch.setattr(video._Index, "seek", lambda *_: [])
            assert all(map(_equal, Film(place.read_bytes()).frames(count), expected))
    assert len({one.tobytes() for one in decoded(place, list(range(23)))}) == 23


class Counting:
    """A container that counts the frames it decodes."""

    def __init__(self, container: Any, counted: list[int]) -> None:
        self.container, self.counted = container, counted

    def decode(self, stream: Any) -> Any:
        for frame in self.container.decode(stream):
            self.counted.append(1)
            yield frame

    def __getattr__(self, name: str) -> Any:
        return getattr(self.container, name)


def test_few_frames_of_a_long_video_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, counted = moving(tmp_path / "long.mp4", 200, gop=10), list[int]()
    opened = video.opened

    @contextmanager
    def counting(*given: Any) -> Any:
        with opened(*given) as (container, stream):
            yield Counting(container, counted), stream

    monkeypatch.setattr(video, "opened", counting)
    assert all(map(_equal, Film(place).frames(4), decoded(place, [0, 50, 100, 150])))
    assert len(counted) < 60, "of 150"


def test_a_file_whose_times_are_not_those_of_its_frames_is_decoded_in_order(tmp_path: Path) -> None:
    film = Film(moving(tmp_path / "clip.mp4", 23))
    index = film._index
    film.__dict__["_index"] = replace(index, shown=[(time or 0) + 1 for time in index.shown])
    assert all(map(_equal, film.frames(8), decoded(tmp_path / "clip.mp4", numbers(23, 8))))


def test_a_damaged_video_says_so(tmp_path: Path) -> None:
    whole = moving(tmp_path / "clip.avi", 23, kind="avi").read_bytes()
    (tmp_path / "text.mp4").write_text("no video")
    for source, told in (
        (Film(tmp_path / "text.mp4"), r"text.mp4: found a video that cannot be read"),
        (Film(whole[:600], where="upload"), "upload: found (a video that|no frame that) can"),
        (Film(tmp_path / "gone.mp4"), r"gone.mp4: found no such file"),
    ):
        with pytest.raises(ImageError, match=told):
            source.frames(8)
        with pytest.raises(ImageError, match=told):
            source.count(8)


def test_media_are_opened_by_what_a_message_calls_them(tmp_path: Path) -> None:
    place = moving(tmp_path / "clip.mp4", 2)
    assert load_media(Video("clip.mp4"), place) == Film(place)
    with pytest.raises(ImageError, match="clip.mp4: found not an image but a video"):
        load_media(Image("clip.mp4"), place)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_is_named_a_video_is_told(kind: str, tmp_path: Path) -> None:
    painted(1).save(tmp_path / "a.mp4", kind)
    told = 'a.mp4: found not a video but a picture; expected a video; a picture is named as one: "image"'
    for ask in (Film.count, Film.frames):
        with pytest.raises(ImageError, match=told):
            ask(Film(tmp_path / "a.mp4"), 8)
    frames = [painted(number) for number in range(3)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    assert Film(tmp_path / "moves.gif").count(8) == 3, "one that moves is a video"


def _equal(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("kind", LEADING)
def test_a_file_that_leads_to_others_is_not_followed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "up.mp4"
    place.write_bytes(leading_elsewhere(tmp_path, kind))
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    for source in (Path("up.mp4"), place.read_bytes()):
        for ask in (lambda one: Film(one).first(), lambda one: Film(one).count(8), lambda one: video.moments(one, 1)):
            with pytest.raises(ImageError, match=r"a video that cannot be read"):
                ask(source)
    assert time.monotonic() - began < 2, "no port is listened to"


@pytest.mark.parametrize(
    ("kind", "codec"),
    [
        ("mp4", "mpeg4"), ("mov", "mpeg4"), ("3gp", "mpeg4"), ("matroska", "mpeg4"), ("webm", "libvpx-vp9"),
        ("avi", "mpeg4"), ("vob", "mpeg4"), ("mpegts", "mpeg4"), ("asf", "wmv2"), ("flv", "flv"), ("ogg", "libvpx"),
    ],
)  # fmt: skip
def test_containers_are_told_by_their_beginning(kind: str, codec: str, tmp_path: Path) -> None:
    place = moving(tmp_path / "clip", 9, codec=codec, kind=kind)
    assert [one.size for one in Film(place).frames(3)] == [(64, 48)] * 3
    assert len(sampled(str(place), 3)) == 3, "a demo takes the same"


def test_the_frame_of_a_moment_is_the_last_that_begins_no_later(tmp_path: Path) -> None:
    place = later_and_later(tmp_path / "clip.mp4", 30)
    for moment in (0.0, 12.0, 33.0, 50.79, 57.5, 57.7, 84.0, 500.0):
        number = max(one for one in range(30) if one * one / 10 <= moment)
        assert _equal(video.frame_at(place, moment), decoded(place, [number])[0]), moment
