"""Boxes from one convention to another; within a dataset they are x0, y0, x1, y1 in pixels.

    COCO        x, y, width, height in pixels
    FiftyOne    x, y, width, height from 0 to 1 of the picture
    LLaVA       x0, y0, x1, y1 from 0 to 1 of the picture padded to a square

Knows: the three, there and back. What comes back to pixels is rounded to a millionth, so that a box that went out and
in again is the same one. Does not know: labels, or files.
"""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[float, float, float, float]
_DIGITS = 6


def to_coco(box: Sequence[float]) -> Box:
    """x, y, width, height in pixels."""
    x0, y0, x1, y1 = box
    return x0, y0, _exact(x1 - x0), _exact(y1 - y0)


def from_coco(box: Sequence[float]) -> Box:
    """The inverse of `to_coco`."""
    x, y, width, height = box
    return x, y, _exact(x + width), _exact(y + height)


def to_fiftyone(box: Sequence[float], width: int, height: int) -> Box:
    """x, y, width, height from 0 to 1 of a picture of `width` x `height` pixels."""
    x0, y0, x1, y1 = box
    return x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height


def from_fiftyone(box: Sequence[float], width: int, height: int) -> Box:
    """The inverse of `to_fiftyone`."""
    x, y, wide, high = box
    return _exact(x * width), _exact(y * height), _exact((x + wide) * width), _exact((y + high) * height)


def inside(box: Sequence[float], width: int, height: int) -> Box:
    """The part of a box in pixels that lies in the picture; annotations reach over its edges now and then."""
    x0, y0, x1, y1 = (min(max(value, 0.0), side) for value, side in zip(box, (width, height) * 2, strict=True))
    return x0, y0, x1, y1


def padded_box(box: Sequence[float], width: int, height: int) -> Box:
    """A box in pixels as LLaVA's instruction mix says it: x0, y0, x1, y1 from 0 to 1 of the picture padded to a square.

    The picture lies in the middle of the square, as LLaVA's `expand2square` puts it (llava/mm_utils.py); whole pixels
    of padding, the odd one after it.
    """
    side, left, top = _square(width, height)
    x0, y0, x1, y1 = box
    return (x0 + left) / side, (y0 + top) / side, (x1 + left) / side, (y1 + top) / side


def unpadded_box(box: Sequence[float], width: int, height: int) -> Box:
    """The inverse of `padded_box`; a box that reaches into the padding reaches beyond the picture."""
    side, left, top = _square(width, height)
    x0, y0, x1, y1 = box
    return _exact(x0 * side - left), _exact(y0 * side - top), _exact(x1 * side - left), _exact(y1 * side - top)


def _square(width: int, height: int) -> tuple[int, int, int]:
    """Side of the square, and the padding left of and above the picture."""
    side = max(width, height)
    return side, (side - width) // 2, (side - height) // 2


def _exact(value: float) -> float:
    return round(value, _DIGITS)
