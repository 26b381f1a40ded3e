"""One image into the square of pixel values a vision tower reads.

Knows: the three ways to make any image square (squash, pad, crop), exactly as LLaVA and transformers' PIL image
processors do them, and the settings that make a vanilla processor do the same. Does not know: files, EXIF, odd colour
modes (`data/images.py` opens images), images of several tiles (`tiles.py`), or how many tokens a tower makes of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from workbench.errors import ModelError

MODES = ("square", "pad", "crop")
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BAND = 256
"""Rows of a padded image that are held at once."""
LARGEST = 64_000_000
"""Pixels a resized image may have before its crop is cut out of the source instead."""


class ImageMode:
    """How images become `side` x `side` pixels.

    `square`: squashed, whatever the aspect ratio. `pad`: padded to a square with the mean colour ((122, 116, 104) for
    CLIP), then resized; LLaVA 1.5's `image_aspect_ratio: pad`. `crop`: the shortest edge resized, then the centre cut
    out; CLIP's default and LLaVA's stage 1.

    `settings` is a tower's `preprocessor_config.json` (any of size, crop_size, resample, rescale_factor, image_mean,
    image_std). Raises `ModelError` for an unknown mode or a size that is not square.
    """

    def __init__(self, mode: str, settings: Mapping[str, Any] | None = None) -> None:
        if mode not in MODES:
            raise ModelError("image mode", found=repr(mode), expected=" or ".join(MODES))
        held = dict(settings or {})
        self.mode = mode
        self.side = _side(held)
        shortest = held.get("size")
        shortest = shortest.get("shortest_edge", self.side) if isinstance(shortest, Mapping) else shortest
        self.shortest = max(int(shortest or self.side), self.side)
        """The shortest edge in `crop` before the centre is cut out, in pixels."""
        resample = held.get("resample")  # 0 is one, too
        self.resample = Image.Resampling.BICUBIC if resample is None else Image.Resampling(int(resample))
        self.rescale = float(held.get("rescale_factor", 1 / 255))
        self.mean = tuple(float(value) for value in held.get("image_mean") or MEAN)
        self.std = tuple(float(value) for value in held.get("image_std") or STD)
        self.colour = tuple(int(value * 255) for value in self.mean)
        """What `pad` fills with: the mean colour, cut to whole levels as LLaVA does."""
        scaling = {"do_resize": False, "do_center_crop": False, "do_pad": False}
        self._scale = LlavaImageProcessorPil(**{**self.processor_settings(), **scaling})

    def __repr__(self) -> str:
        return f"ImageMode({self.mode!r}, side={self.side})"

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """(3, side, side) float32: rescaled and normalised."""
        return self.normalised([self.square(image)])[0]

    def tiles(self, image: Image.Image) -> torch.Tensor:
        """(1, 3, side, side): the one tile that the image is."""
        return self.normalised([self.square(image)])

    def normalised(self, squares: list[Image.Image]) -> torch.Tensor:
        """(n, 3, side, side) float32 of n squares of that size."""
        return self._scale(squares, return_tensors="pt")["pixel_values"]

    def square(self, image: Image.Image) -> Image.Image:
        """The image as a `side` x `side` RGB picture: what the tower is shown, before normalisation."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        if self.mode == "square":
            return image.resize((self.side, self.side), self.resample)
        return self._padded(image) if self.mode == "pad" else self._cropped(image)

    def processor_settings(self) -> dict[str, Any]:
        """What an exported `preprocessor_config.json` must hold, so that `AutoProcessor` gives the same pixels."""
        whole = {"height": self.side, "width": self.side}
        return {
            "image_processor_type": "LlavaImageProcessor",
            "do_convert_rgb": True,
            "do_pad": self.mode == "pad",
            "do_resize": True,
            "size": {"shortest_edge": self.shortest} if self.mode == "crop" else whole,
            "resample": int(self.resample),
            "do_center_crop": self.mode == "crop",
            "crop_size": whole,
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def _padded(self, image: Image.Image) -> Image.Image:
        """Padded to a square and resized, a band of rows at a time: a 20,000 x 10 strip needs no 20,000 x 20,000.

        Pillow resizes rows first, then columns, so this gives its very bits.
        """
        width, height = image.size
        whole = max(width, height)
        left, top = (whole - width) // 2, (whole - height) // 2
        line = Image.new("RGB", (whole, 1), self.colour).resize((self.side, 1), self.resample)
        narrow = line.resize((self.side, whole), Image.Resampling.NEAREST)
        for first in range(top, top + height, BAND):
            rows = min(BAND, top + height - first)
            band = Image.new("RGB", (whole, rows), self.colour)
            band.paste(image, (left, top - first))
            narrow.paste(band.resize((self.side, rows), self.resample), (0, first))
        return narrow.resize((self.side, self.side), self.resample)

    def _cropped(self, image: Image.Image) -> Image.Image:
        """The shortest edge resized, the centre cut out."""
        scale = self.shortest / min(image.size)
        width, height = (
            self.shortest if edge == min(image.size) else int(self.shortest * edge / min(image.size))
            for edge in image.size
        )
        left, top = (width - self.side) // 2, (height - self.side) // 2
        if width * height <= LARGEST:
            whole = image.resize((width, height), self.resample)
            return whole.crop((left, top, left + self.side, top + self.side))
        source = (left / scale, top / scale, (left + self.side) / scale, (top + self.side) / scale)
        return image.resize((self.side, self.side), self.resample, box=source)


def _side(settings: Mapping[str, Any]) -> int:
    """The edge of the square in pixels: the crop's where there is one, else the size's."""
    keys = ("size",) if settings.get("do_center_crop") is False else ("crop_size", "size")
    held = next((settings[key] for key in keys if settings.get(key)), 336)
    if not isinstance(held, Mapping):
        return int(held)
    found = [int(held[key]) for key in ("height", "width", "shortest_edge") if held.get(key)]
    if not found or any(value != found[0] for value in found):
        raise ModelError("image size", found=str(dict(held)), expected="a square")
    return found[0]
