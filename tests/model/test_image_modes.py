"""Any image as the square a tower reads: LLaVA's and transformers' own pixels, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from workbench.errors import ModelError
from workbench.model.images import MODES, ImageMode

SIZES = [(1, 1), (1, 7), (7, 1), (640, 480), (480, 640), (333, 335), (336, 336), (30, 900), (1200, 17), (50, 49)]
CLIP = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}, "do_center_crop": True}


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def expanded_to_square(image: Image.Image) -> Image.Image:
    """What LLaVA's `expand2square` does with CLIP's mean colour."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def clip_pixels(image: Image.Image) -> torch.Tensor:
    return CLIPImageProcessorPil(**CLIP)(image, return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pad_is_llavas_square_and_crop_is_clips_default(size: tuple[int, int]) -> None:
    image = noise(*size)
    pad, crop, square = (ImageMode(mode, CLIP).pixels(image) for mode in ("pad", "crop", "square"))
    assert pad.shape == (3, 48, 48) and pad.dtype == torch.float32
    assert torch.equal(pad, clip_pixels(expanded_to_square(image)))
    assert torch.equal(crop, clip_pixels(image))
    assert torch.equal(square, clip_pixels(image.resize((48, 48), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("mode", MODES)
def test_a_vanilla_processor_with_the_exported_settings_gives_the_same_pixels(mode: str, tmp_path: Path) -> None:
    for settings in (CLIP, CLIP | {"size": {"shortest_edge": 60}}, SIGLIP, {"size": 32}, {}):
        chosen = ImageMode(mode, settings)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(chosen.processor_settings()))
        vanilla = AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
        for size in SIZES[::2]:
            image = noise(*size)
            expected = vanilla(image, return_tensors="pt")["pixel_values"][0]
            assert torch.equal(chosen.pixels(image), expected), (settings, size)


SIGLIP: dict[str, Any] = {
    "size": {"height": 40, "width": 40},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 3,
}


def test_square_is_what_siglip_does_itself() -> None:
    image = noise(70, 30)
    expected = SiglipImageProcessorPil(**SIGLIP)(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(ImageMode("square", SIGLIP).pixels(image), expected)
    assert ImageMode("pad", SIGLIP).colour == (127, 127, 127)


def test_the_padding_has_the_mean_colour() -> None:
    shown = ImageMode("pad", CLIP).square(Image.new("RGB", (100, 20), "white"))
    assert shown.size == (48, 48)
    assert shown.getpixel((24, 2)) == (122, 116, 104) and shown.getpixel((24, 24)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(20_000, 10), (10, 3_000)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_strip_needs_no_memory_for_its_square(mode: str, size: tuple[int, int]) -> None:
    image = noise(*size)
    before = peak_memory()
    pixels = ImageMode(mode, CLIP).pixels(image)
    assert pixels.shape == (3, 48, 48) and torch.isfinite(pixels).all()
    assert peak_memory() - before < 100_000  # KiB; the padded square of the long one would be 1.2 GB


def peak_memory() -> int:
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_grey_and_palette_images_are_made_rgb() -> None:
    grey = Image.linear_gradient("L")
    mode = ImageMode("pad", CLIP)
    assert torch.equal(mode.pixels(grey), mode.pixels(grey.convert("RGB")))
    assert torch.equal(mode.pixels(grey.convert("P")), mode.pixels(grey.convert("P").convert("RGB")))


def test_an_unknown_mode_and_a_size_that_is_no_square_are_named() -> None:
    with pytest.raises(ModelError, match="image mode: found 'anyres'; expected square or pad or crop"):
        ImageMode("anyres", CLIP)
    with pytest.raises(ModelError, match="image size: found .*'height': 20, 'width': 30.*expected a square"):
        ImageMode("square", {"size": {"height": 20, "width": 30}})
