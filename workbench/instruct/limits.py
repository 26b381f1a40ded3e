"""How much may be asked, and how fast: rates of an endpoint, and the budget of a run.

Knows: requests and tokens per minute as buckets, money, tokens, calls and seconds, spent and reserved.
Does not know: requests, endpoints or replies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from workbench.errors import WorkbenchError


class Bucket:
    """So many units per minute, handed out evenly. `take` says how long to wait before they may be used."""

    def __init__(self, per_minute: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 60.0 / per_minute
        self._clock = clock
        self._free = clock()

    def take(self, units: float = 1.0) -> float:
        """Take `units`; seconds from now at which they are there."""
        now = self._clock()
        self._free = max(self._free, now) + units * self._interval
        return max(0.0, self._free - units * self._interval - now)


@dataclass(frozen=True)
class Budget:
    """What a run may use at most; None is no limit. What was paid for in an earlier run does not count."""

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
    started: float = field(default_factory=time.monotonic)
    _reserved_tokens: int = 0
    _reserved_money: float = 0.0
    _reserved_calls: int = 0

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
                return f"budget of {limit:g} {name}"
        self.calls += 1
        self._reserved_calls += 1
        self._reserved_tokens += tokens
        self._reserved_money += money
        return None

    def settle(self, tokens: int, money: float, used: tuple[int, int, float] = (0, 0, 0.0)) -> None:
        """A call ended: what was reserved for it is free again, and what it used (prompt, reply, money) is spent."""
        self._reserved_calls -= 1
        self._reserved_tokens -= tokens
        self._reserved_money -= money
        self.prompt_tokens += used[0]
        self.completion_tokens += used[1]
        self.money += used[2]

    @property
    def reserved(self) -> bool:
        """Whether calls are in flight that may use less than they could."""
        return self._reserved_calls > 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started
