"""Rows that begin alike are attended to together, and what comes out is what each gets alone."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.asking import asked, picture, random_llava
from workbench.chat_model import SamplingOptions
from workbench.inference import shared_attention
from workbench.inference.engine import Engine
from workbench.inference.shared_attention import attend, find_groups

BLOCK = 4


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=7))
def test_two_parts_give_what_one_gives(rows: list[tuple[int, int, int]]) -> None:
    """rows: (which beginning, whole blocks of it, columns of its own)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_attention, "LEAST", 1)
        patch.setattr(shared_attention, "SHARE", 0.0)
        keys = [[bytes([kind, n]) for n in range(blocks)] for kind, blocks, _ in rows]
        groups = find_groups(keys, BLOCK)
    alike = [key for each in keys for key in each]
    assert (groups is None) == (len(set(alike)) == len(alike))
    lengths = [blocks * BLOCK + own for _, blocks, own in rows]
    source = torch.Generator().manual_seed(0)
    begins = torch.randn(3, 2, 2, 3 * BLOCK, 8, generator=source)  # (kinds, keys and values, heads, columns, width)
    held = torch.randn(2, len(rows), 2, max(lengths), 8, generator=source)
    for row, (kind, blocks, _) in enumerate(rows):
        held[:, row, :, : blocks * BLOCK] = begins[kind][:, :, : blocks * BLOCK]
    query = torch.randn(len(rows), 6, 1, 8, generator=source)  # three heads on each of two
    seen = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None, None]
    module = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    plain = attend(module, query, held[0], held[1], seen)[0]
    if groups is not None:
        for size, first in zip(groups.sizes, groups.firsts, strict=True):
            assert size == 1 or lengths[first] > groups.columns
        together = attend(module, query, held[0], held[1], seen, shared=groups)[0]
        torch.testing.assert_close(together, plain, atol=1e-5, rtol=1e-5)


def test_little_to_save_is_left_alone() -> None:
    one = [bytes([n]) for n in range(100)]
    assert find_groups([one, one], 8).columns == 800
    assert find_groups([one[:60], one[:60]], 8) is None
    assert find_groups([one, one, *([bytes([row, n]) for n in range(100)] for row in range(5))], 8) is None
    assert find_groups([], 8) is None and find_groups([[], []], 8) is None


def test_answers_together_are_those_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come and go, and whoever begins like another is attended to with it."""
    monkeypatch.setattr(shared_attention, "LEAST", 1)
    monkeypatch.setattr(shared_attention, "SHARE", 0.0)
    real, used = attend, []

    def counted(*given, **more):
        used.append(more.get("shared"))
        return real(*given, **more)

    monkeypatch.setitem(shared_attention.AttentionInterface._global_mapping, shared_attention.NAME, counted)
    llava = random_llava()
    draw = random.Random(3)
    conversations = [asked(number, draw.choice(["a", "b", None]), words=1 + number % 5) for number in range(24)]
    options = [SamplingOptions(max_tokens=4 + number % 11) for number in range(24)]
    with Engine(llava, open_image=picture, prefix_bytes=0) as alone:
        truth = [alone.reply(one, many).ids for one, many in zip(conversations, options, strict=True)]
    assert used == []
    with Engine(llava, open_image=picture, rows=9) as engine:
        answers = [engine.reply(one, many, start=True) for one, many in zip(conversations, options, strict=True)]
        assert [answer.ids for answer in answers] == truth
    assert len(used) > 20 and max(len(groups.sizes) for groups in used) > 1
    assert llava.model.get_decoder().config._attn_implementation == "sdpa"
