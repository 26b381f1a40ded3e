"""A dataset's pictures as the pages of one PDF file, which `import_pdf` reads back pixel for pixel.

Knows: how a picture becomes a page without loss. Does not know: how pages are read (`pdf.py`).
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image as PILImage

from workbench.data.dataset import Dataset
from workbench.data.folder import resolve_inside
from workbench.data.images import load_image
from workbench.data.outgoing import outgoing_images, root_of
from workbench.data.pdf import SUFFIX
from workbench.errors import DataError
from workbench.progress import progress
from workbench.resources import write_atomic


def export_pdf(dataset: Dataset, out: str | Path, *, split: str | None = None) -> int:
    """Write the images that are ok to the PDF file `out`, one a page, in order; return how many.

    A pixel is a point, a 72nd of an inch: imported at `dpi=72` a page has the same pixels. It cannot hold paths, ids,
    captions, labels, splits, annotated objects, conversations or videos (their number is printed). Raises `DataError`
    where an image has gone, roots differ, or `out` is no name of a PDF file or there already.
    """
    import pypdfium2 as pdfium

    out, rows = Path(out), outgoing_images(dataset, split)
    if out.suffix.lower() != SUFFIX:
        raise DataError(str(out), found="another kind of name", expected=f"a file whose name ends in {SUFFIX}")
    if out.exists():
        raise DataError(str(out), found="something of that name", expected="a new file")
    root, document = root_of(dataset, rows), pdfium.PdfDocument.new()
    try:
        with progress("writing pages", total=rows.height) as bar:
            for path in rows["path"]:
                _add_page(document, load_image(resolve_inside(root, path)))
                bar.advance()
        held = io.BytesIO()
        document.save(held)
    finally:
        document.close()
    write_atomic(out, held.getvalue())
    return rows.height


def _add_page(document: object, picture: PILImage.Image) -> None:
    import pypdfium2 as pdfium

    page = document.new_page(*picture.size)  # type: ignore[attr-defined]
    image = pdfium.PdfImage.new(document)
    image.set_bitmap(pdfium.PdfBitmap.from_pil(picture))
    image.set_matrix(pdfium.PdfMatrix().scale(*picture.size))
    page.insert_obj(image)
    page.gen_content()
