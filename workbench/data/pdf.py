"""PDF files (scans, documents) as a dataset of their pages, each rendered to a PNG file.

    out/media/report.pdf/0001.png    page 1 of report.pdf; the columns document and page say where it came from

Knows: pages, resolution, what keeps a document or a page from being read (a password, damage, an enormous size), and
which pages an interrupted import has rendered already.
Does not know: the text of a page, or how images are checked (`image_rows.py`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

from workbench.data.batches import map_batches
from workbench.data.dataset import Dataset
from workbench.data.folder import resolve_inside
from workbench.data.image_rows import ROOT, image_rows, refuse_existing
from workbench.data.images import LIMITS
from workbench.data.imported import by_reason, keep
from workbench.errors import DataError
from workbench.resources import disk_errors

MEDIA, SUFFIX = "media", ".pdf"
DPI = 150
"""A page of A4 has 1240 x 1754 pixels then: small print is legible."""
_PER_INCH = 72  # a PDF's own unit
_AT_ONCE = 16
_PASSWORD = 4  # PDFium's number of the error
_MADE_OF = "made of"
"""Key in a rendered PNG file: document by its hash, page, resolution. One made of the same is not rendered again."""

Pages = tuple[str, str, str, str, int, int, int]
"""Folder of the documents, folder of the pages, document, its hash, first page and the one after the last (from 0),
dpi."""


def import_pdf(
    source: str | Path,
    out: str | Path,
    *,
    dpi: int = DPI,
    name: str | None = None,
    workers: int | None = None,
    card: Mapping[str, Any] | None = None,
) -> Dataset:
    """Make the dataset `out` of the pages of a PDF file, or of every PDF file in a folder; print what came of it.

    Pages are rendered at `dpi` dots per inch. A document that cannot be opened, and a page that cannot be rendered,
    are quarantined rows with the reason. An import that broke off goes on where it was when it is called again. Raises
    `DataError` where there is no PDF file, or `out` is a dataset already.
    """
    source, out = Path(source), Path(out)
    refuse_existing(out)
    if not 10 <= dpi <= 1200:
        raise DataError("dpi", found=str(dpi), expected="10 to 1200 dots per inch; 72 to 300 are usual")
    folder, documents = _documents(source)
    counts = dict(zip(documents, _counts(folder, documents, workers), strict=True))
    bad = {document: found for document, found in counts.items() if isinstance(found, str)}
    jobs = [
        (str(folder), str(out / MEDIA), document, found[1], start, min(start + _AT_ONCE, found[0]), dpi)
        for document, found in counts.items()
        if not isinstance(found, str)
        for start in range(0, found[0], _AT_ONCE)
    ]
    with disk_errors(out):
        for found in map_batches(_render, jobs, "rendering pages", batch_size=1, workers=workers, on_crash=_crashed):
            bad |= found
    frame = _rows(out, jobs, bad, workers)
    report = {"documents": len(documents), "pages": len(frame), "quarantined": by_reason(frame)}
    made = {"made": f"pages of {source.name} at {dpi} dpi"}
    name = name or source.resolve().stem
    return keep(out, frame, report, name=name, roots={ROOT: MEDIA}, made=made, card=card, noun="pages")


def _documents(source: Path) -> tuple[Path, list[str]]:
    """The folder, and the documents in it."""
    if source.is_file():
        return source.parent, [source.name]
    if not source.is_dir():
        raise DataError(str(source), found="no such file or folder", expected="a PDF file, or a folder of them")
    inside = (path.relative_to(source) for path in source.rglob("*") if path.suffix.lower() == SUFFIX)
    names = sorted(path.as_posix() for path in inside if not any(part.startswith(".") for part in path.parts))
    if not names:
        raise DataError(str(source), found="no PDF file", expected=f"files ending in {SUFFIX}")
    return source, names


def _counts(folder: Path, documents: list[str], workers: int | None) -> list[tuple[int, str] | str]:
    """For each document its number of pages and its hash, or why it has none."""
    jobs = [(str(folder), document) for document in documents]
    crashed = "a document that crashes its reader, or needs too much memory"
    return list(map_batches(_count, jobs, "opening documents", workers=workers, on_crash=lambda job: crashed))


def _rows(out: Path, jobs: list[Pages], bad: Mapping[str, str], workers: int | None) -> pl.DataFrame:
    """One row per page, and one for each document that could not be opened."""
    media = out / MEDIA
    pages: list[tuple[str, str, int | None]]
    pages = [(page_path(job[2], page), job[2], page + 1) for job in jobs for page in range(job[4], job[5])]
    known = {path for path, _, _ in pages}
    pages += [(document, document, None) for document in bad if document not in known]
    media.mkdir(parents=True, exist_ok=True)
    for path in bad:
        (media / path).unlink(missing_ok=True)  # of an earlier try
    frame = image_rows(media, [path for path, _, _ in pages], out, workers=workers)
    why = pl.Series("why", [bad.get(path) for path, _, _ in pages], dtype=pl.String)
    return frame.with_columns(
        pl.coalesce(why, "reason").alias("reason"),
        pl.Series("document", [document for _, document, _ in pages], dtype=pl.String),
        pl.Series("page", [page for _, _, page in pages], dtype=pl.Int64),
    )


def page_path(document: str, page: int) -> str:
    """Where the page of a document (from 0) is rendered to, below the root."""
    return f"{document}/{page + 1:04}.png"


# --- in the workers ---------------------------------------------------------------------------------------------


def _open(folder: str, document: str) -> Any:
    """The document. Raises `DataError` with the reason as `found`."""
    import pypdfium2 as pdfium

    path = resolve_inside(Path(folder), document)
    try:
        opened = pdfium.PdfDocument(path)
        if opened.get_formtype():
            opened.init_forms()  # before any page, so that what people filled in is drawn
        return opened
    except pdfium.PdfiumError as problem:
        locked = problem.err_code == _PASSWORD
        found = "a document behind a password" if locked else "a damaged document, or none in PDF"
        raise DataError(document, found=found, fix="save it without one" if locked else "get it again") from problem
    except OSError as problem:
        raise DataError(document, found=f"a file that cannot be read ({problem.strerror})") from problem


def _count(job: tuple[str, str]) -> tuple[int, str] | str:
    try:
        opened = _open(*job)
        with open(resolve_inside(Path(job[0]), job[1]), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return (len(opened), digest) if len(opened) else "a document without pages"
    except DataError as problem:
        return "; ".join(part for part in (problem.found, problem.fix) if part)


def _render(job: Pages) -> dict[str, str]:
    """Write the pages that are not there yet; returns those that could not be, with the reason."""
    from pypdfium2 import PdfiumError

    folder, media, document, digest, start, end, dpi = job
    opened, bad = _open(folder, document), {}
    for page in range(start, end):
        path, made_of = page_path(document, page), f"{digest}, page {page + 1}, {dpi} dpi"
        if _is_made_of(Path(media, path), made_of):
            continue
        try:
            _render_page(opened[page], Path(media, path), dpi, made_of)
        except DataError as problem:
            bad[path] = problem.found
        except PdfiumError as problem:
            bad[path] = f"a damaged page ({problem})"
    return bad


def _is_made_of(path: Path, made_of: str) -> bool:
    try:
        with PILImage.open(path) as picture:
            return picture.info.get(_MADE_OF) == made_of
    except OSError:
        return False


def _render_page(page: Any, path: Path, dpi: int, made_of: str) -> None:
    width, height = (side * dpi / _PER_INCH for side in page.get_size())
    if width * height > LIMITS.pixels:
        raise DataError(str(path), found=f"an enormous page: {width:.0f} x {height:.0f} pixels at {dpi} dpi")
    picture = page.render(scale=dpi / _PER_INCH).to_pil()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, said = path.with_suffix(".tmp"), PngInfo()
    said.add_text(_MADE_OF, made_of)
    picture.save(unfinished, "PNG", pnginfo=said, dpi=(dpi, dpi))
    os.replace(unfinished, path)


def _crashed(job: Pages) -> dict[str, str]:
    why = "a page that crashes its reader, or one beside it"
    return {page_path(job[2], page): why for page in range(job[4], job[5])}
