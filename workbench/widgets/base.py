"""What all widgets have in common: files of their own, answers while a cell runs, plain HTML where no kernel is.

Knows: anywidget, how a message of the browser reaches a method, and that a mistake becomes a line in the widget.
Does not know: what any widget shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from workbench.errors import WorkbenchError

HERE = Path(__file__).parent


def front(*names: str) -> tuple[str, str]:
    """(JavaScript, CSS) of a widget: what all share, then the files of these names."""

    def joined(kind: str) -> str:
        files = [HERE / f"{name}.{kind}" for name in ("common", *names)]
        return "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())

    return joined("js"), joined("css")


class View(anywidget.AnyWidget):
    """A widget. The browser sends `{do: action, ...}`, which is answered at once, also while a cell runs."""

    ACTIONS: tuple[str, ...] = ()
    """What the browser may ask for; anything else is not heard."""
    act: Callable[[str, dict[str, Any]], None]
    """Does one of `ACTIONS`. May run in any thread; a `WorkbenchError` is shown in the widget."""
    html: Callable[[], str]
    """What it shows now as HTML that needs no kernel, no script and no other file."""
    problem = traitlets.Unicode().tag(sync=True)
    """Why the last thing asked for did not happen."""

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        _answer_while_busy(self.comm)
        self.on_msg(self._asked)

    def _asked(self, widget: Any, content: Any, buffers: Any) -> None:
        action = content.get("do") if isinstance(content, dict) else None
        if action not in self.ACTIONS:
            return
        self.problem = ""
        try:
            self.act(action, content)
        except WorkbenchError as error:
            self.problem = str(error)

    def _plain(self) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": repr(self)}

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and the same as plain HTML for where no kernel is: a saved notebook, a published one."""
        made = super()._repr_mimebundle_(**options)
        data, metadata = made if isinstance(made, tuple) else (made, {})
        return {**(data or {}), **self._plain()}, metadata


def _answer_while_busy(comm: Any) -> None:
    """Let what the browser sends go to the thread that it asks for, which is there also while a cell runs.

    ipykernel 7 sends it to the thread from which the widget sent last instead: the main one, which waits for the cell.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = None
