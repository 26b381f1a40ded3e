"""One page about results: the score with its interval, slices, confusion, failures with their pictures, coverage.

Knows: what stands on the page, and that it is one file that can be mailed, with nothing fetched from anywhere.
Does not know: how scores, intervals and neighbours are found; before and after is `change_report.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from jinja2 import Environment, PackageLoader

from workbench import __version__
from workbench.data.dataset import Dataset
from workbench.errors import DataError
from workbench.evaluation.confusion import confusion
from workbench.evaluation.coverage import Coverage, covered
from workbench.evaluation.report_parts import examples, in_turn, pictures_of, shaded
from workbench.evaluation.slice_scores import FEW_IMAGES, FEW_QUESTIONS, slices
from workbench.resources import write_atomic
from workbench.result_rows import about, failures, folder_of, rows_of

if TYPE_CHECKING:
    from workbench.model.clip import Clip

FAILURES, CONFIDENT, STRANGERS = 20, 6, 6
"""Shown on the page at most: failures, the most confident of them, and those that training data does not cover."""
PAGE = "report.html"


def report(
    results: Any = None,
    out: str | Path | None = None,
    *,
    dataset: Dataset | str | Path | None = None,
    by: Sequence[str] = ("type",),
    coverage: bool | Coverage = False,
    training: Dataset | str | Path | None = None,
    model: str | Path | Clip = "tiny",
    before: Sequence[Any] = (),
    after: Sequence[Any] = (),
) -> Path:
    """Write one self-contained HTML page about results, or, with `before` and `after`, about what training changed.

    `results`: a `Results`, its folder, or rows; `out`: a file, by default `report.html` in that folder. `dataset`: what
    was asked about, by default the one that the folder names; `by`: slices as for `slices`. `coverage`: whether to look
    for training pictures near each failure (`training`, `model` as for `covered`). `before`, `after`: results of the
    two models on the same sets, in the same order. Raises `DataError` for results that hold no scored answer.
    """
    if before or after:
        from workbench.evaluation.change_report import change_report

        return change_report(before, after, out or "change.html", dataset=dataset)
    page = _place(results, out)
    data = asked_dataset(results, dataset)
    found = slices(results, data, by)
    rows = rows_of(results)
    wrong = failures(rows)
    shown = pictures_of(results, data)
    names = [("said", "")]
    sure = wrong.drop_nulls("margin").sort("margin", descending=True).head(CONFIDENT)
    some = in_turn(wrong.join(sure.select("id"), on="id", how="anti"), FAILURES)
    looked = covered(results, data, training=training, model=model) if coverage is True else coverage or None
    values = {
        "title": f"{found.name}: where it is right, and where not",
        "subtitle": _subtitle(results, rows, data),
        "whole": found.whole,
        "figures": _figures(rows, wrong, found.unscored),
        "parts": found.parts,
        "few": FEW_QUESTIONS,
        "few_images": FEW_IMAGES,
        "confusions": [shaded(one) for one in confusion(results)],
        "confident": examples(sure.iter_rows(named=True), shown, names),
        "failed": examples(some.iter_rows(named=True), shown, names),
        "wrong": wrong.height,
        "coverage": _strangers(looked, wrong, shown, names, data, training) if looked else None,
        "settings": json.dumps(dict(about(results)), indent=1, ensure_ascii=False) if about(results) else "",
        "footer": f"workbench {__version__}",
    }
    return write_page("report.html.jinja", page, values)


def write_page(template: str, page: Path, values: Mapping[str, Any]) -> Path:
    """Render a template of this folder, everything in it escaped, and write it whole."""
    pages = Environment(loader=PackageLoader("workbench.evaluation", "."), autoescape=True)
    write_atomic(page, pages.get_template(template).render(**values))
    return page


def asked_dataset(results: Any, dataset: Dataset | str | Path | None) -> Dataset | None:
    """The dataset that is given, else the one that the results name, if it is still there."""
    if dataset is None:
        path = about(results).get("dataset")
        return Dataset.open(path) if isinstance(path, str) and Path(path, "card.yaml").is_file() else None
    return Dataset.open(dataset)


def _place(results: Any, out: str | Path | None) -> Path:
    if out is not None:
        return Path(out, PAGE) if Path(out).is_dir() else Path(out)
    folder = folder_of(results)
    if folder is None:
        raise DataError("report", found="no file to write", expected="out=FILE.html, or a folder of results")
    return folder / PAGE


def _subtitle(results: Any, rows: pl.DataFrame, dataset: Dataset | None) -> str:
    told = about(results)
    model = (told.get("model") or {}).get("name")
    asked = told.get("name") or (dataset.name if dataset else None)
    parts = [f"model {model}" if model else "", f"on {asked}" if asked else "", f"{rows.height:,} questions"]
    scorer = told.get("scorer")
    parts += [f"scored by {scorer}" if scorer else "", str(told.get("started") or "")[:10]]
    return ", ".join(part for part in parts if part)


def _figures(rows: pl.DataFrame, wrong: pl.DataFrame, unscored: int) -> list[dict[str, Any]]:
    pictures = rows.select("root", "image").drop_nulls().n_unique()
    found = [
        {"name": "questions", "value": f"{rows.height:,}", "note": f"about {pictures:,} pictures"},
        {"name": "failures", "value": f"{wrong.height:,}", "note": "earned less than half"},
    ]
    errors = rows["error"].count()
    if unscored or errors:
        note = f"{errors:,} with an error" if errors else "in no figure"
        found.append({"name": "not scored", "value": f"{unscored:,}", "note": note})
    return found


def _strangers(
    looked: Coverage, wrong: pl.DataFrame, shown: Any, names: Any, dataset: Dataset | None, training: Any
) -> dict[str, Any]:
    """Failures without a near training picture, each beside those that are nearest."""
    data = asked_dataset(None, training) or dataset
    theirs = pictures_of(None, data)
    roots = dict(data.images.select("id", "root").iter_rows()) if data else {}
    first = wrong.filter(pl.col("image").is_in(list(looked.uncovered))).unique("image", maintain_order=True)
    found = examples(first.head(STRANGERS).iter_rows(named=True), shown, names)
    for item in found:
        near = looked.table.filter(pl.col("image") == item["image"]).head(3).iter_rows(named=True)
        item["near"] = [
            {"image": one["train_image"], "similarity": one["similarity"]}
            | {"source": theirs(one["train_image"], roots.get(one["train_id"]))}
            for one in near
        ]
    meaning = (
        "Near: as like as 95 % of the training pictures are to the one most like them, by the vectors of a CLIP. "
        "Below each picture, the training pictures nearest to it."
    )
    return {"told": f"{looked}.", "meaning": meaning, "examples": found}
