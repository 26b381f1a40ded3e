"""How much may be asked, and how fast: rates and health of an endpoint, and the budget of a run.

Knows: requests and tokens per minute as buckets, rests after failures, money, tokens, calls and seconds, spent and
reserved.
Does not know: requests, endpoints or replies.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from workbench.errors import WorkbenchError

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before a second try, at most; doubled with every further one."""
GIVE_UP, GIVE_UP_UNSEEN = 24, 2
"""Rests in a row, without one reply between, after which an endpoint is given up (about ten minutes); and one that
never gave any sign of life."""
OVERLOOKED = 3
"""Calls in a row that do not reach an endpoint before it counts as down: a single broken connection is no outage."""
CATCH_UP = 0.05
"""Seconds of a rate that may be caught up after waking late; more would be a burst."""
PROBE_SECONDS = 0.2
"""How often it is looked whether the one call that tries an endpoint that was down has come back."""


def backoff(tries: float, jitter: random.Random) -> float:
    """Seconds before a request that failed is asked again: any time up to a limit that doubles (full jitter)."""
    return jitter.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**tries))


class Bucket:
    """So many units per minute, handed out evenly. Units may be taken in advance; then comes a wait."""

    def __init__(self, per_minute: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 60.0 / per_minute
        self._clock = clock
        self._free = clock()

    @property
    def wait(self) -> float:
        """Seconds until more may be taken."""
        return max(0.0, self._free - self._clock())

    def take(self, units: float = 1.0) -> None:
        self._free = max(self._free, self._clock() - CATCH_UP) + units * self._interval


class Health:
    """Whether an endpoint may be asked: how long it rests after failures, and when it is given up."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._resumes = 0.0
        self._missed = self._rested = 0  # in a row: a reply sets both to 0
        self._seen = False
        self.replies = False
        """Whether it ever replied."""
        self.why = ""
        """What was wrong when it last had to rest."""
        self.closed: str | None = None
        """Why it is asked no more."""

    @property
    def rests(self) -> float:
        """Seconds for which it is left alone."""
        return max(0.0, self._resumes - self._clock())

    @property
    def down(self) -> bool:
        """Whether it could not be reached lately: then one call at a time tries it."""
        return self._missed > OVERLOOKED

    def replied(self) -> None:
        self.reached()
        self._rested = 0
        self.replies = True

    def reached(self) -> None:
        """It answered something, if only that it cannot."""
        self._missed = 0
        self._seen = True

    def refused(self, seconds: float | None, why: str) -> None:
        """It wants to be left alone, for so long where it says so."""
        self.reached()
        self._rest(seconds, why)

    def missed(self, why: str, *, seen: bool = False) -> None:
        """A call did not reach it. `seen`: something in front of it did answer."""
        self._missed += 1
        self._seen = self._seen or seen
        if self.down:
            self._rest(None, why)

    def _rest(self, seconds: float | None, why: str) -> None:
        self.why = why
        if not self.rests:  # calls that were on their way together are one failure
            self._rested += 1
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2**self._rested) if seconds is None else seconds
        self._resumes = max(self._resumes, self._clock() + wait)
        if self._rested > (GIVE_UP if self._seen else GIVE_UP_UNSEEN):
            self.closed = why


@dataclass(frozen=True)
class Budget:
    """What a run may use at most; None is no limit. What was paid for in an earlier run does not count.

    >>> wb.Budget(money=5).money
    5
    """

    money: float | None = None
    """US dollars."""
    tokens: int | None = None
    """Of prompts and replies together."""
    calls: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("money", "tokens", "calls", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise WorkbenchError(f"budget {name}", found=repr(value), expected="more than 0, or none")


@dataclass
class Meter:
    """What a run has used and what calls in flight may still use."""

    budget: Budget = Budget()
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    lost: int = 0
    """Calls whose reply did not arrive whole. What they may have cost stays reserved: they may be charged."""
    started: float = field(default_factory=time.monotonic)
    _reserved_tokens: int = 0
    _reserved_money: float = 0.0
    _flying: int = 0
    _short: float = 1.0
    _compared: bool = False

    def expect(self, prompt_tokens: int) -> int:
        """What a prompt of so many estimated tokens takes, at the largest underestimate so far."""
        return math.ceil(prompt_tokens * self._short)

    def compare(self, estimated: int, counted: int) -> None:
        """Learn from a reply how far an estimate was off."""
        self._compared = True
        if estimated > 0:
            self._short = max(self._short, counted / estimated)

    @property
    def learns(self) -> bool:
        """Whether the first call is in flight that shows how far estimates are off, and a budget hangs on that."""
        bounded = self.budget.tokens is not None or self.budget.money is not None
        return bounded and not self._compared and self._flying > 0

    def reserve(self, tokens: int, money: float) -> str | None:
        """Count a call that may use so much at most; or say which limit it could break, and count nothing."""
        budget = self.budget
        spent = self.prompt_tokens + self.completion_tokens
        checks = (
            ("calls", self.calls + 1, budget.calls),
            ("tokens", spent + self._reserved_tokens + tokens, budget.tokens),
            ("dollars", self.money + self._reserved_money + money, budget.money),
            ("seconds", self.seconds, budget.seconds),
        )
        for name, wanted, limit in checks:
            if limit is not None and wanted > limit + 1e-12:
                lost = f", with {self.lost} lost replies that may be charged" if self.lost else ""
                return f"budget of {limit:,.12g} {name}{lost if name in ('tokens', 'dollars') else ''}"
        self.calls += 1
        self._flying += 1
        self._reserved_tokens += tokens
        self._reserved_money += money
        return None

    def settle(self, tokens: int, money: float, used: tuple[int, int, float] = (0, 0, 0.0)) -> None:
        """A call ended: what was reserved for it is free again, and what it used (prompt, reply, money) is spent."""
        self._flying -= 1
        self._reserved_tokens -= tokens
        self._reserved_money -= money
        self.prompt_tokens += used[0]
        self.completion_tokens += used[1]
        self.money += used[2]

    def lose(self) -> None:
        """A call ended that may be charged although its reply did not arrive."""
        self._flying -= 1
        self.lost += 1

    def withdraw(self, tokens: int, money: float) -> None:
        """A call was not made after all."""
        self.settle(tokens, money)
        self.calls -= 1

    @property
    def reserved(self) -> bool:
        """Whether calls are in flight that may use less than they could."""
        return self._flying > 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started
