"""LLaVA-NeXT-Video alone: frames pooled before the projector, in blocks. What all families hold is in `test_videos`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, LlavaNextVideoForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.model.test_anyres import anyres, noise
from tests.model.test_next import SIZES, picture
from tests.model.test_videos import shown_frames
from workbench.cli import main
from workbench.errors import ModelError
from workbench.model.anyres import AnyRes, pinpoints_of
from workbench.model.checkpoint import save
from workbench.model.export import write_folder
from workbench.model.film import film_size
from workbench.model.joint import tiling_of
from workbench.model.llava import load
from workbench.model.tiles import AnyResMode
from workbench.model.tiling import Size

Made = Callable[..., Any]
CLIP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "resample": 3}


@pytest.fixture
def video(make: Made) -> Made:
    """`video(load="4bit", ...)`: CLIP and Llama, six frames of a video at most, each 4 x 4 tokens that become 2 x 2."""

    def made(**fields: Any) -> Any:
        return make(**({"image_mode": "anyres_video_6"} | fields))

    return made


# --- videos to squares and tokens ---------------------------------------------------------------------------------


def test_the_longest_and_most_of_a_model_count_its_videos_too() -> None:
    few, many = (AnyRes(336, 24, anyres().pinpoints, frames=count) for count in (8, 32))
    assert (few.longest, few.most, few.most_squares) == (2928, 5, 8)
    assert (many.longest, many.most, many.most_squares) == (4608, 8, 32)


def test_places_of_pictures_and_videos_lie_one_behind_the_other() -> None:
    tiling = AnyRes(48, 4, tuple(map(tuple, pinpoints_of(48))), frames=6)  # type: ignore[arg-type]
    places = tiling.places([film_size(5), (48, 48), film_size(6)]).index.tolist()
    assert places[:20] == list(range(20)), "five frames of four tokens, in two blocks of sixteen"
    last = 32 + 16 * tiling.tiles((48, 48))
    assert places[20:36] == list(range(32, 48)) and places[-24:] == list(range(last, last + 24))


@pytest.mark.parametrize("size", [(336, 336), (640, 360), (17, 300), (360, 640), (300, 301)])
def test_frames_are_those_of_transformers_clip_processor_bit_for_bit(size: Size) -> None:
    mode, one = AnyResMode(AnyRes(336, 24, anyres().pinpoints, frames=4), CLIP), noise(size)
    expected = CLIPImageProcessorPil(**CLIP)([one, one], return_tensors="pt")["pixel_values"]
    assert torch.equal(mode.frames([one, one]), expected)
    told = mode.video_settings()
    assert told.pop("video_processor_type") == "LlavaNextVideoVideoProcessor" and told.pop("num_frames") == 4
    again = CLIPImageProcessorPil(**told)([one], return_tensors="pt")["pixel_values"]
    assert torch.equal(again, expected[:1])


def test_settings_of_a_video_processor_hold_for_frames_alone() -> None:
    tiling, one = AnyRes(336, 24, anyres().pinpoints, frames=4), noise((640, 360))
    other = CLIP | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 400}}
    mode = AnyResMode(tiling, CLIP | {"video_processor": other})
    assert torch.equal(mode.frames([one]), CLIPImageProcessorPil(**other)([one], return_tensors="pt")["pixel_values"])
    assert torch.equal(mode.tiles(one), AnyResMode(tiling, CLIP).tiles(one))
    with pytest.raises(ModelError, match="video processor: found frames of 224; expected 336 pixels"):
        AnyResMode(tiling, CLIP | {"video_processor": {"size": {"shortest_edge": 224}, "crop_size": 224}})


# --- the model ----------------------------------------------------------------------------------------------------


def test_it_is_transformers_class_with_a_token_for_videos(video: Made) -> None:
    llava = video()
    config = llava.model.config
    assert type(llava.model) is LlavaNextVideoForConditionalGeneration
    assert config.video_token_id == llava.tokenizer.convert_tokens_to_ids("<video>") != config.image_token_id
    assert config.image_grid_pinpoints == llava.spec["pinpoints"] == pinpoints_of(48)
    assert (config.spatial_pool_mode, config.spatial_pool_stride) == ("average", 2)
    assert llava.tiling.frames == 6 and llava.newline.shape == (64,) and llava.renderer.videos


@pytest.mark.parametrize("how", ["average", "max"])
@pytest.mark.parametrize("vision", ["clip", "siglip_whole"])
def test_pictures_and_videos_become_the_rows_that_transformers_makes_of_them(
    video: Made, vision: str, how: str
) -> None:
    llava = video(vision=vision)
    llava.model.config.spatial_pool_mode = how
    theirs = LlavaNextVideoForConditionalGeneration(llava.model.config)
    theirs.load_state_dict(llava.model.state_dict())
    shown = [llava.show(picture(*size)) for size in SIZES]
    films = [shown_frames(llava, count) for count in (1, 4, 6)]
    mixed = [part for pair in zip(films, shown, strict=False) for part in pair] + shown[3:]
    with torch.no_grad():
        rows = dict(zip(map(id, mixed), llava.look(mixed), strict=True))
        for one in shown:
            told = torch.tensor([[one.size[1], one.size[0]]])
            expected = theirs.model.get_image_features(one.tiles[None], told).pooler_output[0]
            torch.testing.assert_close(rows[id(one)], expected, rtol=1e-5, atol=1e-5)
        for one in films:
            expected = theirs.model.get_video_features(one.tiles[None]).pooler_output.reshape(-1, 64)
            torch.testing.assert_close(rows[id(one)], expected, rtol=1e-5, atol=1e-5)
            assert len(expected) == llava.tiling.tokens(one.size) == 4 * len(one.tiles)


def test_an_exported_folder_says_that_it_reads_videos_and_what_its_processor_needs(
    video: Made, make: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(video(), tmp_path / "films")
    save(make(), tmp_path / "pictures")
    needs = "pip install torchvision"
    for name, films in (("films", True), ("pictures", False)):
        assert main(["export", str(tmp_path / name), str(tmp_path / "out" / name), "--as", "hf"]) == 0
        told, card = capsys.readouterr().out, (tmp_path / "out" / name / "MODEL_CARD.md").read_text()
        assert told.startswith("written: ") and told.count("\n") == 1
        assert (needs in told) == (needs in card) == films
        assert ("| videos | read too: 6 frames of each" in card) == films
        assert ("num_frames=min(6, len(frames))" in card) == films, "a shorter clip is refused without"
    assert main(["export", str(tmp_path / "films"), str(tmp_path / "llava"), "--as", "llava"]) == 0
    assert "| videos | read too: 6 frames of each" in (tmp_path / "llava" / "MODEL_CARD.md").read_text()
    assert AutoProcessor.from_pretrained(tmp_path / "out" / "pictures")
    with pytest.raises(Exception, match="(?i)torchvision"):
        AutoProcessor.from_pretrained(tmp_path / "out" / "films")


# --- what is refused ----------------------------------------------------------------------------------------------


def test_what_does_not_fit_together_is_refused(video: Made, tmp_path: Path) -> None:
    hub = write_folder(video(), tmp_path / "hub")
    for mode in ("pad", "anyres", "anyres_max_9"):
        expected = "anyres_video_8, or another number of frames"
        with pytest.raises(ModelError, match=f"'{mode}' for a LLaVA-NeXT-Video; expected {expected}"):
            load(hub, device="cpu", image_mode=mode)
    config = video().model.config
    for key, value, told in (
        ("spatial_pool_mode", "conv", "spatial_pool_mode: found 'conv', which has weights; expected average or max"),
        ("spatial_pool_stride", 4, "spatial_pool_stride: found 4; expected 2"),
    ):
        held = json.loads((hub / "config.json").read_text())
        changed = type(config)(**{**config.to_dict(), key: value})
        with pytest.raises(ModelError, match=told):
            tiling_of(changed)
        assert held[key] == getattr(config, key)
    with pytest.raises(ModelError, match="videos: found frames of 3 x 3 tokens; expected even numbers"):
        AnyRes(36, 3, ((36, 72),), frames=8)
