from __future__ import annotations

import pytest
import torch

from workbench.errors import ModelError
from workbench.model.stages import check, prepare, table
from workbench.recipe import LoraSpec, TrainSpec


def quiet(text: str) -> None:
    pass


def trained(llava) -> set[str]:
    return {name for name, parameter in llava.model.named_parameters() if parameter.requires_grad}


def test_align_trains_the_projector_alone(make):
    llava = make(load="4bit")
    groups = prepare(llava, TrainSpec(stage="align", language="frozen", lr=1e-3), say=quiet)
    assert [group.name for group in groups] == ["projector"]
    assert groups[0].count == sum(parameter.numel() for parameter in llava.projector.parameters())
    assert all(name.startswith("model.multi_modal_projector.") for name in trained(llava))


def test_a_linear_projector_trains_its_one_linear(make):
    llava = make(projector="linear")
    prepare(llava, TrainSpec(stage="align", language="frozen", lr=1e-3), say=quiet)
    assert trained(llava) == {f"model.multi_modal_projector.linear_1.{name}" for name in ("weight", "bias")}


@pytest.mark.parametrize("load", ["fp32", "bf16", "4bit", "8bit"])
def test_lora_lands_on_the_language_model_only(make, finetune, load):
    llava = make(load=load)
    groups = prepare(llava, finetune(projector_lr=2e-5), say=quiet)
    assert [(group.name, group.lr) for group in groups] == [("language lora", 1e-3), ("projector", 2e-5)]
    names = trained(llava)
    assert sum(".lora_A." in name for name in names) == 14  # 7 linears in each of 2 layers
    assert not any("vision_tower" in name or "lm_head" in name for name in names)
    assert all(parameter.dtype == torch.float32 for parameter in llava.model.parameters() if parameter.requires_grad)


def test_lora_on_the_tower_only_when_asked_and_only_where_it_has_a_say(make, finetune):
    llava = make()
    groups = prepare(llava, finetune(vision="lora", vision_lr=3e-4), say=quiet)
    assert [group.name for group in groups] == ["language lora", "projector", "vision lora"]
    layers = {name.split(".")[4] for name in trained(llava) if "vision_tower" in name}
    assert layers == {"0", "1"}, "hidden state -2 of three layers does not pass the last one"
    assert any("out_proj" in name for name in trained(llava))


def test_a_full_tower_trains_what_reaches_the_features_in_float32(make, finetune):
    llava = make(load="bf16")
    prepare(llava, finetune(vision="full", vision_lr=2e-6), say=quiet)
    tower = {name for name in trained(llava) if "vision_tower" in name}
    assert any("class_embedding" in name for name in tower)
    assert not any("layers.2." in name or "post_layernorm" in name for name in tower)
    features = llava.tower_features(torch.randn(1, 3, 48, 48))
    assert features.dtype == torch.float32
    features.sum().backward()
    gradients = {name for name, parameter in llava.model.named_parameters() if parameter.grad is not None}
    assert gradients == tower


def test_full_language_model_trains_head_and_embeddings(make):
    llava = make(language="qwen2", load="bf16")
    groups = prepare(llava, TrainSpec(stage="finetune", language="full", lr=2e-5), say=quiet)
    assert groups[0].count == sum(parameter.numel() for parameter in llava.model.model.language_model.parameters())
    assert llava.spec["trained"] == ["language"]


def test_a_frozen_tower_never_enters_autograd(make, finetune):
    llava = make()
    prepare(llava, finetune(), say=quiet)
    features = llava.tower_features(torch.randn(1, 3, 48, 48, requires_grad=True))
    assert features.grad_fn is None and not features.requires_grad
    assert llava.project(features).requires_grad


def test_every_trainable_weight_gets_a_gradient_and_no_other(make, finetune):
    llava = make(load="4bit")
    groups = prepare(llava, finetune(), say=quiet)
    features = llava.tower_features(torch.randn(1, 3, 48, 48))
    inputs = llava.image_inputs(llava.project(features))
    ids = torch.tensor([[0, *[llava.image_token_id] * 16, 70, 71]])
    llava.model(input_ids=ids, mm_encoder_outputs=inputs).logits.square().mean().backward()
    held = {id(parameter) for group in groups for parameter in group.params}
    assert {id(parameter) for parameter in llava.model.parameters() if parameter.grad is not None} == held


def test_weight_decay_spares_biases(make, finetune):
    groups = prepare(make(), finetune(weight_decay=0.1), say=quiet)
    assert [(group.name, group.weight_decay) for group in groups] == [
        ("language lora", 0.1),
        ("projector", 0.1),
        ("projector (no decay)", 0.0),
    ]
    assert all(parameter.ndim == 1 for parameter in groups[2].params)


def test_the_table_says_what_trains_with_rate_and_count(make, finetune):
    said = []
    groups = prepare(make(), finetune(projector_lr=2e-5), say=said.append)
    assert said == [table(groups)]
    assert "language lora       28" in said[0]
    assert f"{groups[1].count:,}" in said[0] and "2.0e-05" in said[0]


def test_the_same_adapter_goes_on_training_and_another_is_refused(make, finetune):
    llava = make()
    prepare(llava, finetune(r=4), say=quiet)
    weight = next(parameter for name, parameter in llava.model.named_parameters() if ".lora_A." in name)
    before = weight.clone()
    prepare(llava, finetune(r=4), say=quiet)
    assert torch.equal(before, weight) and weight.requires_grad
    prepare(llava, TrainSpec(stage="align", language="frozen", lr=1e-3), say=quiet)
    assert not weight.requires_grad
    with pytest.raises(ModelError, match="the attached adapter's r: found 4; expected 8; keep the settings"):
        prepare(llava, finetune(r=8), say=quiet)
    with pytest.raises(ModelError, match="language: full: found an attached LoRA adapter"):
        prepare(llava, TrainSpec(stage="finetune", language="full", lr=1e-3), say=quiet)


def test_stages_that_cannot_be_are_refused(make, finetune):
    with pytest.raises(ModelError, match="lora.targets: found no linear of the language part named w_q"):
        prepare(make(), finetune(lora=LoraSpec(targets=["w_q"])), say=quiet)
    among_right_ones = finetune(lora=LoraSpec(targets=["q_proj", "v_porj", "down_proj"]), vision="lora")
    with pytest.raises(ModelError, match="found no linear named 'v_porj'; expected q_proj or .*; did you mean v_proj?"):
        prepare(make(), among_right_ones, say=quiet)
    with pytest.raises(ModelError, match="found a 4bit language model; use language: lora"):
        prepare(make(load="4bit"), TrainSpec(stage="finetune", language="full", lr=1e-3), say=quiet)


def test_a_weight_that_trains_outside_every_group_is_found(make, finetune):
    llava = make()
    groups = prepare(llava, finetune(), say=quiet)
    llava.model.lm_head.weight.requires_grad_(True)
    with pytest.raises(ModelError, match="1 parameters that train but are in no group: lm_head.weight"):
        check(llava, groups)


def test_attaching_moves_no_other_random_state_and_follows_the_seed(make, finetune):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    weights = []
    for seed in (1, 1, 2):
        llava = make()
        prepare(llava, finetune(seed=seed), say=quiet)
        weights.append(next(p for n, p in llava.model.named_parameters() if ".lora_A." in n))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
