"""Results in the FiftyOne App: exactly the pictures that a model failed on, with what it said as labels.

Knows: that failures of a dataset are a view of it, and those of a benchmark a dataset of their own that goes with them.
Does not know: how the App is reached (`app.py`), or which fields scores become (`scores.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.curation.app import open as open_app
from workbench.curation.database import database_errors, open_fiftyone
from workbench.curation.scores import failed_view, told_dataset, write_results
from workbench.data.dataset import Dataset
from workbench.data.folder import resolve_inside
from workbench.errors import DataError
from workbench.result_rows import about, failures, name_of, pictures, rows_of

if TYPE_CHECKING:
    import fiftyone as fo
    from fiftyone.core.collections import SampleCollection


def show(results: Any, dataset: Dataset | str | Path | None = None, **options: Any) -> fo.Session:
    """Open the App on exactly the pictures that were failed on, in their order; in a notebook below the cell.

    `results`: a `Results`, its folder, or rows such as `results.failures`, filtered as you like; where none of them
    failed, all their pictures are shown. `dataset`: what was asked about, by default the one that the results name.
    `options` are those of `wb.open`. Raises `DataError` where the pictures cannot be found.
    """
    return open_app(shown_view(results, dataset), **options)


def shown_view(results: Any, dataset: Dataset | str | Path | None = None) -> SampleCollection:
    """What `show` opens. The fields of `write_results` are written first; for a table their name is `shown`."""
    if dataset is None and told_dataset(results) is None:
        return _own_dataset(results)
    write_results(results, dataset, name="shown" if isinstance(results, pl.DataFrame) else None)
    return failed_view(results, dataset)[0]


def _own_dataset(results: Any) -> fo.Dataset:
    """The failures of a benchmark, whose pictures are in no dataset folder; gone when the database ends."""
    roots = about(results).get("roots") or {}
    rows = rows_of(results)
    wrong = failures(rows) if failures(rows).height else rows
    if not roots:
        fix = "name the dataset, or the results themselves instead of their rows"
        raise DataError("show", found="rows that do not say where their pictures lie", fix=fix)
    fiftyone = open_fiftyone()
    with database_errors():
        name = f"failures of {name_of(results)}"
        made = fiftyone.Dataset(name, overwrite=True)
        samples = []
        for _, group in wrong.with_columns(picture=pl.Series(pictures(wrong))).group_by("picture", maintain_order=True):
            root, path = group["root"][0], group["image"][0]
            if path and root in roots:
                labels = [_label(fiftyone, row) for row in group.iter_rows(named=True)]
                file = str(resolve_inside(Path(roots[root]), path))
                shown = fiftyone.Classifications(classifications=labels)
                samples.append(fiftyone.Sample(file, accuracy=group["earned"].mean(), wrong=shown))
        made.add_samples(samples, dynamic=True, progress=False)
    return made


def _label(fiftyone: Any, row: dict[str, Any]) -> fo.Classification:
    names = ("question", "reference", "answer", "type", "margin")
    told = {name: row[name] for name in names if row[name] is not None}
    return fiftyone.Classification(label=row["said"] or row["answer"] or "(nothing)", **told)
