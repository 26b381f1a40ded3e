"""Training as a process of its own: a notebook starts it, follows and steers it, and finds it again after a restart.

    process.json   the process: its number, when it began, and the status it ended with
    process.log    everything it prints

Knows: how the process is started so that it outlives a notebook, how it is told that one has died, and its handle.
Does not know: how training works (`training/trainer.py`), or how it is drawn (`widgets`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import psutil

from workbench import resources
from workbench.errors import RunError, TrainingError, WorkbenchError
from workbench.json_lines import Tail
from workbench.progress import Progress
from workbench.progress import progress as make_bar
from workbench.recipe import Recipe, as_recipe
from workbench.recipe_yaml import on_dataset
from workbench.run import Run

if TYPE_CHECKING:
    from workbench.data.dataset import Dataset
    from workbench.model.llava import Llava
    from workbench.widgets.live import LiveView

STOPPED = 130
"""Exit status of a process that was asked to stop."""
LOOK_SECONDS = 0.2


@overload
def train(
    recipe: Recipe | str | Path,
    *,
    out: str | Path,
    llava: Llava | None = None,
    dataset: Dataset | str | Path | None = None,
    resume: bool = False,
    reuse: bool = False,
    progress: bool = True,
    background: Literal[False] = False,
) -> Run: ...


@overload
def train(
    recipe: Recipe | str | Path,
    *,
    out: str | Path,
    llava: Llava | None = None,
    dataset: Dataset | str | Path | None = None,
    resume: bool = False,
    reuse: bool = False,
    progress: bool = True,
    background: Literal[True],
) -> LiveRun: ...


def train(
    recipe: Recipe | str | Path,
    *,
    out: str | Path,
    llava: Llava | None = None,
    dataset: Dataset | str | Path | None = None,
    resume: bool = False,
    reuse: bool = False,
    progress: bool = True,
    background: bool = False,
) -> Run:
    """Train one stage as the recipe says and return its run; with `background` in a process of its own, and at once.

    recipe: a `Recipe`, its file or a shipped name. out: the run folder. llava, dataset: take the place of what the
    recipe names; a dataset may be open, a folder or a LLaVA JSON file. resume: go on with an unfinished run. reuse:
    that, and a finished run of this very recipe is returned as it is, so that a notebook can be run again.

    A process of its own lives on when the notebook or script ends; what is returned then steers it, and in a notebook
    shows how it goes. `wb.attach(out)` finds it again. `dataset` is opened there by its folder; a model from memory
    cannot be handed over. Raises `RunError` for a folder in the way, `TrainingError` for what cannot be trained on.

    >>> recipe = wb.Recipe.load("tiny-align", ["data.dataset=data", "train.max_steps=2", "train.batch_size=4"])
    >>> wb.train(recipe, out="runs/align", reuse=True).status
    'finished'
    """
    recipe, out = as_recipe(recipe), resources.as_path(out, "out")
    if dataset is not None:
        recipe, dataset = _on(recipe, dataset, named=background or reuse)
    if reuse and (held := Run.finished(out, recipe)) is not None:
        return LiveRun(out) if background else held
    resume = resume or reuse
    if not background:
        from workbench.training.trainer import train as train_here

        return train_here(recipe, out=out, llava=llava, dataset=dataset, resume=resume, progress=progress)
    if llava is not None:
        fix = "name it in the recipe's model:, or leave out background=True"
        raise TrainingError("train in the background", found="a model in memory", expected="a recipe's model", fix=fix)
    run = LiveRun(out)
    run.start(recipe, resume=resume)
    return run


def _on(recipe: Recipe, dataset: Dataset | str | Path, *, named: bool) -> tuple[Recipe, Dataset | None]:
    """The recipe on another dataset: a folder or file by its name, as an open one is too where it has to be `named`."""
    from workbench.data.dataset import Dataset

    if isinstance(dataset, (str, Path)):
        return recipe.with_overrides(on_dataset(dataset)), None
    dataset = Dataset.open(dataset)
    return recipe.with_overrides(on_dataset(dataset.path.absolute())) if named else recipe, dataset


def attach(run: Run | str | os.PathLike[str]) -> LiveRun:
    """A run that goes on in another process, or went on: to follow and steer it. Raises `RunError` for another folder.

    Also finds runs that were started in a terminal.
    """
    if isinstance(run, (str, os.PathLike)) and Path(run, "process.json").is_file():
        return LiveRun(run)
    return LiveRun(Run.open(run).path)


class LiveRun(Run):
    """A run in a process of its own. In a notebook the last line of a cell shows it, as it goes on.

    >>> run = wb.train(recipe, out="runs/first", background=True)
    >>> run.pause(), run.resume(), run.save(), run.stop()
    >>> run.wait().status
    'finished'
    """

    _view: LiveView | None = None
    _child: subprocess.Popen[str] | None = None

    def start(self, recipe: Recipe, *, resume: bool = False) -> None:
        """Start the process. Raises `RunError` for a folder in the way, as `Run.create` does."""
        if self.working:
            fix = f"wb.attach({str(self.path)!r}) steers it"
            raise RunError(str(self.path), found="a run that is being trained", expected="a new folder", fix=fix)
        self.check_folder(resume)
        with resources.disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "control.json").unlink(missing_ok=True)  # of a run that is no more
            log = open(self.path / "process.log", "a", encoding="utf-8")  # noqa: SIM115 - the process's own from now on
        command = [sys.executable, "-u", "-m", "workbench.background", str(self.path)]
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT, "text": True}
        with log:  # a session of its own: what ends a notebook's kernel does not reach it
            self._child = child = subprocess.Popen(command, env=_surroundings(), start_new_session=True, **streams)
        created = psutil.Process(child.pid).create_time()
        self._note(process=child.pid, created=created)  # before it is told what to do: it notes its end there
        assert child.stdin is not None
        with child.stdin as told:
            json.dump({"recipe": recipe.model_dump(mode="json"), "resume": resume}, told)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {self.status})"

    # --- how it goes ----------------------------------------------------------------------------------------------

    @property
    def working(self) -> bool:
        """Whether a process is at it, started here or elsewhere."""
        if self._child is not None:
            self._child.poll()  # a process that ended stays known to the system until its parent looks
        return self._lock.held() or self._process() is not None

    @property
    def status(self) -> str:
        """starting, running, paused, finished, stopped, failed, or died: gone without a word, as by kill -9."""
        saved = super().status
        if self.working and saved != "finished":
            if not self._lock.held():
                return "starting"
            return "paused" if self.control == "pause" else "running"
        noted = self._noted()
        if saved == "finished" or not noted:
            return saved
        ended = noted.get("ended")
        return "died" if ended is None else "stopped" if ended == STOPPED else "failed"

    @property
    def trouble(self) -> str | None:
        """Why it failed or died, with the last lines it printed; None for any other status."""
        status = self.status
        if status not in ("failed", "died"):
            return None
        code = self._child.poll() if self._child is not None else None
        how = f" (signal {-code})" if code is not None and code < 0 else ""
        gone = f"its process is gone without a word{how}; what it saved is intact"
        said = gone if status == "died" else "it ended with an error"
        return f"{said}. The last lines it printed:\n{self.tail() or '(none)'}"

    def wait(self, timeout: float | None = None, *, progress: bool = True) -> LiveRun:
        """Wait until it ends, `timeout` seconds at most, and show how far it is; Ctrl-C ends the waiting only.

        Returns itself: `status` tells whether it has finished. Raises `TrainingError` if it failed or died.
        """
        limit = time.monotonic() + timeout if timeout is not None else None
        lines = Tail(self.path / "metrics.jsonl")
        done = max((row.get("step", 0) for row in lines.new()), default=0)
        shows = progress and self.working
        bar = make_bar(self.path.name, unit="step", before=done) if shows else Progress(self.path.name, before=done)
        with bar:
            while self.working and (limit is None or time.monotonic() < limit):
                self._advance(bar, lines)
                time.sleep(LOOK_SECONDS)
            self._advance(bar, lines)
        if trouble := self.trouble:
            go_on = ".resume() goes on from the last checkpoint, once the reason is gone"
            fix = go_on if self.checkpoint else "put that right and start it again"
            raise TrainingError(str(self.path), found=trouble, fix=fix)
        return self

    def _advance(self, bar: Progress, lines: Tail) -> None:
        rows = [row for row in lines.new() if row.get("loss") is not None]
        if rows and rows[-1]["step"] > bar.done:
            bar.total = self.info.get("steps")
            bar.advance(rows[-1]["step"] - bar.done, note=f"loss {rows[-1]['loss']:.3f}")

    # --- what it is asked -----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Save after the step it is at, and end; `resume` goes on. One that is still starting ends at once."""
        if self.status == "starting" and (process := self._process()) is not None:
            process.terminate()
            self._note(**self._noted(), ended=STOPPED)
        else:
            self._ask_for("stop")

    def pause(self) -> None:
        """Wait after the step it is at, model and all in memory, until `resume`."""
        self._ask_for("pause")

    def save(self) -> None:
        """Save a checkpoint after the step it is at, and go on; a paused one saves and stays paused."""
        self._ask_for("save")

    def resume(self) -> None:
        """Go on: after a pause, or in a new process from the last checkpoint of a run that has not finished."""
        if self.working:
            self.send(None)
        elif self.status == "finished":
            raise RunError(str(self.path), found="a finished run", expected="one that can go on")
        else:
            self.start(self.recipe, resume=True)

    def _ask_for(self, command: str) -> None:
        if not self.working:
            how = {"died": "has died", "finished": "has finished", "failed": "has failed"}
            found = f"a run that {how.get(self.status, f'is {self.status}')}"
            raise RunError(str(self.path), found=found, expected=f"one at work to {command}")
        self.send(command)

    # --- in a notebook --------------------------------------------------------------------------------------------

    @property
    def view(self) -> LiveView:
        """The widget that shows it in a notebook."""
        from workbench.widgets.live import LiveView

        if self._view is None:
            self._view = LiveView(self)
        return self._view

    def _ipython_display_(self) -> None:
        self.view.show()

    # --- the process ----------------------------------------------------------------------------------------------

    def _note(self, **fields: Any) -> None:
        resources.write_atomic(self.path / "process.json", json.dumps(fields) + "\n")

    def _process(self) -> psutil.Process | None:
        """The process that was noted down, if it lives; another one may have got its number since."""
        noted = self._noted()
        if noted.get("ended") is not None:
            return None
        try:
            process = psutil.Process(noted["process"])
            same = abs(process.create_time() - noted["created"]) < 1
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (KeyError, TypeError, psutil.Error):
            return None


def _surroundings() -> dict[str, str]:
    """The environment of the process: plain lines instead of bars, and this package even where it is not installed."""
    return {**os.environ, "WORKBENCH_PROGRESS": "plain", "PYTHONPATH": resources.import_path()}


def _main(out: str) -> int:
    """The process: train what comes on stdin, and note how it ended."""
    run, code = LiveRun(out), 1
    asked = json.load(sys.stdin)
    try:
        from workbench.training.trainer import train as train_here

        trained = train_here(Recipe.from_dict(asked["recipe"]), out=out, resume=asked["resume"])
        code = 0 if trained.status == "finished" else STOPPED
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
    finally:
        run._note(**run._noted(), ended=code)
    return code


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
