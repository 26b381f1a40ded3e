"""One image file: open it once, check it, and bring it to plain RGB.

Knows: size limits that hold before anything is decoded, every pixel mode Pillow reads, EXIF rotation, animations,
truncated and mislabelled files, content hash and perceptual hash.
Does not know: datasets, roots, or what a model wants (`model/images.py` resizes and normalises).
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import re
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import imagehash
import numpy as np
from PIL import Image as PILImage

from workbench.errors import ImageError

EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
"""The formats that are read and how their files are named. MPO is a JPEG with further pictures, as phones write it."""
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"II*\0", b"MM\0*", b"BM", b"GIF8")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_PICTURE_BRANDS = (*_HEIF_BRANDS, b"avif", b"avis")
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
"""How MP4 and QuickTime files begin, behind four bytes of length."""
_HEIF_FIX = "pip install pi-heif"
_HAS_HEIF = importlib.util.find_spec("pi_heif") is not None
if _HAS_HEIF:  # Pillow itself reads AVIF, but not what phones write as HEIC
    import pi_heif

    pi_heif.register_heif_opener(thumbnails=False)
_OPENED_AS = tuple(kind for kind in EXTENSIONS if kind != "MPO" and (kind != "HEIF" or _HAS_HEIF))
"""Without MPO, which Pillow opens as JPEG and finds out later."""
SUFFIXES = frozenset(suffix for suffixes in EXTENSIONS.values() for suffix in suffixes)

_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
_DEEP = ("I", "F")
"""Pillow's modes of more than 8 bits: I;16, I;16B, I, F."""
_ORIENTATION = 0x0112
_SIDEWAYS = 5
"""From this orientation on width and height change places."""
_TURNED = ("TIFF",)
"""Formats whose pictures Pillow turns itself while it reads them, and whose size it gives as it will be then."""
_TURNS = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Limits:
    """What is refused before it is decoded."""

    pixels: int = 120_000_000
    """Width x height: room for a 108-megapixel photo, at most 360 MB as RGB."""
    bytes: int = 512 * 2**20
    """Size of the file."""


LIMITS = Limits()


@dataclass(frozen=True)
class ImageFacts:
    """What one opening of a file tells."""

    width: int
    height: int
    """Pixels, after EXIF rotation."""
    format: str
    mode: str
    """Pillow's name of the pixel mode in the file, before the conversion to RGB."""
    hash: str
    """SHA-256 of the file's bytes, 64 hexadecimal digits."""
    phash: str
    """64-bit perceptual hash, 16 hexadecimal digits: similar pictures differ in few bits."""
    notes: tuple[str, ...] = ()
    """What was odd but accepted: 'PNG named .jpg', 'animated: first frame', 'turned by EXIF'."""


def load_image(source: str | Path | bytes, *, where: str = "", limits: Limits = LIMITS) -> PILImage.Image:
    """The picture as RGB: upright, first frame, alpha flattened on white, deep greys scaled to 8 bits.

    `where` names bytes in errors. Raises `ImageError` for whatever cannot be read whole.
    """
    where = where or ("image bytes" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else read_file(Path(source), limits)
    return _decode(data, where, limits)[0]


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels as `load_image` gives them, told by the file's header where that can be read.

    Raises `ImageError` as `load_image` does.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PILImage.open(path, formats=_OPENED_AS) as opened:
                turned = _orientation(opened) >= _SIDEWAYS and opened.format not in _TURNED
                return (opened.height, opened.width) if turned else opened.size
    except Exception:  # `load_image` says what is wrong with it
        return load_image(path).size


def check_image(path: str | Path, *, limits: Limits = LIMITS) -> ImageFacts:
    """Decode the whole file once and tell what it is. Raises `ImageError` as `load_image` does."""
    path = Path(path)
    data = read_file(path, limits)
    picture, kind, mode, notes = _decode(data, str(path), limits)
    if path.suffix.lower() not in EXTENSIONS[kind]:
        notes.insert(0, f"{kind} named {path.suffix or 'without an extension'}")
    phash = str(imagehash.phash(picture))
    return ImageFacts(*picture.size, kind, mode, hashlib.sha256(data).hexdigest(), phash, tuple(notes))


def read_file(path: Path, limits: Limits = LIMITS) -> bytes:
    """An image file's bytes. Raises `ImageError` for one that is missing, unreadable or too large."""
    with open_file(path, limits) as file:
        try:
            return file.read()
        except OSError as problem:
            raise ImageError(str(path), found=f"a file that cannot be read ({problem})") from problem


def open_file(path: Path, limits: Limits = LIMITS) -> BinaryIO:
    """An image or video file, open to be read. Raises as `read_file` does."""
    try:
        size, mode = path.stat().st_size, path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe that nobody writes to would be waited for without end
            found = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise ImageError(str(path), found=found, expected="an image file")
        if size > limits.bytes:
            raise ImageError(str(path), found=f"an enormous file: {size:,} bytes", expected=f"at most {limits.bytes:,}")
        return open(path, "rb")
    except FileNotFoundError:
        raise ImageError(str(path), found="no such file", fix="restore it, or correct the root or the path") from None
    except (OSError, ValueError) as problem:
        raise ImageError(str(path), found=f"a file that cannot be read ({problem})") from problem


def _decode(data: bytes, where: str, limits: Limits) -> tuple[PILImage.Image, str, str, list[str]]:
    """The RGB picture, its format, its mode in the file, and notes."""
    if not data:
        raise ImageError(where, found="an empty file", fix="download or copy it again")
    try:
        with warnings.catch_warnings():
            # Pillow's warnings (large picture, odd EXIF) are covered by the limit below and by the notes.
            warnings.simplefilter("ignore")
            with PILImage.open(io.BytesIO(data), formats=_OPENED_AS) as opened:
                _check_size(opened.width * opened.height, f"{opened.width} x {opened.height} pixels", where, limits)
                kind, mode = str(opened.format), opened.mode
                opened.load()
                notes = _notes(opened)
                return _upright(_to_rgb(opened), _orientation(opened)), kind, mode, notes
    except ImageError:
        raise
    except PILImage.DecompressionBombError as problem:
        pixels = int((re.findall(r"\((\d+) pixels\)", str(problem)) or ["0"])[0])
        _check_size(pixels, f"{pixels:,} pixels", where, limits)
        raise ImageError(where, found=str(problem)) from problem
    except PILImage.UnidentifiedImageError:
        if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and not _HAS_HEIF:
            raise ImageError(where, found="a HEIC picture, and no package that reads it", fix=_HEIF_FIX) from None
        if is_video(data):
            expected = 'a picture; a video is named as one: "video" in LLaVA\'s JSON, wb.Video in a message'
            raise ImageError(where, found="not an image but a video", expected=expected) from None
        if data.startswith(_BEGINNINGS) or data[4:8] == b"ftyp":
            found = "a damaged or truncated image (its header cannot be read)"
            raise ImageError(where, found=found, fix="download or copy it again") from None
        expected = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC"
        raise ImageError(where, found=f"not an image: it begins with {beginning(data)}", expected=expected) from None
    except Exception as problem:  # a decoder meeting broken bytes raises anything, from SyntaxError to struct.error
        found = f"a damaged or truncated image ({problem or type(problem).__name__})"
        raise ImageError(where, found=found, fix="download or copy it again") from problem


def is_video(data: bytes) -> bool:
    """Whether a file begins as MP4, QuickTime, WebM, Matroska or AVI do, and is none of the pictures in such boxes."""
    if data[4:8] in _BOXES:
        return data[8:12] not in _PICTURE_BRANDS
    return data.startswith(b"\x1a\x45\xdf\xa3") or data.startswith(b"RIFF") and data[8:12] == b"AVI "


def is_picture(data: bytes) -> bool:
    """Whether a file begins as one of the pictures that are read here does."""
    boxed = data[4:8] == b"ftyp" and data[8:12] in _PICTURE_BRANDS
    return boxed or data.startswith(_BEGINNINGS) and not is_video(data)


def still_format(data: bytes) -> str | None:
    """Pillow's name of the format, told by the header, of a picture that does not move; None for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PILImage.open(io.BytesIO(data), formats=_OPENED_AS) as opened:
                return None if getattr(opened, "is_animated", False) else opened.format
    except Exception:  # no picture, or a broken one
        return None


def beginning(data: bytes) -> str:
    """How a file begins, to read: quoted where it is text, else a few bytes in hexadecimal."""
    text = data[:24].decode("utf-8", "ignore")
    if text and text.encode() == data[: len(text.encode())] and text.replace("\n", "").replace("\t", "").isprintable():
        return repr(text)
    return f"the bytes {data[:8].hex(' ')}"


def _check_size(pixels: int, text: str, where: str, limits: Limits) -> None:
    if pixels > limits.pixels:
        expected = f"at most {limits.pixels:,} pixels in all"
        raise ImageError(where, found=f"an enormous image: {text}", expected=expected, fix="make it smaller")


def _notes(opened: PILImage.Image) -> list[str]:
    notes = []
    if getattr(opened, "is_animated", False):
        notes.append("animated: first frame" if opened.format in _ANIMATED else "several: first picture")
    if _orientation(opened) in _TURNS:
        notes.append("turned by EXIF")
    if opened.has_transparency_data and not opened.mode.startswith(_DEEP):
        notes.append("alpha flattened on white")
    return notes


def _orientation(opened: PILImage.Image) -> int:
    try:
        return int(opened.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF blocks in the wild are often broken; the picture itself is not
        return 1


def _upright(picture: PILImage.Image, orientation: int) -> PILImage.Image:
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def _to_rgb(opened: PILImage.Image) -> PILImage.Image:
    if opened.mode.startswith(_DEEP):
        return PILImage.fromarray(_grey8(np.asarray(opened))).convert("RGB")
    if opened.has_transparency_data:
        layer = opened.convert("RGBA")
        white = PILImage.new("RGB", layer.size, "white")
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    picture = opened.convert("RGB")
    picture.info = {}  # without the file's EXIF, by which a second reader would turn the picture again
    return picture


def _grey8(grey: np.ndarray) -> np.ndarray:
    """(H, W) uint8 from 16-bit, 32-bit or floating grey: by the range of the type where it is known, else stretched."""
    if grey.dtype.kind == "u" and grey.dtype.itemsize == 2:
        return (grey >> 8).astype(np.uint8)
    values = np.nan_to_num(grey.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535 and grey.dtype.kind == "i":
        scale = 255 if high <= 255 else 65535
        low, high = 0.0, float(scale)
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)


def to_png(picture: PILImage.Image) -> bytes:
    """A picture in memory as a PNG file, seen as `load_image` sees one: upright, RGB. Raises `ImageError`."""
    written = io.BytesIO()
    try:
        _upright(_to_rgb(picture), _orientation(picture)).save(written, "PNG")
    except (OSError, ValueError, SyntaxError) as problem:  # its file is closed, cut off, or it has no pixel
        raise ImageError("a PIL image", found=f"one that cannot be read ({problem})") from problem
    return written.getvalue()


def thumbnail_uri(picture: PILImage.Image, side: int, *, quality: int = 80) -> str:
    """The picture as a JPEG of at most `side` pixels each way, as a text that an `img` takes."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
