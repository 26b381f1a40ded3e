"""Pictures and videos that came with a request: from a data URI to bytes that a model can open, as long as it is asked.

Knows: data URIs, which formats are taken, and the pixel budget, checked before anything is decoded.
Does not know: networks (`remote_images`), datasets, or this disk: no path of a request is ever opened.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from workbench.conversation import Image, Media, Video
from workbench.data.images import beginning, load_image, still_format
from workbench.data.video import EXPECTED, Film, opened
from workbench.errors import ImageError
from workbench.inference.attachments import FRAMES, TrackedOpener, video_frames
from workbench.serving.errors import ApiError
from workbench.serving.limits import Limits

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

ROOT = "request"
"""The root of images that a request brought; a dataset's root of that name would never reach a server."""
FORMATS = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8", "WEBP": b"RIFF"}
"""What is taken, and how each begins: fewer than a dataset may hold, as decoders are a risk with strangers' bytes."""
_DATA = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]+)*(?P<base64>;base64)?,", re.IGNORECASE)


class Pictures:
    """The bytes of all requests that are being answered, under the hash of their content: the same picture is the same
    `Image` in every request, so that a model finds again what it knows of it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._held: dict[str, bytes] = {}
        self._users: Counter[str] = Counter()

    def keep(self, data: bytes, *, film: bool = False) -> Media:
        """A reference to a picture or a film, good until it was dropped as often as it was kept."""
        name = hashlib.sha256(data).hexdigest()
        self._held[name] = data
        self._users[name] += 1
        return Video(name, ROOT, hash=name) if film else Image(name, ROOT, hash=name)

    def drop(self, images: Iterable[Media]) -> None:
        for image in images:
            self._users[image.path] -= 1
            if self._users[image.path] <= 0:
                del self._users[image.path], self._held[image.path]

    def open(self, image: Media) -> Any:
        """The picture, upright, RGB, or the film. Raises `ImageError` under its name here."""
        data = self._held.get(image.path)
        if data is None:
            raise ImageError(image.path, found="a request that has ended", fix="send it again")
        if isinstance(image, Video):
            return Film(data, where=image.path)
        return load_image(data, where=image.path, limits=self.limits.image)

    def or_else(self, other: Callable[[Image], Picture]) -> TrackedOpener:
        """`open` for what requests bring, `other` for the rest: a model that is served stays usable beside it."""

        def state(image: Media) -> Hashable:
            if image.root == ROOT:
                return image.hash  # of its content, so that it is always the same
            return other.state(image) if isinstance(other, TrackedOpener) else None

        return TrackedOpener(lambda image: self.open(image) if image.root == ROOT else other(image), state)

    def __len__(self) -> int:
        return len(self._held)


def decoded(uri: str, where: str, limit: int, kind: str = "image") -> bytes:
    """The bytes in a data URI. Raises `ApiError` 400 for what is none, not base64, of another kind, or too large."""
    found, code = _DATA.match(uri[:200]), f"invalid_{kind}"
    if not found:
        raise refused(where, f"is no data URI of base64; send data:{kind}/...;base64,...", code)
    if not found["base64"]:
        raise refused(where, "is a data URI without ;base64", code)
    declared = (found["kind"] or "").lower()
    if not declared.startswith(f"{kind}/") or kind == "image" and declared.startswith("image/svg"):
        raise refused(where, f"is declared as {declared or 'nothing'}, not as {kind}/...", code)
    if (len(uri) - found.end()) * 3 // 4 > limit + 3:
        raise refused(where, f"is larger than {limit:,} bytes", "image_too_large" if kind == "image" else code)
    try:
        return base64.b64decode(uri[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise refused(where, "is not valid base64", code) from None


def checked_pixels(data: bytes, where: str, limits: Limits) -> int:
    """Pixels that a picture's header announces; nothing is decoded. Raises `ApiError` 400 for an unusable header."""
    from PIL import Image as PILImage

    if len(data) > limits.image.bytes:
        raise refused(where, f"is larger than {limits.image.bytes:,} bytes", "image_too_large")
    kind = next((name for name, begin in FORMATS.items() if data.startswith(begin)), None)
    if kind is None or kind == "WEBP" and data[8:12] != b"WEBP":
        raise refused(where, f"is not an image; {', '.join(FORMATS)} are taken")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PILImage.open(io.BytesIO(data), formats=(kind,)) as opened:
                width, height = opened.size
    except PILImage.DecompressionBombError:
        raise refused(where, f"has more than {limits.image.pixels:,} pixels", "image_too_large") from None
    except Exception:  # a parser meeting broken bytes raises anything
        raise refused(where, f"is a damaged or truncated {kind} (its header cannot be read)") from None
    if width * height > limits.image.pixels:
        found = f"is {width} x {height} pixels; at most {limits.image.pixels:,} in all are taken"
        raise refused(where, found, "image_too_large")
    return width * height


def video_pictures(data: bytes, where: str, limits: Limits) -> list[bytes]:
    """Frames of a video at even distances, each as PNG. Raises `ApiError` 400 for what is none or too large."""
    with _reading(data, where, limits):
        return [_png(frame) for frame in video_frames(data, min(FRAMES, limits.images))]


def checked_film(data: bytes, where: str, limits: Limits, frames: int) -> int:
    """Pixels of the frames that a model is shown of a video, each of which can be read, as many as `frames` at most.

    Raises `ApiError` 400 for what is no video or too large.
    """
    with _reading(data, where, limits) as pixels:
        film = Film(data)
        if (needed := pixels * film.count(frames)) > limits.pixels:
            found = f"has frames of {pixels:,} pixels; at most {limits.pixels:,} are taken of all that are looked at"
            raise refused(where, found, "invalid_video")
        film.frames(frames)
        return needed


@contextmanager
def _reading(data: bytes, where: str, limits: Limits) -> Iterator[int]:
    """While a video is read: what goes wrong is the client's to hear. Gives the pixels of a frame.

    Only containers that hold their pictures themselves, and only the reader of that container, whatever follows the
    first bytes: a playlist would have the reader open what it names, a session description a port.
    """
    import av

    if kind := still_format(data):
        raise refused(where, f"is a picture ({kind}), not a video; send it as image_url", "invalid_video")
    if data[4:8] != b"ftyp" and not data.startswith(b"\x1a\x45\xdf\xa3"):
        found = f"is not a video: it begins with {beginning(data)}; MP4, MOV, WebM and Matroska are taken"
        raise refused(where, found, "invalid_video")
    try:
        with opened(data) as (_, stream):
            pixels = stream.width * stream.height
        if pixels > limits.image.pixels:
            raise refused(where, f"has frames of more than {limits.image.pixels:,} pixels", "invalid_video")
        yield pixels
    except ImageError as problem:
        expected = "a whole MP4, MOV, WebM or Matroska file" if problem.expected == EXPECTED else problem.expected
        told = f"{where}: found {problem.found}; expected {expected}."
        raise ApiError(400, told, code="invalid_video", param=where) from None
    except (av.FFmpegError, ValueError):
        raise refused(where, "is a video that cannot be read", "invalid_video") from None


def _png(picture: Picture) -> bytes:
    held = io.BytesIO()
    picture.save(held, "PNG", compress_level=1)
    return held.getvalue()


def refused(where: str, found: str, code: str = "invalid_image") -> ApiError:
    return ApiError(400, f"{where} {found}.", code=code, param=where)
