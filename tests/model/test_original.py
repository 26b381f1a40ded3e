"""LLaVA's own layouts: read as LLaVA's code computes, written so that they read back bit for bit, else refused."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoProcessor,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
)

from workbench.chat_model import SamplingOptions
from workbench.cli import main
from workbench.conversation import Conversation, Image, Message, to_chat
from workbench.errors import CheckpointError, ModelError
from workbench.inference.opening import open_model
from workbench.model.checkpoint import save
from workbench.model.export import export_hf, export_original
from workbench.model.llava import Llava, build, load
from workbench.model.lora import merge_into
from workbench.model.original import layout_of, read_weights
from workbench.model.original_in import load_original
from workbench.model.outline import outline
from workbench.model.proof import gradient, probe
from workbench.model.stages import prepare
from workbench.recipe import ModelSpec

TOKENIZER = Path(__file__).parent / "llava" / "tokenizer.model"
ASKED = Conversation("asked", (Message("user", (Image("a.png"), "What is this?")),))
WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
KINDS = {
    "llava_llama": (LlamaConfig, LlamaForCausalLM, {"rope_theta": 10000.0, "pretraining_tp": 1}),
    "llava_mistral": (MistralConfig, MistralForCausalLM, {"rope_theta": 1000000.0, "sliding_window": None}),
}
WITHIN = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Largest difference of a logit, relative to the largest one."""
Made = Callable[..., "Published"]


class Published:
    """A small LLaVA as its authors' code holds and saves it: a causal LM with `mm_projector` inside."""

    def __init__(self, folder: Path, tower: Path, *, kind: str = "llava_llama", projector: str = "mlp2x_gelu",
                 dtype: torch.dtype = torch.float16, patch_token: bool = False) -> None:  # fmt: skip
        self.folder, self.tower, self.dtype = folder, tower, dtype
        torch.manual_seed(5)
        configuration, model, more = KINDS[kind]
        words = sentencepiece_size() + patch_token
        told = WIDE | {"num_hidden_layers": 2, "vocab_size": words, "max_position_embeddings": 512} | more
        self.language: Any = model(configuration(**told, pad_token_id=0)).to(dtype)
        for parameter in self.language.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.15)
        layers: list[nn.Module] = [nn.Linear(32, 64)]
        layers += [nn.GELU(), nn.Linear(64, 64)] if projector == "mlp2x_gelu" else []
        self.projector = (nn.Sequential(*layers) if len(layers) > 1 else layers[0]).to(dtype)
        self.config = told | {
            "model_type": kind,
            "architectures": ["LlavaLlamaForCausalLM"],
            "torch_dtype": str(dtype).removeprefix("torch."),
            "rms_norm_eps": 1e-06,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
            "use_mm_proj": True,
            "mm_vision_tower": "openai/clip-vit-small-patch12",
            "mm_hidden_size": 32,
            "mm_projector_type": projector,
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": patch_token,
            "image_aspect_ratio": "pad",
            "image_grid_pinpoints": None,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state dict, with a buffer that old versions of transformers saved too."""
        held = dict(self.language.state_dict())
        held |= {f"model.mm_projector.{name}": tensor for name, tensor in self.projector.state_dict().items()}
        return held | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}

    def save(self, form: str = "bin", **changed: Any) -> Path:
        """Write it; `changed` replaces tensors (None: leaves one out)."""
        held = {name: tensor for name, tensor in (self.tensors() | changed).items() if tensor is not None}
        self.folder.mkdir(parents=True, exist_ok=True)
        if form == "bin":
            torch.save(held, self.folder / "pytorch_model.bin")
        elif form == "safetensors":
            save_file({name: tensor.clone() for name, tensor in held.items()}, self.folder / "model.safetensors")
        else:
            names = sorted(held)
            files = {
                name: f"pytorch_model-0000{1 + (n > len(names) // 2)}-of-00002.bin" for n, name in enumerate(names)
            }
            for file in set(files.values()):
                torch.save({name: held[name] for name in names if files[name] == file}, self.folder / file)
            index = {"metadata": {}, "weight_map": files}
            (self.folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return self.describe()

    def describe(self, **changed: Any) -> Path:
        """Write the small files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps(self.config | changed))
        shutil.copyfile(TOKENIZER, self.folder / "tokenizer.model")
        return self.folder

    def base(self, folder: Path) -> Path:
        """The language model alone, as its makers publish it."""
        self.language.save_pretrained(folder)
        shutil.copyfile(TOKENIZER, folder / "tokenizer.model")
        return folder

    @torch.no_grad()
    def logits(self, llava: Llava, language: Any = None) -> torch.Tensor:
        """What LLaVA's own forward computes for `ASKED`: features, projector, embeddings put in the image's place."""
        tower = CLIPVisionModel.from_pretrained(self.tower, dtype=self.dtype)
        pixels = llava.image_mode.pixels(gradient())[None].to(self.dtype)
        features = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        image = self.projector(features)[0]
        ids = llava.renderer.prompt(ASKED).ids
        at = ids.index(-200)
        model = language if language is not None else self.language
        embed = model.get_input_embeddings()
        before, after = (embed(torch.tensor(part, dtype=torch.long)) for part in (ids[:at], ids[at + 1 :]))
        logits: torch.Tensor = model(inputs_embeds=torch.cat([before, image, after])[None]).logits[0].float()
        return logits


def sentencepiece_size() -> int:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER)).get_piece_size()


@torch.no_grad()
def ours(llava: Llava) -> torch.Tensor:
    """Our logits for `ASKED`."""
    rendered = llava.renderer.prompt(ASKED)
    ids, _ = llava.renderer.expand(rendered, [llava.image_tokens], llava.image_token_id)
    pixels = llava.image_mode.pixels(gradient())[None]
    inputs = llava.image_inputs(llava.project(llava.tower_features(pixels)))
    logits: torch.Tensor = llava.model(input_ids=torch.tensor([ids]), mm_encoder_outputs=inputs).logits
    return logits[0].float()


@pytest.fixture
def published(parts: dict[str, Path], tmp_path: Path) -> Made:
    """`published(kind=..., projector=..., name="source")`: a small LLaVA of its authors' making, not yet saved."""

    def made(name: str = "source", **fields: Any) -> Published:
        return Published(tmp_path / name, parts["clip"], **fields)

    return made


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


# --- in ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        ("bin", {"dtype": torch.float32}),
        ("shards", {"projector": "linear"}),
        ("safetensors", {"kind": "llava_mistral", "dtype": torch.bfloat16}),
        ("bin", {"patch_token": True}),
    ],
    ids=["bin", "shards-linear", "safetensors-mistral", "patch-token"],
)
def test_a_full_checkpoint_computes_what_llavas_own_code_computes(
    form: str, fields: dict[str, Any], published: Made, tmp_path: Path
) -> None:
    source = published(**fields)
    folder = source.save(form)
    assert layout_of(folder) == "full"
    llava = load_original(folder, vision_tower=source.tower, device="cpu")
    assert llava.image_mode.mode == "pad" and llava.held == source.dtype
    words = source.config["vocab_size"]
    assert llava.spec["vocabulary"] == {"tokens": words + 1, "rows_before": words, "rows_after": words + 1}
    assert ("<im_patch>" in llava.tokenizer.get_vocab()) == fields.get("patch_token", False)
    expected = source.logits(llava)
    within = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[source.dtype] * float(
        expected.abs().max()
    )
    torch.testing.assert_close(ours(llava)[-1, :words], expected[-1], rtol=0, atol=within)

    out = export_hf(folder, tmp_path / "hf", vision_tower=source.tower, device="cpu")
    vanilla = LlavaForConditionalGeneration.from_pretrained(out)
    assert vanilla.dtype == source.dtype
    processor = AutoProcessor.from_pretrained(out)
    text = processor.apply_chat_template(to_chat(ASKED), add_generation_prompt=True)
    inputs = processor(text=text, images=gradient(), return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(source.dtype)
    with torch.no_grad():
        theirs = vanilla(**inputs).logits[0].float()
    torch.testing.assert_close(theirs[-1, :words], expected[-1], rtol=0, atol=within)


def test_there_and_back_is_bit_equal(published: Made, tmp_path: Path) -> None:
    source = published()
    folder = source.save("shards")
    first = export_hf(folder, tmp_path / "hf", vision_tower=source.tower, device="cpu")
    back = export_original(first, tmp_path / "back", device="cpu")
    computed = "model.layers.0.self_attn.rotary_emb.inv_freq"
    equal(read_weights(back), {name: each for name, each in source.tensors().items() if name != computed})
    assert json.loads((back / "config.json").read_text()) == source.config
    assert (back / "tokenizer.model").read_bytes() == TOKENIZER.read_bytes()
    again = export_hf(back, tmp_path / "again", vision_tower=source.tower, device="cpu")
    equal(load_file(first / "model.safetensors"), load_file(again / "model.safetensors"))
    straight = export_original(folder, tmp_path / "straight", vision_tower=source.tower, device="cpu")
    equal(read_weights(straight), read_weights(back))


@pytest.mark.parametrize("projector", ["mlp2x_gelu", "linear"])
def test_a_model_of_transformers_goes_there_and_back(make: Any, projector: str, tmp_path: Path) -> None:
    from workbench.model.export import write_folder

    first = write_folder(make(projector=projector), tmp_path / "hf")
    there = export_original(first, tmp_path / "there", device="cpu")
    config = json.loads((there / "config.json").read_text())
    assert (config["model_type"], config["mm_projector_type"]) == ("llava_llama", projector)
    assert config["mm_vision_tower"] == "vision_tower" and (there / "vision_tower" / "model.safetensors").is_file()
    assert "rope_parameters" not in config and config["rope_theta"] == 10000.0
    back = export_hf(there, tmp_path / "back", device="cpu")
    equal(load_file(first / "model.safetensors"), load_file(back / "model.safetensors"))
    one, two = load(first, device="cpu"), load(back, device="cpu")
    assert probe(one)[0] == probe(two)[0] and one.image_mode.mode == two.image_mode.mode == "square"
    picture = PIL.Image.linear_gradient("L").resize((60, 40))
    assert torch.equal(one.image_mode.pixels(picture), two.image_mode.pixels(picture))


@pytest.mark.parametrize("said", [{"unfreeze_mm_vision_tower": True}, {"mm_tunable_parts": "mm_vision_tower"}, {}])
def test_a_tower_in_the_checkpoints_own_file_is_the_one_that_is_used_and_kept(
    said: dict[str, Any], published: Made, tmp_path: Path
) -> None:
    source = published(dtype=torch.float32)
    source.config |= said
    own = own_tower(source.tower)
    folder = source.save(**own)
    first = export_hf(folder, tmp_path / "hf", vision_tower=source.tower, device="cpu")
    llava = load(first, device="cpu")
    held = llava.tower.embeddings.patch_embedding.weight
    assert torch.equal(held, own["model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight"])
    straight = export_original(folder, tmp_path / "straight", vision_tower=source.tower, device="cpu")
    whole = {name: each for name, each in (source.tensors() | own).items() if not name.endswith("inv_freq")}
    for back in (export_original(first, tmp_path / "back", device="cpu"), straight):
        equal(read_weights(back), whole)
        config = json.loads((back / "config.json").read_text())
        assert config == source.config | (said or {"unfreeze_mm_vision_tower": True}), "LLaVA looks for it there"
        assert layout_of(back) == "full" and not (back / "vision_tower").exists()
    again = export_hf(straight, tmp_path / "again", vision_tower=source.tower, device="cpu")
    equal(load_file(first / "model.safetensors"), load_file(again / "model.safetensors"))


def test_a_tower_that_is_said_to_be_there_and_is_not_is_missed(published: Made, tmp_path: Path) -> None:
    source = published(dtype=torch.float32)
    source.config |= {"unfreeze_mm_vision_tower": True}
    message = (
        "missing tensors, the first: model.vision_tower.vision_tower.vision_model.*copy or download it whole again"
    )
    assert_refused(source, {}, message, tmp_path / "out")
    folder, _ = lora_folder(published("tuned"), published("base").save(), unfreeze_mm_vision_tower=True)
    with pytest.raises(CheckpointError, match=message):
        load_original(folder, vision_tower=source.tower, device="cpu")


def own_tower(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a tower that was trained, as they are in a checkpoint's own file."""
    tower = CLIPVisionModel.from_pretrained(folder)
    return {f"model.vision_tower.vision_tower.vision_model.{name.removeprefix('vision_model.')}": tensor + 0.01
            for name, tensor in tower.state_dict().items() if not name.endswith("position_ids")}  # fmt: skip


def test_a_tower_of_another_resolution_than_its_name_says_is_told(
    published: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published()
    source.config["mm_vision_tower"] = "openai/clip-vit-large-patch14-336"
    load_original(source.save(), vision_tower=source.tower, device="cpu")
    told = f"{source.tower} sees 48 pixels, where {source.folder} was trained with openai/clip-vit-large-patch14-336"
    assert told in capsys.readouterr().err
    source.config["mm_vision_tower"] = "openai/clip-small-patch12"
    load_original(source.save(), vision_tower=source.tower, device="cpu")
    assert "pixels" not in capsys.readouterr().err


def test_it_is_opened_like_any_other_model(published: Made) -> None:
    source = published()
    source.config["mm_vision_tower"] = str(source.tower)
    model = open_model(source.save(), device="cpu", open_image=lambda image: gradient())
    assert model.reply(ASKED, SamplingOptions(max_tokens=4)).text is not None
    four = load(source.folder, load="4bit", device="cpu")
    assert four.spec["load"] == "4bit" and ours(four).isfinite().all()


# --- LoRA and projectors ----------------------------------------------------------------------------------------


def lora_folder(source: Published, base: Path, **changed: Any) -> tuple[Path, Any]:
    """LoRA weights as LLaVA's training leaves them, and the model that was trained."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(source.language, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    source.describe(**changed)
    model.save_pretrained(source.folder)
    told = json.loads((source.folder / "adapter_config.json").read_text())
    (source.folder / "adapter_config.json").write_text(json.dumps(told | {"base_model_name_or_path": str(base)}))
    rest = {f"base_model.model.model.mm_projector.{name}": each for name, each in source.projector.state_dict().items()}
    torch.save(rest, source.folder / "non_lora_trainables.bin")
    return source.folder, model


def test_a_lora_folder_is_merged_onto_its_base(published: Made, tmp_path: Path) -> None:
    source = published(dtype=torch.float32)
    folder, trained = lora_folder(source, source.base(tmp_path / "base"))
    assert layout_of(folder) == "lora"
    llava = load_original(folder, vision_tower=source.tower, device="cpu")
    expected = source.logits(llava, trained)
    torch.testing.assert_close(ours(llava)[:, : expected.shape[1]][-1], expected[-1], rtol=1e-4, atol=1e-4)
    out = export_hf(folder, tmp_path / "hf", vision_tower=source.tower, base=str(tmp_path / "base"), device="cpu")
    merged = ours(load(out, device="cpu"))
    torch.testing.assert_close(merged[-1, : expected.shape[1]], expected[-1], rtol=1e-4, atol=1e-4)
    assert not next(folder.glob("model*"), None)  # nothing was written there


@pytest.mark.parametrize(
    ("name", "value"), [("r", None), ("r", "4"), ("r", 0), ("r", 2.5), ("lora_alpha", None), ("lora_alpha", "x"),
                        ("lora_dropout", None), ("lora_alpha", ...)]
)  # fmt: skip
def test_settings_of_an_adapter_that_are_no_numbers_are_named(
    name: str, value: Any, published: Made, tmp_path: Path
) -> None:
    source = published(dtype=torch.float32)
    folder, _ = lora_folder(source, source.base(tmp_path / "base"))
    told = json.loads((folder / "adapter_config.json").read_text()) | {name: value}
    held = {key: each for key, each in told.items() if each is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(held))
    expected = "a whole number from 1 on" if name == "r" else "a number"
    message = f"adapter_config.json: found {name}: .*; expected {expected}"
    with pytest.raises(ModelError, match=message):
        load_original(folder, vision_tower=source.tower, device="cpu")


def test_a_projector_file_is_taken_by_a_recipe_and_by_export(published: Made, parts: Any, tmp_path: Path) -> None:
    source = published(dtype=torch.float32)
    base = source.base(tmp_path / "base")
    folder = source.describe(_name_or_path="somewhere/else")
    projector = {f"model.mm_projector.{name}": tensor for name, tensor in source.projector.state_dict().items()}
    torch.save(projector, folder / "mm_projector.bin")
    assert layout_of(folder) == layout_of(folder / "mm_projector.bin") == "projector"
    for given in (folder, folder / "mm_projector.bin"):
        spec = ModelSpec(vision=str(parts["clip"]), language=str(base), projector_from=str(given), device="cpu")
        llava = build(spec, template="v1", image_mode="pad")
        assert torch.equal(llava.projector.linear_2.weight, projector["model.mm_projector.2.weight"])
    with pytest.raises(ModelError, match="'somewhere/else' of .*: workbench export .* OUT --as hf --base DIR; then"):
        load_original(folder, vision_tower=source.tower)
    out = export_hf(folder, tmp_path / "hf", vision_tower=source.tower, base=str(base), device="cpu")
    llava = load(out, device="cpu")
    torch.testing.assert_close(ours(llava)[-1, : source.config["vocab_size"]], source.logits(llava)[-1])


@pytest.fixture
def tuned(make: Any, finetune: Any, train_a_little: Any, tmp_path: Path) -> tuple[Llava, Path]:
    """A run's checkpoint: LoRA and projector trained."""
    llava = make()
    prepare(llava, finetune(), say=lambda text: None)
    train_a_little(llava)
    return llava, save(llava, tmp_path / "saved")


def test_what_was_trained_here_leaves_in_llavas_layouts(tuned: Any, parts: Any, tmp_path: Path) -> None:
    llava, saved = tuned
    expected = ours(llava)
    whole = export_original(saved, tmp_path / "whole", device="cpu")
    torch.testing.assert_close(ours(load_original(whole)), expected, rtol=1e-4, atol=1e-4)
    light = export_original(saved, tmp_path / "light", weights="adapter", device="cpu")
    assert {path.name for path in light.iterdir()} >= {"adapter_model.safetensors", "non_lora_trainables.bin"}
    again = load_original(light, base=parts["llama"])
    torch.testing.assert_close(ours(again), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(merge_into(again)), expected, rtol=1e-4, atol=1e-4)
    assert str(parts["llama"].parent) not in "".join(path.read_text() for path in light.glob("*.json"))
    with pytest.raises(ModelError, match="an adapter, which would be lost"):
        export_original(saved, tmp_path / "none", weights="projector", device="cpu")
    with pytest.raises(ModelError, match=r"none|whole: found files"):
        export_original(saved, tmp_path / "whole", device="cpu")


def test_another_base_of_the_same_shape_is_told_by_its_hash(tuned: Any, parts: Any, tmp_path: Path) -> None:
    light = export_original(tuned[1], tmp_path / "light", weights="adapter", device="cpu")
    other = shutil.copytree(parts["llama"], tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="a wrong base: other weights; expected those whose SHA-256"):
        load_original(light, base=other)


# --- what is refused --------------------------------------------------------------------------------------------

NORM, UP = "model.norm.weight", "model.mm_projector.0.weight"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({NORM: None}, "1 missing tensors: model.norm.weight; expected .*; copy or download it whole again"),
    "missing from the projector": ({UP: None}, "the first: model.mm_projector.0.weight; .* copy or download"),
    "surplus": ({"model.resampler.query": torch.ones(2)}, "1 surplus tensors, the first: model.resampler.query"),
    "misshapen": ({NORM: torch.ones(3)}, "1 misshapen tensors: model.norm.weight"),
    "misshapen in the projector": (
        {UP: torch.ones(64, 31)},
        r"1 misshapen tensors, the first: model.mm_projector.0.weight is .64, 31., not .64, 32.",
    ),
    "a third layer": (
        {"model.mm_projector.7.weight": torch.ones(2)},
        "surplus tensors, .*: model.mm_projector.7.weight",
    ),
    "of a type that would be rounded": (
        {NORM: torch.rand(64, dtype=torch.float64)},
        "source: found model.norm.weight in float64; expected float32, bfloat16 or float16",
    ),
    "of whole numbers": ({UP: torch.ones(64, 32, dtype=torch.int64)}, "found model.mm_projector.0.weight in int64"),
    "a NeXT's newline": ({"model.image_newline": torch.ones(64)}, "surplus tensors, the first: model.image_newline"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_tensor_too_few_too_many_or_of_another_shape_is_refused(name: str, published: Made, tmp_path: Path) -> None:
    assert_refused(published(), *WRONG[name], tmp_path / "out")


TWICE = {
    "pytorch_model.bin": ("model.mm_projector.0.weight", "model.mm_projector.weight"),
    "mm_projector.bin": ("model.mm_projector.0.weight", "foo.mm_projector.0.weight"),
    "non_lora_trainables.bin": ("base_model.model.model.mm_projector.0.weight", "model.mm_projector.0.weight"),
}


@pytest.mark.parametrize("file", TWICE)
def test_two_names_of_one_tensor_are_refused_and_both_named(file: str, published: Made, tmp_path: Path) -> None:
    source, (first, second) = published(dtype=torch.float32), TWICE[file]
    base = source.base(tmp_path / "base")
    if file == "non_lora_trainables.bin":
        folder, _ = lora_folder(source, base)
        held = torch.load(folder / file)
    else:
        folder = source.describe()
        held = {name: each for name, each in source.tensors().items() if file.startswith("py") or "mm_proj" in name}
    torch.save(held | {second: torch.ones(64, 32)}, folder / file)
    with pytest.raises(CheckpointError, match=f"found {first} and {second}, two names of one tensor"):
        load_original(folder, vision_tower=source.tower, base=None if file.startswith("py") else base)


def test_two_names_of_a_towers_tensor_are_refused(published: Made, tmp_path: Path) -> None:
    source, own = published(), own_tower(published().tower)
    own["model.vision_tower.vision_tower.post_layernorm.bias"] = torch.zeros(32)
    message = "vision_model.post_layernorm.bias and .*vision_tower.post_layernorm.bias, two names of one tensor"
    assert_refused(source, own, message, tmp_path / "out")


def test_adapters_and_bases_of_a_type_that_would_be_rounded_are_refused(published: Made, tmp_path: Path) -> None:
    source = published(dtype=torch.float32)
    folder, _ = lora_folder(source, source.base(tmp_path / "base"))
    for weights in (folder / "adapter_model.safetensors", tmp_path / "base" / "model.safetensors"):
        held = load_file(weights)
        finer = {name: tensor.double() for name, tensor in held.items()}
        save_file(finer, weights, {"format": "pt"})
        with pytest.raises(CheckpointError, match="weight in float64; expected float32, bfloat16 or float16"):
            load_original(folder, vision_tower=source.tower, device="cpu")
        save_file(held, weights, {"format": "pt"})


@pytest.mark.parametrize(("name", "value"), [(NORM, float("nan")), (UP, float("-inf"))])
def test_weights_that_are_no_numbers_are_refused_by_name_and_place(
    name: str, value: float, published: Made, tmp_path: Path
) -> None:
    source = published()
    tensor = source.tensors()[name].clone()
    tensor.view(-1)[[3, 5]] = value
    place = "3" if tensor.dim() == 1 else "0, 3"
    message = rf"2 of {tensor.numel():,} values of {re.escape(name)} that are no numbers .*, the first at \[{place}\]"
    assert_refused(source, {name: tensor}, message, tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        load_original(source.folder, vision_tower=source.tower)


def test_a_folder_without_a_projector_says_that_there_is_none(published: Made, tmp_path: Path) -> None:
    source = published()
    gone = dict.fromkeys(name for name in source.tensors() if "mm_projector" in name)
    message = "found no projector among its tensors; expected model.mm_projector.*; copy it whole again"
    assert gone
    assert_refused(source, gone, message, tmp_path / "out")


def assert_refused(source: Any, changed: dict[str, Any], message: str, out: Path) -> None:
    """A checkpoint with other tensors than it was published with is not written as transformers' folder."""
    with pytest.raises(ModelError, match=message):
        export_hf(source.save(**changed), out, vision_tower=source.tower, device="cpu")
    assert not out.exists()


class Harmful:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("where", ["pytorch_model.bin", "mm_projector.bin", "non_lora_trainables.bin"])
def test_a_pickle_that_would_run_code_is_not_opened(where: str, published: Made, tmp_path: Path) -> None:
    source, mark = published(dtype=torch.float32), tmp_path / "mark"
    base = source.base(tmp_path / "base")
    if where == "non_lora_trainables.bin":
        lora_folder(source, base)
    else:
        source.describe()
    torch.save(source.tensors() | {"model.extra": Harmful(mark)}, source.folder / where)
    with pytest.raises(CheckpointError, match=r"would run code when it is opened \(posix.mkdir\).*it was not run"):
        load_original(source.folder, vision_tower=source.tower, base=None if where.startswith("pyt") else base)
    assert not mark.exists()


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "marks around images": ({"mm_use_im_start_end": True}, "mm_use_im_start_end: true"),
    "deeper projector": ({"mm_projector_type": "mlp3x_gelu"}, "a projector 'mlp3x_gelu'; expected mlp2x_gelu or"),
    "projector of another kind": ({"mm_projector_type": "linear"}, "linear and a projector of 2 layers"),
    "other language model": ({"model_type": "llava_mpt"}, "model_type 'llava_mpt'; expected llava"),
    "other architecture": (
        {"model_type": "llava", "architectures": ["LlavaGemmaForCausalLM"]},
        "architectures LlavaGemmaForCausalLM; expected LlavaLlamaForCausalLM or LlavaMistralForCausalLM or",
    ),
    "several scales": ({"s2": True}, "several scales"),
    "another choice of features": (
        {"mm_vision_select_feature": "cls"},
        "source: config.json: found mm_vision_select_feature 'cls'; expected patch or cls_patch",
    ),
    "features of several layers": (
        {"mm_vision_select_layer": [-2, -5]},
        r"config.json: found mm_vision_select_layer \[-2, -5\]; expected a whole number",
    ),
    "a count in words": ({"num_hidden_layers": "two"}, "found a setting amiss .*num_hidden_layers.* got str"),
    "no attention heads": ({"num_attention_heads": 0}, "config.json: found a setting amiss .*zero"),
    "a type that torch has not": ({"torch_dtype": "float99"}, "config.json: found a setting amiss .*float99"),
    "no layer": ({"mm_vision_select_layer": None}, "found mm_vision_select_layer None; expected a whole number"),
    "a layer in words": ({"mm_vision_select_layer": "-2"}, "found mm_vision_select_layer '-2'; expected a whole"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_llava_that_is_not_read_here_says_so(name: str, published: Made) -> None:
    assert_unread(published(), *OTHERS[name])


def assert_unread(source: Any, changed: dict[str, Any], message: str) -> None:
    """A checkpoint whose configuration says something else is refused by name."""
    source.save()
    source.describe(**changed)
    with pytest.raises(ModelError, match=message):
        load_original(source.folder, vision_tower=source.tower)


def test_files_that_are_missing_or_damaged_are_named(published: Made, tmp_path: Path) -> None:
    source = published()
    folder = source.save("shards")
    with pytest.raises(
        ModelError, match="the vision tower 'openai/clip.*: workbench export .* OUT --as hf --vision-tower"
    ):
        load_original(folder)
    shard = folder / "pytorch_model-00002-of-00002.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="00002-of-00002.bin: found a damaged or cut-off file"):
        load_original(folder, vision_tower=source.tower)
    shard.unlink()
    with pytest.raises(CheckpointError, match="no pytorch_model-00002-of-00002.bin; expected every file"):
        load_original(folder, vision_tower=source.tower)
    shard.write_bytes(pickle.dumps({"model.norm.weight": Harmful(tmp_path / "mark")}))
    with pytest.raises(CheckpointError, match="a damaged or cut-off file; expected a file of torch.save"):
        load_original(folder, vision_tower=source.tower)
    assert not (tmp_path / "mark").exists()
    torch.save([1, 2], shard)
    with pytest.raises(CheckpointError, match="a pickle of something else; expected tensors by their names"):
        load_original(folder, vision_tower=source.tower)


def test_an_added_token_without_an_id_is_told(published: Made) -> None:
    source = published()
    folder = source.save()
    (folder / "added_tokens.json").write_text('{"<x>": "y", "<z>": 3}')
    with pytest.raises(ModelError, match="added_tokens.json: found <x> as 'y'; expected the id of each token"):
        load_original(folder, vision_tower=source.tower)


@pytest.mark.parametrize("files", [{"a": None}, {"a": ["model.bin"]}, {}, [], None])
def test_an_index_that_names_no_files_is_told(files: Any, published: Made) -> None:
    source = published()
    index = source.save("shards") / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    with pytest.raises(CheckpointError, match="bin.index.json: found a weight_map .*; expected the name of a file for"):
        load_original(source.folder, vision_tower=source.tower)


def test_a_base_of_another_shape_is_refused(published: Made, parts: Any, tmp_path: Path) -> None:
    source = published(dtype=torch.float32)
    folder, _ = lora_folder(source, source.base(tmp_path / "base"))
    with pytest.raises(CheckpointError, match=r"a wrong base: intermediate_size 64; expected 96, as"):
        load_original(folder, vision_tower=source.tower, base=parts["llama"])
    adapter = load_file(folder / "adapter_model.safetensors")
    adapter.pop(sorted(adapter)[0])
    save_file(adapter, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="1 missing tensors, the first: base_model.model.model.layers"):
        load_original(folder, vision_tower=source.tower)
    (folder / "non_lora_trainables.bin").unlink()
    with pytest.raises(CheckpointError, match="found no non_lora_trainables.bin; expected the projector .*; copy it"):
        open_model(str(folder))


def test_training_from_it_is_refused_before_a_weight_is_read(published: Made) -> None:
    folder = published().save()
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    spec = ModelSpec(checkpoint=str(folder), device="cpu")
    for make in (build, outline):
        with pytest.raises(ModelError, match="LLaVA's own layout; .*convert it once: workbench export"):
            make(spec, template="v1", image_mode="pad")


def test_a_name_in_the_hubs_cache_takes_a_tower(
    published: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    source, commit = published(), "a" * 40
    kept = tmp_path / "cache" / "models--somebody--llava"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    shutil.copytree(source.save("safetensors"), kept / "snapshots" / commit)
    back = export_original("somebody/llava", tmp_path / "back", vision_tower=source.tower, device="cpu")
    straight = export_original(source.folder, tmp_path / "straight", vision_tower=source.tower, device="cpu")
    equal(read_weights(back), read_weights(straight))
    out = export_hf("somebody/llava", tmp_path / "hf", vision_tower=source.tower, device="cpu")
    assert (out / "original" / "tokenizer.model").is_file()


def test_the_command_converts_both_ways_and_says_what_is_wrong(
    published: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published()
    folder, clip = str(source.save()), str(source.tower)
    assert main(["export", folder, str(tmp_path / "hf"), "--vision-tower", clip]) == 0
    assert main(["export", str(tmp_path / "hf"), str(tmp_path / "back"), "--as", "llava", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"written": str(tmp_path / "back")}
    assert main(["export", folder, str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "--vision-tower DIR" in told
    assert main(["export", str(tmp_path / "hf"), str(tmp_path / "out"), "--vision-tower", clip]) == 1
    assert "a model with its tower" in capsys.readouterr().err
