"""From a score to the picture: the page about results, and what training changed."""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.commands.common import AddVerb, add_json, add_loading, positive, show
from workbench.errors import DataError


def _report(given: argparse.Namespace) -> None:
    if given.before or given.after:
        return _changes(given)
    if not given.results:
        raise DataError("report", found="no results", expected="a folder of results, or --before and --after")
    from workbench.evaluation.report import asked_dataset, report
    from workbench.evaluation.slice_scores import slices

    if not Path(given.results).exists():
        fix = "`workbench evaluate ... --out FOLDER` makes one"
        raise DataError(given.results, found="no such folder", expected="a folder of results", fix=fix)
    found = slices(given.results, asked_dataset(given.results, given.data), given.slices)
    page = report(
        given.results,
        given.out,
        dataset=given.data,
        by=given.slices,
        coverage=given.coverage or bool(given.training),
        training=given.training,
        model=given.clip,
    )
    show(given, f"{found}\nwritten: {page}", {**found.summary(), "written": str(page)})


def _changes(given: argparse.Namespace) -> None:
    from workbench.evaluation.change_report import changes
    from workbench.evaluation.report import report

    if given.results:
        expected = "either results, or --before and --after"
        raise DataError("report", found=f"{given.results} and --before or --after", expected=expected)
    found = changes(given.before, given.after)
    page = report(before=given.before, after=given.after, out=given.out, dataset=given.data)
    lines = [f"{one.name}: {one.before} -> {one.after}: {one.verdict} ({one.compared.whole})" for one in found]
    told = [{"name": one.name, "verdict": one.verdict, **one.compared.summary()} for one in found]
    show(given, "\n".join([*lines, f"written: {page}"]), {"sets": told, "written": str(page)})


def _compare_models(given: argparse.Namespace) -> int:
    from workbench.evaluation.side_by_side import QUESTION, compare_models

    found = compare_models(
        given.models, given.images, given.ask or QUESTION, out=given.out, limit=given.limit, load=given.load,
        device=given.device, max_tokens=given.max_tokens,
    )  # fmt: skip
    show(given, found, found.summary())
    return 1 if found.silent else 0


def add_verbs(verb: AddVerb) -> None:
    """The verbs of this module."""
    add = verb(
        "compare-models",
        _compare_models,
        "Ask several models about your pictures and see their answers side by side, on one page to keep or mail.",
        "compare-models runs/mine llava-hf/llava-1.5-7b-hf --images photos --ask 'What is unusual here?'",
        "compare-models runs/mine Qwen/Qwen2.5-VL-3B-Instruct gpt-4o@https://api.openai.com/v1 --images a.jpg b.jpg",
    ).add_argument
    told = "run or LLaVA folder, Hub name of a vision-language model, or MODEL@URL; only one is in memory at a time"
    add("models", nargs="+", metavar="MODEL", help=told)
    add("--images", nargs="+", required=True, metavar="FILE", help="pictures, PDF files, videos, folders of pictures")
    add("--ask", action="append", metavar="QUESTION", help="may come several times (default: a detailed description)")
    add("--limit", type=positive, default=20, metavar="N", help="the first N pictures (default: %(default)s)")
    add("--max-tokens", type=positive, default=256, metavar="N", help="longest answer (default: %(default)s)")
    add("--out", default="models.html", metavar="HTML", help="the page (default: %(default)s)")
    add_loading(add)
    add_json(add)

    add = verb(
        "report",
        _report,
        "One page about results: score with interval, slices, confusion, failures with pictures; or before and after.",
        "report results/tuned",
        "report results/tuned --slices type tag:night class:'black star' measure:brightness --coverage",
        "report --before results/base results/base-pope --after results/tuned results/tuned-pope --out change.html",
    ).add_argument
    add("results", nargs="?", metavar="RESULTS", help="folder that `workbench evaluate --out` made")
    add("--data", metavar="DATASET", help="what was asked about (default: the dataset that the results name)")
    told = "type, task, split, tag[:NAME], class[:NAME], measure:NAME (default: type)"
    add("--slices", nargs="+", default=["type"], metavar="SLICE", help=told)
    add("--coverage", action="store_true", help="look for training pictures near each failure")
    add("--training", metavar="DATASET", help="the dataset that was trained on, if it is another (means --coverage)")
    add("--clip", default="tiny", metavar="CLIP", help="whose vectors say what is near: tiny, a folder or a Hub name")
    add("--before", nargs="+", default=[], metavar="RESULTS", help="results of the first model, one folder per set")
    add("--after", nargs="+", default=[], metavar="RESULTS", help="of the second, on the same sets in the same order")
    add("--out", metavar="FILE", help="the page (default: report.html in RESULTS; change.html)")
    add_json(add)
