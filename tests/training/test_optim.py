"""How learning rates move, and that every group keeps its own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import TrainingError
from workbench.model.stages import ParamGroup
from workbench.training.optim import check_optimizer, clip, lr_factor, make_optimizer, set_rates


@given(st.integers(1, 300), st.floats(0, 0.9), st.sampled_from(["cosine", "linear", "constant"]))
def test_rates_rise_to_their_peak_and_never_leave_0_to_1(total: int, warmup: float, schedule: str) -> None:
    factors = [lr_factor(step, total, warmup=warmup, schedule=schedule) for step in range(total)]
    rising = math.ceil(warmup * total)
    assert all(0 < factor <= 1 for factor in factors), "a rate of 0 would waste the step"
    assert factors[:rising] == sorted(factors[:rising])
    assert factors[rising:] == sorted(factors[rising:], reverse=True)
    assert max(factors) == 1


def test_the_shapes_of_the_schedules() -> None:
    def at(schedule: str, step: int) -> float:
        return lr_factor(step, 110, warmup=10 / 110, schedule=schedule)

    assert [at("cosine", step) for step in (0, 9, 10)] == pytest.approx([0.1, 1, 1])
    assert [at("cosine", 60), at("linear", 60), at("constant", 60)] == pytest.approx([0.5, 0.5, 1])
    assert at("cosine", 109) < 0.001 and at("linear", 109) == pytest.approx(0.01)


def test_groups_keep_their_own_rates_and_decay() -> None:
    params = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
    groups = [ParamGroup("language lora", params[:1], 1e-3, 0.1, 4), ParamGroup("projector", params[1:], 2e-5, 0.0, 2)]
    optimizer = make_optimizer(groups, betas=(0.9, 0.95))
    assert set_rates(optimizer, 0.5) == {"language lora": 5e-4, "projector": 1e-5}
    assert set_rates(optimizer, 1.0) == {"language lora": 1e-3, "projector": 2e-5}, "from the peak, not from the last"
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_8_bits_hold_the_averages_in_a_quarter_and_go_the_same_way() -> None:
    ends, sizes = {}, {}
    for name in ("adamw", "adamw8bit"):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(64, 64))
        optimizer = make_optimizer([ParamGroup("all", [parameter], 1e-2, 0.1, 4096)], betas=(0.9, 0.99), name=name)
        for _ in range(20):
            set_rates(optimizer, 1.0)
            parameter.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends[name] = parameter.detach()
        sizes[name] = sum(held.nbytes for held in optimizer.state[parameter].values() if torch.is_tensor(held))
    apart = (ends["adamw"] - ends["adamw8bit"]).abs().mean()
    assert 0 < apart < 0.05 * 20 * 1e-2, "of the longest way that twenty steps can go"
    assert sizes["adamw8bit"] < 0.35 * sizes["adamw"]


def test_paged_ones_are_refused_where_there_is_nothing_to_page() -> None:
    told = r"paged_adamw8bit: found the device cpu; expected a CUDA device; use train.optimizer: adamw8bit"
    with pytest.raises(TrainingError, match=told):
        check_optimizer("paged_adamw8bit", torch.device("cpu"))
    check_optimizer("paged_adamw8bit", torch.device("cuda", 1))
    check_optimizer("adamw8bit", torch.device("cpu"))


def test_clipping_tells_the_norm_before() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 2.0)
    assert clip([parameter], None) == pytest.approx(4) and parameter.grad.norm() == pytest.approx(4)
    assert clip([parameter], 1.0) == pytest.approx(4) and parameter.grad.norm() == pytest.approx(1, rel=1e-5)
