"""Scores: held-out questions asked of a model, and answers made elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.commands.common import AddVerb, add_json, add_loading, add_model, positive, show
from workbench.errors import DataError, WorkbenchError

if TYPE_CHECKING:
    from workbench.evaluation.task import Results


def _evaluate(given: argparse.Namespace) -> None:
    if given.out and Path(given.out).is_dir():  # told before the questions are asked, not after
        fix = f"--out {Path(given.out, 'answers.jsonl')}"
        raise WorkbenchError(given.out, found="a folder", expected="a file to write", fix=fix)
    chosen = {"load": given.load, "device": given.device}
    results = asked_of(given.model, given.dataset, given.split, given.tasks, given.scorer, given.limit, **chosen)
    if given.out:
        results.save(given.out)
    show(given, results, results.summary())


def asked_of(
    model: str, dataset: str, split: str = "test", tasks: Sequence[str] = ("question",), scorer: str = "normalised",
    limit: int | None = None, *, load: str | None = None, device: str = "auto",
) -> Results:  # fmt: skip
    """The held-out conversations of a dataset, asked of a model."""
    from workbench.data.dataset import Dataset
    from workbench.data.images import load_image
    from workbench.evaluation.task import evaluate
    from workbench.inference.engine import Engine
    from workbench.model import llava

    data = Dataset.open(dataset)
    asked = data.conversations(split, tasks=tasks)[:limit]
    if not asked:
        found = f"no {' or '.join(tasks)} in split {split}"
        raise DataError(str(data.path), found=found, fix="`workbench generate` writes some; --split and --tasks choose")
    loaded = llava.load(model, load=load, device=device)
    engine = Engine(loaded, open_image=lambda image: load_image(data.resolve(image)), name=model)
    return evaluate(engine, asked, scorer=scorer)


def _score(given: argparse.Namespace) -> None:
    from workbench.evaluation.score import score

    scored = score(given.benchmark, given.predictions, given.references)
    show(given, scored, scored.summary())


def _benchmarks(given: argparse.Namespace) -> None:
    from workbench.evaluation.benchmarks import listing, table

    show(given, table(), listing())


def add_verbs(verb: AddVerb) -> None:
    """The verbs of this module."""
    add = verb(
        "evaluate",
        _evaluate,
        "Ask a model the held-out questions of a dataset and score its answers, per question type.",
        "evaluate runs/mine data/holiday",
        "evaluate runs/mine data/holiday --split val --json --out answers.jsonl",
    ).add_argument
    add_model(add)
    add("dataset", metavar="DATASET", help="dataset folder")
    add("--split", default="test", choices=("train", "val", "test"), help="which images (default: %(default)s)")
    add("--tasks", nargs="+", default=["question"], metavar="TASK", help="which conversations (default: question)")
    told = "how answers are compared: exact, normalised, choice, numeric, relaxed, iou (default: %(default)s)"
    add("--scorer", default="normalised", help=told)
    add("--limit", type=positive, metavar="N", help="the first N only")
    add_loading(add)
    add("--out", metavar="FILE", help="write every question and answer as JSON lines")
    add_json(add)

    add = verb(
        "score",
        _score,
        "Score answers that were made elsewhere, by a benchmark's own rule and without any model.",
        "score seedbench GPT-4V.json",
        "score pope answers.jsonl --references coco/ llava_pope_test.jsonl",
        "score mmbench llava-v1.5-13b.xlsx --json",
    ).add_argument
    add("benchmark", metavar="BENCHMARK", help="a name that `workbench benchmarks` lists")
    add("predictions", metavar="PREDICTIONS", help="json, jsonl, xlsx, tsv, csv, parquet or txt; or a folder of them")
    told = "files or folders of what is right, if the predictions do not bring it; question files too"
    add("--references", nargs="+", default=[], metavar="FILE", help=told)
    add_json(add)

    add = verb("benchmarks", _benchmarks, "List the benchmarks and the files each needs.", "benchmarks").add_argument
    add_json(add)
