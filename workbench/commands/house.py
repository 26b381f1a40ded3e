"""The whole way at once, what is there, what works, what can go."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench import resources
from workbench.commands.common import AddVerb, add_json, add_set, positive, show
from workbench.errors import DatabaseError, RunError


def _quickstart(given: argparse.Namespace) -> None:
    from workbench.quickstart import quickstart

    quickstart(
        given.out,
        images=given.images,
        question=given.question,
        resume=given.resume,
        count=given.count,
        overrides=given.set,
        align_overrides=given.set_align,
    )


def _doctor(given: argparse.Namespace) -> int:
    from workbench.doctor import as_json, doctor, render

    checks = doctor()
    show(given, render(checks).rstrip(), as_json(checks))
    return 0 if all(check.works for check in checks) else 1


def _runs(given: argparse.Namespace) -> None:
    from workbench.run import Run, compare

    if not Path(given.root).is_dir() and given.root != "runs":  # the usual place may not be there yet
        raise RunError(given.root, found="no such folder", expected="a folder with runs, or a run")
    rows = compare(Run.list(given.root))
    lines = [line for row in rows for line in _run_lines(row, given.settings)]
    show(given, "\n".join(lines) or f"no run in {given.root}", rows)


def _run_lines(row: Mapping[str, Any], settings: bool) -> list[str]:
    best, loss = row["best"], row["metrics"].get("loss")
    shown = f"{loss:.4f} (training)" if isinstance(loss, float) else "-"
    if best:
        shown = f"{best['val_loss']:.4f} (validation, best at step {best['step']})"
    kind, seconds = row["kind"] or "-", row["seconds"] or 0
    line = f"{row['path']:<32} {kind:<11} {row['status']:<9} {seconds:>8.0f} s  loss {shown}"
    error = [f"    {' '.join(row['error'].split())}"] if row["error"] else []
    return [line, *error, *(f"    {key}: {value}" for key, value in row["settings"].items() if settings)]


def _clean(given: argparse.Namespace) -> None:
    removed = "removed" if given.yes else "add --yes to remove"
    if given.runs is not None:
        from workbench import run

        freed = run.clean(given.runs, dry_run=not given.yes)
        text = f"{freed / 1e6:,.1f} MB of checkpoints that finished runs below {given.runs} do not need: {removed}"
        show(given, text, {"runs": given.runs, "bytes": freed, "removed": given.yes})
        return
    sizes = resources.state_sizes(given.names)
    if given.yes:
        _stop_database(sizes)
        resources.clean_state(sizes)
    lines = [f"  {name:<24} {size / 1e6:>10,.1f} MB" for name, size in sizes.items()]
    state = resources.state_folder()
    text = "\n".join([f"{state}: {removed}", *lines]) if lines else f"{state}: empty"
    show(given, text, {"state": str(state), "bytes": sizes, "removed": given.yes})


def _stop_database(names: Iterable[str]) -> None:
    """A database is removed only when nobody uses it."""
    if "database" not in names:
        return
    from workbench.curation import database, server

    database.stop_database()
    folder = database.database_folder()
    if server.running_process(folder) is not None:
        fix = "close FiftyOne in the other notebook or terminal first"
        raise DatabaseError(str(folder), found="a database that another process uses", fix=fix)


def add_verbs(verb: AddVerb) -> None:
    """The verbs of this module."""
    add = verb(
        "quickstart",
        _quickstart,
        "The whole way on drawn scenes or on your own pictures: curate, generate, train, score, report.",
        "quickstart",
        "quickstart --images holiday/ --out runs/holiday",
    ).add_argument
    add("--images", metavar="FOLDER", help="your pictures: sub-folders as classes, or a captions file beside them")
    add("--question", metavar="TEXT", help="how the class of a picture is asked for (default: What is this?)")
    add("--out", default="runs/quickstart", metavar="DIR", help="run folder (default: %(default)s)")
    add("--count", type=positive, default=2000, metavar="N", help="how many scenes to draw (default: %(default)s)")
    add("--resume", action="store_true", help="go on with an unfinished quickstart in --out")
    add_set(add, "train.epochs=0.5")
    add("--set-align", action="append", default=[], metavar="KEY=VALUE", help="the same for the recipe of stage 1")

    add = verb("runs", _runs, "List and compare run folders.", "runs", "runs experiments/ --settings").add_argument
    add("root", nargs="?", default="runs", metavar="ROOT", help="where to look (default: %(default)s)")
    add("--settings", action="store_true", help="show the settings in which the runs differ")
    add_json(add)

    add = verb(
        "clean",
        _clean,
        "Show how much the state folder holds, and empty it; or trim the checkpoints of finished runs.",
        "clean",
        "clean datasets --yes",
        "clean --runs runs --yes",
    ).add_argument
    add("names", nargs="*", metavar="NAME", help="entries of the state folder (default: all)")
    add("--runs", metavar="ROOT", help="instead: keep only the best checkpoint of each finished run below ROOT")
    add("--yes", action="store_true", help="really remove; without it only sizes are shown")
    add_json(add)

    add = verb("doctor", _doctor, "What works on this machine, and what to do about the rest.", "doctor").add_argument
    add_json(add)
