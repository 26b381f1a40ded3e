"""Linears of training give what torch's and peft's give, and leave every other case to them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear
from torch import nn

from tests.asking import random_llava
from workbench.model import linears, products
from workbench.model.linears import FastLinear, SummedLinear, _Summed
from workbench.model.lora import LANGUAGE, adapted, adapter_parameters, attach, merge_into
from workbench.recipe import LoraSpec


def make(dtype: torch.dtype = torch.float32, *, bias: bool = True, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """The same linear with LoRA, as peft has it and as training does."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 40, bias=bias)).to(dtype)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["0"], init_lora_weights=False, **settings)
    inject_adapter_in_model(config, net)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    other = copy.deepcopy(net)
    other[0].__class__ = SummedLinear
    return net, other


def run(net: nn.Module, x: torch.Tensor, *, autocast: torch.dtype | None = None) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        y = net(x * 1)
    params = [parameter for parameter in net.parameters() if parameter.requires_grad]
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return [y, *torch.autograd.grad((y.float() * weights).sum(), [x, *params])]


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a linear was computed in its own way."""
    calls: list[int] = []
    plain = _Summed.forward
    monkeypatch.setattr(_Summed, "forward", staticmethod(lambda *args: (calls.append(1), plain(*args))[1]))
    return calls


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """On any processor: how often a product went to oneDNN."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    calls: list[int] = []
    plain = products.fits
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    monkeypatch.setattr(products, "LARGE", 1)
    monkeypatch.setattr(linears, "by_onednn", lambda: True)
    monkeypatch.setattr(products, "fits", lambda *args: plain(*args) and not calls.append(1))  # type: ignore[func-returns-value]
    return calls


@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_peft(bias: bool, summed: list[int]) -> None:
    ours, theirs = (run(net, torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(1)))
                    for net in reversed(make(bias=bias)))  # fmt: skip
    assert summed == [1] and len(ours) == 4
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_it_rounds_no_more_than_peft(summed: list[int]) -> None:
    x = torch.randn(64, 24)
    nets = make(torch.bfloat16)
    with torch.no_grad():  # the base is rounded for all of them
        base = nets[0][0].base_layer
        exact_net = make()[0]
        exact_net[0].base_layer.weight.copy_(base.weight.float())
        exact_net[0].base_layer.bias.copy_(base.bias.float())
    exact = run(exact_net, x.bfloat16().float())
    theirs, ours = (run(net, x.bfloat16(), autocast=torch.bfloat16) for net in nets)
    assert summed == [1]
    for right, one, other in zip(exact, ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert (one.float() - right).norm() <= 1.2 * (other.float() - right).norm() + 1e-6


@pytest.mark.parametrize(
    "case", ["no gradient", "dropout", "dora", "disabled", "two adapters", "autocast of float32", "trained weight"]
)
def test_every_other_case_is_left_to_peft(case: str, summed: list[int]) -> None:
    settings = {"dropout": {"lora_dropout": 0.5}, "dora": {"use_dora": True}}.get(case, {})
    theirs, ours = make(**settings)
    for net in (theirs, ours):
        if case == "disabled":
            net[0].enable_adapters(False)
        if case == "two adapters":
            torch.manual_seed(5)
            inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], init_lora_weights=False), net, "second")
            net[0].set_adapter(["default", "second"])
        if case == "trained weight":
            net[0].base_layer.weight.requires_grad_()
    found = []
    for net in (ours, theirs):
        torch.manual_seed(9)  # of dropout
        mixed = torch.autocast("cpu", torch.bfloat16, enabled="autocast" in case)
        with mixed, torch.set_grad_enabled(case != "no gradient"):
            found.append(net(torch.ones(3, 24)))
    assert torch.equal(*found) and summed == []


@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trains"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [64, 51], ids=["as many as a block", "filled up"])
def test_fast_linears_give_what_torch_gives(trains: bool, bias: bool, rows: int, fast: list[int]) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 128, bias=bias)).requires_grad_(trains)
    other = copy.deepcopy(plain)
    linears.use(other)
    assert type(other[0]) is FastLinear
    x = torch.randn(1, rows, 64, generator=torch.Generator().manual_seed(1))
    ours, theirs = run(other, x), run(plain, x)
    assert len(fast) == (3 if trains and rows == 64 else 2) and len(ours) == 2 + trains * (1 + bias)
    assert ours[0].shape == (1, rows, 128)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_products_of_shapes_that_would_each_need_code_stay_with_torch(fast: list[int]) -> None:
    linear = products.linear
    linear(torch.ones(5, 63), torch.ones(3, 63)), linear(torch.ones(5, 64).bfloat16(), torch.ones(3, 64).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        linear(torch.ones(5, 64), torch.ones(3, 64))
    assert fast == []
    products.LARGE = 1 << 20  # the fixture puts it back
    linear(torch.ones(5, 64), torch.ones(3, 64))
    assert fast == []
    linear(torch.ones(1 << 13, 64), torch.ones(3, 64))
    assert fast == [1]


def test_a_processor_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for capability, vendor, expected in (
        ("AVX512", "AuthenticAMD", True), ("AVX512", "GenuineIntel", False), ("AVX2", "AuthenticAMD", False)
    ):  # fmt: skip
        file = tmp_path / vendor
        file.write_text(f"processor: 0\nvendor_id: {vendor}\n")
        monkeypatch.setattr(products, "CPUINFO", file)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda told=capability: told)
        assert products.by_onednn.__wrapped__() is expected


def test_it_is_used_without_changing_names_copies_or_merging() -> None:
    llava = random_llava()
    llava.spec |= {"load": "fp32", "trained": []}
    attach(llava, LoraSpec(r=2, alpha=4.0, targets=["q_proj", "down_proj"]))
    for parameter in adapter_parameters(llava.model).values():
        nn.init.normal_(parameter)
    before = {name: tensor.clone() for name, tensor in adapter_parameters(llava.model).items()}
    linears.use(llava.model)
    modules = [module for _, module in adapted(llava.model, LANGUAGE)]
    assert len(modules) == 4 and all(type(module) is SummedLinear and isinstance(module, Linear) for module in modules)
    assert all(type(module) is SummedLinear for _, module in adapted(copy.deepcopy(llava.model)))
    assert adapter_parameters(llava.model).keys() == before.keys()
    ids = torch.arange(9)[None]
    with torch.no_grad():
        apart = llava.model(input_ids=ids).logits
        torch.testing.assert_close(merge_into(llava).model(input_ids=ids).logits, apart, rtol=1e-4, atol=1e-4)
