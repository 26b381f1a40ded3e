"""LLaVA-OneVision: built, trained a little, saved, merged and exported; transformers' own class gives the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.model.test_anyres import ONEVISION, anyres, noise, theirs_at_most
from tests.model.test_export import assert_says_the_same
from tests.model.test_next import picture, same
from workbench.conversation import Conversation, Image, Message, to_chat
from workbench.errors import ModelError
from workbench.model.anyres import ONEVISION_GRIDS, AnyRes, pinpoints_of
from workbench.model.checkpoint import save
from workbench.model.export import export_hf, processor, write_folder
from workbench.model.film import film_size
from workbench.model.llava import load
from workbench.model.mode_names import frames_in, pictures_in, with_frames
from workbench.model.stages import prepare, table
from workbench.model.tiles import AnyResMode
from workbench.model.tiling import PADDED, Size

Made = Callable[..., Any]
SIZES = [(70, 40), (31, 90), (48, 48), (200, 21), (1, 1), (300, 280)]
"""Of tiles 48 pixels wide; the last needs more tokens than two of them have."""
SIGLIP = {"size": {"height": 384, "width": 384}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}


def asked(count: int) -> Conversation:
    return Conversation("asked", (Message("user", (*(Image(str(n)) for n in range(count)), "What is it?")),))


@pytest.fixture
def onevision(make: Made) -> Made:
    """`onevision(load="4bit", ...)`: SigLIP, Qwen2 and their template, a limit that pictures of `SIZES` reach."""

    def made(**fields: Any) -> Any:
        usual = {"vision": "siglip_whole", "language": "qwen2", "template": "qwen", "image_mode": "anyres_max_2"}
        return make(**(usual | fields))

    return made


@pytest.fixture
def tuned(onevision: Made, finetune: Made, train_a_little: Made) -> Made:
    def made(train: Any = None, **fields: Any) -> Any:
        llava = onevision(**fields)
        prepare(llava, train or finetune(), say=lambda text: None)
        train_a_little(llava)
        return llava

    return made


def vanilla_inputs(llava: Any, made: Any, sizes: list[Size]) -> tuple[Any, list[Any]]:
    """What transformers' processor `made` makes of a question about pictures of these sizes; and what we show."""
    images = [picture(*size) for size in sizes]
    text = made.apply_chat_template(to_chat(asked(len(images))), add_generation_prompt=True)
    return made(text=text, images=[images], return_tensors="pt"), [llava.show(one, len(images)) for one in images]


# --- pictures to tiles and tokens ---------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 2600), st.integers(1, 2600))
@example(1, 1)
@example(384, 384)
@example(2304, 1)
@example(1344, 1000)
def test_counts_of_any_size_are_those_of_transformers_and_at_most_the_longest(width: int, height: int) -> None:
    tiling, size = anyres(ONEVISION, 384, 27, 9), (width, height)
    assert tiling.tokens(size) == theirs_at_most(size, 9) == len(tiling.places([size]).index)
    assert 729 <= tiling.tokens(size) <= tiling.longest == 8829
    assert 1 < tiling.tiles(size) <= tiling.most == 37


def test_a_picture_that_just_needs_no_scaling_has_more_tokens_than_any_whole_grid() -> None:
    tiling = anyres(ONEVISION, 384, 27, 9)
    whole = max(tiling.tokens((width, height)) for height, width in tiling.pinpoints)
    assert whole < tiling.tokens((696, 2304)) == 8667 <= tiling.longest
    assert anyres().longest == 2928


@pytest.mark.parametrize("size", [(1, 1), (384, 384), (640, 480), (17, 1009), (1500, 1100)])
def test_tiles_and_padded_squares_are_those_of_transformers_bit_for_bit(size: Size) -> None:
    tiling = AnyRes(384, 27, tuple((high, wide) for high, wide in ONEVISION), 9, alone=True)
    mode, one = AnyResMode(tiling, SIGLIP), noise(size)
    vanilla = LlavaOnevisionImageProcessorPil(**SIGLIP, image_grid_pinpoints=ONEVISION)
    alone, beside = (vanilla(images, return_tensors="pt")["pixel_values"] for images in ([[one]], [[one, one]]))
    assert torch.equal(mode.tiles(one), alone[0]) and len(alone[0]) == tiling.tiles(size)
    assert beside.shape[:2] == (2, 1) and mode.beside is not None
    assert torch.equal(mode.beside.tiles(one), beside[0])
    fields = mode.processor_settings()
    assert fields.pop("image_processor_type") == "LlavaOnevisionImageProcessor"
    again = LlavaOnevisionImageProcessorPil(**fields)
    assert torch.equal(again([[one]], return_tensors="pt")["pixel_values"], alone)
    assert torch.equal(again([[one, one]], return_tensors="pt")["pixel_values"], beside)


def test_of_several_pictures_each_is_a_square_and_a_newline_whatever_its_size() -> None:
    tiling = AnyRes(384, 27, tuple((high, wide) for high, wide in ONEVISION), 9, alone=True)
    assert tiling.seen((640, 480), 1) == (640, 480) and tiling.seen((640, 480), 2) == PADDED
    assert (tiling.tokens(PADDED), tiling.tiles(PADDED), len(tiling.patches(PADDED))) == (730, 1, 730)
    places = tiling.places([PADDED, (1, 1), PADDED]).index
    first, last = places[:730].tolist(), places[-730:].tolist()
    newline = 729 * (1 + tiling.tiles((1, 1)) + 1)
    assert first == [*range(729), newline] and last == [*range(newline - 729, newline), newline]
    assert anyres().seen((640, 480), 2) == (640, 480), "LLaVA-NeXT gives each its grid"


@pytest.mark.parametrize("size", [(384, 384), (640, 360), (17, 300), (360, 640), (300, 301)])
def test_frames_are_those_of_transformers_siglip_processor_bit_for_bit(size: Size) -> None:
    tiling = AnyRes(384, 27, tuple((high, wide) for high, wide in ONEVISION), 9, alone=True, frames=4)
    mode, one = AnyResMode(tiling, SIGLIP), noise(size)
    expected = SiglipImageProcessorPil(**SIGLIP)([one, one], return_tensors="pt")["pixel_values"]
    assert torch.equal(mode.frames([one, one]), expected)
    told = mode.video_settings()
    assert told.pop("video_processor_type") == "LlavaOnevisionVideoProcessor" and told.pop("num_frames") == 4
    again = SiglipImageProcessorPil(**told)([one], return_tensors="pt")["pixel_values"]
    assert torch.equal(again, expected[:1])
    other = {"video_processor": SIGLIP | {"image_mean": [0.4] * 3}}
    assert not torch.equal(AnyResMode(tiling, SIGLIP | other).frames([one]), expected[:1])


def test_a_video_is_itself_beside_pictures_and_leaves_a_picture_alone() -> None:
    tiling = AnyRes(384, 27, tuple((high, wide) for high, wide in ONEVISION), 9, alone=True, frames=8)
    assert tiling.seen(film_size(3), 5) == film_size(3)
    places = tiling.places([film_size(2), (1, 1), film_size(1)])
    first, last = places.index[: 2 * 196 + 1], places.index[-197:]
    newline = 729 * (2 + tiling.tiles((1, 1)) + 1)
    assert first[-1].tolist() == last[-1].tolist() == [newline] * 4 and places.weight is not None
    torch.testing.assert_close(places.weight.sum(1), torch.ones(len(places.index)))
    assert int(first[:-1].max()) == 2 * 729 - 1 and int(last[:-1].min()) == newline - 729


@pytest.mark.parametrize(
    ("mode", "pictures", "frames", "again"),
    [
        ("anyres_max_9", "anyres_max_9", 8, "anyres_max_9"),
        ("anyres_max_9_video_8", "anyres_max_9", 8, "anyres_max_9"),
        ("anyres_max_9_video_16", "anyres_max_9", 16, "anyres_max_9_video_16"),
        ("anyres_max_9_video_0", "anyres_max_9", 0, "anyres_max_9_video_0"),
    ],
)
def test_a_mode_names_the_frames_of_a_video(mode: str, pictures: str, frames: int, again: str, onevision: Made) -> None:
    assert (pictures_in(mode), frames_in(mode), with_frames(pictures, frames)) == (pictures, frames, again)
    llava = onevision(image_mode=mode)
    assert (llava.image_mode.mode, llava.tiling.frames, llava.renderer.videos) == (again, frames, frames > 0)
    assert llava.model.config.vision_aspect_ratio == "anyres_max_9", "transformers reads its number off the name"


# --- the model ----------------------------------------------------------------------------------------------------


def test_it_is_transformers_class_with_llavas_grids_and_a_newline_of_its_seed(onevision: Made) -> None:
    llava, same_seed, other = onevision(), onevision(), onevision(seed=1)
    assert type(llava.model) is LlavaOnevisionForConditionalGeneration
    config = llava.model.config
    assert config.image_grid_pinpoints == llava.spec["pinpoints"] == pinpoints_of(48, ONEVISION_GRIDS)
    assert sorted(config.image_grid_pinpoints) == sorted([h // 8, w // 8] for h, w in ONEVISION)
    assert (config.vision_feature_select_strategy, config.vision_aspect_ratio) == ("full", "anyres_max_2")
    assert llava.image_mode.mode == "anyres_max_2" and llava.tiling.limit == 2
    assert torch.equal(llava.newline, same_seed.newline) and not torch.equal(llava.newline, other.newline)


@pytest.mark.parametrize("fields", [{}, {"vision": "clip", "language": "llama", "template": "v1"}], ids=["", "clip"])
def test_pictures_become_the_rows_that_transformers_makes_of_them(onevision: Made, fields: dict[str, str]) -> None:
    llava = onevision(**fields)
    made = processor(llava)
    with torch.no_grad():
        for sizes in ([SIZES[0]], [SIZES[3]], [SIZES[5]], SIZES):
            inputs, shown = vanilla_inputs(llava, made, sizes)
            images = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
            expected = llava.model.get_image_features(**images).pooler_output
            rows = llava.look(shown)
            assert [len(one) for one in rows] == [llava.tiling.tokens(one.size) for one in shown]
            for found, wanted in zip(rows, expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_newline_trains_with_the_projector(onevision: Made, finetune: Made) -> None:
    llava = onevision()
    groups = prepare(llava, finetune(stage="align", language="frozen", weight_decay=0.1), say=lambda text: None)
    assert {group.name: group.count for group in groups}["projector (no decay)"] == 3 * 64, "two biases, the newline"
    assert "projector (no decay)" in table(groups)
    llava.look([llava.show(picture(70, 40))])[0].square().sum().backward()
    assert llava.newline.grad.abs().sum() > 0


@pytest.mark.parametrize("fields", [{}, {"load": "4bit"}], ids=["lora", "qlora"])
def test_a_checkpoint_loads_to_the_same_model(tuned: Made, tmp_path: Path, fields: dict[str, str]) -> None:
    llava = tuned(**fields)
    again = load(save(llava, tmp_path / "saved"), device="cpu")
    same(llava, again)
    assert again.spec == llava.spec and again.tiling == llava.tiling and torch.equal(again.newline, llava.newline)


@pytest.mark.parametrize("fields", [{"load": "4bit"}, {"projector": "linear"}], ids=["qlora", "lora-linear"])
def test_vanilla_transformers_sees_and_answers_the_same(tuned: Made, tmp_path: Path, fields: dict[str, str]) -> None:
    llava = tuned(**fields)
    save(llava, tmp_path / "saved")
    folder = export_hf(tmp_path / "saved", tmp_path / "out", device="cpu")
    vanilla = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert type(vanilla) is LlavaOnevisionForConditionalGeneration
    made = processor(llava)
    for sizes in ([SIZES[0]], [SIZES[5]], SIZES[:3]):
        inputs, shown = vanilla_inputs(llava, made, sizes)
        with torch.no_grad():
            rows = llava.look(shown)
            rendered = llava.renderer.prompt(asked(len(sizes)))
            ids, _ = llava.renderer.expand(rendered, list(map(len, rows)), llava.image_token_id)
            assert inputs["input_ids"].tolist() == [ids]
            for tiles, one in zip(inputs["pixel_values"], shown, strict=True):
                assert torch.equal(tiles[: len(one.tiles)], one.tiles)
            features = llava.image_inputs(rows)
        assert_says_the_same(vanilla, inputs, llava, ids, features, 6)
    again = load(folder, device="cpu")
    assert (again.image_mode.mode, again.tiling) == ("anyres_max_2", llava.tiling)


@pytest.fixture
def hub(onevision: Made, tmp_path: Path) -> Path:
    """One as it lies on the Hub: transformers' order of grids, every layer of its tower used, no template of ours."""
    folder = write_folder(onevision(vision_layer=-1), tmp_path / "hub")
    grids = [[high // 8, wide // 8] for high, wide in ONEVISION]
    for name, places in (("config.json", ()), ("processor_config.json", ("image_processor",))):
        held = json.loads((folder / name).read_text())
        (held[places[0]] if places else held)["image_grid_pinpoints"] = grids
        held.pop("image_seq_length", None)
        (folder / name).write_text(json.dumps(held))
    (folder / "template.yaml").unlink()
    return folder


def test_a_folder_of_the_hub_is_read_as_it_was_trained(hub: Path, finetune: Made, tmp_path: Path) -> None:
    llava = load(hub, device="cpu")
    assert llava.renderer.template.name == "qwen" and llava.spec["vision_layer"] == -1
    assert llava.spec["pinpoints"][1] == [48, 96] and llava.image_mode.mode == "anyres_max_2"
    vanilla = AutoModelForImageTextToText.from_pretrained(hub, dtype=torch.float32)
    for sizes in ([SIZES[0]], SIZES[:2]):
        inputs, shown = vanilla_inputs(llava, processor(llava), sizes)
        with torch.no_grad():
            features = llava.image_inputs(llava.look(shown))
            ours = llava.model(input_ids=inputs["input_ids"], mm_encoder_outputs=features).logits
            torch.testing.assert_close(ours, vanilla(**inputs).logits, rtol=1e-4, atol=1e-4)
    prepare(llava, finetune(), say=lambda text: None)
    again = load(save(llava, tmp_path / "run"), device="cpu")
    same(llava, again)
    assert again.tiling == llava.tiling


def test_what_an_exported_folder_tells_transformers_of_videos(hub: Path) -> None:
    held = json.loads((hub / "processor_config.json").read_text())
    video = held["video_processor"]
    assert held["processor_class"] == "LlavaOnevisionProcessor" and held["num_image_tokens"] == 16
    assert video["video_processor_type"] == "LlavaOnevisionVideoProcessor"
    assert (video["size"], video["image_mean"]) == ({"height": 48, "width": 48}, [0.5] * 3)


def test_a_folder_that_was_written_without_the_token_of_videos_gets_it(onevision: Made, tmp_path: Path) -> None:
    """As those were that this product wrote while it read only the pictures of this family."""
    folder = write_folder(onevision(image_mode="anyres_max_2_video_0"), tmp_path / "old")
    held = json.loads((folder / "processor_config.json").read_text())
    assert (held["video_processor"]["num_frames"], held["video_processor"]["do_sample_frames"]) == (0, False)
    assert load(folder, device="cpu").image_mode.mode == "anyres_max_2_video_0", "what is said is kept"
    llava = load(folder, device="cpu", image_mode="anyres_max_2_video_4")
    config, token = llava.model.config, llava.tokenizer.convert_tokens_to_ids("<video>")
    assert config.video_token_id == token == len(llava.tokenizer) - 1 and llava.renderer.videos
    assert len(llava.model.get_input_embeddings().weight) > token
    again = load(write_folder(llava, tmp_path / "new"), device="cpu")
    assert again.model.config.video_token_id == token and again.tiling.frames == 4


def test_a_checkpoint_that_was_saved_without_the_token_of_videos_gets_it(tuned: Made, tmp_path: Path) -> None:
    llava = tuned(image_mode="anyres_max_2_video_0")
    again = load(save(llava, tmp_path / "saved"), device="cpu", image_mode="anyres_max_2_video_4")
    assert again.tiling.frames == 4 and again.renderer.videos and not llava.renderer.videos
    shown = [[one.show(picture(70, 40))] for one in (llava, again)]
    with torch.no_grad():
        assert torch.equal(*(one.look(given)[0] for one, given in zip((llava, again), shown, strict=True)))


def test_a_demo_that_is_given_away_reads_what_we_read_of_one_picture_and_of_several(
    tuned: Made, tmp_path: Path
) -> None:
    from workbench.serving.demo.answerer import Answerer
    from workbench.serving.demo.turns import Settings
    from workbench.serving.export_demo import export_demo

    llava = tuned()
    save(llava, tmp_path / "saved")
    answerer = Answerer(export_demo(tmp_path / "saved", tmp_path / "demo", examples=0, device="cpu"))
    for sizes in ([SIZES[5]], SIZES[:3]):
        parts = []
        for number, size in enumerate(sizes):
            picture(*size).save(tmp_path / f"{number}.png")
            parts.append({"type": "image", "path": str(tmp_path / f"{number}.png")})
        question = {"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}
        inputs = answerer.inputs([question], Settings())
        expected, shown = vanilla_inputs(llava, processor(llava), sizes)
        assert torch.equal(inputs["input_ids"], expected["input_ids"])
        for tiles, one in zip(inputs["pixel_values"], shown, strict=True):
            assert torch.equal(tiles[: len(one.tiles)], one.tiles)
        assert answerer.model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]


def test_what_does_not_fit_together_is_refused(hub: Path, make: Made, onevision: Made, tmp_path: Path) -> None:
    for mode in ("pad", "anyres", "anyres_max_9", "anyres_video_8", "anyres_max_9_video_8"):
        expected = "anyres_max_2, or anyres_max_2_video_16 with another number of frames"
        with pytest.raises(ModelError, match=f"'{mode}' for a LLaVA-OneVision; expected {expected}"):
            load(hub, device="cpu", image_mode=mode)
    plain = write_folder(make(), tmp_path / "plain")
    with pytest.raises(ModelError, match="'anyres_max_9' for a LLaVA 1.5; expected square or pad or crop"):
        load(plain, device="cpu", image_mode="anyres_max_9")
    with pytest.raises(ModelError, match="anyres_max_2: found 17 tokens a tile"):
        onevision(vision="clip", language="llama", template="v1", vision_select="full")
    held = json.loads((hub / "config.json").read_text()) | {"vision_aspect_ratio": "square"}
    (hub / "config.json").write_text(json.dumps(held))
    with pytest.raises(ModelError, match="vision_aspect_ratio: found 'square'; expected anyres_max_9"):
        load(hub, device="cpu")
