"""A request to one model, from the moment it waits to its end, and what an engine tells of all of them.

Knows: its row, where its images stand and what their pixels are called, where its pieces go, and who still reads them.
Does not know: who comes next, how rows run together, conversations, or images' files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from workbench.chat_model import Ending
from workbench.inference.decoding import Row
from workbench.inference.pixels import Known

Event = tuple["Request", tuple[str, int] | Ending | Exception]
"""A piece of an answer's text and how many tokens there are with it; its end; or why there is none."""


@dataclass(eq=False)
class Request:
    """A row that waits or runs, and where its pieces go."""

    row: Row
    images: list[tuple[int, int, str]]
    """(first slot, the one after the last, hash of the pixels) of each image."""
    shown: dict[str, Known]
    """Hash -> the image."""
    events: SimpleQueue[Event] = field(default_factory=SimpleQueue)
    streams: bool = True
    """Whether pieces are told of as they come, or the end only."""
    adapter: str | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    reader: Callable[[], object | None] = lambda: True
    """None once nobody can read the answer any more."""
    read: int = 0
    """Tokens of the answer whose text was read."""
    alone: bool = False
    """It did not fit beside others."""
    keys: list[bytes] = field(default_factory=list)
    """Names of the whole blocks that its tokens are made of, as far as they were needed."""

    @property
    def columns(self) -> int:
        """Tokens it may come to."""
        return len(self.row.ids) + self.row.limit

    @property
    def unwanted(self) -> bool:
        return self.cancelled.is_set() or self.reader() is None

    def tell(self) -> None:
        """The text since the last time, to whoever reads it as it comes."""
        if self.streams and (text := self.row.new_text()):
            self.events.put((self, (text, len(self.row.written))))

    def end(self, problem: Exception | None = None) -> None:
        """What is left of the text and the end, or why there is none."""
        if problem is None:
            self.tell()
        self.events.put((self, self.row.ending if problem is None else problem))


@dataclass(frozen=True)
class EngineState:
    """How an engine is doing, at one moment."""

    running: int
    """Answers being written."""
    waiting: int
    """Requests that have not begun."""
    tokens: int
    """Written so far, of all answers."""
    tokens_per_second: float
    """Over the last ten seconds."""
    stalled: float
    """Seconds since the generator last moved, while it has work; 0 when it has none."""
    cache_bytes: int
    """Kept beginnings and features of images."""
    cache_hits: int
    cache_misses: int
    """Prompts that began with something kept, and those that did not."""
    failed: int
    """Requests that ended with an error."""
