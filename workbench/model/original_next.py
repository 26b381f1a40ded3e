"""LLaVA-NeXT in LLaVA's own configuration: the fields that say so, there and back.

Knows: that its pictures are `anyres` with `spatial_unpad`, that its grids are written as (width, height), as a list or
as text. Does not know: tensors (`original.py`), what a grid does (`anyres.py`).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import ModelError
from workbench.model.anyres import from_llava
from workbench.model.joint import ANYRES

UNPAD = "spatial_unpad"
"""`mm_patch_merge_type`: tiles beside each other, black borders taken off, a newline after each row."""
GRIDS = "image_grid_pinpoints"


def is_next(config: Mapping[str, Any]) -> bool:
    """Whether a configuration of LLaVA's own cuts pictures into tiles."""
    return config.get("image_aspect_ratio") == ANYRES and _merge(config) == UNPAD


def check_next(config: Mapping[str, Any], where: Path) -> None:
    """Raise `ModelError` for tiles that are put together in another way than LLaVA-NeXT's, and for its videos."""
    ratio, merge = str(config.get("image_aspect_ratio")), _merge(config)
    tiles = ratio.startswith(ANYRES) or merge != "flat"
    if tiles and not is_next(config):
        found = f"image_aspect_ratio {ratio} and mm_patch_merge_type {merge}"
        expected = f"{ANYRES} and {UNPAD} (LLaVA-NeXT), or neither (LLaVA 1.5)"
        raise ModelError(str(where), found=found, expected=expected)
    if config.get("mm_resampler_type"):
        found = f"mm_resampler_type {config['mm_resampler_type']}, which makes fewer tokens of a picture"
        raise ModelError(str(where), found=found, expected="a LLaVA 1.5 or NeXT, which keep them all")
    if tiles:
        pinpoints_in(config, where)


def pinpoints_in(config: Mapping[str, Any], where: Path) -> list[list[int]]:
    """The grids as [height, width], in the order they have there. Raises `ModelError` if they are none."""
    told = config.get(GRIDS)
    try:
        held: Any = ast.literal_eval(told) if isinstance(told, str) else told
        grids = from_llava(held)
    except (ValueError, TypeError, SyntaxError):
        grids = []
    if not grids or not all(isinstance(edge, int) for grid in grids for edge in grid):
        expected = "a list of [width, height] in pixels"
        raise ModelError(str(where), found=f"{GRIDS} {str(told)[:60]}", expected=expected)
    return grids


def next_fields(config: Mapping[str, Any], pinpoints: list[list[int]], where: Path) -> dict[str, Any]:
    """What LLaVA's configuration has to say of a LLaVA-NeXT with these grids, each [height, width]."""
    if is_next(config) and pinpoints_in(config, where) == pinpoints:
        return {}  # as it stands there, be it a list or text
    return {"image_aspect_ratio": ANYRES, "mm_patch_merge_type": UNPAD, GRIDS: from_llava(pinpoints)}


def _merge(config: Mapping[str, Any]) -> str:
    return config.get("mm_patch_merge_type") or "flat"
