"""Trees and packs hold what they must and no more; every epoch sees every conversation once; steps are full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workbench.training.example import Example
from workbench.training.packing import Entry, Plan, Tree, group, packs, spread, trees


def entries(examples: Sequence[Example]) -> list[Entry]:
    """What the length index says of each."""
    return [
        Entry(number, e.tokens, e.prefix, e.supervised, len(e.images), e.shared_images, e.share_key)
        for number, e in enumerate(examples)
    ]


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


def made(drawn: list[tuple[int | None, int, int]]) -> list[Entry]:
    return entries([example(f"c{n}", image, system, answer) for n, (image, system, answer) in enumerate(drawn)])


@given(choices, st.integers(1, 5), st.integers(8, 60))
def test_a_tree_shares_one_prefix_and_keeps_its_limits(
    drawn: list[tuple[int | None, int, int]], max_share: int, max_tokens: int
) -> None:
    held = made(drawn)
    cut = trees(group(held), max_share=max_share, max_tokens=max_tokens)
    assert sorted(numbers(cut)) == [entry.number for entry in held]
    for tree in cut:
        assert len(tree) == 1 or len({entry.key for entry in tree.members}) == 1
        assert len(tree) <= max_share
        assert len(tree) == 1 or tree.tokens <= max_tokens
        if len(tree) > 1:
            assert tree.key is not None and tree.images == 1


@given(choices, st.integers(1, 120), st.integers(1, 4))
def test_packs_hold_every_tree_once_and_keep_to_their_tokens(
    drawn: list[tuple[int | None, int, int]], pack_tokens: int, world: int
) -> None:
    cut = trees(group(made(drawn)), max_share=3, max_tokens=pack_tokens)
    shares = [packs(share, pack_tokens) for share in spread(cut, world)]
    assert sorted(numbers([tree for share in shares for pack in share for tree in pack])) == sorted(numbers(cut))
    for share in shares:
        for pack in share:
            assert len(pack) == 1 or sum(tree.tokens for tree in pack) <= pack_tokens
        sizes = [sum(tree.tokens for tree in pack) for pack in share]
        assert sum(size * 2 <= pack_tokens for size in sizes) <= 1, "two half empty ones would have been one"


@given(choices, st.integers(1, 7), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_every_epoch_sees_every_conversation_once_in_full_steps(
    drawn: list[tuple[int | None, int, int]], batch_size: int, max_share: int, seed: int, share: bool
) -> None:
    held = made(drawn)
    plan = Plan(held, batch_size=batch_size, share=share, max_share=max_share, max_tokens=100, seed=seed)
    for epoch in range(2):
        steps = [plan.step(epoch * plan.steps_per_epoch + number) for number in range(plan.steps_per_epoch)]
        counts = [sum(map(len, step)) for step in steps]
        assert all(count == batch_size for count in counts[:-1]) and 0 < counts[-1] <= batch_size
        assert sorted(numbers([tree for step in steps for tree in step])) == [entry.number for entry in held]
        if not share:
            assert all(len(tree) == 1 for step in steps for tree in step)


@given(choices, st.integers(2, 4), st.integers(1, 7), st.integers(0, 3), st.booleans())
def test_what_a_mixture_repeats_is_spread_over_the_epoch(
    drawn: list[tuple[int | None, int, int]], times: int, batch_size: int, seed: int, share: bool
) -> None:
    """All copies about one image once made one tree: of 32 conversations of a step 18 were distinct."""
    held = made(drawn)
    copies = [
        replace(one, number=one.number + turn * len(held), first=one.number)
        for turn in range(times)
        for one in held[: len(held) if turn < times - 1 else len(held) // 2]
    ]
    settings: dict[str, Any] = {"share": share, "max_share": 3, "max_tokens": 100, "seed": seed}
    plan = Plan(copies, batch_size=batch_size, **settings)
    steps = [plan.step(number) for number in range(plan.steps_per_epoch)]
    order = [copies[number].first for number in numbers([tree for step in steps for tree in step])]
    assert Counter(order) == Counter(one.first for one in copies), "every copy once"
    assert all(len({copies[n].first for n in numbers([tree])}) == len(tree) for step in steps for tree in step)


def test_a_step_of_a_repeating_mixture_is_of_distinct_conversations() -> None:
    held = made([(n // 4, 7, 3) for n in range(160)])  # four conversations about an image
    few = [replace(held[n % 40], number=160 + n, first=160 + n % 40, key=("few", n % 40 // 4)) for n in range(160)]
    plan = Plan([*held, *few], batch_size=32, share=True, max_share=8, max_tokens=1000, seed=0)
    for step in range(plan.steps_per_epoch):
        seen = [n if n < 160 else 160 + n % 40 for n in numbers(plan.step(step))]
        assert len(set(seen)) == len(seen) == 32


def test_a_step_holds_at_most_max_share_conversations_of_one_image() -> None:
    held = made([(n % 6, 7, 3) for n in range(60)])
    plan = Plan(held, batch_size=12, share=True, max_share=3, max_tokens=1000, seed=0)
    for number in range(5):
        counts = Counter(entry.key for tree in plan.step(number) for entry in tree.members)
        assert sum(counts.values()) == 12
        assert number >= 4 or max(counts.values()) <= 3
    alone = Plan(made([(0, 7, 3)] * 10), batch_size=5, share=True, max_share=2, max_tokens=1000, seed=0)
    assert [sum(map(len, alone.step(n))) for n in range(2)] == [5, 5], "one image is all there is"


def numbers(held: Sequence[Tree]) -> list[int]:
    return [entry.number for tree in held for entry in tree.members]


def ids(step: list[Tree]) -> list[list[int]]:
    return [[entry.number for entry in tree.members] for tree in step]


@given(choices, st.integers(1, 7), st.integers(1, 5))
def test_smaller_packs_change_no_step(drawn: list[tuple[int | None, int, int]], batch_size: int, share: int) -> None:
    settings: dict[str, Any] = {"batch_size": batch_size, "share": True, "max_share": share, "seed": 0}
    large, small = (Plan(made(drawn), max_tokens=most, **settings) for most in (1000, 12))
    for step in range(2 * large.steps_per_epoch):
        assert numbers(small.step(step)) == numbers(large.step(step))
        assert all(len(tree) == 1 or tree.tokens <= 12 for tree in small.step(step))


def test_the_plan_follows_from_seed_and_step_alone() -> None:
    examples = made([(n % 5, 7, 3) for n in range(30)])
    arguments = {"batch_size": 4, "share": True, "max_share": 3, "max_tokens": 100}
    plans = [Plan(examples, seed=seed, **arguments) for seed in (0, 0, 1)]
    assert [ids(plans[0].step(n)) for n in range(16)] == [ids(plans[1].step(n)) for n in reversed(range(16))][::-1]
    assert [ids(plans[0].step(n)) for n in range(8)] != [ids(plans[2].step(n)) for n in range(8)]
    assert [ids(plans[0].step(n)) for n in range(8)] != [ids(plans[0].step(n + 8)) for n in range(8)], "a new epoch"


def test_conversations_with_another_system_text_do_not_share() -> None:
    examples = [example("a", 0, system=7), example("b", 0, system=8), example("c", 0, system=7)]
    assert [[e.number for e in members] for members in group(entries(examples))] == [[0, 2], [1]]
    assert len(group(entries([example("x", None), example("y", None)]))) == 2, "text has no prefix to share"


def test_images_are_written_out_in_full_with_the_supervised_places() -> None:
    ids = np.array([1, -200, 5, 6, -200, 7], np.int32)
    two = Example("two", ids, ids >= 6, shared=2, images=("a", "b"), counts=(2, 3))
    whole, places = two.expand()
    assert whole.tolist() == [1, -200, -200, 5, 6, -200, -200, -200, 7]
    assert places.tolist() == [4, 8]
    assert (two.prefix, two.branch, two.tokens, two.supervised) == (3, 6, 9, 2)
