"""What is known of a training run before it starts, and how that is told: text, HTML, numbers.

Knows: what a person wants to see, and in which order. Does not know: how it is found (`plan.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any

from workbench.recipe import Recipe
from workbench.training.describe import Counts, counted
from workbench.training.dry_run import Measured, dry_run
from workbench.training.feature_choice import Choice
from workbench.training.memory import Memory
from workbench.training.mixture import shares_table
from workbench.training.packing import Pack
from workbench.training.room import MARGIN
from workbench.training.source import Share
from workbench.training.strip import Strip

SHOWN = 10
"""Conversations that are refused are listed, up to so many."""
UNCOUNTED = "opening images, validation, saving"
LAYERS = {0: "of no layer", 1: "of every layer", 2: "of every second layer"}


@dataclass(frozen=True)
class Forecast:
    """What a run will be. Printed it is a page of text; in a notebook, the same with the sample in colour."""

    recipe: Recipe
    """The recipe, changed where `fit` chose."""
    counts: Counts
    groups: str
    """What trains, as a table: tensors, numbers, learning rate, weight decay."""
    parameters: dict[str, int]
    """Numbers in each part of the model, adapters included."""
    too_long: list[tuple[str, int]]
    """Conversations longer than `train.max_tokens`, with their tokens: training refuses them, nothing is ever cut."""
    untrained: list[str]
    """Conversations without a token to train on: training refuses them too."""
    memory: Memory
    """Of the fullest moment once the weights are read."""
    loading: int
    """Most bytes while they are read, their files' pages among them: the system takes those back if it needs room."""
    checkpointed: int
    """Each so-many-th layer's activations are computed again; 0: none."""
    free: int
    """Bytes of memory there are."""
    device: str
    processes: int
    """So many share the run; memory is that of each."""
    worst: Pack
    """The pack with which the fullest moment comes."""
    pieces: int
    """Packs that one process has in the step that has most of them."""
    held: int
    """Bytes of image features (pixels where the tower trains) that stay in memory."""
    cache: Choice
    """Whether image features are kept on the disk, and why."""
    seconds: float
    """At least: the steps and the frozen tower at the speed of a plain matrix product on this machine."""
    tower_seconds: float
    """How many of them are a frozen tower's; it is taken that no earlier run kept its features."""
    strip: Strip
    """One conversation as the model reads it."""
    advice: str
    """The field and value that make it fit; empty if it does."""
    mixed: tuple[Share, ...] = ()
    """What an epoch sees of each dataset of a mixture, before conversations are refused; empty for one alone."""
    measured: Measured | None = None
    """What a dry run of the worst pack took."""

    @property
    def fits(self) -> bool:
        return self.memory.peak <= MARGIN * self.free

    @property
    def trains(self) -> bool:
        """Whether `workbench train` would start."""
        return self.fits and not self.too_long and not self.untrained

    @property
    def by_dry_run(self) -> float | None:
        """Seconds of all steps at the pace of the measured one, and of a frozen tower; None without a dry run."""
        if self.measured is None:
            return None
        tokens = sum(tree.tokens for tree in self.worst) * min(self.pieces, 2)
        steps = self.measured.seconds / tokens * self.counts.tokens * self.counts.epochs
        return steps / self.processes + self.tower_seconds

    def dry_run(self) -> Forecast:
        """The same, with the worst pack run forward, backward and through the optimiser in a process of its own."""
        settings = {"pieces": self.pieces, "every": self.checkpointed, "held": self.held}
        found = dry_run(self.recipe, self.worst, **settings)
        return replace(self, measured=found)

    def summary(self) -> dict[str, Any]:
        """The numbers, for a program."""
        told: dict[str, Any] = {"counts": asdict(self.counts), "parameters": self.parameters, "too_long": self.too_long}
        told |= {"untrained": self.untrained, "loading": self.loading}
        told |= {"mixed": [asdict(one) for one in self.mixed]}
        told |= {"memory": {"peak": self.memory.peak, **asdict(self.memory)}}
        told |= {
            "processes": self.processes,
            "free": self.free,
            "device": self.device,
            "fits": self.fits,
            "advice": self.advice,
        }
        told |= {"seconds_at_least": self.seconds, "seconds_of_tower": self.tower_seconds}
        told |= {"seconds_by_dry_run": self.by_dry_run, "checkpointed_every": self.checkpointed}
        told |= {
            "features_on_disk": self.cache.on_disk,
            "feature_cache": {"chosen": self.cache.kind, "why": self.cache.why},
        }
        told |= {"pack_tokens": self.recipe.train.pack_size, "padding_tokens": 0}
        return told | ({"measured": asdict(self.measured)} if self.measured else {})

    def __str__(self) -> str:
        return "\n\n".join([self.strip.text(), *self._sections()])

    def _repr_html_(self) -> str:
        return f"{self.strip.html()}<pre>{escape(chr(10).join(self._sections()))}</pre>"

    def _sections(self) -> list[str]:
        counts = [shares_table(self.mixed)] if self.mixed else []
        counts += [str(self.counts), *refused(self.too_long, self.untrained, self.recipe)]
        return [*counts, self.groups, self._memory(), self._verdict()]

    def _memory(self) -> str:
        largest = self.recipe.train.pack_size
        tokens = sum(tree.tokens for tree in self.worst)
        each = f" of each of {self.processes} processes" if self.processes > 1 else ""
        lines = [
            f"memory{each}, foreseen for the worst pack ({tokens:,} tokens; train.pack_tokens: {largest:,}; no padding)"
        ]
        lines += [f"  {name:<16} {size / 1e6:>12,.1f} MB" for name, size in self.memory.items.items() if size]
        room = f"of {self.free / 1e6:,.0f} MB on {self.device}"
        lines.append(f"  {'in all':<16} {self.memory.peak / 1e6:>12,.1f} MB {room}")
        if self.loading > self.memory.peak:
            pages = "pages of the files among it, which the system takes back if it needs room"
            lines.append(f"  {'while loading':<16} {self.loading / 1e6:>12,.1f} MB, {pages}")
        lines.append(f"  activations are computed again {LAYERS[self.checkpointed]} (train.checkpointing)")
        lines.append(str(self.cache))
        lines.append(self._time())
        if self.measured:
            lines.append(told(self.measured, self.memory))
        return "\n".join(lines)

    def _time(self) -> str:
        tower = f", {human_time(self.tower_seconds)} of it the frozen tower's" if self.tower_seconds else ""
        least = f"at least {human_time(self.seconds)} at the speed of a plain matrix product here{tower}"
        if self.by_dry_run is None:
            return f"time: {least}; not counted: the optimiser, {UNCOUNTED}"
        return f"time: about {human_time(self.by_dry_run)} by the dry run ({least}); not counted: {UNCOUNTED}"

    def _verdict(self) -> str:
        verdict = "it fits" if self.fits else f"it does not fit: {self.advice}"
        bad = len(self.too_long) + len(self.untrained)
        return f"{verdict}; but training refuses {counted(bad, 'conversation')}, see above" if bad else verdict


def refused(too_long: Sequence[tuple[str, int]], untrained: Sequence[str], recipe: Recipe) -> list[str]:
    """What training would refuse, by id; empty if nothing."""
    limit = recipe.train.max_tokens
    reasons = [f"  {id}: {tokens:,} tokens" for id, tokens in too_long[:SHOWN]]
    reasons += [f"  {id}: no token to train on" for id in untrained[:SHOWN]]
    count = len(too_long) + len(untrained)
    if not count:
        return []
    more = [f"  ... and {count - len(reasons):,} more"] if count > len(reasons) else []
    said = f"train.max_tokens: {limit:,}; nothing is ever cut"
    title = f"{counted(count, 'conversation')} that training refuses ({said}):"
    return ["\n".join([title, *reasons, *more])]


def told(measured: Measured, memory: Memory) -> str:
    """The dry run beside what was foreseen."""
    error = memory.peak / measured.peak - 1
    return (
        f"dry run: {measured.peak / 1e6:,.1f} MB measured on {measured.device} in a process of its own "
        f"(foreseen {error:+.1%}), {measured.seconds:.1f} s for a step of such packs"
    )


def human_time(seconds: float) -> str:
    """12 s, 34 min or 5.6 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
