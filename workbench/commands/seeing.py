"""From a score to the picture: the page about results, and what training changed."""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.commands.common import AddVerb, add_json, show
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


def add_verbs(verb: AddVerb) -> None:
    """The verbs of this module."""
    add = verb(
        "report",
        _report,
        "One page about results: score with interval, slices, confusion, failures with pictures; or before and after.",
        "report results/tuned",
        "report results/tuned --slices type tag:night class:star measure:brightness --coverage",
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
