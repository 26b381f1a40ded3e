"""Whether the model really answers: seen from its answers while it has work, asked for one token while it has none.

Knows: how long a model may be silent, and that asking costs, so that one question serves everybody for a while.
Does not know: HTTP or metrics.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation
from workbench.errors import WorkbenchError
from workbench.remote import RemoteModel
from workbench.serving.answering import Room, Writing, Written

_ONE = SamplingOptions(max_tokens=1)
_FRESH = 15.0
"""Seconds for which a proof is good."""


class Health:
    """`status()` is "ok", "stuck" (has work, writes nothing), "failing" (cannot write one token) or "stopping"."""

    def __init__(self, room: Room, seconds: float) -> None:
        self._room, self._seconds = room, seconds
        self._asking: asyncio.Task[str] | None = None

    async def status(self) -> str:
        if self._room.desk.closed:
            return "stopping"
        if self._room.desk.taken:
            return "stuck" if self.silent() > self._seconds else "ok"
        if isinstance(self._room.model, RemoteModel):
            return "ok"  # every question there may cost money
        if time.monotonic() - self._room.pulse.proved < _FRESH:
            return "ok"
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    def silent(self) -> float:
        """Seconds since the model last moved while it had work."""
        state = model_state(self._room.model)
        since = getattr(state, "stalled", None)
        return time.monotonic() - self._room.pulse.moved if since is None else float(since)

    async def _ask(self) -> str:
        room, told = self._room, asyncio.get_running_loop().create_future()

        def tell(item: Any) -> None:
            if not told.done() and (isinstance(item, (Written, BaseException))):
                told.set_result(item)

        asked = Conversation("health", ()).add("user", "Hello")
        held: dict[str, Any] = {"executor": room.executor, "pulse": room.pulse, "tell": tell}
        writing = Writing(room.model, asked, _ONE, ended=lambda seconds: None, **held)
        try:
            async with asyncio.timeout(self._seconds):
                end = await told
        except TimeoutError:
            writing.cancel()
            return "stuck"
        if isinstance(end, BaseException) and not isinstance(end, WorkbenchError):
            return "failing"
        room.pulse.beat()  # a model that refuses the question (one that needs an image, say) is well enough to do so
        return "ok"


def model_state(model: Any) -> Any:
    """What a model tells of itself, where it tells anything."""
    state = getattr(model, "state", None)
    return state() if callable(state) else None
