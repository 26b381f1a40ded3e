"""LLaVA-NeXT: built, trained a little, saved, merged and exported; transformers' own class gives the same each time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaNextForConditionalGeneration

from tests.model.test_export import assert_says_the_same
from workbench.conversation import Conversation, Image, Message, to_chat
from workbench.errors import CheckpointError, ModelError
from workbench.model.anyres import pinpoints_of
from workbench.model.checkpoint import load_checkpoint, read_projector, save
from workbench.model.export import export_hf, write_folder
from workbench.model.images import ImageMode
from workbench.model.llava import NEWLINE, build, load
from workbench.model.proof import probe
from workbench.model.stages import prepare, table
from workbench.recipe import ModelSpec

Made = Callable[..., Any]
SIZES = [(70, 40), (31, 90), (48, 48), (200, 21), (1, 1), (150, 140)]
"""Of tiles 48 pixels wide."""
ASKED = Conversation("asked", (Message("user", (Image("a"), "What is this?", Image("b"))),))


def picture(width: int, height: int) -> Picture.Image:
    values = np.random.default_rng([width, height]).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Picture.fromarray(values)


@pytest.fixture
def tuned(make: Made, finetune: Made, train_a_little: Made) -> Made:
    def made(train: Any = None, **fields: Any) -> Any:
        llava = make(image_mode="anyres", **fields)
        prepare(llava, train or finetune(), say=lambda text: None)
        train_a_little(llava)
        return llava

    return made


def same(one: Any, other: Any) -> None:
    (ids, logits), (other_ids, other_logits) = probe(one), probe(other)
    assert ids == other_ids
    torch.testing.assert_close(other_logits, logits, rtol=0, atol=0)


def test_it_is_transformers_class_with_llavas_grids_and_a_newline_of_its_seed(make: Made) -> None:
    llava, same_seed, other = make(image_mode="anyres"), make(image_mode="anyres"), make(image_mode="anyres", seed=1)
    assert type(llava.model) is LlavaNextForConditionalGeneration
    assert llava.model.config.image_grid_pinpoints == llava.spec["pinpoints"] == pinpoints_of(48)
    assert llava.newline.shape == (64,) and torch.equal(llava.newline, same_seed.newline)
    assert not torch.equal(llava.newline, other.newline) and 0.5 < float(llava.newline.std()) * 8 < 1.5
    assert make().newline is None and make().spec.get("pinpoints") is None


@pytest.mark.parametrize("vision", ["clip", "siglip_whole"])
def test_pictures_become_the_rows_that_transformers_makes_of_them(make: Made, vision: str) -> None:
    llava = make(image_mode="anyres", vision=vision)
    shown = [llava.show(picture(*size)) for size in SIZES]
    with torch.no_grad():
        rows = llava.look(shown)
        for one, found in zip(shown, rows, strict=True):
            told = torch.tensor([[one.size[1], one.size[0]]])
            expected = llava.model.get_image_features(one.tiles[None], told).pooler_output[0]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert len(found) == llava.tiling.tokens(one.size)
    assert len({len(one) for one in rows}) > 3


def test_the_newline_trains_and_counts_with_the_projector(make: Made, finetune: Made) -> None:
    llava = make(image_mode="anyres")
    groups = prepare(llava, finetune(stage="align", language="frozen", weight_decay=0.1), say=lambda text: None)
    counts = {group.name: group.count for group in groups}
    linear = sum(p.numel() for p in llava.projector.parameters() if p.ndim > 1)
    assert counts == {"projector": linear, "projector (no decay)": 3 * 64}, "two biases and the newline"
    assert "projector (no decay)" in table(groups) and llava.newline.requires_grad
    rows = llava.look([llava.show(picture(70, 40))])[0]
    rows.square().sum().backward()
    assert llava.newline.grad.abs().sum() > 0
    frozen = make(image_mode="anyres")
    prepare(frozen, finetune(projector="frozen"), say=lambda text: None)
    assert not frozen.newline.requires_grad
    single = make(image_mode="anyres", projector="linear")
    prepare(single, finetune(stage="align", language="frozen"), say=lambda text: None)
    assert single.newline.requires_grad and not single.projector.linear_2.weight.requires_grad


@pytest.mark.parametrize("fields", [{}, {"load": "4bit"}, {"load": "bf16", "vision": "siglip_whole"}], ids=str)
def test_a_checkpoint_loads_to_the_same_model(tuned: Made, tmp_path: Path, fields: dict[str, str]) -> None:
    llava = tuned(**fields)
    folder = save(llava, tmp_path / "saved")
    again = load(folder, device="cpu")
    same(llava, again)
    assert again.spec == llava.spec and torch.equal(again.newline, llava.newline)
    assert again.model.config.image_grid_pinpoints == llava.model.config.image_grid_pinpoints
    assert NEWLINE in read_projector(folder)[1]


def test_a_checkpoint_without_its_newline_is_refused(tuned: Made, tmp_path: Path) -> None:
    from tests.model.test_checkpoint import seal

    folder = save(tuned(), tmp_path / "saved")
    tensors = load_file(folder / "projector.safetensors")
    del tensors[NEWLINE]
    save_file(tensors, folder / "projector.safetensors")
    seal(folder)
    with pytest.raises(CheckpointError, match=r"1 missing tensors, the first: model.image_newline"):
        load_checkpoint(folder, device="cpu")


@pytest.mark.parametrize(
    "fields",
    [
        {"load": "4bit"},
        {"load": "4bit", "template": "chatml", "vision": "siglip_whole", "language": "qwen2", "projector": "linear"},
    ],
    ids=["qlora-v1-clip", "qlora-chatml-siglip-qwen2-tied-linear"],
)
def test_vanilla_transformers_sees_and_answers_the_same(tuned: Made, tmp_path: Path, fields: dict[str, str]) -> None:
    llava = tuned(**fields)
    save(llava, tmp_path / "saved")
    folder = export_hf(tmp_path / "saved", tmp_path / "out", device="cpu")
    vanilla = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert type(vanilla) is LlavaNextForConditionalGeneration
    torch.testing.assert_close(vanilla.model.image_newline, llava.newline, rtol=0, atol=0)
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(to_chat(ASKED), add_generation_prompt=True)
    for sizes in zip(SIZES, SIZES[1:], strict=False):
        images = [picture(*size) for size in sizes]
        inputs = processor(text=text, images=images, return_tensors="pt")
        shown = [llava.show(image) for image in images]
        with torch.no_grad():
            rows = llava.look(shown)
            ids, _ = llava.renderer.expand(llava.renderer.prompt(ASKED), list(map(len, rows)), llava.image_token_id)
            assert inputs["input_ids"].tolist() == [ids]
            for number, one in enumerate(shown):
                assert torch.equal(inputs["pixel_values"][number][: len(one.tiles)], one.tiles)
            features = llava.image_inputs(rows)
        assert_says_the_same(vanilla, inputs, llava, ids, features, 6)
    again = load(folder, device="cpu")
    assert again.image_mode.mode == "anyres" and again.tiling == llava.tiling


@pytest.fixture
def folder(tuned: Made, tmp_path: Path) -> Path:
    """A LLaVA-NeXT as it lies on the Hub: transformers' order of grids, no template of ours."""
    llava = tuned(load="fp32")
    save(llava, tmp_path / "saved")
    made = export_hf(tmp_path / "saved", tmp_path / "hub", device="cpu")
    hub = [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]
    for name, places in (("config.json", []), ("processor_config.json", ["image_processor"])):
        held = json.loads((made / name).read_text())
        inner = held[places[0]] if places else held
        assert inner["image_grid_pinpoints"] == pinpoints_of(48)
        inner["image_grid_pinpoints"] = hub
        (made / name).write_text(json.dumps(held))
    return made


def test_a_folder_of_the_hub_keeps_its_order_of_grids(folder: Path, finetune: Made, tmp_path: Path) -> None:
    llava = load(folder, device="cpu")
    assert llava.spec["pinpoints"][0] == [48, 96] and llava.image_mode.mode == "anyres"
    vanilla = AutoProcessor.from_pretrained(folder)
    small = picture(30, 20)
    inputs = vanilla(text="<image>", images=small, return_tensors="pt")
    assert int((inputs["input_ids"] == llava.image_token_id).sum()) == llava.tiling.tokens(small.size)
    assert torch.equal(inputs["pixel_values"][0], llava.show(small).tiles)
    prepare(llava, finetune(), say=lambda text: None)
    again = load(save(llava, tmp_path / "run"), device="cpu")
    assert again.tiling == llava.tiling and again.spec["pinpoints"] == llava.spec["pinpoints"]
    assert write_folder(load(folder, device="cpu"), tmp_path / "copy").is_dir()


def test_what_does_not_fit_together_is_refused(folder: Path, make: Made, tmp_path: Path) -> None:
    for mode in ("pad", "square", "crop"):
        with pytest.raises(ModelError, match=f"'{mode}' for a LLaVA-NeXT; expected anyres; set image_mode: anyres"):
            load(folder, device="cpu", image_mode=mode)
    plain = write_folder(make(), tmp_path / "plain")
    with pytest.raises(ModelError, match="'anyres' for a LLaVA 1.5; expected square or pad or crop"):
        load(plain, device="cpu", image_mode="anyres")
    with pytest.raises(ModelError, match="17 tokens a tile"):
        make(image_mode="anyres", vision_select="full")
    held = json.loads((folder / "processor_config.json").read_text())
    held["image_processor"]["image_grid_pinpoints"].reverse()
    (folder / "processor_config.json").write_text(json.dumps(held))
    with pytest.raises(ModelError, match="image_grid_pinpoints .* as in config.json"):
        load(folder, device="cpu")


def test_a_projector_of_whole_squares_leaves_the_newline_fresh(
    make: Made, parts: dict[str, Path], tmp_path: Path
) -> None:
    """LLaVA-NeXT's own stage 1 shows squares; its stage 2 begins with that projector."""
    first = make(seed=3)
    save(first, tmp_path / "first")
    spec = ModelSpec(
        vision=str(parts["clip"]), language=str(parts["llama"]), device="cpu", projector_from=str(tmp_path / "first")
    )
    second = build(spec, template="v1", image_mode="anyres", seed=5)
    assert torch.equal(second.projector.linear_1.weight, first.projector.linear_1.weight)
    assert torch.equal(second.newline, make(image_mode="anyres", seed=5).newline)
    save(second, tmp_path / "second")
    spec = spec.model_copy(update={"projector_from": str(tmp_path / "second")})
    assert torch.equal(build(spec, template="v1", image_mode="anyres").newline, second.newline)
    with pytest.raises(CheckpointError, match="1 surplus tensors, the first: model.image_newline"):
        build(spec, template="v1", image_mode="square")


def test_demos_offer_no_other_image_mode(folder: Path) -> None:
    from workbench.serving.demo_run import PageModel

    assert PageModel(folder, device="cpu").image_modes == ("anyres",)
    assert ImageMode("square", load(folder, device="cpu").spec["image_settings"]).side == 48
    shutil.rmtree(folder)
