"""What there is to see of a run while it goes on: read from its folder, a little at a time, as plain JSON values.

Knows: which figures and curves a person wants to see, and how a long curve becomes a few hundred points.
Does not know: notebooks, browsers, or how a run is steered.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Mapping
from typing import Any

from workbench.json_lines import Tail
from workbench.run import Run

POINTS = 400
"""Points of a curve at most; beyond it each one is the mean of as many steps as needed."""
RECENT = 20
"""Lines of metrics that a present figure is the mean of."""
Shown = dict[str, Any]


class Curve:
    """A line through (step, value), kept as means so that it never has more than `POINTS` points."""

    def __init__(self) -> None:
        self._sums: list[tuple[float, float, int]] = []
        self._each = 1

    def add(self, x: float, y: float) -> None:
        if self._sums and self._sums[-1][2] < self._each:
            a, b, n = self._sums[-1]
            self._sums[-1] = (a + x, b + y, n + 1)
            return
        self._sums.append((x, y, 1))
        if len(self._sums) > POINTS:
            pairs = zip(self._sums[::2], [*self._sums[1::2], (0, 0, 0)], strict=False)
            self._sums = [(a + d, b + e, n + m) for (a, b, n), (d, e, m) in pairs]
            self._each *= 2

    def points(self) -> list[list[float]]:
        """[step, value] pairs."""
        return [[round(x / n, 2), float(f"{y / n:.5g}")] for x, y, n in self._sums]


class Watch:
    """One run, looked at again and again. Each look reads only what is new."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._metrics, self._answers = Tail(run.path / "metrics.jsonl"), Tail(run.path / "answers.jsonl")
        self._forget()
        self._said: dict[int, list[Shown]] = {}
        self._steps: int | None = None

    def look(self) -> tuple[Shown, Shown, Shown]:
        """(state, curves, answers) as they are now.

        state: name, path, status, asked, step, steps, left (seconds or null), figures, trouble. curves: by title, the
        lines by name. answers: steps, and a card per question with what was answered at each of them.
        """
        self._read()
        return self._state(), self._shown_curves(), self._cards()

    # --- reading ------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._curves: dict[str, dict[str, Curve]] = {}
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=RECENT)
        self._val: tuple[float, int] | None = None
        self._best: tuple[float, int] | None = None
        self._step = 0

    def _read(self) -> None:
        new = self._metrics.new()
        if self._metrics.again:
            self._forget()
        for row in new:
            self._take(row)
        said = self._answers.new()
        if self._answers.again:
            self._said = {}
        self._said |= {row["step"]: row.get("answers") or [] for row in said if "step" in row}

    def _take(self, row: Mapping[str, Any]) -> None:
        step = row.get("step")
        if step is None:
            return
        if row.get("val_loss") is not None:
            self._val = (row["val_loss"], step)
            self._best = min(self._best or self._val, self._val)
            self._point("loss", "validation", step, row["val_loss"])
        if row.get("loss") is None:
            return
        self._step = step
        self._recent.append(row)
        self._point("loss", "training", step, row["loss"])
        for name, rate in (row.get("lr") or {}).items():
            self._point("learning rate", name, step, rate)
        self._point("tokens/s", "tokens/s", step, row.get("tokens_per_s"))
        self._point("of peak arithmetic, %", "useful", step, row.get("flops_fraction"), 100)
        self._point("waiting for data, %", "waiting", step, _waiting(row), 100)
        self._point("memory, GB", "memory", step, row.get("memory"), 1e-9)

    def _point(self, title: str, name: str, step: float, value: float | None, scale: float = 1) -> None:
        if value is not None:
            self._curves.setdefault(title, {}).setdefault(name, Curve()).add(step, value * scale)

    # --- showing ------------------------------------------------------------------------------------------------

    def _state(self) -> Shown:
        run, status = self.run, self.run.status
        if self._steps is None and status != "damaged" and (run.path / "run.json").is_file():
            self._steps = run.info.get("steps")
        busy = status in ("starting", "running", "paused")
        return {
            "name": run.path.name,
            "path": str(run.path),
            "status": status,
            "asked": run.control if busy else None,
            "step": self._step,
            "steps": self._steps,
            "left": self._left() if status == "running" else None,
            "figures": self._figures(),
            "trouble": getattr(run, "trouble", None),
        }

    def _left(self) -> float | None:
        seconds = self._mean("seconds")
        return None if self._steps is None or seconds is None else round((self._steps - self._step) * seconds)

    def _figures(self) -> list[Shown]:
        tokens, useful, memory = (self._mean(key) for key in ("tokens_per_s", "flops_fraction", "memory"))
        waits = [wait for row in self._recent if (wait := _waiting(row)) is not None]
        best = f"best {self._best[0]:.3f} at step {self._best[1]}" if self._best else ""
        figures = [
            ("loss", f"{self._recent[-1]['loss']:.3f}" if self._recent else None, f"step {self._step}"),
            ("validation", f"{self._val[0]:.3f}" if self._val else None, best),
            ("tokens/s", _short(tokens), ""),
            ("of peak", None if useful is None else f"{useful:.0%}", "useful arithmetic"),
            ("data wait", f"{sum(waits) / len(waits):.0%}" if waits else None, "of the time"),
            ("memory", None if memory is None else f"{memory / 1e9:.2f} GB", ""),
        ]
        return [{"name": name, "value": value or "–", "note": note if value else ""} for name, value, note in figures]

    def _mean(self, key: str) -> float | None:
        values = [row[key] for row in self._recent if row.get(key) is not None]
        return sum(values) / len(values) if values else None

    def _shown_curves(self) -> Shown:
        return {title: {name: line.points() for name, line in lines.items()} for title, lines in self._curves.items()}

    def _cards(self) -> Shown:
        steps = sorted(self._said)
        first = self._said[steps[0]] if steps else []
        cards = []
        for number, asked in enumerate(first):
            said = [self._said[step][number]["answer"] if number < len(self._said[step]) else "" for step in steps]
            card = {key: asked.get(key) for key in ("id", "task", "question", "reference")}
            cards.append({**card, "picture": self._picture(asked.get("picture")), "answers": said})
        return {"steps": steps, "cards": cards}

    def _picture(self, name: str | None) -> str | None:
        """A data URI of a small picture in the run folder."""
        try:
            data = (self.run.path / name).read_bytes() if name else None
        except OSError:
            return None
        return "data:image/jpeg;base64," + base64.b64encode(data).decode() if data else None


def _waiting(row: Mapping[str, Any]) -> float | None:
    """The part of a step that was spent waiting for data."""
    return row["data_wait"] / row["seconds"] if row.get("data_wait") is not None and row.get("seconds") else None


def _short(number: float | None) -> str | None:
    if number is None:
        return None
    return f"{number / 1e3:.1f}k" if number >= 1e4 else f"{number:,.0f}"
