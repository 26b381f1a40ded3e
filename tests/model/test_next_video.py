"""LLaVA-NeXT-Video: pictures and videos become what transformers' own class makes of them; built, trained, exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.model.test_anyres import anyres, noise
from tests.model.test_export import assert_says_the_same
from tests.model.test_next import SIZES, picture, same
from tests.videos import moving, painted
from workbench.cli import main
from workbench.conversation import Conversation, Image, Message, Video, to_chat
from workbench.data.video import Film
from workbench.errors import ImageError, ModelError, RenderError
from workbench.model.anyres import AnyRes, pinpoints_of
from workbench.model.checkpoint import save
from workbench.model.export import export_hf, processor, write_folder
from workbench.model.film import film_size
from workbench.model.joint import tiling_of
from workbench.model.llava import load
from workbench.model.stages import prepare
from workbench.model.tiles import AnyResMode
from workbench.model.tiling import Shown, Size

Made = Callable[..., Any]
CLIP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "resample": 3}
PICTURE, FILM = Image("a"), Video("b")
ASKED = Conversation("asked", (Message("user", (FILM, "What happens?")),))
MIXED = Conversation("mixed", (Message("user", (PICTURE, "Is this in", FILM, "?")),))


@pytest.fixture
def video(make: Made) -> Made:
    """`video(load="4bit", ...)`: CLIP and Llama, six frames of a video at most, each 4 x 4 tokens that become 2 x 2."""

    def made(**fields: Any) -> Any:
        return make(**({"image_mode": "anyres_video_6"} | fields))

    return made


@pytest.fixture
def tuned(video: Made, finetune: Made, train_a_little: Made) -> Made:
    def made(**fields: Any) -> Any:
        llava = video(**fields)
        prepare(llava, finetune(), say=lambda text: None)
        train_a_little(llava)
        return llava

    return made


@pytest.fixture
def film(tmp_path: Path) -> Film:
    return Film(moving(tmp_path / "clip.mp4", 20))


def shown_frames(llava: Any, count: int) -> Shown:
    return Shown(llava.image_mode.frames([painted(number) for number in range(count)]), film_size(count))


# --- videos to squares and tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 32])
def test_counts_are_those_of_transformers(frames: int) -> None:
    tiling = AnyRes(336, 24, anyres().pinpoints, frames=32)
    theirs = SimpleNamespace(patch_size=14, video_token="x")
    inputs = {"pixel_values_videos": [torch.zeros(frames, 3, 336, 336)]}
    expected = len(LlavaNextVideoProcessor.replace_video_token(theirs, inputs, 0))
    size = film_size(frames)
    assert tiling.tokens(size) == expected == 144 * frames == len(tiling.places([size]).index)
    assert tiling.squares(size) == frames and tiling.tiles(size) == -(-frames // 4)
    assert tiling.tokens((640, 480)) == anyres().tokens((640, 480)) == 2340, "pictures as in LLaVA-NeXT"


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


def test_settings_of_a_video_processor_hold_for_frames_alone(make: Made) -> None:
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


def test_a_films_frames_are_shown_as_the_file_has_them(video: Made, film: Film) -> None:
    llava = video()
    shown = llava.show(film)
    assert shown.size == (-6, 0) and len(shown.tiles) == 6
    assert torch.equal(shown.tiles, llava.image_mode.frames(film.frames(6)))
    assert llava.show(Film(moving(film.source.with_name("short.mp4"), 2))).size == (-2, 0)  # type: ignore[union-attr]


@pytest.mark.parametrize("fields", [{}, {"load": "4bit"}, {"load": "bf16"}], ids=str)
def test_a_checkpoint_loads_to_the_same_model(tuned: Made, tmp_path: Path, fields: dict[str, str], film: Film) -> None:
    llava = tuned(**fields)
    again = load(save(llava, tmp_path / "saved"), device="cpu")
    same(llava, again)
    assert again.spec == llava.spec and again.tiling == llava.tiling
    with torch.no_grad():
        assert torch.equal(*(one.look([one.show(film)])[0] for one in (llava, again)))


def vanilla_inputs(llava: Any, conversation: Conversation, shown: list[Shown]) -> dict[str, torch.Tensor]:
    """What transformers' processor gives its model: its own ids of our chat template, its pictures, our frames."""
    made = processor(llava)
    text = made.apply_chat_template(to_chat(conversation), add_generation_prompt=True)
    inputs: dict[str, Any] = {}
    for one in shown:
        if one.size[0] < 0:
            inputs["pixel_values_videos"] = one.tiles[None]
            text = text.replace("<video>", made.replace_video_token({"pixel_values_videos": one.tiles[None]}, 0))
        else:
            inputs |= made.image_processor([picture(*one.size)], return_tensors="pt")
            assert torch.equal(inputs["pixel_values"][0][: len(one.tiles)], one.tiles)
            text = text.replace("<image>", made.replace_image_token(inputs, 0))
    ids = made.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    return inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize(
    "fields",
    [{"load": "4bit"}, {"template": "chatml", "vision": "siglip_whole", "language": "qwen2", "projector": "linear"}],
    ids=["qlora", "lora-chatml-siglip-qwen2-linear"],
)
def test_vanilla_transformers_sees_and_answers_the_same(
    tuned: Made, tmp_path: Path, film: Film, fields: dict[str, str]
) -> None:
    llava = tuned(**fields)
    save(llava, tmp_path / "saved")
    folder = export_hf(tmp_path / "saved", tmp_path / "out", device="cpu")
    vanilla = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert type(vanilla) is LlavaNextVideoForConditionalGeneration
    clip, still = llava.show(film), llava.show(picture(70, 40))
    for conversation, shown in ((ASKED, [clip]), (MIXED, [still, clip])):
        inputs = vanilla_inputs(llava, conversation, shown)
        with torch.no_grad():
            rows = llava.look(shown)
            rendered = llava.renderer.prompt(conversation)
            ids, _ = llava.renderer.expand(rendered, list(map(len, rows)), llava.image_token_id)
            marked = [llava.image_token_id if id == vanilla.config.video_token_id else id
                      for id in inputs["input_ids"][0].tolist()]  # fmt: skip
            assert marked == ids and (inputs["input_ids"] == vanilla.config.video_token_id).sum() == 6 * 4
            features = llava.image_inputs(rows)
        assert_says_the_same(vanilla, inputs, llava, ids, features, 6)
    again = load(folder, device="cpu")
    assert (again.image_mode.mode, again.tiling) == ("anyres_video_6", llava.tiling)


@pytest.fixture
def hub(video: Made, tmp_path: Path) -> Path:
    """One as it lies on the Hub: nothing said of how many frames, no template of ours."""
    folder = write_folder(video(), tmp_path / "hub")
    held = json.loads((folder / "processor_config.json").read_text())
    for key in ("num_frames", "do_sample_frames"):
        held["video_processor"].pop(key)
    (folder / "processor_config.json").write_text(json.dumps(held))
    (folder / "template.yaml").unlink()
    return folder


def test_a_folder_as_published_is_read_with_eight_frames_or_as_many_as_asked(hub: Path, film: Film) -> None:
    llava, more = load(hub, device="cpu"), load(hub, device="cpu", image_mode="anyres_video_16")
    assert llava.spec["image_mode"] == "anyres_video_8" and llava.renderer.template.name == "v1"
    assert (len(llava.show(film).tiles), len(more.show(film).tiles)) == (8, 16)


def test_what_an_exported_folder_tells_transformers_of_videos(video: Made, tmp_path: Path) -> None:
    folder = write_folder(video(), tmp_path / "out")
    held = json.loads((folder / "processor_config.json").read_text())
    told = held["video_processor"]
    assert held["processor_class"] == "LlavaNextVideoProcessor" and held["video_token"] == "<video>"
    assert told["video_processor_type"] == "LlavaNextVideoVideoProcessor"
    assert (told["num_frames"], told["size"], told["do_center_crop"]) == (6, {"shortest_edge": 48}, True)


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
    assert AutoProcessor.from_pretrained(tmp_path / "out" / "pictures")
    with pytest.raises(Exception, match="(?i)torchvision"):
        AutoProcessor.from_pretrained(tmp_path / "out" / "films")


# --- what is refused ----------------------------------------------------------------------------------------------


def test_models_that_read_no_videos_refuse_them(make: Made, film: Film) -> None:
    for mode in ("pad", "anyres"):
        llava = make(image_mode=mode)
        with pytest.raises(RenderError, match="asked, message 0: found a video; expected images: the model reads no"):
            llava.renderer.prompt(ASKED)
        with pytest.raises(ModelError, match="found a model that reads pictures; expected a LLaVA-NeXT-Video"):
            llava.show(film)


def test_a_text_cannot_write_the_mark_of_a_video(video: Made) -> None:
    with pytest.raises(RenderError, match="'<video>' in the text"):
        video().renderer.prompt(Conversation("x", (Message("user", (FILM, "What is a <video> tag?")),)))


def test_what_does_not_fit_together_is_refused(hub: Path, video: Made, tmp_path: Path) -> None:
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


def test_a_file_that_is_no_video_is_told_by_its_name(video: Made, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("hello")
    with pytest.raises(ImageError, match="notes.mp4: found a video that cannot be read"):
        video().show(Film(tmp_path / "notes.mp4"))
