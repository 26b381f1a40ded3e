"""Metrics for TensorBoard, Weights & Biases and trackio, where a recipe names them; `metrics.jsonl` is always written.

Knows: accelerate's trackers, what has to be installed for each, and that a resumed run goes on in the same curves.
Does not know: what the metrics mean. Nothing here may end a run that has begun.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from workbench.errors import MissingPackageError, TrainingError
from workbench.run import Run

PROJECT = "llava-workbench"
"""Under which name W&B and trackio collect all runs."""


def check_installed(names: Sequence[str]) -> None:
    """Raise `MissingPackageError` with the line that installs it for a tracker whose package is not there."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            fix = f"pip install {name}, or leave it out"
            raise MissingPackageError(f"train.trackers: {name}", found=f"no package {name}", fix=fix)


class Trackers:
    """The trackers of one run, on the one process that writes. Without names it does nothing."""

    def __init__(self, names: Sequence[str], run: Run, settings: Mapping[str, Any], *, step: int = 0) -> None:
        """Start them; `settings` is the recipe as a mapping, `step` is where a resumed run goes on.

        Raises `TrainingError` if one does not start, for example without a login.
        """
        self.trackers = {name: _start(name, run, step) for name in names}
        for name, tracker in self.trackers.items():
            if name != "tensorboard":  # there they would be runs of their own; recipe.yaml lies beside its files
                tracker.store_init_configuration(flatten(settings))

    def log(self, row: Mapping[str, Any]) -> None:
        """One line of metrics at its `step`; nested names joined by a slash. A tracker that fails is told and left."""
        values = {key: value for key, value in flatten(row).items() if key != "step" and not isinstance(value, str)}
        for name, tracker in list(self.trackers.items()):
            try:
                tracker.log(values, step=row["step"])
            except Exception as error:  # a lost connection must not cost the run
                print(f"{name} is left out from here on: {error}", file=sys.stderr, flush=True)
                del self.trackers[name]

    def close(self) -> None:
        """Write out what they hold."""
        for name, tracker in self.trackers.items():
            try:
                tracker.finish()
            except Exception as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)


def flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, bool | str | float]:
    """Names joined by a slash: `{"lr": {"projector": 1e-3}}` is `{"lr/projector": 1e-3}`. Lists become text."""
    flat: dict[str, bool | str | float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, (bool, str, int, float)) else str(value)
    return flat


def _start(name: str, run: Run, step: int) -> GeneralTracker:
    identity = hashlib.sha256(f"{run.path.absolute()} {run.info['started']}".encode()).hexdigest()[:16]
    label = run.path.name
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": "tensorboard", "logging_dir": run.path, "purge_step": step + 1 if step else None},
        "wandb": {"run_name": PROJECT, "dir": run.path, "name": label, "id": identity, "resume": "allow"},
        "trackio": {"run_name": PROJECT, "name": f"{label}-{identity[:6]}", "resume": "allow", "embed": False},
    }
    try:
        tracker = LOGGER_TYPE_TO_CLASS[name](**options[name])
        tracker.start()
    except Exception as error:  # each has errors of its own
        told = (str(error).splitlines() or [type(error).__name__])[0]
        fix = f"log in to {name}, or leave it out of train.trackers"
        raise TrainingError(f"train.trackers: {name}", found=told, expected=f"{name} to start", fix=fix) from error
    return tracker
