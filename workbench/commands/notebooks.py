"""The notebooks: opened in JupyterLab, and published as pages."""

from __future__ import annotations

import argparse
import sys

from workbench.commands.common import AddVerb, add_json, show


def _lab(given: argparse.Namespace) -> int:
    from workbench.notebooks import lab

    return lab(given.folder, port=given.port, browser=not given.no_browser, more=given.jupyter)


def _notebooks(given: argparse.Namespace) -> None:
    from workbench.notebooks import publish

    pages = publish(given.out, given.notebooks, say=lambda text: print(text, file=sys.stderr))
    show(given, "\n".join(f"written: {page}" for page in pages), {"written": [str(page) for page in pages]})


def add_verbs(verb: AddVerb) -> None:
    """The verbs of this module."""
    add = verb(
        "lab",
        _lab,
        "Open JupyterLab at the tour, with the database running; the notebooks are copied to a folder of yours.",
        "lab",
        "lab my-folder --port 8899 --no-browser",
    ).add_argument
    told = "where the notebooks are put; those that are there stay as they are (default: %(default)s)"
    add("folder", nargs="?", default="lab", metavar="FOLDER", help=told)
    add("--port", type=int, metavar="N", help="of JupyterLab (default: 8888, or the next that is free)")
    add("--no-browser", action="store_true", help="open no browser; the address is printed")
    told = "an argument for JupyterLab itself, such as --jupyter=--ServerApp.base_url=/ada; may come several times"
    add("--jupyter", metavar="ARG", action="append", default=[], help=told)

    add = verb(
        "notebooks",
        _notebooks,
        "Run notebooks from top to bottom and publish them as pages that need no kernel: the shipped ones, or yours.",
        "notebooks",
        "notebooks 00_tour --out pages",
        "notebooks my.ipynb --out pages",
    ).add_argument
    add("notebooks", nargs="*", metavar="NOTEBOOK", help="names of shipped notebooks, or files (default: all shipped)")
    told = "for NAME.html, NAME.ipynb and what they make (default: %(default)s)"
    add("--out", default="runs/notebooks", metavar="FOLDER", help=told)
    add_json(add)
