"""Who is answered now, who waits, and who is sent away: a bounded queue in which clients take turns.

Knows: slots, each client's line before them, whose turn it is, how long an answer takes lately, and so when it is worth
coming back.
Does not know: HTTP, models, what a request asks, or what makes a client. All of it runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from workbench.serving.errors import ApiError

_MEMORY = 0.1
"""Weight of the newest answer in the running mean of their seconds."""
_FIRST_GUESS = 1.0
_LONGEST = 600.0


@dataclass(eq=False)
class _Place:
    """One request in line."""

    client: Hashable
    slots: int
    turn: asyncio.Future[None]


class Desk:
    """`slots` answers at once, `waiting` requests in line. A request may need several slots (`n`), at most all.

    A free slot goes to the clients that wait in turn (round robin), whatever the number of their requests; a full line
    takes another client's request in place of the last one of whoever has the most in it.
    """

    def __init__(self, slots: int, waiting: int, queue_seconds: float) -> None:
        self.slots, self.most_waiting, self.queue_seconds = slots, waiting, queue_seconds
        self.taken = 0
        self.closed = False
        self._lines: dict[Hashable, deque[_Place]] = {}
        """By client, the one whose turn it is first. None is empty."""
        self._mean: float | None = None

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    async def enter(self, slots: int = 1, client: Hashable = None) -> None:
        """Come back with `slots` taken. Raises `ApiError`: 429 for a full line, 503 after too long, or at the end."""
        self._check_open()
        if not self._lines and self.taken + slots <= self.slots:
            self.taken += slots
            return
        if self.waiting >= self.most_waiting:
            self._make_way(client)
        place = _Place(client, slots, asyncio.get_running_loop().create_future())
        self._lines.setdefault(client, deque()).append(place)
        try:
            async with asyncio.timeout(self.queue_seconds):
                await place.turn
        except TimeoutError:
            self._leave_line(place)
            message = f"No slot became free within {self.queue_seconds:.0f} s."
            raise ApiError(503, message, code="overloaded", retry_after=self.retry_after()) from None
        except asyncio.CancelledError:
            self._leave_line(place)
            raise

    def leave(self, seconds: float | None = None) -> None:
        """Give one slot back; `seconds`: how long it was used, where that says how long answers take."""
        self.taken -= 1
        if seconds is not None:
            self._mean = seconds if self._mean is None else (1 - _MEMORY) * self._mean + _MEMORY * seconds
        self._call()

    def retry_after(self) -> float:
        """Seconds until the line of now will have been served, at the speed of the last answers."""
        each = _FIRST_GUESS if self._mean is None else self._mean
        ahead = self.taken + sum(place.slots for line in self._lines.values() for place in line)
        return min(_LONGEST, max(1.0, each * ahead / self.slots))

    def close(self) -> None:
        """Nobody enters any more, and those in line are sent away; who has a slot keeps it."""
        self.closed = True
        for place in [place for line in self._lines.values() for place in line]:
            self._remove(place)
            if not place.turn.done():
                place.turn.set_exception(_closing())

    def _check_open(self) -> None:
        if self.closed:
            raise _closing()

    def _call(self) -> None:
        while self._lines:
            client, line = next(iter(self._lines.items()))
            place = line[0]
            if self.taken + place.slots > self.slots:
                return
            self._remove(place)
            if not place.turn.done():
                self.taken += place.slots
                place.turn.set_result(None)
                if client in self._lines:
                    self._lines[client] = self._lines.pop(client)  # the others' turn

    def _make_way(self, client: Hashable) -> None:
        """Send the last request of the longest line away, or the one that comes where its own line is as long."""
        message = f"{self.waiting} requests wait already; try again later."
        full = ApiError(429, message, code="rate_limit_exceeded", retry_after=self.retry_after())
        longest = max(self._lines.values(), key=len, default=deque[_Place]())
        if len(longest) <= len(self._lines.get(client, ())) + 1:
            raise full
        place = longest[-1]
        self._remove(place)
        if not place.turn.done():
            place.turn.set_exception(full)

    def _leave_line(self, place: _Place) -> None:
        if place in self._lines.get(place.client, ()):
            self._remove(place)
        elif place.turn.done() and not place.turn.cancelled() and place.turn.exception() is None:
            self.taken -= place.slots  # called in the same moment in which it gave up
        self._call()

    def _remove(self, place: _Place) -> None:
        line = self._lines[place.client]
        line.remove(place)
        if not line:
            del self._lines[place.client]


def _closing() -> ApiError:
    return ApiError(503, "The server is stopping.", code="stopping", retry_after=10)
