"""The next token: the same support and probabilities as transformers, and draws that depend on their seed alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from workbench.chat_model import SamplingOptions
from workbench.inference.sampling import choose, generator, kept


@settings(max_examples=50)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.2, 3.0),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1.0),
)
def test_probabilities_equal_those_of_transformers(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(seed)) * 3
    expected = logits / temperature
    expected = TopKLogitsWarper(top_k)(None, expected) if top_k else expected
    expected = TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    ours, tokens = kept(logits, SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p))
    back = torch.zeros_like(ours).scatter(-1, tokens, ours)
    torch.testing.assert_close(back, expected.softmax(dim=-1), atol=1e-6, rtol=1e-4)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    source = torch.Generator().manual_seed(1)
    drawn = choose(logits, SamplingOptions(temperature=1.0), [source] * len(logits))
    shares = torch.bincount(drawn, minlength=3) / len(logits)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)


def test_a_token_that_is_out_is_never_drawn() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0, -2.0]).expand(2_000, 4)
    source = torch.Generator().manual_seed(2)
    drawn = choose(logits, SamplingOptions(temperature=5.0, top_k=2), [source] * len(logits))
    assert set(drawn.tolist()) == {0, 1}


def test_a_row_draws_the_same_whoever_its_neighbours_are() -> None:
    options = SamplingOptions(temperature=1.0, seed=7)
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    together = choose(logits, options, [generator(options, row) for row in range(4)])
    alone = [int(choose(logits[row : row + 1], options, [generator(options, row)])) for row in range(4)]
    assert together.tolist() == alone


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_no_temperature_is_greedy(temperature: float) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert choose(logits, SamplingOptions(temperature=temperature), [None]).tolist() == [1]
    assert generator(SamplingOptions(temperature=temperature)) is None
