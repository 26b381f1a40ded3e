"""Packs hold what they must and no more; every epoch sees every conversation once; steps are full."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workbench.training.packing import Example, Pack, Plan, group, micro_batches, pack


def example(name: str, image: int | None, system: int = 7, answer: int = 3, tokens: int = 4) -> Example:
    """Begin, a system token, an image of `tokens` tokens, a question and `answer` supervised tokens."""
    head = [1, system] if image is None else [1, system, -200]
    ids = np.array([*head, 20, *range(30, 30 + answer)], np.int32)
    trained = np.arange(len(ids)) >= len(ids) - answer
    if image is None:
        return Example(name, ids, trained)
    return Example(name, ids, trained, shared=3, images=(f"i{image}",), counts=(tokens,))


choices = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(0, 4)), st.integers(7, 8), st.integers(1, 9)), min_size=1, max_size=40
)


def made(drawn: list[tuple[int | None, int, int]]) -> list[Example]:
    return [example(f"c{n}", image, system, answer) for n, (image, system, answer) in enumerate(drawn)]


@given(choices, st.integers(1, 5), st.integers(8, 60))
def test_a_pack_shares_one_prefix_and_keeps_its_limits(
    drawn: list[tuple[int | None, int, int]], max_share: int, max_tokens: int
) -> None:
    examples = made(drawn)
    packs = pack(group(examples), max_share=max_share, max_tokens=max_tokens)
    assert sorted(e.id for held in packs for e in held.examples) == sorted(e.id for e in examples)
    for held in packs:
        assert len(held) == 1 or len({e.share_key for e in held.examples}) == 1
        assert len(held) <= max_share
        assert len(held) == 1 or held.tokens <= max_tokens
        if len(held) > 1:
            assert held.examples[0].share_key is not None
            assert held.images == held.examples[0].images


@given(choices, st.integers(1, 7), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_every_epoch_sees_every_conversation_once_in_full_steps(
    drawn: list[tuple[int | None, int, int]], batch_size: int, max_share: int, seed: int, share: bool
) -> None:
    examples = made(drawn)
    plan = Plan(examples, batch_size=batch_size, share=share, max_share=max_share, max_tokens=100, seed=seed)
    for epoch in range(2):
        steps = [plan.step(epoch * plan.steps_per_epoch + number) for number in range(plan.steps_per_epoch)]
        counts = [sum(map(len, step)) for step in steps]
        assert all(count == batch_size for count in counts[:-1]) and 0 < counts[-1] <= batch_size
        seen = [e.id for step in steps for held in step for e in held.examples]
        assert sorted(seen) == sorted(e.id for e in examples)
        if not share:
            assert all(len(held) == 1 for step in steps for held in step)


def ids(step: list[Pack]) -> list[list[str]]:
    return [[e.id for e in held.examples] for held in step]


def test_the_plan_follows_from_seed_and_step_alone() -> None:
    examples = made([(n % 5, 7, 3) for n in range(30)])
    arguments = {"batch_size": 4, "share": True, "max_share": 3, "max_tokens": 100}
    plans = [Plan(examples, seed=seed, **arguments) for seed in (0, 0, 1)]
    assert [ids(plans[0].step(n)) for n in range(16)] == [ids(plans[1].step(n)) for n in reversed(range(16))][::-1]
    assert [ids(plans[0].step(n)) for n in range(8)] != [ids(plans[2].step(n)) for n in range(8)]
    assert [ids(plans[0].step(n)) for n in range(8)] != [ids(plans[0].step(n + 8)) for n in range(8)], "a new epoch"


def test_conversations_with_another_system_text_do_not_share() -> None:
    examples = [example("a", 0, system=7), example("b", 0, system=8), example("c", 0, system=7)]
    assert [[e.id for e in members] for members in group(examples)] == [["a", "c"], ["b"]]
    assert len(group([example("x", None), example("y", None)])) == 2, "text has no prefix to share"


def test_rows_of_a_micro_batch_have_similar_lengths() -> None:
    packs = [Pack((example(str(n), n, answer=n),)) for n in (5, 1, 4, 2, 3)]
    assert [[held.tokens for held in rows] for rows in micro_batches(packs, 2)] == [[12, 11], [10, 9], [8]]


def test_images_are_written_out_in_full_with_the_supervised_places() -> None:
    ids = np.array([1, -200, 5, 6, -200, 7], np.int32)
    two = Example("two", ids, ids >= 6, shared=2, images=("a", "b"), counts=(2, 3))
    whole, places = two.expand()
    assert whole.tolist() == [1, -200, -200, 5, 6, -200, -200, -200, 7]
    assert places.tolist() == [4, 8]
    assert (two.prefix, two.branch, two.tokens, two.supervised) == (3, 6, 9, 2)
