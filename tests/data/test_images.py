"""One image file: what is accepted and how it looks afterwards, what is refused and how the error helps.

Every file here is a real one, written by the test.
"""

from __future__ import annotations

import base64
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from workbench.data.images import Limits, check_image, load_image
from workbench.errors import ImageError


def picture(width: int = 40, height: int = 30) -> PILImage.Image:
    """A smooth gradient with a red corner, so that turning and colours show."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 90)], -1).astype(np.uint8)
    pixels[: max(height // 3, 1), : max(width // 3, 1)] = (230, 20, 20)
    return PILImage.fromarray(pixels)


def encoded(kind: str, image: PILImage.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, kind, **options)
    return buffer.getvalue()


def refused(source: Path | bytes, *words: str) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source)
    text = str(caught.value)
    for word in words:
        assert word in text
    return text


# --- refused ----------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    text = refused(tmp_path / "gone.png", "no such file", "correct the root or the path")
    assert text.startswith(str(tmp_path / "gone.png"))


def test_a_folder_and_a_bad_name_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "a folder", "expected an image file")
    refused(Path("nul\0byte.png"), "cannot be read")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "found a pipe or a device", "expected an image file")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    refused(tmp_path / "empty.jpg", "an empty file", "download or copy it again")


@pytest.mark.parametrize(
    ("content", "begins"),
    [
        (b"this is text, not an image\n" * 20, "'this is text, not an ima'"),
        (b"hello", "'hello'"),
        ("<p>grün".encode() * 9, "'<p>grün<p>grün<p>grün'"),
        (b"\0\1" * 500, "the bytes 00 01 00 01 00 01 00 01"),
        (b"\xfe\xca", "the bytes fe ca"),
    ],
)
def test_a_file_that_is_no_image_shows_how_it_begins(tmp_path: Path, content: bytes, begins: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    expected = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC"
    refused(tmp_path / "a.png", f"not an image: it begins with {begins};", expected)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("AVIF", {}),
    ],
)
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.02, 0.98))
def test_no_part_of_a_file_passes_for_the_whole(kind: str, options: dict[str, object], share: float) -> None:
    """A truncated file is refused, or every pixel was there already (what lies behind them may miss)."""
    noise = np.random.default_rng(3).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    whole = encoded(kind, PILImage.fromarray(noise), **options)
    part = whole[: int(len(whole) * share)]
    try:
        found = load_image(part)
    except ImageError as problem:
        assert "truncated" in str(problem) or "not an image" in str(problem) or "empty" in str(problem)
    else:
        assert np.array_equal(np.asarray(found), np.asarray(load_image(whole)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_half_a_file_is_called_truncated(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"half.{kind.lower()}"
    data = encoded(kind)
    path.write_bytes(data[: len(data) // 2])
    refused(path, "truncated", "download or copy it again")


def test_damage_in_the_middle_of_a_png_is_refused() -> None:
    data = bytearray(encoded("PNG"))
    middle = len(data) // 2
    data[middle : middle + 40] = b"\0" * 40
    refused(bytes(data), "damaged or truncated")


def bomb(width: int, height: int) -> bytes:
    """A PNG that declares a size it does not hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (12_000, 11_000)])
def test_an_enormous_image_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = refused(bomb(width, height), "an enormous image", "at most 120,000,000 pixels", "make it smaller")
    assert f"{width * height:,}" in text or f"{width} x {height}" in text
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < (100_000 if sys.platform == "linux" else 100_000_000)  # kilobytes on Linux, bytes on macOS


def test_the_limits_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG"))
    with pytest.raises(ImageError, match="an enormous image: 40 x 30 pixels"):
        load_image(path, limits=Limits(pixels=1000))
    with pytest.raises(ImageError, match="an enormous file: .* at most 50"):
        load_image(path, limits=Limits(bytes=50))


# --- accepted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "PNG"), ("WEBP", "webp"), ("TIFF", "tif")])
def test_a_plain_image_is_read_and_described(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(encoded(kind))
    facts = check_image(path)
    assert (facts.width, facts.height, facts.format, facts.mode, facts.notes) == (40, 30, kind, "RGB", ())
    assert len(facts.hash) == 64 and len(facts.phash) == 16
    assert load_image(path).mode == "RGB"
    assert load_image(path.read_bytes()).size == (40, 30)


def test_a_png_named_jpg_is_accepted_and_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded("PNG"))
    assert check_image(path).notes == ("PNG named .jpg",)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded("JPEG", picture().convert("CMYK"), quality=95))
    assert check_image(path).mode == "CMYK"
    difference = np.abs(np.asarray(load_image(path), int) - np.asarray(picture(), int))
    assert difference.mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = np.asarray(load_image(encoded(kind, PILImage.fromarray(ramp))))
    assert found.shape == (16, 16, 3)
    assert np.abs(found[..., 0].astype(int).ravel() - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[-10.0, 0.0, 10.0]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, np.nan, 1]], np.float32), [0, 0, 255]),
    ],
)
def test_deep_tiffs_are_scaled_by_their_range(values: np.ndarray, expected: list[int]) -> None:
    assert np.asarray(load_image(encoded("TIFF", PILImage.fromarray(values))))[0, :, 0].tolist() == expected


def test_alpha_is_flattened_on_white() -> None:
    layer = picture().convert("RGBA")
    layer.putalpha(0)
    grey = PILImage.new("LA", (4, 4), (0, 128))
    palette = PILImage.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    assert np.asarray(load_image(encoded("PNG", layer))).min() == 255
    assert 125 <= np.asarray(load_image(encoded("PNG", grey))).mean() <= 129
    assert np.asarray(load_image(encoded("PNG", palette)))[0, 0].tolist() == [200, 0, 0]
    assert np.asarray(load_image(encoded("PNG", palette, transparency=1)))[0, 0].tolist() == [255, 255, 255]
    assert np.asarray(load_image(encoded("GIF", palette, transparency=1)))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("kind", "suffix"), [("GIF", "gif"), ("WEBP", "webp"), ("PNG", "png")])
def test_the_first_frame_of_an_animation_is_taken_and_noted(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = [PILImage.new("RGB", (20, 10), color) for color in ("red", "blue", "green")]
    options = {"lossless": True} if kind == "WEBP" else {}
    path.write_bytes(encoded(kind, frames[0], save_all=True, append_images=frames[1:], duration=50, **options))
    assert "animated: first frame" in check_image(path).notes
    assert np.asarray(load_image(path))[5, 5].tolist() in ([255, 0, 0], [254, 0, 0])


def test_a_phone_photo_with_a_second_picture_inside_is_its_first(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded("MPO", picture(), save_all=True, append_images=[PILImage.new("RGB", (20, 20))]))
    facts = check_image(path)
    assert (facts.format, facts.width, facts.notes) == ("MPO", 40, ("several: first picture",))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_once(kind: str, orientation: int) -> None:
    upright = np.asarray(picture())
    stored = {  # what a camera stores for each value
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(kind, PILImage.fromarray(np.ascontiguousarray(stored)), exif=exif, **options)
    found = load_image(data)
    assert found.size == (40, 30)
    assert np.abs(np.asarray(found, int) - upright).mean() < 4
    assert found.getexif().get(0x0112, 1) == 1, "a second reader would turn it again"


def test_a_broken_exif_block_does_not_cost_the_picture() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\xff\xff\xff\xff" * 3
    assert load_image(encoded("JPEG", exif=exif)).size == (40, 30)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (10, 20_000)])
def test_tiny_and_long_images_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG", picture(*size)))
    facts = check_image(path)
    assert (facts.width, facts.height) == size
    assert len(facts.phash) == 16


def test_the_perceptual_hash_is_near_for_near_copies_and_far_for_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blobs = [PILImage.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((96, 96)) for _ in range(2)]
    for name, image in (("a.png", blobs[0]), ("near.jpg", blobs[0].resize((80, 80))), ("far.png", blobs[1])):
        image.save(tmp_path / name)
    one, near, far = (int(check_image(tmp_path / name).phash, 16) for name in ("a.png", "near.jpg", "far.png"))
    assert (one ^ near).bit_count() <= 6 < (one ^ far).bit_count()


# --- phones -----------------------------------------------------------------------------------------------------

HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA"
    "AAAERAAAEAAQAAAAABoAABAAAAAAAAAOwAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAA"
    "AADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkA"
    "AAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAA"
    "AChjbGFwAAAAKAAAAAEAAAAeAAAAAf///+gAAAAC////3gAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAA9G"
    "1kYXQAAADoKAGvCch97tHAP5Asf8xR/w9ocOVV0+CEIv+9eK2FHi4vtYTmXsgQceDW6clQ+5UZdV5BhUJV+nuyc0KWc8PIH2PUycB4khqWfHWM"
    "8c/zQf30EjWcS8mIJAkNTi1LHw4E41vTEPHaIz7Lw5skgtDYmzbFHmsPUK/kEe6se2Wk4iaRmkF0Dwz4/gQ/BQ+en51MQM1Mfv+PkEvNEt2zYs"
    "lnTuom65urh2sjNSPhEMYkU1jVH6a/9Mv29MyTst2Tm+azH5YKYYU/mtvtA1iXhjDPD0QpG1pzEc/EoMq5fGgijpATG8TwXvff8A=="
)
"""`picture()` as HEIC; what reads it does not write it."""


@pytest.mark.parametrize(("name", "data"), [("a.heic", HEIC), ("a.avif", encoded("AVIF"))])
def test_pictures_of_phones_are_read(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "a.jpg").write_bytes(data)
    facts = check_image(tmp_path / name)
    assert (facts.width, facts.height, facts.mode, facts.notes) == (40, 30, "RGB", ())
    difference = np.abs(np.asarray(load_image(tmp_path / name), int) - np.asarray(picture(), int))
    assert difference.mean() < 6
    assert check_image(tmp_path / "a.jpg").notes == (f"{facts.format} named .jpg",)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.02, 0.99))
def test_no_part_of_a_heic_file_passes_for_the_whole(share: float) -> None:
    refused(HEIC[: int(len(HEIC) * share)])


def test_a_heic_picture_without_its_package_says_how_to_get_it() -> None:
    """In a process of its own that finds no such package."""
    code = (
        "import sys; sys.modules['pi_heif'] = None; import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'pi_heif' else real(name, *more)\n"
        f"from workbench.data.images import load_image; load_image({HEIC!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "found a HEIC picture, and no package that reads it; pip install pi-heif" in done.stderr
