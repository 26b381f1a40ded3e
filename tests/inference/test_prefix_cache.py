"""The feature cache keeps its budget, and its keys tell apart what differs in one pixel or one weight."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.inference.prefix_cache import FeatureCache, pixel_hash, prefix_key, weights_state


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 12)), max_size=40), st.integers(0, 100))
def test_the_budget_holds_and_the_latest_stay(puts: list[tuple[int, int]], budget: int) -> None:
    cache = FeatureCache(budget)
    model: list[tuple[int, int]] = []  # (key, bytes), oldest first
    for key, count in puts:
        tensor = torch.zeros(count)
        cache.put(key, tensor)
        if tensor.nbytes <= budget:
            model = [*(pair for pair in model if pair[0] != key), (key, tensor.nbytes)]
        while sum(size for _, size in model) > budget:
            model.pop(0)
        assert cache.size == sum(size for _, size in model) <= budget
        assert len(cache) == len(model)


def test_what_was_used_last_stays() -> None:
    cache = FeatureCache(budget=8)
    cache.put("a", torch.zeros(1))
    cache.put("b", torch.zeros(1))
    assert cache.get("a") is not None
    cache.put("c", torch.zeros(1))
    assert cache.get("b") is None and cache.get("a") is not None
    cache.clear()
    assert cache.get("a") is None and cache.size == 0


def test_one_pixel_or_another_shape_is_another_image() -> None:
    pixels = torch.rand(3, 4, 6)
    other = pixels.clone()
    other[2, 3, 5] = torch.nextafter(other[2, 3, 5], torch.tensor(2.0))
    names = {pixel_hash(one) for one in (pixels, other, pixels.reshape(3, 6, 4), pixels.double(), pixels.mT)}
    assert len(names) == 5
    assert pixel_hash(pixels.mT.contiguous()) == pixel_hash(pixels.mT)


def test_the_same_tokens_with_another_image_are_another_prefix() -> None:
    assert prefix_key([1, 2], ["x"]) == prefix_key((1, 2), ("x",))
    assert len({prefix_key([1, 2], ["x"]), prefix_key([1, 2], ["y"]), prefix_key([1, 3], ["x"])}) == 3


def test_a_tower_is_another_one_after_a_step_a_load_or_a_replacement() -> None:
    tower = torch.nn.Linear(2, 2)
    states = [weights_state(tower)]
    assert weights_state(tower) == states[0]
    with torch.no_grad():
        torch._foreach_add_(list(tower.parameters()), 0.1)  # what torch's optimisers do
    states.append(weights_state(tower))
    tower.weight.data.mul_(1.001)  # torch does not count this, nor what fused optimisers do
    states.append(weights_state(tower))
    tower.load_state_dict({key: value.clone() for key, value in tower.state_dict().items()})
    states.append(weights_state(tower))
    tower.weight.data = tower.weight.data.clone()
    states.append(weights_state(tower))
    states.append(weights_state(torch.nn.Linear(2, 2)))
    assert len(set(states)) == 6
