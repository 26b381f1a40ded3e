"""In and out: the one door to the file formats that become a dataset, or that a dataset becomes.

    images        a folder of pictures: class folders, captions.csv or .jsonl, texts beside them
    pdf           PDF documents, a picture per page
    llava         LLaVA's JSON or JSONL
    sharegpt      ShareGPT's JSON or JSONL
    coco          COCO captions and instances
    hf-dataset    Hugging Face datasets: a folder of save_to_disk, Parquet files, owner/name on the Hub

Knows: which there are, and what to call for each. Each lives in a module of its own, which says what it cannot hold.
Does not know: FiftyOne, which joins one room above (`curation/in_and_out.py`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from workbench.data.coco import import_coco
from workbench.data.coco_out import export_coco
from workbench.data.dataset import Dataset
from workbench.data.hf_datasets import export_hf, import_hf
from workbench.data.image_folder import import_folder
from workbench.data.image_folder_out import export_folder
from workbench.data.json_records import BadRecord
from workbench.data.llava_json import export_llava, import_llava, read_conversations
from workbench.data.pdf import import_pdf
from workbench.data.pdf_out import export_pdf
from workbench.data.recognise import recognise
from workbench.data.sharegpt import export_sharegpt, import_sharegpt, read_sharegpt
from workbench.errors import DataError

__all__ = [
    "BadRecord",
    "export_coco",
    "export_files",
    "export_folder",
    "export_hf",
    "export_llava",
    "export_pdf",
    "export_sharegpt",
    "import_coco",
    "import_files",
    "import_folder",
    "import_hf",
    "import_llava",
    "import_pdf",
    "import_sharegpt",
    "read_conversations",
    "read_sharegpt",
]

Source = str | Path | Sequence[str | Path]

_IN: dict[str, Callable[..., Dataset]] = {"images": import_folder, "pdf": import_pdf, "hf-dataset": import_hf}
_IN_WITH_IMAGES: dict[str, Callable[..., Dataset]] = {
    "llava": import_llava,
    "sharegpt": import_sharegpt,
    "coco": import_coco,
}
"""Formats that name images by paths below a folder."""
_OUT: dict[str, Callable[..., int]] = {
    "images": export_folder,
    "pdf": export_pdf,
    "llava": export_llava,
    "sharegpt": export_sharegpt,
    "coco": export_coco,
    "hf-dataset": export_hf,
}
IN, OUT = (*_IN, *_IN_WITH_IMAGES), tuple(_OUT)
_OPTIONS = {
    "images": ("text_column", "annotate"),
    "pdf": ("dpi",),
    **dict.fromkeys(_IN_WITH_IMAGES, ("images",)),
    "fiftyone": ("label", "objects", "captions"),
}
"""What an import takes beside `name`, `workers` and `card`."""


def import_files(
    source: Source, out: str | Path, *, format: str | None = None, images: str | Path | None = None, **options: Any
) -> Dataset:
    """Make the dataset `out` of files in any format of `IN`, told by what is in them where `format` is None.

    `images` is the folder that the paths in a LLaVA, ShareGPT or COCO file start from, by default the file's own. COCO
    takes several files at once. `options` go to the format's own function (name, workers, card; dpi, text_column).
    Raises `DataError` for a format that is not known or cannot be told, and as that function does.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    kinds = dict.fromkeys([check_format(format, IN)] if format else [recognise(one) for one in sources])
    if len(sources) != 1 and list(kinds) != ["coco"]:
        raise DataError(", ".join(map(str, sources)), found=f"{len(sources)} sources", expected="one, or COCO files")
    kind = next(iter(kinds))
    check_options(kind, options if images is None else {**options, "images": images})
    if kind in _IN_WITH_IMAGES:
        one = sources if kind == "coco" else Path(sources[0])
        return _IN_WITH_IMAGES[kind](one, images or Path(sources[0]).parent, out, **options)
    return _IN[kind](sources[0], out, **options)


def export_files(dataset: Dataset, out: str | Path, *, format: str, split: str | None = None, **options: Any) -> int:
    """Write a dataset in a format of `OUT`, images or conversations that are ok; return how many.

    Raises `DataError` for an unknown format, and as that format's own function does; its docstring says what the format
    cannot hold.
    """
    return _OUT[check_format(format, OUT)](dataset, out, split=split, **options)


def check_format(name: str, known: Iterable[str]) -> str:
    """The name, if it is known. Raises `DataError`, with the one that was probably meant."""
    names = list(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name.lower(), names, 1)
    fix = f"did you mean {near[0]}?" if near else ""
    raise DataError("format", found=repr(name), expected=" | ".join(names), fix=fix)


def check_options(kind: str, options: Iterable[str]) -> None:
    """Raise `DataError` for an option that imports of this format do not have."""
    known = ("name", "workers", "card", *_OPTIONS.get(kind, ()))
    for option in options:
        if option not in known:
            found = f"it for the format {kind}"
            raise DataError(f"option {option}", found=found, expected=", ".join(known), fix="leave it out")
