"""One image into the tiles of the dynamic resolution of LLaVA-NeXT and OneVision; frames of a video into squares.

Knows: resizing onto a grid with the aspect ratio kept, black borders, the cut into tiles and the squashed whole before
them, exactly as transformers' PIL image processors do it; and the settings that make a vanilla one do the same.
Does not know: which grid a picture gets (`anyres.py`), which frames (`data/video.py`), files, EXIF, odd colour modes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from workbench.errors import ModelError
from workbench.model.anyres import AnyRes
from workbench.model.images import ImageMode
from workbench.model.mode_names import ANYRES, with_frames


class AnyResMode:
    """How images become tiles of `side` x `side` pixels, and frames squares, by the modes of `mode_names.py`.

    `settings` as of `ImageMode`; those of videos may stand under `video_processor`, as `processor_config.json` has
    them, and are else the same. Raises `ModelError` where the settings' size is not that of the tiles.
    """

    def __init__(self, tiling: AnyRes, settings: Mapping[str, Any] | None = None) -> None:
        self.tiling = tiling
        self.mode = f"anyres_video_{tiling.frames}" if tiling.frames else ANYRES
        if tiling.limit is not None:
            self.mode = with_frames(f"anyres_max_{tiling.limit}", tiling.frames)
        self.beside = ImageMode("pad", settings) if tiling.alone else None
        """How each of several images becomes one square, where they do (LLaVA-OneVision)."""
        self._whole = ImageMode("square", settings)
        self.side = self._whole.side
        if self.side != tiling.side:
            raise ModelError("the image processor", found=f"tiles of {self.side}", expected=f"{tiling.side} pixels")
        reads = tiling.frames or tiling.alone
        self.film = _film_mode(settings or {}, squashed=tiling.alone) if reads else None
        """How each frame of a video becomes one square, in a family that reads videos."""
        if self.film is not None and self.film.side != tiling.side:
            found = f"frames of {self.film.side}"
            raise ModelError("the video processor", found=found, expected=f"{tiling.side} pixels")

    def __repr__(self) -> str:
        return f"AnyResMode(side={self.side}, {len(self.tiling.pinpoints)} grids)"

    def tiles(self, image: Image.Image) -> torch.Tensor:
        """(tiles, 3, side, side) float32: the whole image squashed, then the tiles of its grid row by row."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        return self._whole.normalised([self.square(image), *self._cut(image)])

    def frames(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(frames, 3, side, side) float32 of a video's frames. The model is one that reads videos."""
        assert self.film is not None
        return self.film.normalised([self.film.square(picture) for picture in pictures])

    def square(self, image: Image.Image) -> Image.Image:
        """The whole image squashed: the first tile as an RGB picture, before normalisation."""
        return self._whole.square(image)

    def processor_settings(self) -> dict[str, Any]:
        """What an exported `preprocessor_config.json` must hold, so that `AutoProcessor` gives the same tiles."""
        grids = [list(pinpoint) for pinpoint in self.tiling.pinpoints]
        held = {**self._whole.processor_settings(), "do_pad": True, "image_grid_pinpoints": grids}
        if self.tiling.alone:
            return held | {"image_processor_type": "LlavaOnevisionImageProcessor"}
        size = {"shortest_edge": self.side}
        return held | {"image_processor_type": "LlavaNextImageProcessor", "do_center_crop": True, "size": size}

    def video_settings(self) -> dict[str, Any]:
        """What an exported folder must say of videos, so that transformers' own processor gives the same frames."""
        assert self.film is not None
        held = {key: value for key, value in self.film.processor_settings().items() if key not in IMAGES_ONLY}
        sampled = {"do_sample_frames": self.tiling.frames > 0, "num_frames": self.tiling.frames}
        family = "LlavaOnevision" if self.tiling.alone else "LlavaNextVideo"
        return held | sampled | {"video_processor_type": f"{family}VideoProcessor"}

    def _cut(self, image: Image.Image) -> list[Image.Image]:
        height, width = self.tiling.resolution(image.size)
        fitted = self.tiling.fitted(image.size)
        canvas = Image.new("RGB", (width, height))
        left, top = (width - fitted[0]) // 2, (height - fitted[1]) // 2
        canvas.paste(image.resize(fitted, self._whole.resample), (left, top))
        return [
            canvas.crop((x, y, x + self.side, y + self.side))
            for y in range(0, height, self.side)
            for x in range(0, width, self.side)
        ]


IMAGES_ONLY = ("do_pad", "image_processor_type")
"""Settings that an image processor has and a video processor has not."""


def _film_mode(settings: Mapping[str, Any], *, squashed: bool) -> ImageMode:
    """Frames are squashed in LLaVA-OneVision. In LLaVA-NeXT-Video they are cut out of the middle, as published, or
    squashed where the settings of videos have a height and a width."""
    held = settings.get("video_processor") or settings
    size = held.get("size")
    both = held is not settings and isinstance(size, Mapping) and "height" in size
    return ImageMode("square" if squashed or both else "crop", held)
