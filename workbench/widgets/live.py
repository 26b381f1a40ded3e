"""A run as it goes on, in a notebook: curves, figures, answers to the same questions, and buttons that steer it.

Knows: how a widget is kept up to date by a thread that never holds up a cell, and what stays in a saved notebook.
Does not know: what is worth seeing (`watch.py`), how it looks (`live.js`, `live.css`), or how a run is steered: it is
handed a run that can be.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import traitlets

from workbench.errors import WorkbenchError
from workbench.run import Run
from workbench.widgets.base import View, front
from workbench.widgets.static import as_html
from workbench.widgets.watch import Watch

SECONDS = 1.0
"""Between two looks at the run folder."""


class Steered(Protocol):
    """What the buttons call."""

    def stop(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def save(self) -> None: ...


class LiveView(View):
    """The widget. Looks at the run until it has finished; a button is answered at once, also while a cell runs."""

    _esm, _css = front("live")
    ACTIONS = ("stop", "pause", "resume", "save")
    state = traitlets.Dict().tag(sync=True)
    curves = traitlets.Dict().tag(sync=True)
    answers = traitlets.Dict().tag(sync=True)

    def __init__(self, run: Any) -> None:
        """`run`: a `Run` that is `Steered`."""
        self._run: Run | Steered = run
        self._watch, self._looking = Watch(run), threading.Lock()
        self._shown: list[Any] = []
        state, curves, answers = self._watch.look()
        super().__init__(state=state, curves=curves, answers=answers)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"watch {run.path.name}", daemon=True)
        self._thread.start()

    def update(self) -> None:
        """Look once, now."""
        with self._looking:
            state, curves, answers = self._watch.look()
            for name, value in (("state", state), ("curves", curves), ("answers", answers)):
                if value != getattr(self, name):
                    setattr(self, name, value)

    def close(self) -> None:
        self._over.set()
        super().close()

    def _follow(self) -> None:
        while not self._over.wait(SECONDS):
            try:
                self.update()
            except (WorkbenchError, OSError) as error:  # perhaps the folder is gone; it may come back
                self.problem = str(error)
            if self.state.get("status") == "finished":
                return self._settle()

    def show(self) -> None:
        """Show it below the cell. Once the run has finished, plain HTML takes its place: a saved notebook keeps it."""
        from IPython.display import display

        data, metadata = self._repr_mimebundle_()
        self._shown.append(display(data, metadata=metadata, raw=True, display_id=True))

    def _settle(self) -> None:
        for handle in filter(None, self._shown):  # None outside notebooks
            handle.update(self._plain(), raw=True)

    def html(self) -> str:
        return as_html(self.state, self.curves, self.answers)

    def act(self, action: str, given: dict[str, Any]) -> None:
        try:
            getattr(self._run, action)()
        finally:
            self.update()

    def _plain(self) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": repr(self._run)}
