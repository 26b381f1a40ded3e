"""The steps of the workbench as operators of the App: a form, one call of the room that does it, and what came of it.

Knows: the fields of each form, and that the view is brought up to date afterwards.
Does not know: how anything is done. Steps run in a thread of the App's server process, so the App goes on meanwhile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types

from workbench.curation.brain import show_measures
from workbench.curation.filters import curate
from workbench.curation.image_measures import image_measures
from workbench.curation.in_and_out import export_dataset, import_dataset
from workbench.curation.refresh import view_of
from workbench.curation.review import dataset_of
from workbench.data.dataset import Dataset
from workbench.data.formats import IN, OUT
from workbench.errors import WorkbenchError
from workbench.instruct.generator import generate
from workbench.instruct.tasks import TASKS
from workbench.plugin import panel
from workbench.plugin.teachers import chosen_teacher
from workbench.resources import expanded


class Step(foo.Operator, ABC):
    """An operator that is a form and a function; what a person can do wrong is told in words."""

    name = label = description = ""
    needs_dataset = True

    @property
    def config(self) -> foo.OperatorConfig:
        return foo.OperatorConfig(name=self.name, label=f"Workbench: {self.label}", description=self.description)

    def fields(self, form: types.Object) -> None:
        """Add what is asked for."""

    @abstractmethod
    def run(self, ctx: Any) -> str:
        """Do it; returns what came of it."""

    def resolve_input(self, ctx: Any) -> types.Property:
        form = types.Object()
        self.fields(form)
        return types.Property(form, view=types.View(label=self.label, description=self.description))

    def execute(self, ctx: Any) -> dict[str, str]:
        try:
            said = self.run(ctx)
        except WorkbenchError as problem:
            return {"problem": str(problem)}
        if self.needs_dataset:
            _show(ctx, dataset_of(ctx.dataset))
        return {"said": said}

    def resolve_output(self, ctx: Any) -> types.Property:
        found, told = ctx.results or {}, types.Object()
        kind, text = (types.Error, found["problem"]) if "problem" in found else (types.Success, found.get("said", ""))
        told.view("told", kind(label=text.partition("\n")[0]))
        if "\n" in text:
            told.md(f"```\n{text}\n```", name="more")
        return types.Property(told, view=types.View(label=self.label))


class Import(Step):
    name, label, needs_dataset = "import", "import", False
    description = "Read a folder of pictures, or a file of conversations or captions, into a new dataset folder."

    def fields(self, form: types.Object) -> None:
        form.str("source", required=True, label="Folder or file", description="on the App's machine")
        form.enum("format", list(IN), label="What it is", description="told by what is in it where left out")
        form.str("images", label="Folder where the paths in the file start", description="default: beside the file")
        form.str("out", required=True, label="Dataset folder to make")

    def run(self, ctx: Any) -> str:
        images = {"images": expanded(ctx.params["images"])} if ctx.params.get("images") else {}
        source, out = (expanded(ctx.params[name]) for name in ("source", "out"))
        dataset = import_dataset(source, out, format=ctx.params.get("format"), **images)
        _show(ctx, dataset)
        counts = dataset.card["counts"]
        videos = f", {counts['videos']:,} videos" if counts.get("videos") else ""
        return f"{counts['images']:,} images{videos} and {counts['conversations']:,} conversations in {dataset.path}"


class Measures(Step):
    name, label = "measures", "measure images"
    description = "Size, shape, brightness, contrast, sharpness and entropy of every image, as fields."

    def run(self, ctx: Any) -> str:
        found = image_measures(dataset_of(ctx.dataset))
        show_measures(ctx.dataset, found)
        return f"{', '.join(found.columns[1:])} of {found.height:,} images"


class Dedupe(Step):
    name, label = "dedupe", "leave out broken images and copies"
    description = "Nothing is deleted: what is left out is tagged, with the reason. Undo brings it back."

    def run(self, ctx: Any) -> str:
        return str(curate(dataset_of(ctx.dataset)))


class Generate(Step):
    name, label = "generate", "generate conversations"
    description = "Conversations about every image that is ok. What a person changed or rejected stays as it is."

    def fields(self, form: types.Object) -> None:
        form.str("model", default="rules", required=True, label="Teacher", description="rules, or a model's name")
        form.str("url", label="Endpoint of the model", description="up to and including /v1; not for rules")
        form.list("tasks", types.String(), label="Tasks", description=f"default: the usual; {', '.join(TASKS)}")
        form.int("limit", label="The first so many images", description="default: all", min=1)

    def run(self, ctx: Any) -> str:
        teacher = chosen_teacher(ctx.params["model"], ctx.params.get("url") or "")
        tasks, limit = ctx.params.get("tasks") or None, ctx.params.get("limit") or None
        return str(generate(dataset_of(ctx.dataset), teacher=teacher, tasks=tasks, limit=limit))


class Export(Step):
    name, label = "export", "export"
    description = "Write what is ok as a file or folder that other programs read."

    def fields(self, form: types.Object) -> None:
        form.enum("format", list(OUT), default="llava", required=True, label="As what")
        form.str("out", required=True, label="File, or folder for images", description="on the App's machine")
        form.enum("split", ["train", "val", "test"], label="Only this split")

    def run(self, ctx: Any) -> str:
        out = expanded(ctx.params["out"])
        form = ctx.params["format"]
        count = export_dataset(dataset_of(ctx.dataset), out, format=form, split=ctx.params.get("split"))
        return f"{count:,} written to {out}"


class Snapshot(Step):
    name, label = "snapshot", "keep a snapshot"
    description = "Fix the present state under a version named by its content; undo goes back to it."

    def run(self, ctx: Any) -> str:
        dataset = dataset_of(ctx.dataset)
        return f"kept as {dataset.snapshot()}\n{dataset.lineage}"


class Undo(Step):
    name, label = "undo", "undo"
    description = "Go back to a snapshot. The present state is kept first, so undo once more brings it back."

    def fields(self, form: types.Object) -> None:
        form.str("version", label="Version", description="default: the last one that differs from the present state")

    def run(self, ctx: Any) -> str:
        dataset = dataset_of(ctx.dataset)
        return f"back at {dataset.undo(ctx.params.get('version') or None)}\n{dataset.lineage}"


OPERATORS = (Import, Measures, Dedupe, Generate, Export, Snapshot, Undo)


def _show(ctx: Any, dataset: Dataset) -> None:
    """The App shows the dataset as its folder is now; open panels read their queue anew."""
    made = view_of(dataset)
    panel.forget()
    if ctx.dataset is not None and made.name == ctx.dataset.name:
        ctx.ops.reload_dataset()
    else:
        ctx.ops.open_dataset(made.name)
