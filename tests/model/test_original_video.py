"""LLaVA-NeXT-Video in LLaVA's own layout: pictures and videos as its own code shows them; there and back bit-equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaNextVideoForConditionalGeneration

from tests.model.test_original import assert_unread, equal
from tests.model.test_original_next import ASKED, GRIDS, SIZES, PublishedNext, logits, ours, picture
from tests.model.test_videos import shown_frames as film
from workbench.errors import ModelError
from workbench.model.export import export_hf, export_original, write_folder
from workbench.model.llava import load
from workbench.model.original import read_weights
from workbench.model.original_in import load_original

Made = Callable[..., "PublishedVideo"]


class PublishedVideo(PublishedNext):
    """A small LLaVA-NeXT-Video as its authors' code holds and saves it."""

    def __init__(self, *given: Any, **fields: Any) -> None:
        super().__init__(*given, **fields)
        self.config |= {
            "model_type": "llava",
            "mm_resampler_type": "spatial_pool",
            "mm_spatial_pool_mode": "average",
            "mm_spatial_pool_stride": 2,
            "mm_spatial_pool_out_channels": 32,
        }

    @torch.no_grad()
    def frames(self, pixels: torch.Tensor) -> torch.Tensor:
        """(frames x 4, 64): what its code puts in a video's place, pooled before the projector, without newlines."""
        features = self.features(pixels.to(self.dtype))
        grids = features.view(-1, 4, 4, features.shape[-1]).permute(0, 3, 1, 2)
        how = {"average": torch.nn.AvgPool2d, "max": torch.nn.MaxPool2d}[self.config["mm_spatial_pool_mode"]]
        pooled = how(kernel_size=2, stride=2)(grids).flatten(2).transpose(1, 2)
        rows: torch.Tensor = self.projector(pooled).flatten(0, 1)
        return rows


@pytest.fixture
def published(parts: dict[str, Path], tmp_path: Path) -> Made:
    def made(**fields: Any) -> PublishedVideo:
        return PublishedVideo(tmp_path / "source", parts["clip"], **fields)

    return made


@pytest.mark.parametrize("pool", ["average", "max"])
def test_pictures_and_videos_are_shown_as_its_own_code_shows_them(pool: str, published: Made, tmp_path: Path) -> None:
    source = published(dtype=torch.float32)
    source.config["mm_spatial_pool_mode"] = pool
    folder = source.save("safetensors")
    llava = load_original(folder, vision_tower=source.tower, device="cpu", image_mode="anyres_video_5")
    assert type(llava.model) is LlavaNextVideoForConditionalGeneration and llava.tiling.frames == 5
    assert load_original(folder, vision_tower=source.tower, device="cpu").image_mode.mode == "anyres_video_8"
    again = load(export_hf(folder, tmp_path / "hf", vision_tower=source.tower, device="cpu"), device="cpu")
    for model in (llava, again):
        for size in SIZES:
            expected = logits(model, source.rows(model, picture(size)), source.language)
            torch.testing.assert_close(ours(model, picture(size))[: len(expected)], expected, rtol=1e-4, atol=1e-4)
        for count in (1, 4, 5):
            shown = film(model, count)
            with torch.no_grad():
                rows = model.look([shown])[0]
            torch.testing.assert_close(rows, source.frames(shown.tiles), rtol=1e-4, atol=1e-4)
            assert len(rows) == model.tiling.tokens(shown.size) == 4 * count
    assert model.renderer.prompt(ASKED).ids == llava.renderer.prompt(ASKED).ids


@pytest.mark.parametrize("pool", ["average", "max"])
def test_there_and_back_is_bit_equal(pool: str, published: Made, tmp_path: Path) -> None:
    source = published()
    source.config["mm_spatial_pool_mode"] = pool
    first = export_hf(source.save("shards"), tmp_path / "hf", vision_tower=source.tower, device="cpu")
    told = json.loads((first / "config.json").read_text())
    assert (told["model_type"], told["spatial_pool_mode"]) == ("llava_next_video", pool)
    back = export_original(first, tmp_path / "back", device="cpu")
    equal(read_weights(back), {name: each for name, each in source.tensors().items() if not name.endswith("inv_freq")})
    assert json.loads((back / "config.json").read_text()) == source.config
    again = export_hf(back, tmp_path / "again", vision_tower=source.tower, device="cpu")
    equal(load_file(first / "model.safetensors"), load_file(again / "model.safetensors"))


def test_one_of_transformers_goes_there_and_back(make: Any, tmp_path: Path) -> None:
    first = write_folder(make(image_mode="anyres_video_6"), tmp_path / "hf")
    there = export_original(first, tmp_path / "there", device="cpu")
    config = json.loads((there / "config.json").read_text())
    assert (config["image_aspect_ratio"], config["image_grid_pinpoints"]) == ("anyres", GRIDS)
    assert (config["mm_resampler_type"], config["mm_spatial_pool_mode"]) == ("spatial_pool", "average")
    assert (config["mm_spatial_pool_stride"], config["mm_spatial_pool_out_channels"]) == (2, 32)
    back = export_hf(there, tmp_path / "back", device="cpu")
    equal(load_file(first / "model.safetensors"), load_file(back / "model.safetensors"))
    one, two = load(first, device="cpu"), load(back, device="cpu")
    assert (one.tiling.frames, two.tiling.frames, config["num_frames"]) == (6, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(one.look([film(one, 3)])[0], two.look([film(two, 3)])[0], rtol=1e-5, atol=1e-5)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "a pooling with weights": ({"mm_spatial_pool_mode": "conv"}, "mm_spatial_pool_mode conv with mm_spatial_pool_str"),
    "frames that are no number": ({"num_frames": 0}, "num_frames: 0; expected a whole number of frames from 1 on"),
    "another stride": ({"mm_spatial_pool_stride": 4}, "average with mm_spatial_pool_stride 4; expected average or max"),
    "another resampler": ({"mm_resampler_type": "qformer"}, "mm_resampler_type qformer, which makes fewer tokens"),
    "without tiles": (
        {"image_aspect_ratio": "pad", "mm_patch_merge_type": "flat"}, "mm_resampler_type spatial_pool, which makes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_pooling_is_refused_by_its_name(name: str, published: Made) -> None:
    assert_unread(published(), *OTHERS[name])


def test_a_pooling_layer_is_a_tensor_too_many(published: Made) -> None:
    source = published()
    surplus = {"model.vision_resampler.pool.weight": torch.ones(32, 32, 2, 2)}
    with pytest.raises(ModelError, match="1 surplus tensors, the first: model.vision_resampler.pool.weight"):
        load_original(source.save(**surplus), vision_tower=source.tower)
    with pytest.raises(ModelError, match="'anyres' for a LLaVA NeXT-Video; expected anyres_video_8"):
        load_original(source.save(), vision_tower=source.tower, image_mode="anyres")
