"""Any dataset in and out: files by `data/formats.py`, and FiftyOne, which that room does not know.

Knows: which of the two is meant. Does not know: any format.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.data.dataset import Dataset
from workbench.data.formats import IN, OUT, Source, check_format, check_options, export_files, import_files
from workbench.errors import DataError

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

FIFTYONE = "fiftyone"


def import_dataset(
    source: Source | SampleCollection, out: str | Path, *, format: str | None = None, **options: Any
) -> Dataset:
    """Make the dataset folder `out` of files or a folder, `owner/name` on the Hub, or a FiftyOne dataset or view.

    The format is told by what is in the files; `format` says it where that is not enough: images, pdf, llava, sharegpt,
    coco, hf-dataset, or fiftyone for a FiftyOne dataset by its name. `images` is the folder that paths in a LLaVA,
    ShareGPT or COCO file start from. Further options are those of the format's own function, such as `name`, `workers`,
    `dpi` (pdf) or `label` (fiftyone). Raises `DataError` where the format cannot be told, or nothing can be imported.

    >>> dataset = wb.import_dataset("data/pictures", "again")
    pictures: 24 images in again
      ok: 24
    """
    if format is not None:
        check_format(format, (*IN, FIFTYONE))
    if format == FIFTYONE or not isinstance(source, (str, Path, list, tuple)):
        from workbench.curation.from_fiftyone import import_fiftyone

        check_options(FIFTYONE, options)
        return import_fiftyone(source, out, **options)  # type: ignore[arg-type]
    return import_files(source, out, format=format, **options)


def export_dataset(
    dataset: Dataset | str | Path, out: str | Path, *, format: str, split: str | None = None, **options: Any
) -> int:
    """Write a dataset as images, pdf, llava, sharegpt, coco, hf-dataset or fiftyone; return how many were written.

    `out` is a file for llava, sharegpt (.json or .jsonl), coco and pdf, a folder for images and hf-dataset, and for
    fiftyone the name of the FiftyOne dataset. `split` takes only that one. Raises `DataError` for an unknown format, or
    what the format cannot hold.

    >>> wb.export_dataset("data", "mine.json", format="llava")
    164
    """
    dataset = Dataset.open(dataset)
    if check_format(format, (*OUT, FIFTYONE)) == FIFTYONE:
        from workbench.curation.table import to_fiftyone

        if split is not None:
            fix = f"leave it out: a split is a tag there, as in view.match_tags({split!r})"
            raise DataError("option split", found="it for FiftyOne", expected="the whole dataset", fix=fix)
        return len(to_fiftyone(dataset, name=str(out), **options))
    return export_files(dataset, out, format=format, split=split, **options)
