"""What Prometheus reads: requests, tokens, times, the line, and what the model tells of itself.

Knows: names and units of the metrics, and that desk and model are read when somebody asks.
Does not know: HTTP or models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from workbench.chat_model import Usage
from workbench.serving.desk import Desk

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """One registry per server, so that two in one process stay apart. `state` gives the model's own, or None."""

    def __init__(self, desk: Desk, state: Callable[[], Any]) -> None:
        self._registry = registry = CollectorRegistry()
        made: Any = {"namespace": "workbench", "registry": registry}
        self.requests = Counter("requests", "Requests by route and HTTP status.", ["route", "status"], **made)
        self.gone = Counter("disconnects", "Clients that left before their answer was whole.", **made)
        self.failed = Counter("failures", "Requests that failed by the server's own fault.", **made)
        self._prompt = Counter("prompt_tokens", "Tokens of prompts, those of images included.", **made)
        self._cached = Counter("cached_tokens", "Tokens of prompts that were not computed again.", **made)
        self._image = Counter("image_tokens", "Tokens of prompts that stand for pictures.", **made)
        self._completion = Counter("completion_tokens", "Tokens of answers.", **made)
        self.first = Histogram(
            "time_to_first_token_seconds", "From a whole request to its first text.", buckets=_SECONDS, **made
        )
        self.whole = Histogram(
            "request_seconds", "From a whole request to the end of its answer.", buckets=_SECONDS, **made
        )
        self._desk, self._state = desk, state
        registry.register(self)  # type: ignore[arg-type]

    def count(self, usage: Usage, *, prompt: bool) -> None:
        """The tokens of one answer; of several to one prompt only the first counts the `prompt`."""
        if prompt:
            self._prompt.inc(usage.prompt_tokens)
            self._cached.inc(usage.cached_tokens)
            self._image.inc(usage.image_tokens)
        self._completion.inc(usage.completion_tokens)

    def collect(self) -> Iterator[Metric]:
        """The desk and the model as they are now."""
        desk = self._desk
        for name, told, value in (
            ("running", "Answers that are being written.", desk.taken),
            ("waiting", "Requests in line.", desk.waiting),
            ("slots", "Answers that can be written at once.", desk.slots),
        ):
            yield GaugeMetricFamily(f"workbench_{name}", told, value)
        state = self._state()
        for name, value in asdict(state).items() if is_dataclass(state) else ():  # type: ignore[arg-type]
            if isinstance(value, (int, float)):
                yield GaugeMetricFamily(f"workbench_model_{name}", f"The model's own: {name}.", value)

    def text(self) -> bytes:
        return generate_latest(self._registry)
