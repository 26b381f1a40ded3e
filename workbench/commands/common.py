"""What the verbs share: how a result is shown, arguments that several take, whose dataset a run has."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError

Verb = Callable[[argparse.Namespace], int | None]
AddVerb = Callable[..., argparse.ArgumentParser]
"""Adds a verb to the parser: its name, what does it, one line of help, examples."""
FORMATS = ("images", "pdf", "llava", "sharegpt", "coco", "hf-dataset", "fiftyone")
"""What a dataset is exported as."""


def show(given: argparse.Namespace, text: object, data: object) -> None:
    """`data` as one line of JSON with --json, else `text`."""
    print(json.dumps(data, ensure_ascii=False) if given.json else text, file=given.stdout)


def dataset_of(path: str) -> str:
    """The dataset a run trained on: its recipe's, or the one that a quickstart's report names."""
    from workbench.run import Run

    run, report = Run.open(path), Path(path, "report.json")
    try:
        return run.recipe.data.dataset
    except WorkbenchError:
        if not report.is_file():
            raise
        return json.loads(report.read_text(encoding="utf-8"))["dataset"]


def add_model(add: Callable[..., Any]) -> None:
    add("model", metavar="MODEL", help="run folder (its best), RUN/checkpoints/last, LLaVA folder, or Hub name")


def add_loading(add: Callable[..., Any]) -> None:
    formats = ("4bit", "8bit", "bf16", "fp16", "fp32")
    add("--load", choices=formats, help="number format of the weights (default: as saved)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps or xpu (default: %(default)s)")


def add_set(add: Callable[..., Any], example: str) -> None:
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=f"change the recipe, for example {example}")


def add_json(add: Callable[..., Any]) -> None:
    add("--json", action="store_true", help="print JSON for a program to read")


@contextmanager
def imports() -> Iterator[None]:
    """Python does not look for garbage while torch and its like are imported: a quarter of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number
