"""Rates, health and budgets, by a clock that the test moves."""

from __future__ import annotations

import random
from typing import Any

import pytest

from workbench.errors import WorkbenchError
from workbench.instruct.limits import (
    CATCH_UP,
    FIRST_WAIT,
    GIVE_UP,
    GIVE_UP_UNSEEN,
    LONGEST_WAIT,
    OVERLOOKED,
    Bucket,
    Budget,
    Health,
    Meter,
    backoff,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_bucket_hands_out_evenly_and_saves_nothing_up_for_a_burst(clock: Clock) -> None:
    bucket = Bucket(600, clock=clock)  # ten a second
    waits = []
    for _ in range(3):
        waits.append(round(bucket.wait, 6))
        bucket.take(5)
    assert waits == [0.0, 0.5, 1.0]
    clock.now += 3600
    assert bucket.wait == 0.0
    bucket.take(5)
    assert 0.5 - CATCH_UP <= round(bucket.wait, 6) <= 0.5


@pytest.mark.parametrize("late", [0.0, 0.003, 0.02])
def test_a_rate_is_reached_by_those_who_wake_late_too_and_never_exceeded(clock: Clock, late: float) -> None:
    bucket, times = Bucket(3000, clock=clock), []  # fifty a second
    while clock.now < 110:
        clock.now += bucket.wait + late
        while not bucket.wait:
            bucket.take()
            times.append(clock.now)
    windows = [sum(start <= other < start + 1 for other in times) for start in times]
    assert max(windows) <= 50 * (1 + CATCH_UP) + 1 and len(times) >= 495


def test_waits_before_a_second_try_are_jittered_and_bounded() -> None:
    jitter = random.Random(0)
    for tries in range(12):
        waits = [backoff(tries, jitter) for _ in range(500)]
        most = min(LONGEST_WAIT, FIRST_WAIT * 2**tries)
        assert min(waits) < 0.1 * most and 0.9 * most < max(waits) <= most


# --- health ---------------------------------------------------------------------------------------------------------


def test_an_endpoint_that_says_how_long_it_wants_to_rest_rests_so_long(clock: Clock) -> None:
    health = Health(clock=clock)
    health.refused(7.5, "busy")
    health.refused(3.0, "busy")
    assert health.rests == 7.5 and not health.down
    clock.now += 7.5
    assert health.rests == 0.0


def test_a_few_broken_connections_are_no_outage_and_a_reply_forgets_them(clock: Clock) -> None:
    health = Health(clock=clock)
    for _ in range(10):
        for _ in range(OVERLOOKED):
            health.missed("broken")
        assert not health.down and health.rests == 0.0
        health.replied()
    for _ in range(OVERLOOKED + 1):
        health.missed("broken")
    assert health.down and health.rests == 2 * FIRST_WAIT and health.why == "broken"
    health.replied()
    assert not health.down


@pytest.mark.parametrize(("seen", "rests"), [(True, GIVE_UP), (False, GIVE_UP_UNSEEN)])
def test_an_endpoint_is_given_up_after_rests_that_grow(clock: Clock, seen: bool, rests: int) -> None:
    health, waits = Health(clock=clock), []
    if seen:
        health.replied()
    for _ in range(OVERLOOKED):
        health.missed("broken")
    while not health.closed:
        health.missed("broken")
        waits.append(health.rests)
        clock.now += health.rests
    assert len(waits) == rests + 1 and waits == sorted(waits) and waits[-1] <= LONGEST_WAIT
    assert health.closed == "broken"


def test_failures_of_calls_that_were_on_their_way_together_are_one(clock: Clock) -> None:
    health = Health(clock=clock)
    for _ in range(200):
        health.missed("broken")
    assert health.closed is None and health.rests == 2 * FIRST_WAIT
    for _ in range(200):
        health.refused(1.0, "busy")
    assert health.closed is None


# --- budgets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"money": -1}, {"tokens": 0}, {"calls": 0}, {"seconds": float("nan")}])
def test_a_budget_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(WorkbenchError, match=f"budget {next(iter(wrong))}"):
        Budget(**wrong)


def test_whatever_calls_do_the_budget_holds() -> None:
    dice = random.Random(1)
    for _ in range(200):
        meter, flying, charged, money = Meter(Budget(tokens=5000, money=0.5)), [], 0, 0.0
        for _ in range(300):
            most = dice.randint(1, 900)
            if dice.random() < 0.6 and meter.reserve(most, most * 1e-4) is None:
                flying.append(most)
            elif flying:
                ended = flying.pop(dice.randrange(len(flying)))
                used = dice.randint(0, ended)
                if dice.random() < 0.2:
                    meter.lose()  # it is charged all the same
                else:
                    meter.settle(ended, ended * 1e-4, (used, 0, used * 1e-4))
                charged, money = charged + used, money + used * 1e-4
            assert charged <= 5000 and money <= 0.5 + 1e-9


def test_a_call_that_was_not_made_leaves_no_trace() -> None:
    meter = Meter(Budget(calls=1))
    assert meter.reserve(10, 0.1) is None and meter.reserve(10, 0.1) == "budget of 1 calls"
    meter.withdraw(10, 0.1)
    assert not meter.reserved and meter.calls == 0 and meter.reserve(10, 0.1) is None


def test_estimates_that_were_too_low_are_corrected_and_large_numbers_are_readable() -> None:
    meter = Meter(Budget(tokens=2_000_000))
    meter.compare(100, 250)
    meter.compare(100, 50)
    meter.compare(0, 50)
    assert meter.expect(100) == 250
    assert meter.reserve(2_000_001, 0.0) == "budget of 2,000,000 tokens"
