"""LLaVA-NeXT, its Video and OneVision in LLaVA's own configuration: how pictures are tiles and videos pooled, there
and back.

Knows: that NeXT's pictures are `anyres` and OneVision's `anyres_max_N`, both with `spatial_unpad`; that grids are
written as (width, height), as a list, as text, or as a range of tiles such as "(1x1),...,(6x6)"; that a NeXT with a
stride of pooling is a NeXT-Video; how a OneVision whose videos are read here is said to show them, and how many frames.
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
from workbench.model.film import POOLS
from workbench.model.mode_names import ANYRES, FRAMES, frames_in, limit_in, pictures_in, with_frames

UNPAD = "spatial_unpad"
"""`mm_patch_merge_type`: tiles beside each other, black borders taken off, a newline after each row."""
GRIDS = "image_grid_pinpoints"
TILES = re.compile(r"\((\d+)x(\d+)\)")
"""One grid of a range, as tiles across and down."""
VIDEO = {"mm_spatial_pool_mode": "bilinear", "mm_newline_position": "one_token"}
"""How a OneVision's videos are shown: what its own code looks for, and what is so where nothing is said."""
FASTER = "add_faster_video"
"""Whether frames are shown a second time with fewer tokens (some LLaVA-Videos)."""
COUNT = "num_frames"
"""How many frames of a video at most, by transformers' name. LLaVA's code has that as an argument (`frames_upbound`,
0 for all of them), and its configuration says nothing: ours does where it is not `FRAMES`."""
POOLED, STRIDE = "spatial_pool", 2
"""`mm_resampler_type` of a LLaVA-NeXT-Video, and how many tokens across and down become one."""


def tiles_of(config: Mapping[str, Any]) -> str | None:
    """The image mode of a configuration that cuts pictures into tiles: `anyres`, `anyres_max_N`, or `anyres_video_N`,
    of `FRAMES` frames unless it says a number (`COUNT`); None for 1.5. A OneVision that shows videos in another way
    than the published ones (LLaVA-Video) is `anyres_max_N_video_0`: its pictures are read."""
    ratio = str(config.get("image_aspect_ratio"))
    if _merge(config) != UNPAD:
        return None
    frames = config.get(COUNT, FRAMES)
    if ratio == ANYRES:
        return f"{ANYRES}_video_{frames}" if pool_of(config) else ANYRES
    if limit_in(ratio) is None or pictures_in(ratio) != ratio:
        return None
    stride = config.get("mm_spatial_pool_stride") or STRIDE
    usual = all((config.get(key) or value) == value for key, value in VIDEO.items())
    return with_frames(ratio, frames if usual and stride == STRIDE and not config.get(FASTER) else 0)


def pool_of(config: Mapping[str, Any]) -> str | None:
    """How a LLaVA-NeXT-Video pools the tokens of a frame; None for what pools none."""
    if config.get("mm_resampler_type") != POOLED and not config.get("mm_spatial_pool_stride"):
        return None
    return str(config.get("mm_spatial_pool_mode") or "average")


def film_fields(pool: str, width: int) -> dict[str, Any]:
    """What LLaVA's configuration has to say of a LLaVA-NeXT-Video with this pooling and a tower this wide."""
    size = {"mm_spatial_pool_stride": STRIDE, "mm_spatial_pool_out_channels": width}
    return {"mm_resampler_type": POOLED, "mm_spatial_pool_mode": pool, **size, "mm_newline_position": "no_token"}


def check_tiles(config: Mapping[str, Any], where: Path) -> None:
    """Raise `ModelError` for tiles that are put together in another way than LLaVA-NeXT's, and for its videos."""
    ratio, merge = str(config.get("image_aspect_ratio")), _merge(config)
    tiles = ratio.startswith(ANYRES) or merge != "flat"
    if tiles and not tiles_of(config):
        found = f"image_aspect_ratio {ratio} and mm_patch_merge_type {merge}"
        expected = f"{ANYRES} (LLaVA-NeXT) or {ANYRES}_max_9 (OneVision) and {UNPAD}, or neither (LLaVA 1.5)"
        raise ModelError(str(where), found=found, expected=expected)
    resampler, pool = config.get("mm_resampler_type"), pool_of(config)
    if resampler and (resampler != POOLED or ratio != ANYRES):
        found = f"mm_resampler_type {resampler}, which makes fewer tokens of a picture"
        raise ModelError(str(where), found=found, expected="a LLaVA 1.5, NeXT or OneVision, which keep them all")
    if ratio == ANYRES and pool and (pool not in POOLS or config.get("mm_spatial_pool_stride") != STRIDE):
        found = f"mm_spatial_pool_mode {pool} with mm_spatial_pool_stride {config.get('mm_spatial_pool_stride')}"
        raise ModelError(str(where), found=found, expected=f"{' or '.join(POOLS)} with {STRIDE}: no weights of its own")
    frames, least = config.get(COUNT, FRAMES), 1 if pool else 0
    if tiles and (type(frames) is not int or frames < least):
        raise ModelError(str(where), found=f"{COUNT}: {frames!r}", expected=f"a whole number of frames from {least} on")
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
    config: Mapping[str, Any], mode: str, pinpoints: list[list[int]], side: int, where: Path, film: Mapping[str, Any]
) -> dict[str, Any]:
    """What LLaVA's configuration has to say of a model with this mode and these grids, each [height, width].

    film: as `film_fields` has it, where the mode is a LLaVA-NeXT-Video's.
    """
    told = tiles_of(config)
    seen, known = pictures_in(mode), pictures_in(told or "")
    pools = not film or pool_of(config) == film["mm_spatial_pool_mode"]
    changed: dict[str, Any] = {}
    if seen != known or not pools or pinpoints_in(config, where, side) != pinpoints:  # else as there, list or text
        more = {key: config.get(key, usual) for key, usual in VIDEO.items()} if limit_in(mode) else film
        ratio = ANYRES if film else seen
        changed = {"image_aspect_ratio": ratio, "mm_patch_merge_type": UNPAD, GRIDS: from_llava(pinpoints), **more}
    frames = frames_in(mode)
    return changed if frames == frames_in(tiles_of({**config, **changed}) or "") else changed | {COUNT: frames}


def _range(told: str, side: int) -> list[list[int]]:
    """All grids from the first to the last of those that a text names, widths outside, as LLaVA counts them."""
    named = [(int(across), int(down)) for across, down in TILES.findall(told)]
    if not named:
        raise ValueError(told)
    (left, top), (right, bottom) = named[0], named[-1]
    return [[across * side, down * side] for across in range(left, right + 1) for down in range(top, bottom + 1)]


def _merge(config: Mapping[str, Any]) -> str:
    return config.get("mm_patch_merge_type") or "flat"
