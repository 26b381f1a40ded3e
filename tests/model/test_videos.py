"""Videos in every family that reads them: what transformers' own class makes of them; built, trained, exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlavaNextVideoProcessor, LlavaOnevisionProcessor

from tests.model.test_anyres import ONEVISION, anyres
from tests.model.test_export import assert_says_the_same
from tests.model.test_next import picture, same
from tests.videos import moving, painted
from workbench.conversation import Conversation, Image, Message, Video, to_chat
from workbench.data.video import Film
from workbench.errors import ImageError, ModelError, RenderError
from workbench.model.anyres import AnyRes
from workbench.model.checkpoint import save
from workbench.model.export import export_hf, processor, write_folder
from workbench.model.film import film_size
from workbench.model.joint import CLASSES
from workbench.model.llava import load
from workbench.model.stages import prepare
from workbench.model.tiling import Shown, Tiling

Made = Callable[..., Any]
FAMILIES: dict[str, dict[str, str]] = {
    "next": {"image_mode": "anyres_video_6"},
    "onevision": {
        "vision": "siglip_whole", "language": "qwen2", "template": "qwen", "image_mode": "anyres_max_2_video_6"
    },
}  # fmt: skip
"""Small models that are shown six frames of a video at most, each 4 x 4 tokens of which 2 x 2 stay."""
OTHERS: dict[str, dict[str, str]] = {
    "next": {"template": "chatml", "vision": "siglip_whole", "language": "qwen2", "projector": "linear"},
    "onevision": {"template": "v1", "vision": "clip", "language": "llama"},
}
"""The same families of other parts."""
TOKENS = {"next": 6 * 4, "onevision": 6 * 4 + 1}
PICTURE, FILM = Image("a"), Video("b")
ASKED = Conversation("asked", (Message("user", (FILM, "What happens?")),))
MIXED = Conversation("mixed", (Message("user", (PICTURE, "Is this in", FILM, "?")),))
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def video(make: Made) -> Made:
    """`video("next", load="4bit", ...)`"""
    return lambda family, **fields: make(**(FAMILIES[family] | fields))


@pytest.fixture
def tuned(video: Made, finetune: Made, train_a_little: Made) -> Made:
    def made(family: str, **fields: Any) -> Any:
        llava = video(family, **fields)
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


def published(family: str, frames: int = 32) -> Tiling:
    """The tiling of the published models of a family."""
    if family == "next":
        return AnyRes(336, 24, anyres().pinpoints, frames=frames)
    return AnyRes(384, 27, tuple((high, wide) for high, wide in ONEVISION), 9, alone=True, frames=frames)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 32])
@each_family
def test_counts_are_those_of_transformers(family: str, frames: int) -> None:
    tiling, size = published(family), film_size(frames)
    theirs = SimpleNamespace(patch_size=14, video_token="x", num_image_tokens=729)
    kind: Any = {"next": LlavaNextVideoProcessor, "onevision": LlavaOnevisionProcessor}[family]
    edge = {"next": 336, "onevision": 384}[family]
    inputs = {"pixel_values_videos": [torch.zeros(frames, 3, edge, edge)]}
    expected = len(kind.replace_video_token(theirs, inputs, 0))
    assert tiling.tokens(size) == expected == len(tiling.places([size]).index) == len(tiling.patches(size))  # type: ignore[union-attr]
    assert expected == {"next": 144 * frames, "onevision": 196 * frames + 1}[family]
    assert tiling.squares(size) == frames
    assert tiling.tiles(size) == {"next": -(-frames // 4), "onevision": frames}[family]


@each_family
def test_pictures_count_as_without_videos(family: str) -> None:
    with_videos, without = published(family), published(family, 0)
    for size in ((640, 480), (30, 900), (2000, 1500)):
        assert with_videos.tokens(size) == without.tokens(size) and with_videos.tiles(size) == without.tiles(size)
    assert published("onevision", 8).longest == published("onevision", 0).longest == 8829
    assert published("onevision", 64).longest == 64 * 196 + 1 and published("onevision", 64).most == 64


# --- the model ----------------------------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("others", [False, True], ids=["usual", "others"])
def test_videos_become_the_rows_that_transformers_makes_of_them(video: Made, family: str, others: bool) -> None:
    llava = video(family, **(OTHERS[family] if others else {}))
    theirs = CLASSES[llava.model.config.model_type](llava.model.config)
    theirs.load_state_dict(llava.model.state_dict())
    films, still = [shown_frames(llava, count) for count in (1, 4, 5, 6)], llava.show(picture(70, 40))
    with torch.no_grad():
        rows = llava.look([films[0], still, *films[1:]])
        for one, found in zip(films, [rows[0], *rows[2:]], strict=True):
            expected = theirs.model.get_video_features(one.tiles[None]).pooler_output.reshape(-1, 64)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert len(found) == llava.tiling.tokens(one.size)
    assert torch.equal(rows[1], llava.look([still])[0]), "a picture is what it is beside videos"


@each_family
def test_a_films_frames_are_shown_as_the_file_has_them(video: Made, film: Film, family: str) -> None:
    llava = video(family)
    shown = llava.show(film)
    assert shown.size == (-6, 0) and len(shown.tiles) == 6
    assert torch.equal(shown.tiles, llava.image_mode.frames(film.frames(6)))
    assert llava.show(Film(moving(film.source.with_name("short.mp4"), 2))).size == (-2, 0)  # type: ignore[union-attr]


@each_family
@pytest.mark.parametrize("fields", [{}, {"load": "4bit"}, {"load": "bf16"}], ids=str)
def test_a_checkpoint_loads_to_the_same_model(
    tuned: Made, tmp_path: Path, family: str, fields: dict[str, str], film: Film
) -> None:
    llava = tuned(family, **fields)
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


@each_family
@pytest.mark.parametrize("others", [False, True], ids=["qlora", "lora-others"])
def test_vanilla_transformers_sees_and_answers_the_same(
    tuned: Made, tmp_path: Path, film: Film, family: str, others: bool
) -> None:
    llava = tuned(family, **(OTHERS[family] if others else {"load": "4bit"}))
    save(llava, tmp_path / "saved")
    folder = export_hf(tmp_path / "saved", tmp_path / "out", device="cpu")
    vanilla = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert type(vanilla) is CLASSES[llava.model.config.model_type]
    clip, still = llava.show(film), llava.show(picture(70, 40))
    for conversation, shown in ((ASKED, [clip]), (MIXED, [still, clip])):
        inputs = vanilla_inputs(llava, conversation, shown)
        with torch.no_grad():
            rows = llava.look(shown)
            rendered = llava.renderer.prompt(conversation)
            ids, _ = llava.renderer.expand(rendered, list(map(len, rows)), llava.image_token_id)
            marked = [llava.image_token_id if id == vanilla.config.video_token_id else id
                      for id in inputs["input_ids"][0].tolist()]  # fmt: skip
            assert marked == ids and (inputs["input_ids"] == vanilla.config.video_token_id).sum() == TOKENS[family]
            features = llava.image_inputs(rows)
        assert_says_the_same(vanilla, inputs, llava, ids, features, 6)
    again = load(folder, device="cpu")
    assert (again.image_mode.mode, again.tiling) == (FAMILIES[family]["image_mode"], llava.tiling)


@pytest.fixture
def hub(video: Made, tmp_path: Path) -> Made:
    """`hub("next")`: one as it lies on the Hub: nothing said of how many frames, no template of ours."""

    def made(family: str) -> Path:
        folder = write_folder(video(family), tmp_path / "hub")
        held = json.loads((folder / "processor_config.json").read_text())
        for key in ("num_frames", "do_sample_frames"):
            held["video_processor"].pop(key)
        (folder / "processor_config.json").write_text(json.dumps(held))
        (folder / "template.yaml").unlink()
        return folder

    return made


@each_family
def test_a_folder_as_published_is_read_with_eight_frames_or_as_many_as_asked(
    hub: Made, film: Film, family: str
) -> None:
    folder, eight = hub(family), {"next": "anyres_video_8", "onevision": "anyres_max_2"}[family]
    sixteen = FAMILIES[family]["image_mode"].replace("video_6", "video_16")
    llava, more = load(folder, device="cpu"), load(folder, device="cpu", image_mode=sixteen)
    template = {"next": "v1", "onevision": "qwen"}[family]
    assert llava.spec["image_mode"] == eight and llava.renderer.template.name == template
    assert (len(llava.show(film).tiles), len(more.show(film).tiles)) == (8, 16)
    assert (more.image_mode.mode, more.tiling.frames) == (sixteen, 16)


@each_family
def test_what_an_exported_folder_tells_transformers_of_videos(video: Made, tmp_path: Path, family: str) -> None:
    folder = write_folder(video(family), tmp_path / "out")
    held = json.loads((folder / "processor_config.json").read_text())
    told, name = held["video_processor"], {"next": "LlavaNextVideo", "onevision": "LlavaOnevision"}[family]
    assert held["processor_class"] == f"{name}Processor" and held["video_token"] == "<video>"
    assert told["video_processor_type"] == f"{name}VideoProcessor" and told["do_sample_frames"] is True
    size = {"next": {"shortest_edge": 48}, "onevision": {"height": 48, "width": 48}}[family]
    assert (told["num_frames"], told["size"], told["do_center_crop"]) == (6, size, family == "next")


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{"image_mode": "pad"}, {"image_mode": "anyres"}, FAMILIES["onevision"] | {"image_mode": "anyres_max_2_video_0"}],
    ids=["1.5", "next", "onevision whose videos are others"],
)
def test_models_that_read_no_videos_refuse_them(make: Made, film: Film, fields: dict[str, str]) -> None:
    llava = make(**fields)
    with pytest.raises(RenderError, match="asked, message 0: found a video; expected images: the model reads no"):
        llava.renderer.prompt(ASKED)
    with pytest.raises(ModelError, match="found a model that reads pictures; expected a LLaVA-NeXT-Video or OneVis"):
        llava.show(film)


@each_family
def test_a_text_cannot_write_the_mark_of_a_video(video: Made, family: str) -> None:
    with pytest.raises(RenderError, match="'<video>' in the text"):
        video(family).renderer.prompt(Conversation("x", (Message("user", (FILM, "What is a <video> tag?")),)))


@each_family
def test_a_file_that_is_no_video_is_told_by_its_name(video: Made, tmp_path: Path, family: str) -> None:
    (tmp_path / "notes.mp4").write_text("hello")
    with pytest.raises(ImageError, match="notes.mp4: found a video that cannot be read"):
        video(family).show(Film(tmp_path / "notes.mp4"))
