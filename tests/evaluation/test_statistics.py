"""Intervals cover what they promise, pictures with several questions widen them, and chance is told from progress."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import DataError
from workbench.evaluation.statistics import compare, interval


def test_an_interval_is_that_of_a_share() -> None:
    """80 of 100: the normal interval is 0.8 +- 1.96 * sqrt(0.8 * 0.2 / 100) = 0.8 +- 0.078."""
    found = interval([1.0] * 80 + [0.0] * 20)
    assert found.mean == 0.8 and found.n == 100
    assert found.low == pytest.approx(0.722, abs=0.02) and found.high == pytest.approx(0.878, abs=0.02)
    assert str(found).startswith("80.0 [7")


def test_95_of_100_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for number in range(200):
        found = interval(rng.random(200) < 0.7, seed=number)
        held += found.low <= 0.7 <= found.high
    assert 180 <= held <= 198


def test_questions_about_one_picture_do_not_count_as_independent() -> None:
    """A hundred pictures with ten questions each, all right or all wrong, know as much as a hundred questions."""
    earned = [float(picture % 2) for picture in range(100) for _ in range(10)]
    groups = [picture for picture in range(100) for _ in range(10)]
    alone, together = interval(earned), interval(earned, groups=groups)
    assert together.mean == alone.mean == 0.5
    assert together.high - together.low == pytest.approx((10**0.5) * (alone.high - alone.low), rel=0.15)


def test_the_same_seed_gives_the_same_interval() -> None:
    earned = [0.0, 1.0, 0.3, 0.9, 1.0]
    assert interval(earned, seed=1) == interval(earned, seed=1)


def test_the_order_of_the_questions_does_not_matter() -> None:
    earned, groups = [0.0, 1.0, 0.25, 0.75, 1.0], ["c", "a", "b", "a", "c"]
    assert interval(earned, groups=groups) == interval(earned[::-1], groups=groups[::-1])


def test_mcnemar_by_hand() -> None:
    """Of 10 questions on which the two differ the second is right on 9: 2 * (1 + 10) / 2**10 = 0.0215."""
    first = [1.0] * 50 + [0.0] * 9 + [1.0]
    second = [1.0] * 50 + [1.0] * 9 + [0.0]
    found = compare(first, second)
    assert found.p == pytest.approx(22 / 1024) and found.significant() and (found.better, found.worse) == (9, 1)
    assert found.difference == pytest.approx(8 / 60) and found.low > 0
    assert compare(second, first).difference == -found.difference


def test_equal_models_do_not_differ() -> None:
    found = compare([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (found.difference, found.p, found.better) == (0.0, 1.0, 0) and not found.significant()


def test_soft_scores_are_compared_by_turning_signs() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(200)
    assert compare(first, np.clip(first + 0.05, 0, 1)).p < 0.01
    noise = np.clip(first + rng.normal(0, 0.3, 200), 0, 1)
    assert compare(first, noise).p > 0.01


def test_one_picture_is_no_evidence() -> None:
    """Ten questions of a single picture turn together, so their signs can only all be so or all be the other way."""
    assert compare([0.0] * 10, [1.0] * 10).p < 0.01
    assert compare([0.0] * 10, [1.0] * 10, groups=["a"] * 10).p == pytest.approx(1.0)


@pytest.mark.parametrize("earned", [[], [float("nan")]])
def test_nothing_has_no_interval(earned: list[float]) -> None:
    with pytest.raises(DataError, match="a number for each question"):
        interval(earned)
    with pytest.raises(DataError, match="3 and 2 questions"):
        compare([1.0, 0.0, 1.0], [1.0, 0.0])
    with pytest.raises(DataError, match="1 for 2 questions"):
        interval([1.0, 0.0], groups=["a"])
