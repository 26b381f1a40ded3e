"""What a run needs, beside its model, to go on exactly where it was: kept in its checkpoints.

    checkpoints/last/           the latest checkpoint: model and trainer state
    checkpoints/step-0000100/   older ones, at most `keep_last` in all
    checkpoints/best/           the model with the lowest validation loss
    checkpoints/damaged-1/      one that could not be resumed from, out of the way of those that can

Knows: these folders and the state file in them. Random numbers need no state: they follow from seed and step.
Does not know: what a model checkpoint consists of (`model/checkpoint.py`), or when to save.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors import SafetensorError

from workbench.errors import CheckpointError, DiskError, TrainingError
from workbench.model.checkpoint import PREFIXES, Held, read_manifest, save
from workbench.model.llava import Llava
from workbench.model.lora import adapter_parameters, has_adapter
from workbench.model.proof import check_files
from workbench.model.tensors import fill, named, read_tensors
from workbench.recipe import Recipe
from workbench.resources import disk_errors, recover_folder
from workbench.training.source import Source

STATE = "trainer.pt"


SPOILT = (CheckpointError, FileNotFoundError)
"""What says that a checkpoint is damaged; a disk that cannot be read now may be read again later."""


@dataclass
class Position:
    """Where a run is."""

    step: int = 0
    """Optimiser steps done."""
    best: float | None = None
    """Lowest validation loss so far."""
    best_step: int | None = None
    stale: int = 0
    """Validations since the lowest loss."""
    processes: int = 1
    """How many shared the steps. Another number goes on with the same losses; only dropout's masks are others."""


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.last, self.best = folder / "last", folder / "best"

    def save(
        self, llava: Llava, position: Position, recipe: Recipe, *, held: Held | None = None, **states: dict[str, Any]
    ) -> None:
        """Save model and trainer state as `last`; the one before gets its step's name, the oldest go.

        `states`: what each `state_dict` gave, by name. `held` as in `model.checkpoint.save`. Raises `DiskError` or
        `CheckpointError`; what was saved before is then intact.
        """
        state = {"position": asdict(position), **states}
        with writers_errors(self.folder):
            self._keep_previous()
            save(
                llava,
                self.last,
                recipe=recipe,
                step=position.step,
                extra={"val_loss": position.best if position.best_step == position.step else None},
                also=lambda temporary: write_state(temporary / STATE, state),
                held=held,
            )
        for old in self._older()[self.keep - 1 :]:
            shutil.rmtree(old, ignore_errors=True)

    def check_room(self, weights: int, state: int, saves: int, *, best: bool) -> None:
        """Raise `DiskError` where the disk has no room for all that will lie here: told before the first step.

        `weights`: bytes of what trains; `state`: of the optimiser's averages; `saves`: so many are to come; `best`:
        whether there will be one.
        """
        there = sum(folder.is_dir() for folder in (self.last, *self._older()))
        new = min(saves + there, self.keep + 1) - there  # one more than is kept while it is written
        needed = new * (weights + state) + weights * (best and not self.best.is_dir())
        free = shutil.disk_usage(self.folder.parent).free
        if free < needed:
            found, expected = f"{free / 1e9:,.3f} GB free", f"{needed / 1e9:,.3f} GB, for {new} checkpoints"
            fix = "make room (`workbench clean` lists sizes), choose another --out, or set train.keep_last: 1"
            raise DiskError(str(self.folder), found=found, expected=expected, fix=fix)

    def save_best(self, llava: Llava, position: Position, recipe: Recipe, held: Held | None = None) -> None:
        """Save the model alone as `best`."""
        with writers_errors(self.folder):
            save(llava, self.best, recipe=recipe, step=position.step, extra={"val_loss": position.best}, held=held)

    def restore(
        self, llava: Llava, *, mend: bool = True, say: Callable[[str], None] = print
    ) -> tuple[Position, dict[str, Any]]:
        """Put the newest whole checkpoint into the model; step 0 if there is none. Returns its states too, by name.

        One that is damaged is passed over for the one before, which takes the name `last`; with `mend` (one process
        alone may) the damaged one is set aside as `damaged-1`, and `say` is told. Raises `CheckpointError` if all are.
        """
        for leftover in self.folder.glob(".*.tmp"):  # of a save that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        recover_folder(self.last)
        errors: dict[Path, CheckpointError | OSError] = {}
        for folder in [path for path in (self.last, *self._older()) if path.is_dir()]:
            try:
                check_files(folder, read_manifest(folder)["files"])
                state = torch.load(folder / STATE, weights_only=True, map_location="cpu")  # each process moves it
            except (CheckpointError, OSError) as error:
                errors[folder] = error
                continue
            load_weights(llava, folder)
            if mend and errors and all(isinstance(each, SPOILT) for each in errors.values()):
                self._set_aside(errors, folder, say)
            return Position(**state.pop("position")), state
        if errors:
            raise next(iter(errors.values()))
        return Position(), {}

    def _set_aside(self, damaged: Mapping[Path, Exception], whole: Path, say: Callable[[str], None]) -> None:
        """Out of the way of the saves to come: left as `last` it would stop them, or take the place of a whole one."""
        with disk_errors(self.folder):
            for folder, error in damaged.items():
                names = (self.folder / f"damaged-{number}" for number in count(1))
                aside = folder.rename(next(name for name in names if not name.exists()))
                say(f"checkpoint {folder.name} is damaged ({error}): set aside as {aside}, {whole.name} is taken")
            whole.rename(self.last)

    def _older(self) -> list[Path]:
        """Checkpoints before `last`, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _keep_previous(self) -> None:
        if self.keep > 1 and self.last.is_dir():
            step = read_manifest(self.last)["step"]
            kept = self.folder / f"step-{step:07d}"
            if not kept.exists():
                temporary = self.folder / f".{kept.name}.tmp"
                shutil.copytree(self.last, temporary, copy_function=_link)
                temporary.rename(kept)


def fingerprints(source: Source) -> dict[str, str]:
    """What a run's conversations are told by, and the version of polars that says so."""
    parts = {"to train on": source.train, "to validate on": source.val}
    return {part: rows.fingerprint for part, rows in parts.items()} | {"polars": pl.__version__}


def check_data(begun: dict[str, str] | None, now: dict[str, str], run: Path) -> None:
    """Raise `TrainingError` where a run would go on with other conversations than it began with.

    `begun`: the fingerprints in its checkpoint; None in one of an earlier version.
    """
    if begun is None or begun["polars"] != now["polars"]:
        return
    if changed := [part for part, seen in now.items() if seen != begun[part]]:
        found = f"conversations {' and '.join(changed)} that it did not begin with: other ids, words or order"
        fix = "put the data back as it was, or begin another run with another --out"
        raise TrainingError(str(run), found=found, expected="the data it began with", fix=fix)


def write_state(path: Path, state: dict[str, Any]) -> None:
    with open(path, "wb") as file:  # not by name: torch would lose the reason for a failed write
        torch.save(state, file)


@contextmanager
def writers_errors(folder: Path) -> Iterator[None]:
    """A full disk as `DiskError`, also where torch and safetensors wrap the system's error in one of their own."""
    try:
        with _wrapped_errors(folder):
            yield
    except DiskError as error:
        fix = "what was saved before is intact: make room (`workbench clean` lists sizes) or raise the limit, "
        fix += "then add --resume"
        raise DiskError(error.where, found=error.found, expected=error.expected, fix=fix) from error


@contextmanager
def _wrapped_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        found = re.search(r"os error (\d+)", str(error))
        number = error.__context__.errno if isinstance(error.__context__, OSError) else int(found[1]) if found else None
        if number is None:
            raise
        with disk_errors(folder):
            raise OSError(number, os.strerror(number), str(folder)) from error


def load_weights(llava: Llava, folder: Path) -> None:
    """Put a checkpoint's trained tensors into a model that was prepared for the same stage."""
    if has_adapter(llava.model):
        tensors = read_tensors(folder / "adapter" / "adapter_model.safetensors")
        fill(adapter_parameters(llava.model), tensors, where=str(folder))
    for part in ("projector", *llava.spec["trained"]):
        path = folder / f"{part}.safetensors"
        fill(named(llava.model, PREFIXES[part]), read_tensors(path), where=str(path))


def _link(source: str, target: str) -> None:
    """A second name for the same bytes; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
