"""Boxes between conventions: known values, and the same box after the way back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workbench.data import boxes

BOX = (10.0, 20.0, 40.0, 80.0)
sides = st.integers(1, 20_000)
pixels = st.integers(0, 2_000_000).map(lambda hundredths: hundredths / 100)
some_box = st.tuples(pixels, pixels, pixels, pixels)


def test_the_same_box_in_every_convention() -> None:
    assert boxes.to_coco(BOX) == (10, 20, 30, 60)
    assert boxes.to_fiftyone(BOX, 200, 100) == (0.05, 0.2, 0.15, 0.6)
    assert boxes.padded_box(BOX, 200, 100) == (0.05, 0.35, 0.2, 0.65)  # 50 pixels of padding above


def test_the_odd_pixel_of_padding_comes_after_the_picture() -> None:
    assert boxes.padded_box((0, 0, 3, 10), 3, 10) == (0.3, 0, 0.6, 1)


@given(some_box)
def test_coco_and_back(box: boxes.Box) -> None:
    assert boxes.from_coco(boxes.to_coco(box)) == box


@given(some_box, sides, sides)
def test_fiftyone_and_back(box: boxes.Box, width: int, height: int) -> None:
    assert boxes.from_fiftyone(boxes.to_fiftyone(box, width, height), width, height) == box


@given(some_box, sides, sides)
def test_llava_and_back(box: boxes.Box, width: int, height: int) -> None:
    assert boxes.unpadded_box(boxes.padded_box(box, width, height), width, height) == box
