"""An exported folder is read by vanilla transformers alone and gives our ids, pixels, logits and answers."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from workbench.cli import main
from workbench.conversation import Conversation, Image, Message, to_chat
from workbench.errors import CheckpointError, ModelError
from workbench.model.checkpoint import save
from workbench.model.export import export_hf, export_original, write_folder
from workbench.model.llava import load
from workbench.model.original_out import write_original
from workbench.model.stages import prepare


def picture(width: int, height: int) -> Picture.Image:
    values = np.random.default_rng(3).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Picture.fromarray(values).resize((width, height))


ASKED = Conversation(
    "asked",
    (
        Message("user", (Image("a.png"), "What is this?")),
        Message("assistant", "A square."),
        Message("user", "And its colour?"),
    ),
)


@pytest.fixture
def exported(make, finetune, train_a_little, tmp_path):
    """(our live model, the folder exported from its checkpoint)"""

    def made(base: str = "nf4", **fields):
        llava = make(**fields)
        prepare(llava, finetune(), say=lambda text: None)
        train_a_little(llava)
        save(llava, tmp_path / "saved")
        return llava, export_hf(tmp_path / "saved", tmp_path / "out", base=base, device="cpu")

    return made


@pytest.mark.parametrize(
    "fields",
    [
        {"load": "4bit"},
        {"load": "4bit", "template": "chatml", "vision": "siglip_whole", "language": "qwen2", "projector": "linear"},
        {"template": "llama_2", "vision_select": "full"},
    ],
    ids=["qlora-v1-clip", "qlora-chatml-siglip-qwen2-tied-linear", "lora-llama2-class-token"],
)
def test_vanilla_transformers_sees_and_answers_the_same(exported, fields):
    llava, folder = exported(**fields)
    vanilla = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    image = picture(70, 40)
    text = processor.apply_chat_template(to_chat(ASKED), add_generation_prompt=True)
    inputs = processor(text=text, images=image, return_tensors="pt")
    ids, _ = llava.renderer.expand(llava.renderer.prompt(ASKED), [llava.image_tokens], llava.image_token_id)
    assert inputs["input_ids"].tolist() == [ids]
    pixels = llava.image_mode.pixels(image)[None]
    torch.testing.assert_close(inputs["pixel_values"], pixels, rtol=0, atol=0)

    with torch.no_grad():
        features = llava.image_inputs(llava.project(llava.tower_features(pixels)))
    assert set(vanilla.generation_config.eos_token_id) == set(llava.renderer.end_ids)
    assert_says_the_same(vanilla, inputs, llava, ids, features, 12)


def assert_says_the_same(vanilla, inputs, llava, ids: list[int], features, count: int) -> None:
    """transformers' own class has the logits of ours, and the same likeliest `count` tokens."""
    with torch.no_grad():
        ours = llava.model(input_ids=torch.tensor([ids]), mm_encoder_outputs=features).logits
        theirs = vanilla(**inputs).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3 * float(ours.abs().max()))
    answer = vanilla.generate(**inputs, max_new_tokens=count)[0, len(ids) :].tolist()
    assert answer == greedy(llava, ids, features, count)


def greedy(llava, ids: list[int], features, count: int) -> list[int]:
    """The likeliest continuation, one whole forward pass per token, up to and including an end token."""
    made: list[int] = []
    with torch.no_grad():
        while len(made) < count and (not made or made[-1] not in llava.renderer.end_ids):
            logits = llava.model(input_ids=torch.tensor([ids + made]), mm_encoder_outputs=features).logits
            made.append(int(logits[0, -1].argmax()))
    return made


@pytest.mark.parametrize("image_mode", ["pad", "crop"])
def test_processor_settings_follow_the_image_mode(make, tmp_path, image_mode):
    from workbench.model.export import write_folder
    from workbench.model.images import ImageMode

    llava = make()
    llava.image_mode = ImageMode(image_mode, llava.spec["image_settings"])
    folder = write_folder(llava, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(folder)
    for size in ((70, 40), (31, 90), (48, 48)):
        image = picture(*size)
        found = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(found, llava.image_mode.pixels(image), rtol=0, atol=0)
    assert load(folder, device="cpu").image_mode.mode == image_mode


def test_an_exported_folder_loads_here_too_with_its_template(exported):
    llava, folder = exported(load="4bit", template="llava_v1")
    again = load(folder, device="cpu")
    assert again.renderer.template == llava.renderer.template
    assert again.renderer.prompt(ASKED).ids == llava.renderer.prompt(ASKED).ids
    assert (folder / "chat_template.jinja").is_file()
    assert str(folder.parent) not in "".join(path.read_text() for path in folder.glob("*.json"))


def test_merging_onto_the_original_base_gives_another_model(exported, tmp_path):
    _, folder = exported(base="original", load="4bit")
    other = export_hf(tmp_path / "saved", tmp_path / "nf4", device="cpu")
    one, two = (LlavaForConditionalGeneration.from_pretrained(path) for path in (folder, other))
    name = "model.language_model.layers.0.mlp.up_proj"
    assert not torch.equal(one.get_submodule(name).weight, two.get_submodule(name).weight)


def test_weights_that_are_no_numbers_are_not_written(make, tmp_path):
    llava = make()
    whole = write_folder(llava, tmp_path / "whole")
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    llava.model.get_parameter(name).data[2, 7] = float("nan")
    shape = llava.model.get_parameter(name).shape
    message = rf"1 of {shape.numel():,} values of {re.escape(name)} that are no numbers .*, the first at \[2, 7\]"
    for write in (write_folder, write_original):
        with pytest.raises(CheckpointError, match=message):
            write(llava, tmp_path / "out")
    tuned = make()
    tuned.projector.linear_1.bias.data[:3] = float("inf")
    with pytest.raises(CheckpointError, match=r"3 of 64 values of .*linear_1.bias that are no numbers .* \[0\]"):
        save(tuned, tmp_path / "out")
    with safe_open(whole / "model.safetensors", "pt") as file:
        held = {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
    next(held[each] for each in held if each.endswith("lm_head.weight"))[0, 1] = float("inf")
    save_file(held, whole / "model.safetensors", metadata={"format": "pt"})
    for export in (export_hf, export_original):
        with pytest.raises(CheckpointError, match=r"whole: found 1 of .* of lm_head.weight .* \[0, 1\]"):
            export(whole, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("as_", ["hf", "llava"])
def test_weights_that_are_cut_off_are_told_in_one_line(make, tmp_path, capsys, as_):
    folder = write_folder(make(), tmp_path / "whole")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"version https://git-lfs.github.com/spec/v1\nsize 12\n"):
        weights.write_bytes(damaged)
        assert main(["export", str(folder), str(tmp_path / "out"), "--as", as_]) == 1
        told = capsys.readouterr().err
        assert "model.safetensors: found a damaged or cut-off file (" in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_never_overwritten(exported, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ModelError, match="out: found files; expected a new or empty folder; choose another name"):
        exported(load="4bit")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
