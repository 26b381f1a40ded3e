"""LLaVA-NeXT and OneVision in LLaVA's own configuration: the fields that say how pictures are tiles, there and back.

Knows: that NeXT's pictures are `anyres` and OneVision's `anyres_max_N`, both with `spatial_unpad`; that grids are
written as (width, height), as a list, as text, or as a range of tiles such as "(1x1),...,(6x6)".
Does not know: tensors (`original.py`), what a grid does (`anyres.py`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import ModelError
from workbench.model.anyres import from_llava
from workbench.model.joint import ANYRES, ANYRES_MAX

UNPAD = "spatial_unpad"
"""`mm_patch_merge_type`: tiles beside each other, black borders taken off, a newline after each row."""
GRIDS = "image_grid_pinpoints"
TILES = re.compile(r"\((\d+)x(\d+)\)")
"""One grid of a range, as tiles across and down."""
VIDEO = {"mm_spatial_pool_mode": "bilinear", "mm_newline_position": "one_token"}
"""How a OneVision's videos are shown, which is not computed here, as its own code looks for it."""


def tiles_of(config: Mapping[str, Any]) -> str | None:
    """The image mode of a configuration that cuts pictures into tiles, `anyres` or `anyres_max_N`; None for 1.5."""
    ratio = str(config.get("image_aspect_ratio"))
    cut = ratio == ANYRES or ANYRES_MAX.fullmatch(ratio)
    return ratio if cut and _merge(config) == UNPAD else None


def check_tiles(config: Mapping[str, Any], where: Path) -> None:
    """Raise `ModelError` for tiles that are put together in another way than LLaVA-NeXT's, and for its videos."""
    ratio, merge = str(config.get("image_aspect_ratio")), _merge(config)
    tiles = ratio.startswith(ANYRES) or merge != "flat"
    if tiles and not tiles_of(config):
        found = f"image_aspect_ratio {ratio} and mm_patch_merge_type {merge}"
        expected = f"{ANYRES} (LLaVA-NeXT) or {ANYRES}_max_9 (OneVision) and {UNPAD}, or neither (LLaVA 1.5)"
        raise ModelError(str(where), found=found, expected=expected)
    if config.get("mm_resampler_type"):
        found = f"mm_resampler_type {config['mm_resampler_type']}, which makes fewer tokens of a picture"
        raise ModelError(str(where), found=found, expected="a LLaVA 1.5, NeXT or OneVision, which keep them all")
    if tiles:
        pinpoints_in(config, where)


def pinpoints_in(config: Mapping[str, Any], where: Path, side: int = 1) -> list[list[int]]:
    """The grids as [height, width], in the order they have there. Raises `ModelError` if they are none.

    side: pixels of a tile's edge, in which a range of tiles is counted.
    """
    told = config.get(GRIDS)
    try:
        held: Any = told
        if isinstance(told, str):
            held = _range(told, side) if "x" in told else ast.literal_eval(told)
        grids = from_llava(held)
    except (ValueError, TypeError, SyntaxError):
        grids = []
    if not grids or not all(isinstance(edge, int) for grid in grids for edge in grid):
        expected = "a list of [width, height] in pixels, or a range of tiles such as (1x1),...,(6x6)"
        raise ModelError(str(where), found=f"{GRIDS} {str(told)[:60]}", expected=expected)
    return grids


def tile_fields(
    config: Mapping[str, Any], mode: str, pinpoints: list[list[int]], side: int, where: Path
) -> dict[str, Any]:
    """What LLaVA's configuration has to say of a model with this mode and these grids, each [height, width]."""
    if tiles_of(config) == mode and pinpoints_in(config, where, side) == pinpoints:
        return {}  # as it stands there, be it a list or text
    video = {key: config.get(key, usual) for key, usual in VIDEO.items()} if mode != ANYRES else {}
    return {"image_aspect_ratio": mode, "mm_patch_merge_type": UNPAD, GRIDS: from_llava(pinpoints)} | video


def _range(told: str, side: int) -> list[list[int]]:
    """All grids from the first to the last of those that a text names, widths outside, as LLaVA counts them."""
    named = [(int(across), int(down)) for across, down in TILES.findall(told)]
    if not named:
        raise ValueError(told)
    (left, top), (right, bottom) = named[0], named[-1]
    return [[across * side, down * side] for across in range(left, right + 1) for down in range(top, bottom + 1)]


def _merge(config: Mapping[str, Any]) -> str:
    return config.get("mm_patch_merge_type") or "flat"
