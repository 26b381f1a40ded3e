"""Grids, tiles, tokens and their order are those of transformers' own classes, for pictures of any size."""

from __future__ import annotations

import io
import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from workbench.data.images import image_size, load_image
from workbench.errors import ModelError
from workbench.model.anyres import AnyRes, from_llava, pinpoints_of
from workbench.model.tiles import AnyResMode
from workbench.model.tiling import Size

CLIP = {
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
LLAVA = pinpoints_of(336)
HUB = LlavaNextImageProcessorPil.image_grid_pinpoints
ONEVISION = LlavaOnevisionImageProcessorPil.image_grid_pinpoints
LARGEST = 1344
EDGES = sorted({1, 2, 3, 13, 14, 15, 24, 27, *(n + d for n in (336, 384, 672, 768, 1008, 1344) for d in (-1, 0, 1))})
edge = st.integers(1, LARGEST)


def anyres(pinpoints: Any = LLAVA, side: int = 336, edge: int = 24, limit: int | None = None) -> AnyRes:
    return AnyRes(side, edge, tuple((high, wide) for high, wide in pinpoints), limit)


def theirs(pinpoints: Any, size: Size) -> int:
    """transformers' count: of a processor that has no tokenizer and looks at no picture."""
    held = LlavaNextProcessor.__new__(LlavaNextProcessor)
    held.image_processor = SimpleNamespace(image_grid_pinpoints=[list(one) for one in pinpoints])
    held.patch_size, held.num_additional_image_tokens = 14, 1
    return held._get_number_of_features(size[1], size[0], 336, 336) - 1


def noise(size: Size, seed: int = 0) -> Picture.Image:
    small = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return Picture.fromarray(small).resize(size, Picture.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((640, 480), 2340),
        ((480, 640), 2352),
        ((1920, 1080), 1948),
        ((672, 672), 2928),
        ((336, 336), 1176),
        ((300, 200), 976),
    ],
)
def test_the_counts_of_the_original_llava(size: Size, tokens: int) -> None:
    assert anyres().tokens(size) == tokens


def test_the_order_of_grids_decides_between_two_that_are_equally_good() -> None:
    assert from_llava(from_llava(LLAVA)) == LLAVA and sorted(LLAVA) == sorted(HUB) and LLAVA != HUB
    assert anyres(from_llava(HUB)) == anyres(LLAVA), "transformers' numbers, read as LLaVA reads them"
    assert (anyres(HUB).tokens((300, 200)), anyres(LLAVA).tokens((300, 200))) == (1464, 976)


def test_every_square_and_edge_up_to_the_largest_counts_as_transformers_counts() -> None:
    for pinpoints in (LLAVA, HUB):
        tiling = anyres(pinpoints)
        chosen = [(n, n) for n in range(1, LARGEST + 1)] + [(a, b) for a in EDGES for b in EDGES]
        chosen += [pair for n in range(1, LARGEST + 1) for pair in ((n, 336), (1008, n))]
        assert [tiling.tokens(size) for size in chosen] == [theirs(pinpoints, size) for size in chosen]


def counted(
    pinpoints: Any, largest: int, side: int = 336, edge: int = 24, limit: int | None = None
) -> np.ndarray[Any, Any]:
    """Tokens of every size up to `largest` x `largest`, [height - 1, width - 1], by the published rules alone: LLaVA's
    `select_best_resolution`, `unpad_image` in whole numbers, without a float that could fall short of one, and the
    scaling of `anyres_max_N` where edges are more than 1.1 times too long."""
    height, width = np.meshgrid(*[np.arange(1, largest + 1)] * 2, indexing="ij")
    most, least = np.zeros_like(height), np.full_like(height, 2**60)
    rows, columns = np.zeros_like(height), np.zeros_like(height)
    for high, wide in pinpoints:
        scale = np.minimum(wide / width, high / height)
        shown = np.minimum((width * scale).astype(int) * (height * scale).astype(int), width * height)
        better = (shown > most) | ((shown == most) & (wide * high - shown < least))
        for held, new in (
            (most, shown),
            (least, wide * high - shown),
            (rows, high * edge // side),
            (columns, wide * edge // side),
        ):
            held[better] = np.broadcast_to(new, held.shape)[better]
    flat = width * rows > columns * height  # black above and below it
    rows -= np.where(flat, (rows - height * columns // width) // 2 * 2, 0)
    columns -= np.where(flat, 0, (columns - width * rows // height) // 2 * 2)
    times = np.sqrt(rows * columns / ((limit or 1e9) * edge**2))
    rows, columns = (
        np.where(times > 1.1, (kept // np.maximum(times, 1)).astype(int), kept) for kept in (rows, columns)
    )
    return edge**2 + rows * (columns + 1)


@pytest.mark.parametrize("which", ["anyres", "anyres_max_9"])
def test_every_size_there_is_counts_as_the_published_rules_say(which: str) -> None:
    limit = int(which[-1]) if which != "anyres" else None
    told: Any = (LLAVA,) if limit is None else (ONEVISION, 384, 27, limit)
    tiling, expected = anyres(*told), counted(told[0], LARGEST, *told[1:])
    assert expected.shape == (LARGEST, LARGEST)
    for height, row in enumerate(expected.tolist(), 1):
        found = [tiling.tokens((width, height)) for width in range(1, LARGEST + 1)]
        assert found == row, (height, next(n + 1 for n in range(LARGEST) if found[n] != row[n]))


@settings(max_examples=300, deadline=None)
@given(edge, edge, st.booleans())
@example(1, 1, True)
@example(LARGEST, 1, False)
@example(1, LARGEST, True)
def test_any_size_counts_as_transformers_counts_and_its_places_are_as_many(width: int, height: int, hub: bool) -> None:
    pinpoints, size = (HUB if hub else LLAVA), (width, height)
    tiling = anyres(pinpoints)
    assert tiling.tokens(size) == theirs(pinpoints, size)
    assert len(tiling.places([size]).index) == tiling.tokens(size) <= tiling.longest == 2928
    assert 1 < tiling.tiles(size) <= tiling.most == 5


def packed(kind: Any, features: list[torch.Tensor], sizes: list[Size], newline: torch.Tensor, **config: Any) -> Any:
    """What transformers' model makes of (tiles, tokens, D) features."""
    config |= {"vision_config": SimpleNamespace(image_size=config.pop("side"), patch_size=config.pop("patch"))}
    held = SimpleNamespace(config=SimpleNamespace(**config))
    told = torch.tensor([[height, width] for width, height in sizes])
    more = (
        {"vision_feature_select_strategy": "default"}
        if kind is LlavaNextModel
        else {"vision_aspect_ratio": "anyres_max_2"}
    )
    return kind.pack_image_features(held, features, told, image_newline=newline, **more)[0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(edge, edge), min_size=1, max_size=4))
@example([(1, 1), (672, 336), (10, 1344)])
def test_rows_are_put_in_order_as_transformers_puts_them(sizes: list[Size]) -> None:
    tiling = anyres(HUB, edge=6)
    source = torch.Generator().manual_seed(1)
    features = [torch.randn(tiling.tiles(size), tiling.each, 3, generator=source) for size in sizes]
    newline = torch.randn(3, generator=source)
    config = {"side": 336, "patch": 56, "image_grid_pinpoints": HUB}
    expected = torch.cat(packed(LlavaNextModel, features, sizes, newline, **config))
    rows = torch.cat([*(tiles.flatten(0, 1) for tiles in features), newline[None]])
    assert torch.equal(tiling.places(sizes).take(rows), expected)


@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 2), (336, 336), (337, 335), (640, 480), (481, 641), (1344, 1344), (1009, 17), (25, 900), (2000, 1500)],
)
@pytest.mark.parametrize("pinpoints", [LLAVA, HUB], ids=["llava", "hub"])
def test_tiles_are_those_of_transformers_bit_for_bit(size: Size, pinpoints: Any) -> None:
    mode, picture = AnyResMode(anyres(pinpoints), CLIP), noise(size)
    vanilla = LlavaNextImageProcessorPil(**{**CLIP, "image_grid_pinpoints": pinpoints})
    made = vanilla(picture, return_tensors="pt")
    tiles = mode.tiles(picture)
    assert torch.equal(tiles, made["pixel_values"][0]) and len(tiles) == mode.tiling.tiles(size)
    assert made["image_sizes"].tolist() == [[size[1], size[0]]]
    fields = mode.processor_settings()
    assert fields.pop("image_processor_type") == "LlavaNextImageProcessor"
    assert torch.equal(LlavaNextImageProcessorPil(**fields)(picture, return_tensors="pt")["pixel_values"][0], tiles)


@pytest.mark.parametrize("size", [(20_000, 10), (10, 20_000), (20_000, 1), (5_000, 3)])
def test_a_picture_too_thin_for_every_grid_is_still_seen_whole(size: Size) -> None:
    tiling = anyres()
    tiles = AnyResMode(tiling, CLIP).tiles(Picture.new("RGB", size, "red"))
    assert len(tiles) == tiling.tiles(size) and tiles.isfinite().all() and min(tiling.fitted(size)) == 1
    assert 576 <= len(tiling.places([size]).index) == tiling.tokens(size) == theirs(LLAVA, size) <= 648
    assert tiles[0].flatten(1).std(1).max() < 1e-5, "the first tile is red all over"


def test_a_picture_turned_by_its_exif_is_counted_as_it_is_seen() -> None:
    made, exif = io.BytesIO(), Picture.Exif()
    exif[0x0112] = 6
    noise((600, 200)).save(made, "JPEG", exif=exif)
    upright = load_image(made.getvalue())
    assert upright.size == (200, 600)
    assert anyres().tokens(upright.size) == theirs(LLAVA, (200, 600)) != theirs(LLAVA, (600, 200))
    assert len(AnyResMode(anyres(), CLIP).tiles(upright)) == 3


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_a_file_header_tells_the_size_that_the_picture_has(tmp_path: Any, orientation: int, suffix: str) -> None:
    exif = Picture.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    noise((30, 20)).save(path, exif=exif)
    assert image_size(path) == load_image(path).size == ((20, 30) if orientation >= 5 else (30, 20))


def test_odd_grids_are_refused() -> None:
    for pinpoints in ([[336, 500]], [[0, 336]], [[336]], []):
        with pytest.raises(ModelError, match="image_grid_pinpoints"):
            AnyRes(336, 24, tuple(map(tuple, pinpoints)))
    with pytest.raises(ModelError, match="tiles of 336"):
        AnyResMode(anyres([[384, 384]], side=384), CLIP)


# --- anyres_max_N -------------------------------------------------------------------------------------------------


def theirs_at_most(size: Size, limit: int) -> int:
    held = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    held.image_processor = SimpleNamespace(image_grid_pinpoints=ONEVISION)
    held.num_image_tokens, held.vision_aspect_ratio = 729, f"anyres_max_{limit}"
    return held._get_number_of_features(size[1], size[0], 384, 384)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2600), st.integers(1, 2600), st.sampled_from([1, 4, 9]))
@example(384, 384, 9)
@example(2304, 2304, 9)
@example(2304, 2304, 1)
def test_no_more_than_so_many_tiles_of_tokens(width: int, height: int, limit: int) -> None:
    tiling, size = anyres(ONEVISION, 384, 27, limit), (width, height)
    assert tiling.tokens(size) == theirs_at_most(size, limit) == len(tiling.places([size]).index)


def test_tokens_between_tokens_are_bilinear() -> None:
    tiling, drawn = anyres(ONEVISION, 384, 6, 2), random.Random(3)
    sizes = [
        (384, 384),
        (2304, 2304),
        (1000, 300),
        (300, 1000),
        (1, 1),
        *((drawn.randint(1, 2400), drawn.randint(1, 2400)) for _ in range(12)),
    ]
    source = torch.Generator().manual_seed(1)
    features = [torch.randn(tiling.tiles(size), 36, 3, generator=source) for size in sizes]
    newline = torch.randn(3, generator=source)
    config = {"side": 384, "patch": 64, "image_grid_pinpoints": ONEVISION}
    expected = packed(LlavaOnevisionModel, features, sizes, newline, **config)
    assert any(len(one) < 36 + 36 * (len(tiles) - 1) for one, tiles in zip(expected, features, strict=True))
    rows = torch.cat([*(tiles.flatten(0, 1) for tiles in features), newline[None]])
    torch.testing.assert_close(tiling.places(sizes).take(rows), torch.cat(expected), rtol=0, atol=2e-6)
    assert math.isclose(float(tiling.places(sizes).weight.sum(1).max()), 1, abs_tol=1e-6)
