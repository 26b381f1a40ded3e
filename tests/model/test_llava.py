from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlavaForConditionalGeneration

from workbench.errors import ModelError
from workbench.model.images import ImageMode
from workbench.model.llava import build, load
from workbench.model.parts import places_of
from workbench.model.precision import check_quantised, is_quantised, pick_dtypes, quantisation
from workbench.recipe import ModelSpec


def pixels(count: int = 2, size: int = 48) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def ids(llava, count: int = 2) -> torch.Tensor:
    return torch.tensor([[0, *[llava.image_token_id] * llava.image_tokens, 70, 71, 72]] * count)


@pytest.mark.parametrize(("vision", "dropped"), [("clip", True), ("clip_whole", True), ("siglip_whole", False)])
def test_any_tower_gives_one_feature_per_patch(make, vision, dropped):
    llava = make(vision=vision)
    assert type(llava.model) is LlavaForConditionalGeneration
    assert llava.image_tokens == 16
    assert llava.tower_features(pixels()).shape == (2, 16, 32)
    states = llava.tower(pixels(), output_hidden_states=True).hidden_states[-2]
    expected = states[:, 1:] if dropped else states
    torch.testing.assert_close(llava.tower_features(pixels()), expected, rtol=0, atol=0)


def test_full_selection_keeps_the_class_token(make):
    llava = make(vision_select="full", vision_layer=-1)
    assert llava.image_tokens == 17
    assert llava.tower_features(pixels()).shape == (2, 17, 32)


@pytest.mark.parametrize("load", ["fp32", "4bit", "8bit"])
@pytest.mark.parametrize("projector", ["mlp2x_gelu", "linear"])
def test_our_features_give_the_logits_of_transformers_own_way(make, load, projector):
    llava = make(load=load, projector=projector)
    inputs = llava.image_inputs(llava.project(llava.tower_features(pixels())))
    with torch.no_grad():
        ours = llava.model(input_ids=ids(llava), mm_encoder_outputs=inputs).logits
        theirs = llava.model(input_ids=ids(llava), pixel_values=pixels()).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_mlp_projector_is_linear_erf_gelu_linear(make):
    llava = make()
    first, second = llava.projector.linear_1, llava.projector.linear_2
    features = llava.tower_features(pixels())
    torch.testing.assert_close(llava.project(features), second(nn.functional.gelu(first(features))))


def test_linear_projector_is_one_linear_in_an_unmodified_class(make):
    llava = make(projector="linear")
    features = llava.tower_features(pixels())
    torch.testing.assert_close(llava.project(features), llava.projector.linear_1(features), rtol=0, atol=0)


def test_projector_follows_the_seed_and_moves_no_other_random_state(make):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    weights = [llava.projector.linear_1.weight for llava in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("load", ["4bit", "8bit"])
@pytest.mark.parametrize("language", ["llama", "qwen2"])
def test_only_the_language_models_linears_are_quantised(make, load, language):
    model = make(language=language, load=load).model
    held = {name for name, module in model.named_modules() if is_quantised(module)}
    assert len(held) == 14
    assert all(name.startswith("model.language_model.layers.") for name in held)
    for part in (model.model.vision_tower, model.model.multi_modal_projector, model.lm_head):
        assert all(parameter.is_floating_point() for parameter in part.parameters())


def test_answering_leaves_4_bit_weights_as_they_lie(make):
    """On CPUs with AVX512-BF16 bitsandbytes repacked them at the first forward, with rounding, or failed."""
    llava = make(load="4bit")
    held = {name: module.weight for name, module in llava.model.named_modules() if is_quantised(module)}
    before = {name: weight.data.clone() for name, weight in held.items()}
    with torch.no_grad():
        llava.model(input_ids=ids(llava), pixel_values=pixels())
    assert all(torch.equal(weight.data, before[name]) for name, weight in held.items())
    assert not any(getattr(weight.quant_state, "packing_format_for_cpu", False) for weight in held.values())


def test_the_check_finds_a_quantised_tower_and_an_unquantised_language_model(make, parts, tmp_path):
    make().model.save_pretrained(tmp_path)
    config = quantisation("4bit", torch.float32, inside_llava=True)
    config.llm_int8_skip_modules = ["vision_tower", "multi_modal_projector"]  # matches nothing, in silence
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, quantization_config=config)
    with pytest.raises(ModelError, match="quantised weights; expected 4bit: quantised linears in the language model"):
        check_quantised(model, "4bit")
    with pytest.raises(ModelError, match="floating-point weights"):
        check_quantised(make().model, "4bit")


def test_image_token_is_added_where_it_is_missing_and_rows_grow_only_as_needed(make):
    llava = make(language="qwen2")
    assert llava.tokenizer.convert_tokens_to_ids("<image>") == llava.image_token_id
    assert llava.spec["vocabulary"] == {"tokens": 263, "rows_before": 262, "rows_after": 263}
    table, head = llava.model.get_input_embeddings().weight, llava.model.lm_head.weight
    assert table.data_ptr() == head.data_ptr(), "tied embeddings stay tied"
    torch.testing.assert_close(table[262], table[:262].mean(0))
    assert make().spec["vocabulary"] == {"tokens": 261, "rows_before": 261, "rows_after": 261}


def test_half_precision_base_computes_through_autocast(make):
    llava = make(load="bf16")
    llava.projector.float()  # as it is while it trains
    with llava.autocast(), torch.no_grad():
        inputs = llava.image_inputs(llava.project(llava.tower_features(pixels())))
        assert llava.model(input_ids=ids(llava), mm_encoder_outputs=inputs).logits.dtype == torch.bfloat16
    assert llava.held == llava.dtype == torch.bfloat16


def test_number_formats():
    cpu = torch.device("cpu")
    assert pick_dtypes("4bit", "auto", cpu) == (torch.float32, torch.float32)
    assert pick_dtypes("fp32", "bf16", cpu) == (torch.float32, torch.bfloat16)
    with pytest.raises(ModelError, match="found 'int3'; expected fp32, bf16"):
        pick_dtypes("int3", "auto", cpu)
    with pytest.raises(ModelError, match="fp32 over bf16 weights"):
        pick_dtypes("bf16", "fp32", cpu)


def test_a_hugging_face_folder_loads_in_every_format(make, tmp_path):
    llava = make(projector="linear")
    llava.model.save_pretrained(tmp_path)
    llava.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path, device="cpu")
    assert again.image_tokens == llava.image_tokens
    assert again.spec["projector"] == "linear"
    with torch.no_grad():
        for one in (llava, again):
            one.logits = one.model(input_ids=ids(one), pixel_values=pixels()).logits
    torch.testing.assert_close(llava.logits, again.logits, rtol=0, atol=0)
    assert check_quantised(load(tmp_path, load="4bit", device="cpu").model, "4bit") == 14


def test_parts_that_do_not_fit_are_refused_with_the_reason(make, parts, tmp_path):
    with pytest.raises(ModelError, match="found a llama model; expected a CLIP or SigLIP vision tower"):
        make(vision="llama")
    with pytest.raises(ModelError, match="vision_layer: found 9; expected within -4 .. 3"):
        make(vision_layer=9)
    with pytest.raises(ModelError, match="no such folder; expected a folder or a Hub name"):
        build(ModelSpec(vision="nowhere", language="nowhere"), template="v1", image_mode="square")
    with pytest.raises(ModelError, match="no config.json"):
        build(ModelSpec(vision=str(tmp_path), language=str(tmp_path)), template="v1", image_mode="square")


def test_a_setting_that_transformers_refuses_is_told_with_its_file(parts, tmp_path: Path):
    folder = shutil.copytree(parts["clip"], tmp_path / "clip")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"hidden_size": "wide"}))
    with pytest.raises(ModelError, match="config.json: found .*'hidden_size'.*; expected settings that transformers"):
        build(ModelSpec(vision=str(folder), language=str(parts["llama"])), template="v1", image_mode="square")


def test_linear_scaling_of_positions_adds_places():
    def places(**rope):
        return places_of(LlamaConfig(max_position_embeddings=4096, rope_parameters={"rope_theta": 1e4} | rope))

    assert places(rope_type="default") == 4096
    assert places(rope_type="linear", factor=4.0) == 16384, "vicuna-v1.5-16k"
    told = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
    assert places(rope_type="llama3", factor=8.0, **told) == 4096, "the configuration counts them already"


def test_no_resampling_named_is_the_usual_one():
    assert ImageMode("square", {"resample": None}).resample == ImageMode("square").resample != 0
    assert ImageMode("square", {"resample": 0}).resample == 0


def test_weights_that_are_not_the_models_are_named(parts, tmp_path: Path):
    folder = shutil.copytree(parts["clip"], tmp_path / "clip")
    spec = ModelSpec(vision=str(folder), language=str(parts["llama"]), device="cpu")
    whole = load_file(folder / "model.safetensors")
    name = next(name for name in whole if name.endswith("layers.1.mlp.fc1.weight"))
    for change, message in (
        ({name: None}, "1 missing tensors: .*fc1.weight"),
        ({name: whole[name][1:].contiguous()}, "1 misshapen tensors: .*fc1.weight"),
        ({"stranger": whole[name]}, "1 surplus tensors: stranger"),
    ):
        tensors = {key: value.clone() for key, value in (whole | change).items() if value is not None}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=message):
            build(spec, template="v1", image_mode="square")
    cut = (folder / "model.safetensors").read_bytes()[:5000]
    (folder / "model.safetensors").write_bytes(cut)
    with pytest.raises(ModelError, match="weights that are damaged or cut off"):
        build(spec, template="v1", image_mode="square")


def test_pickles_are_refused(make, parts, tmp_path):
    folder = shutil.copytree(parts["llama"], tmp_path / "llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    spec = ModelSpec(vision=str(parts["clip"]), language=str(folder), device="cpu")
    with pytest.raises(ModelError, match="pytorch_model.bin, a pickle that can run code"):
        build(spec, template="v1", image_mode="square")
