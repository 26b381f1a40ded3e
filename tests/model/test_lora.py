from __future__ import annotations

import pytest
import torch

from workbench.errors import ModelError
from workbench.model.lora import adapted, adapter_parameters, has_adapter, merge_into, target_pattern
from workbench.model.precision import is_quantised
from workbench.model.proof import probe
from workbench.model.stages import prepare


@pytest.fixture
def tuned(make, finetune, train_a_little):
    def made(load: str, **fields):
        llava = make(load=load)
        prepare(llava, finetune(**fields), say=lambda text: None)
        train_a_little(llava)
        return llava

    return made


@pytest.mark.parametrize(("load", "vision"), [("fp32", "frozen"), ("4bit", "frozen"), ("4bit", "lora")])
def test_merging_onto_the_trained_base_keeps_the_logits(tuned, load, vision):
    llava = tuned(load, vision=vision)
    _, before = probe(llava)
    merge_into(llava)
    _, after = probe(llava)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    assert not has_adapter(llava.model) and not list(adapted(llava.model))
    assert not any(is_quantised(module) for module in llava.model.modules())
    assert llava.spec["load"] == "fp32" and "language" in llava.spec["trained"]


def test_merging_onto_the_original_adds_the_same_change_to_other_weights(tuned, make):
    name = "model.language_model.layers.0.self_attn.q_proj"
    llava, original = tuned("4bit"), make()
    change = llava.model.get_submodule(name).get_delta_weight("default").detach()
    merge_into(llava, base="original")
    expected = original.model.get_submodule(name).weight + change
    torch.testing.assert_close(llava.model.get_submodule(name).weight, expected)


def test_a_quantised_model_without_an_adapter_merges_to_what_it_computes(make):
    llava = make(load="4bit")
    _, before = probe(llava)
    _, after = probe(merge_into(llava))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_an_unknown_base_is_refused(make):
    with pytest.raises(ModelError, match="base: found 'best'; expected nf4 or original"):
        merge_into(make(), base="best")


def test_names_are_anchored_and_literal(make):
    pattern = target_pattern(make(), {"language": ["q.proj"]})
    assert pattern == r"(?:model\.language_model\..*\.(q\.proj))"


def test_adapter_tensors_have_the_names_that_vanilla_peft_reads(tuned, make, tmp_path):
    from peft import PeftModel

    from workbench.model.tensors import write_tensors

    llava = tuned("fp32", projector="frozen")
    write_tensors(tmp_path / "adapter_model.safetensors", adapter_parameters(llava.model))
    llava.model.peft_config["default"].save_pretrained(str(tmp_path))
    other = make()
    other.model = PeftModel.from_pretrained(other.model, str(tmp_path)).merge_and_unload()
    torch.testing.assert_close(probe(other)[1], probe(llava)[1], rtol=1e-4, atol=1e-4)
