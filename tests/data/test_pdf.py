"""Pages of PDF files become images; a document or page that cannot be read is a row with its reason."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from PIL import Image as PILImage

from workbench.conversation import Image
from workbench.data.dataset import Dataset
from workbench.data.formats import export_pdf, import_folder, import_pdf
from workbench.data.images import load_image
from workbench.errors import DataError

LOCKED = base64.b64decode(
    "JVBERi0xLjQKJb/3ov4KMSAwIG9iago8PCAvUGFnZXMgMiAwIFIgL1R5cGUgL0NhdGFsb2cgPj4KZW5kb2JqCjIgMCBvYmoKPDwgL0NvdW50ID"
    "EgL0tpZHMgWyAzIDAgUiBdIC9UeXBlIC9QYWdlcyA+PgplbmRvYmoKMyAwIG9iago8PCAvQ29udGVudHMgNCAwIFIgL01lZGlhQm94IFsgMCAw"
    "IDcyIDcyIF0gL1BhcmVudCAyIDAgUiAvUmVzb3VyY2VzIDw8ID4+IC9UeXBlIC9QYWdlID4+CmVuZG9iago0IDAgb2JqCjw8IC9MZW5ndGggMC"
    "AvRmlsdGVyIC9GbGF0ZURlY29kZSA+PgpzdHJlYW0KCmVuZHN0cmVhbQplbmRvYmoKNSAwIG9iago8PCAvRmlsdGVyIC9TdGFuZGFyZCAvTGVu"
    "Z3RoIDEyOCAvTyA8MmEyZjBhMTk5MDE5MmM2MDExNDczMGJkY2QzOWYzNzgyOGE1M2M4OWEzNDBkZDQ3M2M4NTI5OWRjNTI1OGUxYz4gL1AgLT"
    "EwMjggL1IgMyAvVSA8YTA5ZTJhYTA5MDUwMjkyMjQyY2E0NGUzZWE1MzBiMGUwMDIxNDQ2OTkwYjllNDExNDA3MWE0ZDkxMDQ5ODRjMT4gL1Yg"
    "MiA+PgplbmRvYmoKeHJlZgowIDYKMDAwMDAwMDAwMCA2NTUzNSBmIAowMDAwMDAwMDE1IDAwMDAwIG4gCjAwMDAwMDAwNjQgMDAwMDAgbiAKMD"
    "AwMDAwMDEyMyAwMDAwMCBuIAowMDAwMDAwMjI3IDAwMDAwIG4gCjAwMDAwMDAyOTcgMDAwMDAgbiAKdHJhaWxlciA8PCAvUm9vdCAxIDAgUiAv"
    "U2l6ZSA2IC9JRCBbPDMxNDE1OTI2NTM1ODk3OTMyMzg0NjI2NDMzODMyNzk1PjwzMTQxNTkyNjUzNTg5NzkzMjM4NDYyNjQzMzgzMjc5NT5dIC"
    "9FbmNyeXB0IDUgMCBSID4+CnN0YXJ0eHJlZgo1MDcKJSVFT0YK"
)
"""One blank page behind a password."""


def pdf(path: Path, *colors: str, size: tuple[int, int] = (72, 144)) -> Path:
    """A document with a page of each colour, 1 x 2 inches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = (PILImage.new("RGB", size, color) for color in colors)
    first.save(path, "PDF", resolution=72, save_all=True, append_images=rest)
    return path


def test_every_page_is_an_image_at_the_stated_resolution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = import_pdf(pdf(tmp_path / "report.pdf", "red", "blue"), tmp_path / "ds", dpi=100)
    columns = dataset.images.select("path", "width", "height", "status", "document", "page").rows()
    assert columns == [
        ("report.pdf/0001.png", 100, 200, "ok", "report.pdf", 1),
        ("report.pdf/0002.png", 100, 200, "ok", "report.pdf", 2),
    ]
    picture = load_image(dataset.resolve(Image("report.pdf/0002.png")))
    red, _, blue = picture.getpixel((50, 100))  # type: ignore[misc]
    assert blue > 200 and red < 50
    assert dataset.name == "report" and dataset.card["made"] == "pages of report.pdf at 100 dpi"
    assert "report: 2 pages in" in capsys.readouterr().out


def test_a_folder_of_documents_some_of_which_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pdf(tmp_path / "in/deep/a.PDF", *["white"] * 20)  # more pages than one worker gets at once
    whole = pdf(tmp_path / "in/b.pdf", "red", "green", "blue").read_bytes()
    page = [at for at in range(len(whole)) if whole.startswith(b"/Type /Page\n", at)][1]
    (tmp_path / "in/b.pdf").write_bytes(whole[:page] + b"/Type /Xage\n" + whole[page + 12 :])
    (tmp_path / "in/half.pdf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/empty.pdf").touch()
    (tmp_path / "in/locked.pdf").write_bytes(LOCKED)
    (tmp_path / "in/.hidden.pdf").write_bytes(whole)
    (tmp_path / "in/notes.txt").touch()
    dataset = import_pdf(tmp_path / "in", tmp_path / "ds", dpi=20, workers=2)
    rows = dataset.images
    assert rows.height == 20 + 3 + 3 and (rows["status"] == "ok").sum() == 22
    assert [page for document, page in rows.select("document", "page").rows() if document == "deep/a.PDF"] == [
        *range(1, 21)
    ]
    assert dict(rows.filter(rows["status"] != "ok").select("path", "reason").rows()) == {
        "b.pdf/0002.png": "a damaged page (Failed to load page.)",
        "empty.pdf": "a damaged document, or none in PDF; get it again",
        "half.pdf": "a damaged document, or none in PDF; get it again",
        "locked.pdf": "a document behind a password; save it without one",
    }
    report = json.loads((tmp_path / "ds/import.json").read_text())
    assert report["quarantined"]["a document behind a password"] == ["locked.pdf"]
    assert "a document behind a password: 1: locked.pdf" in capsys.readouterr().out
    assert not list((tmp_path / "ds").rglob("*.tmp"))


def test_an_enormous_page_is_not_rendered(tmp_path: Path) -> None:
    pdf(tmp_path / "plan.pdf", "red", size=(900, 900))
    dataset = import_pdf(tmp_path / "plan.pdf", tmp_path / "ds", dpi=1200)
    assert dataset.images["reason"].to_list() == ["an enormous page: 15000 x 15000 pixels at 1200 dpi"]


def test_a_dataset_of_pages_can_be_moved(tmp_path: Path) -> None:
    import_pdf(pdf(tmp_path / "a.pdf", "red"), tmp_path / "ds", dpi=20)
    (tmp_path / "a.pdf").unlink()
    moved = Dataset.open((tmp_path / "ds").rename(tmp_path / "moved"))
    assert moved.resolve(Image("a.pdf/0001.png")).is_file()


def test_what_cannot_be_imported_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found no PDF file; expected files ending in .pdf"):
        import_pdf(tmp_path / "empty", tmp_path / "ds")
    with pytest.raises(DataError, match="found no such file or folder; expected a PDF file"):
        import_pdf(tmp_path / "gone.pdf", tmp_path / "ds")
    with pytest.raises(DataError, match="dpi: found 5; expected 10 to 1200"):
        import_pdf(pdf(tmp_path / "a.pdf", "red"), tmp_path / "ds", dpi=5)
    assert not (tmp_path / "ds").exists()


def test_an_import_that_broke_off_renders_only_what_is_missing(tmp_path: Path) -> None:
    source, media = pdf(tmp_path / "a.pdf", "red", "blue", "green"), tmp_path / "ds/media/a.pdf"
    import_pdf(source, tmp_path / "ds", dpi=20)
    before = {path.name: path.stat().st_mtime_ns for path in sorted(media.iterdir())}
    assert list(before) == ["0001.png", "0002.png", "0003.png"]
    (tmp_path / "ds/card.yaml").unlink()  # the card is written last
    (media / "0002.png").write_bytes((media / "0001.png").read_bytes())
    (media / "0003.png").write_bytes((media / "0003.png").read_bytes()[:30])
    again = import_pdf(source, tmp_path / "ds", dpi=20)
    after = {path.name: path.stat().st_mtime_ns for path in sorted(media.iterdir())}
    assert before["0001.png"] == after["0001.png"]
    assert before["0002.png"] < after["0002.png"] and before["0003.png"] < after["0003.png"]
    assert again.images["status"].to_list() == ["ok"] * 3 and again.images["hash"].n_unique() == 3

    (tmp_path / "ds/card.yaml").unlink()
    assert import_pdf(source, tmp_path / "ds", dpi=40).images["width"].to_list() == [40] * 3


def test_pictures_of_every_size_go_out_as_pages_and_come_back_pixel_for_pixel(tmp_path: Path) -> None:
    sizes = [(1, 1), (7, 300), (640, 427), (301, 199)]
    (tmp_path / "in").mkdir()
    for number, (width, height) in enumerate(sizes):
        noise = PILImage.effect_noise((width, height), 80)
        PILImage.merge("RGB", (noise, noise.rotate(180), noise.point(lambda v: 255 - v))).save(
            tmp_path / "in" / f"{number}.png"
        )
    dataset = import_folder(tmp_path / "in", tmp_path / "ds", workers=1)
    assert export_pdf(dataset, tmp_path / "72.pdf") == len(sizes)
    again = import_pdf(tmp_path / "72.pdf", tmp_path / "again", dpi=72, workers=1)
    for before, after in zip(dataset.images["path"], again.images["path"], strict=True):
        pictures = [load_image(dataset.roots["images"] / before), load_image(again.roots["images"] / after)]
        assert pictures[0].size == pictures[1].size and pictures[0].tobytes() == pictures[1].tobytes()
    for out, message in (("72.pdf", "something of that name"), ("pages", r"ends in \.pdf")):
        with pytest.raises(DataError, match=message):
            export_pdf(dataset, tmp_path / out)
