"""Who is answered now, who waits, and who is sent away: a bounded queue, first come first served.

Knows: slots, the line before them, how long an answer takes lately, and so when it is worth coming back.
Does not know: HTTP, models, or what a request asks. All of it runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque

from workbench.serving.errors import ApiError

_MEMORY = 0.1
"""Weight of the newest answer in the running mean of their seconds."""
_FIRST_GUESS = 1.0
_LONGEST = 600.0


class Desk:
    """`slots` answers at once, `waiting` requests in line. A request may need several slots (`n`), at most all."""

    def __init__(self, slots: int, waiting: int, queue_seconds: float) -> None:
        self.slots, self.most_waiting, self.queue_seconds = slots, waiting, queue_seconds
        self.taken = 0
        self.closed = False
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._mean: float | None = None

    @property
    def waiting(self) -> int:
        return len(self._line)

    async def enter(self, slots: int = 1) -> None:
        """Come back with `slots` taken. Raises `ApiError`: 429 for a full line, 503 after too long, or at the end."""
        self._check_open()
        if not self._line and self.taken + slots <= self.slots:
            self.taken += slots
            return
        if len(self._line) >= self.most_waiting:
            message = f"{len(self._line)} requests wait already; try again later."
            raise ApiError(429, message, code="rate_limit_exceeded", retry_after=self.retry_after())
        turn = asyncio.get_running_loop().create_future()
        place = (slots, turn)
        self._line.append(place)
        try:
            async with asyncio.timeout(self.queue_seconds):
                await turn
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
        ahead = self.taken + sum(slots for slots, _ in self._line)
        return min(_LONGEST, max(1.0, each * ahead / self.slots))

    def close(self) -> None:
        """Nobody enters any more, and those in line are sent away; who has a slot keeps it."""
        self.closed = True
        while self._line:
            _, turn = self._line.popleft()
            if not turn.done():
                turn.set_exception(_closing())

    def _check_open(self) -> None:
        if self.closed:
            raise _closing()

    def _call(self) -> None:
        while self._line and self.taken + self._line[0][0] <= self.slots:
            slots, turn = self._line.popleft()
            if not turn.done():
                self.taken += slots
                turn.set_result(None)

    def _leave_line(self, place: tuple[int, asyncio.Future[None]]) -> None:
        if place in self._line:
            self._line.remove(place)
        elif place[1].done() and not place[1].cancelled() and place[1].exception() is None:
            self.taken -= place[0]  # called in the same moment in which it gave up
        self._call()


def _closing() -> ApiError:
    return ApiError(503, "The server is stopping.", code="stopping", retry_after=10)
