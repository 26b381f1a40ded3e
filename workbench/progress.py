"""One way to show how far a long step is: rich in a terminal or notebook, plain lines elsewhere, or silent.

Knows: counts, rates and remaining time, and where this process can show them (`WORKBENCH_PROGRESS` = auto, off, plain
or rich decides). Everything goes to stderr, so a command's own output stays clean.
Does not know: what is being counted.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import rich.progress

Item = TypeVar("Item")
PLAIN_SECONDS = 10.0
"""Time between two plain lines."""


class Progress:
    """Counts silently; the base of the two that show something.

    >>> with progress("align", total=100, unit="step") as bar:
    ...     bar.advance(1, note="loss 0.31")
    """

    def __init__(self, description: str, *, total: float | None = None, unit: str = "it", before: float = 0) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.before, self.done = before, before
        self.note = f"{before:,g} done before" if before else ""
        self.started = time.monotonic()

    def advance(self, count: float = 1, *, note: str | None = None) -> None:
        """`count` more units are done; `note` is a short text to stand beside the bar."""
        self.done += count
        if note is not None:
            self.note = note
        self._show()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Units per second since the start, without those done before it."""
        return (self.done - self.before) / max(self.seconds, 1e-9)

    @property
    def remaining(self) -> float | None:
        """Seconds left at the present rate; None while unknown."""
        if not self.total or self.done <= self.before:
            return None
        return max(self.total - self.done, 0) / self.rate

    def __enter__(self) -> Progress:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _begin(self) -> None: ...

    def _show(self) -> None: ...

    def _end(self) -> None: ...


class PlainProgress(Progress):
    """A line to stderr every ten seconds and one at the end: for log files and pipes."""

    _shown = 0.0

    def _show(self) -> None:
        if self.seconds - self._shown >= PLAIN_SECONDS:
            self._shown = self.seconds
            left = f", {clock(self.remaining)} left" if self.remaining is not None else ""
            self._print(f"{self._counts()}, {self._speed()}{left}")

    def _end(self) -> None:
        if self.total != 0 or self.note:  # nothing to do is nothing to tell
            self._print(f"{self._counts()}, {self._speed()}, took {clock(self.seconds)}")

    def _counts(self) -> str:
        if self.total is None:
            return f"{self.done:g} {self.unit}"
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        return f"{self.done:g}/{self.total:g} {self.unit}{share}"

    def _speed(self) -> str:
        return f"{self.rate:.3g} {self.unit}/s"

    def _print(self, text: str) -> None:
        print(f"{self.description}: {text}{', ' + self.note if self.note else ''}", file=sys.stderr, flush=True)


class RichProgress(Progress):
    """A bar with rate and remaining time. All bars of a process share one display, so that steps may nest."""

    _display: rich.progress.Progress | None = None
    _open = 0
    _guard = threading.Lock()
    _task: rich.progress.TaskID

    def _begin(self) -> None:
        with RichProgress._guard:
            if RichProgress._display is None:
                RichProgress._display = _rich_display()
                RichProgress._display.start()
            RichProgress._open += 1
            self._task = RichProgress._display.add_task(
                self.description, total=self.total, completed=int(self.done), **self._fields()
            )

    def _show(self) -> None:
        if RichProgress._display is not None:
            fields = self._fields()
            RichProgress._display.update(self._task, completed=self.done, total=self.total, **fields)

    def _end(self) -> None:
        self._show()
        with RichProgress._guard:
            RichProgress._open -= 1
            if RichProgress._open == 0 and RichProgress._display is not None:
                RichProgress._display.stop()
                RichProgress._display = None

    def _fields(self) -> dict[str, Any]:
        speed = f"{self.rate:.3g} {self.unit}/s" if self.done > self.before else ""
        return {"unit": self.unit, "speed": speed, "note": self.note}


def progress(description: str, *, total: float | None = None, unit: str = "it", before: float = 0) -> Progress:
    """A bar to use in a `with` block; `total` None means that the end is not known.

    `before`: how many of `total` an earlier try has done; the bar begins there and says so.
    """
    return _kind()(description, total=total, unit=unit, before=before)


def track(
    iterable_or_total: Iterable[Item] | int, description: str, *, total: int | None = None, unit: str = "it"
) -> Iterator[Item]:
    """Iterate and show how far it is; a whole number stands for `range` of it."""
    items: Iterable[Item] = range(iterable_or_total) if isinstance(iterable_or_total, int) else iterable_or_total  # type: ignore[assignment]
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(description, total=total, unit=unit) as bar:
        for item in items:
            yield item
            bar.advance()


def clock(seconds: float | None) -> str:
    """Seconds as `m:ss` or `h:mm:ss`; `-` for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _kind() -> type[Progress]:
    chosen = os.environ.get("WORKBENCH_PROGRESS", "auto").lower()
    if chosen == "off":
        return Progress
    if chosen == "rich" or (chosen != "plain" and (sys.stderr.isatty() or in_notebook())):
        return RichProgress
    return PlainProgress


def in_notebook() -> bool:
    """Whether this is an IPython kernel; asks nothing of IPython unless it is loaded already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def _rich_display() -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    return Display(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=Console(stderr=not in_notebook()),
    )
