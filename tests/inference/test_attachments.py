"""What is attached is told by content, and what a reference names is what is seen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as PILImage

from tests.videos import moving, sound, unknown_codec, video
from workbench.conversation import Image, Video
from workbench.errors import ImageError
from workbench.inference.attachments import attached, attached_for, open_file, video_frames


def shade(picture: PILImage.Image) -> int:
    return int(np.asarray(picture.convert("L")).mean())


def test_a_video_becomes_frames_at_even_distances_whatever_it_is_named(tmp_path: Path) -> None:
    place = video(tmp_path / "clip.jpg", [20, 90, 160, 230])
    images = attached(place, frames=4)
    assert [image.path.rpartition("#")[2] for image in images] == ["t=0.500", "t=1.500", "t=2.500", "t=3.500"]
    seen = [shade(open_file(image)) for image in images]
    assert all(abs(one - wanted) < 6 for one, wanted in zip(seen, (20, 90, 160, 230), strict=True))
    assert [shade(one) for one in video_frames(place.read_bytes(), 4)] == seen


def test_a_model_that_reads_videos_gets_the_video_itself(tmp_path: Path) -> None:
    place = video(tmp_path / "clip.mp4", [20, 90])
    reader, other = SimpleNamespace(frames=8), SimpleNamespace()
    (media,) = attached_for(place, reader, reader)
    assert media == Video(str(place), root="")
    assert [shade(one) < 60 for one in open_file(media).frames(2)] == [True, False]
    assert attached_for(place, reader, other) == attached(place), "another beside it gets frames"
    PILImage.new("RGB", (6, 4)).save(tmp_path / "a.png")
    assert attached_for(tmp_path / "a.png", reader) == attached(tmp_path / "a.png")


def test_a_pdf_becomes_its_pages(tmp_path: Path) -> None:
    pages = [PILImage.new("RGB", (60, 40), color) for color in ("red", "lime", "blue")]
    pages[0].save(tmp_path / "report", "PDF", save_all=True, append_images=pages[1:])
    images = attached(tmp_path / "report", pages=2)
    assert [image.path.rpartition("#")[2] for image in images] == ["page=1", "page=2"]
    colors = [open_file(image).resize((1, 1)).getpixel((0, 0)) for image in images]
    assert colors[0][0] > 200 > 60 > colors[0][1] and colors[1][1] > 200 > 60 > colors[1][0]
    with pytest.raises(ImageError, match="found 3 pages; expected at least 4"):
        open_file(Image(f"{tmp_path / 'report'}#page=4"))


def test_a_picture_is_itself_also_with_a_mark_in_its_name(tmp_path: Path) -> None:
    place = tmp_path / "a#page=1"
    PILImage.new("RGB", (6, 4), "red").save(place, "PNG")
    (image,) = attached(place)
    assert (image.width, image.height) == open_file(image).size == (6, 4)


def test_a_video_that_is_damaged_or_has_no_pictures_says_so(tmp_path: Path) -> None:
    whole = video(tmp_path / "clip.mp4", [20, 90]).read_bytes()
    (tmp_path / "clip.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"clip.mp4: found a video that cannot be read") as damaged:
        attached(tmp_path / "clip.mp4")
    assert "begins with" not in str(damaged.value) and "\n" not in str(damaged.value)
    with pytest.raises(ImageError, match=r"talk.mp4: found sound and no pictures; expected an image, a video"):
        attached(sound(tmp_path / "talk.mp4"))
    with pytest.raises(ImageError, match=r"odd.webm: found a video that cannot be read \(no decoder for its frames\)"):
        attached(unknown_codec(tmp_path / "odd.webm"))
    whole = moving(tmp_path / "film.webm", 20, codec="libvpx", kind="webm").read_bytes()
    (tmp_path / "film.webm").write_bytes(whole[: whole.index(b"\x1f\x43\xb6\x75") + 12])  # before its first frame
    for model in (SimpleNamespace(frames=8), SimpleNamespace()):
        with pytest.raises(ImageError, match=r"film.webm: found no frame that can be read"):
            attached_for(tmp_path / "film.webm", model)
    with pytest.raises(ImageError, match="found a folder; expected an image, a video or a PDF file; name a file"):
        attached(tmp_path)
    PILImage.new("RGB", (6, 4)).save(tmp_path / "still.mp4", "PNG")
    (image,) = attached_for(tmp_path / "still.mp4", SimpleNamespace(frames=8))
    assert image == Image(str(tmp_path / "still.mp4"), root="images"), "what is no video is told by its content"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"hello, this is text and no picture", "expected an image, a video or a PDF file"),
        (b"", "an empty file"),
        (b"%PDF-1.7 and no more", "a PDF file that cannot be read"),
        (b"\x89PNG\r\n\x1a\n and no more", "damaged or truncated"),
        (b"\0\0\0\x20ftypisom" + b"\0" * 40, "a video that cannot be read .*; expected an image, a video"),
        (b"\0\0\0\x20ftypavif" + b"\0" * 40, "a damaged or truncated image"),
        (b"\x1a\x45\xdf\xa3" + b"\0" * 40, "a video that cannot be read"),
    ],
)
def test_what_is_neither_is_told(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "thing").write_bytes(data)
    with pytest.raises(ImageError, match=told):
        attached(tmp_path / "thing")
