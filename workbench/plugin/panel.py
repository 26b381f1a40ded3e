"""The panel Conversations of the App: what the browser asks for, done by the rooms, and what it is then shown.

Knows: the App's events, which conversation follows from them, and the names of what a person can do.
Does not know: how it looks (`review.js`), what is shown (`desk.py`), or how it is kept (`curation/review.py`).

Every method runs in a thread of the App's server process, so waiting for a teacher holds nothing else up.
"""

from __future__ import annotations

import threading
from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types

from workbench.curation import review, turns
from workbench.errors import DataError, WorkbenchError
from workbench.instruct.again import write_again
from workbench.plugin.desk import Desk, Shown
from workbench.plugin.teachers import chosen_teacher

_DESKS: dict[str, tuple[str, Desk]] = {}
"""The desk of each open panel, with the view it is of."""
_LOCK = threading.Lock()
_MOST = 16
"""Panels that are kept in mind; one that comes back after more reads its queue anew."""


class Review(foo.Panel):
    @property
    def config(self) -> foo.PanelConfig:
        return foo.PanelConfig(
            name="workbench_review",
            label="Conversations",
            surfaces="grid modal",
            icon="forum",
            help_markdown="Accept, reject and correct conversations. Everything is in the dataset folder at once.",
        )

    def render(self, ctx: Any) -> types.Property:
        view = types.View(component="WorkbenchReview", composite_view=True, do=self.do, regenerate=self.regenerate)
        return types.Property(types.Object(), view=view)

    # --- what happens in the App --------------------------------------------------------------------------------

    def on_load(self, ctx: Any) -> None:
        self._follow(ctx, anew=True)

    def on_change_view(self, ctx: Any) -> None:
        self._follow(ctx, moved=False)

    def on_change_dataset(self, ctx: Any) -> None:
        self._follow(ctx, moved=False)

    def on_change_current_sample(self, ctx: Any) -> None:
        self._follow(ctx)

    def on_change_selected(self, ctx: Any) -> None:
        self._follow(ctx, selected=True)

    def on_change_selected_labels(self, ctx: Any) -> None:
        self._follow(ctx, selected=True)

    def _follow(self, ctx: Any, *, anew: bool = False, selected: bool = False, moved: bool = True) -> None:
        """Show the conversation that follows from what is open or selected in the App.

        The App tells of the view again and again; where that is the same and nothing `moved`, nothing is sent.
        """
        try:
            desk, made = _desk(ctx, anew=anew)
            if not (made or moved):
                return
            desk.current = _wanted(ctx, desk, selected or made)
            shown = desk.show(desk.current)
        except WorkbenchError as problem:
            shown = {"problem": str(problem)}
        ctx.panel.set_data("shown", shown)

    # --- what a person does -------------------------------------------------------------------------------------

    def do(self, ctx: Any) -> Shown:
        """One step: `what` with a conversation's `id`. Returns what is shown then, or the `problem`."""
        try:
            desk, _ = _desk(ctx)
            name = _STEPS[ctx.params["what"]](ctx, desk, ctx.params.get("id"))
            _open(ctx, desk, name)
            return desk.show(name)
        except WorkbenchError as problem:
            return {"problem": str(problem)}

    def regenerate(self, ctx: Any) -> Shown:
        """Have a conversation written anew; what is open meanwhile stays open."""
        try:
            (desk, _), name = _desk(ctx), ctx.params["id"]
            teacher = chosen_teacher(ctx.params.get("model") or "", ctx.params.get("url") or "")
            new, rejected = write_again(desk.dataset, name, teacher=teacher, ground=desk.ground)
            review.rewrite(ctx.dataset, new, rejected=rejected, who=review.person())
            desk.verdicts[name] = None
            return desk.show(name)
        except WorkbenchError as problem:
            return {"problem": str(problem)}


# --- steps: each returns the id of the conversation to show next ----------------------------------------------------


def _verdict(ctx: Any, desk: Desk, name: str) -> str | None:
    verdict = ctx.params["verdict"]
    review.give_verdict(ctx.dataset, name, verdict, who=review.person())
    desk.verdicts[name] = verdict
    return desk.undecided(name)


def _edit(ctx: Any, desk: Desk, name: str) -> str:
    _keep(ctx, desk, name, turns.with_text(desk.messages(name), ctx.params["number"], ctx.params["text"]))
    return name


def _add(ctx: Any, desk: Desk, name: str) -> str:
    _keep(ctx, desk, name, turns.with_exchange(desk.messages(name), ctx.params["question"], ctx.params["answer"]))
    return name


def _delete(ctx: Any, desk: Desk, name: str) -> str:
    _keep(ctx, desk, name, turns.without_exchange(desk.messages(name), ctx.params["number"]))
    return name


def _keep(ctx: Any, desk: Desk, name: str, messages: turns.Chat) -> None:
    review.edit_messages(ctx.dataset, name, messages, who=review.person())


_STEPS: dict[str, Any] = {
    "verdict": _verdict,
    "edit": _edit,
    "add": _add,
    "delete": _delete,
    "show": lambda ctx, desk, name: name,
    "skip": lambda ctx, desk, name: desk.undecided(name),
    "next": lambda ctx, desk, name: desk.neighbour(name, 1),
    "previous": lambda ctx, desk, name: desk.neighbour(name, -1),
}


def _open(ctx: Any, desk: Desk, name: str | None) -> None:
    """Remember what is shown; where one image fills the App, it becomes that of the conversation."""
    desk.current = name
    sample = desk.samples.get(name or "")
    if ctx.current_sample and sample and sample != ctx.current_sample:
        ctx.ops.open_sample(id=sample)


def _desk(ctx: Any, *, anew: bool = False) -> tuple[Desk, bool]:
    """The desk of the panel and its view, and whether it was made just now, which reads all of the view.

    What is open is remembered here and not in the panel's state: the App tells of everything anew when that changes.
    """
    if ctx.dataset is None:
        raise DataError("the App", found="no dataset", fix="choose one")
    view = f"{ctx.dataset.name} {ctx.view._serialize()}"
    with _LOCK:
        last, desk = _DESKS.pop(ctx.panel_id, (None, None))
        made = desk is None or last != view or anew
        if desk is None or made:
            desk = Desk(ctx.view, desk.current if desk else None)
        _DESKS[ctx.panel_id] = view, desk
        while len(_DESKS) > _MOST:
            del _DESKS[next(iter(_DESKS))]
        return desk, made


def _wanted(ctx: Any, desk: Desk, selected: bool) -> str | None:
    """A selected label's conversation, else one of the open or selected image, else what was open, else the first."""
    chosen = [desk.labels[one["label_id"]] for one in ctx.selected_labels or [] if one["label_id"] in desk.labels]
    here = [name for name in chosen if ctx.current_sample in (None, desk.samples[name])]
    if selected and here:
        return here[-1]
    sample = ctx.current_sample or (ctx.selected[-1] if selected and ctx.selected else None)
    if sample and (found := desk.of_sample(sample, desk.current)):
        return found
    return desk.current if desk.current in desk.samples else desk.undecided(None) or desk.neighbour(None, 1)


def forget() -> None:
    """The datasets have changed: every panel reads its queue anew."""
    with _LOCK:
        _DESKS.clear()
