"""A run folder: everything one run was made from and everything it measured, each in a file other tools can read.

    recipe.yaml     the resolved recipe, every default written out
    run.json        kind, status, versions, commit, platform, times
    metrics.jsonl   one JSON object per line, appended while it runs
    losses-0.jsonl  what every conversation of every step lost, one file per process
    answers.jsonl   what the model says to a few held-out questions as it learns; their pictures in answers/
    control.json    what a notebook or a second terminal asks of it: stop, save or pause
    process.log     what a run in the background prints; process.json says which process that is
    checkpoints/    best/ and last/ (training writes them)

Knows: who may write, what an existing folder means for a new run, and that a killed writer leaves a torn line at most.
Does not know: what training does or what the metrics mean.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from workbench import resources
from workbench.errors import RecipeError, RunError, WorkbenchError, kind_of
from workbench.json_lines import JsonLines, Rows, plain
from workbench.origin import origin
from workbench.recipe import FITTED, FREE, Recipe
from workbench.recipe_yaml import read_yaml, to_yaml

if TYPE_CHECKING:
    import polars as pl

COMMANDS = ("stop", "save", "pause")
CURVES = ("loss", "val_loss")
"""What a notebook draws of the metrics."""
_CURVE = "max-width:32rem;--line:#8886;--one:#3b82f6;--two:#f59e0b;fill:currentColor"
BESIDE = ("process.json", "process.log", "control.json")
"""Of a run in the background: there before the run is."""
FILES = (
    ".lock", "recipe.yaml", "run.json", "metrics.jsonl", "checkpoints", "tensorboard", "wandb", *BESIDE,
)  # fmt: skip


class Run:
    """One run folder. `create` makes the one writer, `open` any number of readers.

    >>> with wb.Run.create("first", {"name": "first"}, kind="train") as run:
    ...     run.log({"step": 1, "loss": 2.3})
    >>> wb.Run.open("first").status
    'finished'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = resources.FileLock(self.path / ".lock")
        self._metrics = JsonLines(self._file("metrics.jsonl"))
        self._began = time.monotonic()
        self.changed: dict[str, tuple[Any, Any]] = {}
        """Fields of the recipe that this resumption goes on with, before and now: of those in `recipe.FREE`."""

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], recipe: Recipe | Mapping[str, Any], *, kind: str, resume: bool = False
    ) -> Run:
        """Start a run in a new or empty folder, or go on with an unfinished one when `resume` is set.

        A run that ended before it left anything to go on with makes room for a new one, whatever its recipe. It goes on
        with other values of `recipe.FREE`, which are written into its recipe.
        Raises `RunError`: the folder holds a finished run, an unfinished one without `resume`, one of another recipe
        or kind, one that is being written, or files that are no run.
        """
        run = cls(path)
        wanted = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else dict(recipe)
        exists = run.check_folder(resume)
        run._lock.acquire()
        try:
            run._go_on(wanted, kind) if exists else run._start(wanted, kind)
        except BaseException:
            run._lock.release()
            raise
        return run

    @classmethod
    def open(cls, path: Run | str | os.PathLike[str]) -> Run:
        """An existing run folder, for reading; a run is given back. Raises `RunError` when it is none."""
        if isinstance(path, Run):
            return path
        if not isinstance(path, (str, os.PathLike)):
            raise RunError("run", found=kind_of(path), expected="a Run, or its folder")
        run = cls(path)
        if not run._file("run.json").is_file():
            raise RunError(
                str(run.path), found="no run.json", expected="a run folder", fix="`workbench runs` lists them"
            )
        return run

    @classmethod
    def finished(cls, path: str | os.PathLike[str], recipe: Recipe | Mapping[str, Any]) -> Run | None:
        """The finished run of this very recipe in the folder, whatever `train.fit` chose; None where there is none."""
        run = cls(path)
        if run.status != "finished":
            return None
        wanted = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else dict(recipe)
        changed = differences(run.settings, json.loads(json.dumps(wanted, default=str))).keys()
        fits = (wanted.get("train") or {}).get("fit")
        return None if changed - ({f"train.{name}" for name in FITTED} if fits else set()) else run

    @staticmethod
    def list(root: str | os.PathLike[str] = "runs") -> list[Run]:
        """Every run folder at or below `root` (three levels), oldest first, damaged ones before them."""
        root = Path(root)
        found = {file.parent for depth in range(4) for file in root.glob("*/" * depth + "run.json")}
        return sorted((Run(path) for path in found), key=lambda run: (run._started, str(run.path)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Its figures and the curve of its losses, as they are now."""
        from workbench.display import block, folded
        from workbench.report import curve_svg

        lines, status = self.metrics(), self.status
        if status == "damaged":
            return block(self.path.name, note=f"{self.path}: a damaged run folder")
        curves = {key: [(row["step"], row[key]) for row in lines if row.get(key) is not None] for key in CURVES}
        drawn = f'<div style="{_CURVE}">{curve_svg(curves)}</div>' if any(curves.values()) else ""
        last = {key: f"{values[-1][1]:.4f}" for key, values in curves.items() if values}
        facts = {"folder": self.path, "kind": self.info.get("kind"), "took": f"{self.seconds:.0f} s", **last}
        error = folded("error", str(self.info["error"])) if self.info.get("error") else ""
        return block(str(self.info.get("name") or self.path.name), facts, drawn + error, note=status)

    # --- reading ----------------------------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe. Raises `RunError` for a run that has none, such as a quickstart."""
        try:
            return Recipe.from_dict(self.settings, where=str(self._file("recipe.yaml")))
        except RecipeError as error:
            raise RunError(str(self.path), found=f"no training recipe ({error})", expected="a training run") from None

    @property
    def settings(self) -> dict[str, Any]:
        """recipe.yaml as a plain mapping, whatever kind of run it is."""
        return read_yaml(self._file("recipe.yaml"))

    @property
    def info(self) -> dict[str, Any]:
        """run.json: kind, status, versions, commit, platform, started, finished, seconds."""
        try:
            info = json.loads(self._file("run.json").read_text(encoding="utf-8"))
            if not isinstance(info, dict):
                raise ValueError(f"a JSON {type(info).__name__}")
            return info
        except (OSError, ValueError) as error:
            raise RunError(str(self._file("run.json")), found=str(error), expected="a readable run.json") from None

    @property
    def status(self) -> str:
        """created, running, paused, finished, failed; `stopped`: asked to end; `died`: gone without a word, as by
        kill -9; `damaged`: without run.json.
        """
        try:
            status = self.info.get("status", "created")
        except RunError:
            return "damaged"
        if status != "running":
            return str(status)
        if not self._lock.held():
            return "died"
        return "paused" if self.control == "pause" else "running"

    @property
    def seconds(self) -> float:
        """Seconds it has worked, over all its resumptions; of one that died up to its last sign of life."""
        return self._worked(time.time() if self._lock.held() else None)

    def metrics(self) -> Rows:
        """Every logged line. A line torn by a killed writer is left out."""
        return self._metrics.rows()

    def losses(self) -> pl.DataFrame:
        """What was measured of every conversation in every step. Columns: step, epoch, id, loss (per token), tokens.

        `wb.worst(run)` sums them up, worst first.
        """
        from workbench.losses import read_losses

        return read_losses(self.path)

    def answers(self) -> Rows:
        """What the model said to the same held-out questions as it learnt: step and `answers`, a mapping each."""
        return JsonLines(self._file("answers.jsonl")).rows()

    def tail(self, lines: int = 20) -> str:
        """The last lines that a run in the background printed; the empty text for any other run."""
        try:
            text = self._file("process.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.rstrip().split("\n")[-lines:])

    @property
    def checkpoint(self) -> Path | None:
        """The best checkpoint, or the last one, or None."""
        for name in ("best", "last"):
            folder = self.path / "checkpoints" / name
            resources.recover_folder(folder)
            if folder.is_dir():
                return folder
        return None

    @property
    def control(self) -> str | None:
        """What the run is asked to do now: stop, save, pause, or None. One that is paused may be asked to save too."""
        return next((command for command in ("stop", "pause", "save") if command in self.commands), None)

    @property
    def commands(self) -> frozenset[str]:
        """All that it is asked to do: at most two commands, of which the one is pause and the other save."""
        try:
            told = json.loads(self._file("control.json").read_text(encoding="utf-8"))
            return frozenset(COMMANDS) & {told.get("command"), "save" if told.get("save") else None}
        except (OSError, ValueError, AttributeError, TypeError):
            return frozenset()

    def send(self, command: str | None) -> None:
        """Ask a run, from any process, to stop, save or pause; None takes it back.

        A paused run that is asked to save stays paused; one that is asked to stop saves anyway.
        """
        if command not in (*COMMANDS, None):
            raise RunError(str(self.path), found=f"the command {command!r}", expected="stop, save, pause or None")
        held = self.commands
        if command == "save" and "stop" in held:
            return
        both = command in ("save", "pause") and bool(held - {command, "stop"})
        self._ask({"save", "pause"} if both else {command} - {None})

    def obeyed(self, command: str) -> None:
        """Take back one command that was carried out, and nothing that was asked meanwhile."""
        self._ask(self.commands - {command})

    def _ask(self, commands: Set[str | None]) -> None:
        first = next((command for command in ("stop", "pause", "save") if command in commands), None)
        told = {"command": first, **({"save": True} if first == "pause" and "save" in commands else {})}
        resources.write_atomic(self._file("control.json"), json.dumps(told) + "\n")

    # --- writing ----------------------------------------------------------------------------------------------

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl and flush it. Numbers that JSON lacks (NaN, infinity) become null."""
        self._metrics.append(row)

    def rewind(self, step: int) -> None:
        """Drop metrics after `step`, so that a run resumed from its checkpoint logs each step once."""
        self._metrics.rewind(step)

    def update(self, **fields: Any) -> None:
        """Change entries of run.json."""
        resources.write_atomic(self._file("run.json"), json.dumps({**self.info, **plain(fields)}, indent=2) + "\n")

    def finish(self, **fields: Any) -> None:
        """Mark the run as finished, with its seconds over all its resumptions, and let go of the folder."""
        self._end("finished", **fields)

    def fail(self, error: BaseException) -> None:
        """Mark the run as failed, keep the error's line, and let go of the folder; it can be resumed.

        Raises nothing: where the folder cannot be written (perhaps the very error), or is gone, it says `running`
        without a writer, which is `died`.
        """
        with suppress(WorkbenchError, OSError):
            self._end("failed", error=f"{type(error).__name__}: {error}".removesuffix(": "))
        with suppress(WorkbenchError, OSError):
            self._metrics.close()
        self._lock.release()

    def close(self) -> None:
        """Let go of the folder; a run that works is `stopped` from then on, and can be resumed."""
        if self._lock.mine:
            with suppress(WorkbenchError):
                if self.info.get("status") == "running":
                    self._end("stopped")
        self._let_go()

    def _let_go(self) -> None:
        self._metrics.close()
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(error)
        elif self.info.get("status") == "running":
            self.finish()
        self.close()

    # --- inside -----------------------------------------------------------------------------------------------

    def _file(self, name: str) -> Path:
        return self.path / name

    @property
    def _started(self) -> str:
        return "" if self.status == "damaged" else str(self.info.get("started") or "")

    def check_folder(self, resume: bool) -> bool:
        """Whether the folder holds a run to go on with; everything else but an empty folder is refused."""
        where = str(self.path)
        if self.path.is_file():
            raise RunError(where, found="a file", expected="a folder", fix="choose another --out")
        if not self._file("run.json").is_file():
            others = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
            ours = (".lock", "recipe.yaml") if ".lock" in others else ()  # killed before run.json was written
            others = [name for name in others if name not in (*ours, *BESIDE)]
            if others:
                found = f"a folder with {others[0]!r} in it that is no run"
                raise RunError(where, found=found, expected="a new or empty folder", fix="choose another --out")
            return False
        status = self.status
        if status == "finished":
            on = f" (--set model.checkpoint={self.path} trains on from it)" if self.info.get("kind") == "train" else ""
            fix = f"choose another --out{on}, or remove the folder"
            raise RunError(where, found="a finished run", expected="a new folder", fix=fix)
        if status in ("running", "paused"):
            return True  # the lock tells who is writing
        if self._left_nothing():
            return False
        if not resume and status != "damaged":  # which is said when it is read
            found = f"an unfinished run ({status})"
            raise RunError(where, found=found, fix="add --resume to go on with it, or choose another --out")
        return True

    def _left_nothing(self) -> bool:
        """Whether the run ended before its first step: a mistake in its recipe must not block the corrected one."""
        held = {entry.name for entry in self.path.iterdir()}
        kept = sum(resources.size_of(self._file(name)) for name in ("metrics.jsonl", "checkpoints"))
        seen = {path.name for path in self._looked_at()}
        return held - seen <= set(FILES) and not kept

    def _looked_at(self) -> tuple[Path, ...]:
        """What a run writes to be looked at; nothing goes on from it."""
        names = ("answers", "answers.jsonl", "losses-*.jsonl")
        return tuple(path for name in names for path in self.path.glob(name))

    def _start(self, recipe: dict[str, Any], kind: str) -> None:
        self._forget_commands()
        for old in self._looked_at():  # of a run that is no more
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        resources.write_atomic(self._file("recipe.yaml"), to_yaml(recipe))
        info = {
            "kind": kind, "name": recipe.get("name", self.path.name), "status": "running",
            "started": _now(), "finished": None, "seconds": 0.0, "since": time.time(),
            "resumed": 0, **origin(),
        }  # fmt: skip
        resources.write_atomic(self._file("run.json"), json.dumps(info, indent=2) + "\n")

    def _go_on(self, recipe: dict[str, Any], kind: str) -> None:
        info, before = self.info, self.settings
        if info.get("kind") != kind:
            raise RunError(str(self.path), found=f"a {info.get('kind')} run", expected=f"a {kind} run to resume")
        differing = differences(before, json.loads(json.dumps(recipe, default=str)))
        if changed := {key: values for key, values in differing.items() if key not in FREE}:
            keys = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in changed.items())
            fix = "resume with the run's own recipe.yaml, or choose another --out"
            raise RunError(
                str(self.path), found=f"another recipe: {keys}", expected="the recipe it began with", fix=fix
            )
        self._forget_commands()
        if differing:
            self.changed = differing
            resources.write_atomic(self._file("recipe.yaml"), to_yaml(recipe))
        spent = {"seconds": round(self._worked(None), 3), "since": time.time()}
        self.update(status="running", error=None, resumed=info.get("resumed", 0) + 1, **spent, **origin())

    def _forget_commands(self) -> None:
        """What was asked of a run that is no more; this one in the background may have been asked as it started."""
        if self._noted().get("process") != os.getpid():
            self._file("control.json").unlink(missing_ok=True)

    def _noted(self) -> dict[str, Any]:
        """process.json; empty for a run in the foreground."""
        try:
            return dict(json.loads(self._file("process.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def _worked(self, now: float | None) -> float:
        """Seconds until `now`, or until the last thing that was written where nobody works any more."""
        info = self.info
        done, since = float(info.get("seconds") or 0.0), info.get("since")
        if info.get("status") != "running" or since is None:
            return done
        signs = [self._file(name) for name in ("run.json", "metrics.jsonl", "checkpoints")]
        last = now or max(file.stat().st_mtime for file in signs if file.exists())
        return done + max(0.0, last - since)

    def _end(self, status: str, **fields: Any) -> None:
        self._metrics.close()
        seconds = round(self.info.get("seconds", 0.0) + time.monotonic() - self._began, 3)
        self._began = time.monotonic()
        self.update(status=status, finished=_now(), seconds=seconds, **fields)
        self._lock.release()


def compare(runs: Iterable[Run | str | os.PathLike[str]]) -> Rows:
    """A row per run: path, name, kind, status, error, seconds, its last metrics, its best validation loss (`best`:
    val_loss and step), and the settings that differ.

    runs: runs, or their folders. A damaged folder gets a row too, with what is wrong in it as its error. Raises
    `RunError` for what is no run folder.

    >>> [row["status"] for row in wb.compare(wb.Run.list("runs"))]
    ['finished']
    """
    if isinstance(runs, (str, os.PathLike, Run)) or not isinstance(runs, Iterable):
        fix = "wb.Run.list(folder) gives those below a folder"
        raise RunError("compare", found=kind_of(runs), expected="a list of runs, or of their folders", fix=fix)
    read = [(run, *_read(run)) for run in map(Run.open, runs)]
    flat = [settings for _, _, settings in read if settings is not None]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if key != "name"]
    differing = [key for key in keys if len({json.dumps(one.get(key), default=str) for one in flat}) > 1]
    rows = []
    for run, info, settings in read:
        row = {"path": str(run.path), **{key: info.get(key) for key in ("name", "kind", "error", "started")}}
        row["seconds"] = run.seconds if settings is not None else info.get("seconds")
        row["status"] = run.status
        lines = run.metrics()
        row["metrics"], row["best"] = _last_values(lines), _best(lines)
        row["settings"] = {key: settings.get(key) for key in differing} if settings is not None else {}
        rows.append(row)
    return rows


def _read(run: Run) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """run.json and the flat recipe.yaml, as far as they can be read; what cannot is told as the run's error."""
    info: dict[str, Any] = {"name": run.path.name}
    try:
        info |= run.info
        return info, _flatten(run.settings)
    except WorkbenchError as error:
        return {**info, "error": str(error)}, None


def clean(root: str | os.PathLike[str], *, dry_run: bool = False) -> int:
    """Remove from finished runs below `root` every checkpoint but the one `Run.checkpoint` names. Bytes freed.

    Unfinished runs are left alone: they may be resumed.

    >>> wb.clean("runs", dry_run=True) > 0
    True
    """
    freed = 0
    for run in Run.list(root):
        keep = run.checkpoint
        if run.status != "finished" or keep is None:
            continue
        for entry in (run.path / "checkpoints").iterdir():
            if entry != keep:
                freed += resources.size_of(entry)
                if not dry_run:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return freed


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two mappings, each with both values (None where absent)."""
    old, new = _flatten(before), _flatten(after)
    keys = dict.fromkeys([*old, *new])
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _last_values(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for row in rows:
        last.update(row)
    return last


def _best(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The lowest validation loss and its step; empty where there is none."""
    held = [{"val_loss": row["val_loss"], "step": row.get("step")} for row in rows if row.get("val_loss") is not None]
    return min(held, key=lambda one: one["val_loss"], default={})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
