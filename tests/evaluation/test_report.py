"""The report is one file that stands alone, tells what the rows say, and survives pictures and texts that are odd."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image as PILImage

from workbench.data.dataset import Dataset
from workbench.errors import DataError
from workbench.evaluation.change_report import changes
from workbench.evaluation.coverage import covered
from workbench.evaluation.report import report
from workbench.report import picture_source

COLORS = ("red", "blue", "green")


def row(number: int, earned: float | None, **more: object) -> dict:
    base = {"id": f"q{number}", "type": "color", "image": f"{number}.png", "root": "images", "question": "Which color?"}
    told = {"reference": "red", "answer": "red" if earned else "blue", "said": None, "margin": None, "earned": earned}
    return {**base, **told, **more}


def folder(path: Path, rows: list[dict], **about: object) -> Path:
    path.mkdir(parents=True)
    (path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (path / "evaluation.json").write_text(json.dumps({"name": "mine", "scorer": "exact", **about}))
    return path


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for number in range(30):
        PILImage.new("RGB", (40, 40), COLORS[number % 3]).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path / "pictures"


def test_the_page_stands_alone_and_shows_twenty_failures(tmp_path: Path, drawn: Path) -> None:
    rows = [row(n, 0.0) for n in range(25)] + [row(25 + n, 1.0) for n in range(5)]
    results = folder(tmp_path / "tuned", rows, roots={"images": str(drawn)})
    page = report(results)
    text = page.read_text()
    assert page == results / "report.html"
    assert len(re.findall(r'<img [^>]*src="data:image/', text)) == 20 and "20 of 25 failures" in text
    assert "16.7" in text and "95 % interval" in text, "5 of 30 are right"
    assert not re.search(r'(src|href)="(?!data:)', text) and "http" not in text.replace("http-equiv", "")
    assert "@import" not in text and "prefers-color-scheme: dark" in text


def test_texts_of_others_are_shown_and_never_run(tmp_path: Path) -> None:
    odd = "<script>alert(1)</script>"
    made = [row(0, 0.0, question=odd, answer=odd, type=odd), row(1, 0.0, question=None, answer=None, image=None)]
    text = report(pl.DataFrame(made, infer_schema_length=None), tmp_path / "page.html").read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text and "(nothing)" in text and "no picture" in text


def test_a_picture_that_is_gone_does_not_end_the_page(tmp_path: Path, drawn: Path) -> None:
    (drawn / "0.png").unlink()
    (drawn / "1.png").write_bytes(b"no picture")
    rows = [row(n, 0.0) for n in range(3)] + [row(9, 0.0, image="../../etc/passwd")]
    text = report(folder(tmp_path / "r", rows, roots={"images": str(drawn)})).read_text()
    assert text.count(">gone<") == 3 and text.count("data:image/") == 1


def test_the_surest_failures_have_a_place_of_their_own(tmp_path: Path) -> None:
    rows = [row(n, 0.0, margin=float(n)) for n in range(8)] + [row(8, 1.0, margin=99.0)]
    text = report(pl.DataFrame(rows), tmp_path / "p.html").read_text()
    sure = text.split("Most confidently wrong")[1].split("<h2>")[0]
    assert re.findall(r"margin ([\d.]+)", sure) == ["7.00", "6.00", "5.00", "4.00", "3.00", "2.00"]
    assert "2 of 8 failures" in text


def test_failures_come_from_every_type_in_turn(tmp_path: Path) -> None:
    rows = [row(n, 0.0, type="common") for n in range(40)] + [row(50 + n, 0.0, type="rare") for n in range(3)]
    text = report(pl.DataFrame(rows), tmp_path / "p.html").read_text().split("of 43 failures")[1]
    assert len(re.findall(r"<small>rare ·", text)) == 3 and len(re.findall(r"<small>common ·", text)) == 17


def test_rows_without_a_folder_need_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="out=FILE.html"):
        report(pl.DataFrame([row(0, 1.0)]))
    assert report(pl.DataFrame([row(0, 1.0)]), tmp_path).name == "report.html"


# --- before and after ---------------------------------------------------------------------------------------------


def test_what_was_learned_and_what_was_forgotten_are_told_apart(tmp_path: Path, drawn: Path) -> None:
    learned = [row(n, float(n < 5)) for n in range(30)], [row(n, 1.0) for n in range(30)]
    general = [row(n, 1.0) for n in range(30)], [row(n, float(n < 10), answer="green") for n in range(30)]
    same = [row(n, float(n % 2)) for n in range(30)], [row(n, float(n % 2)) for n in range(30)]
    sets = {"mine": learned, "general": general, "other": same}
    roots = {"images": str(drawn)}
    before = [folder(tmp_path / "before" / name, rows[0], name=name, roots=roots) for name, rows in sets.items()]
    after = [folder(tmp_path / "after" / name, rows[1], name=name, roots=roots) for name, rows in sets.items()]
    found = {one.name: one for one in changes(before, after)}
    assert {name: one.verdict for name, one in found.items()} == {
        "mine": "better", "general": "forgotten", "other": "no change shown",
    }  # fmt: skip
    assert found["general"].lost.height == 20 and found["mine"].lost.height == 0
    text = report(before=before, after=after, out=tmp_path / "change.html").read_text()
    part = text.split("Right before, wrong now")[1]
    assert part.startswith(": 10 of 20<") and part.count("data:image/") == 10 and "green" in part
    assert "-66.7" in text and "+83.3" in text
    with pytest.raises(DataError, match="3 results before and 1 after"):
        report(before=before, after=after[:1], out=tmp_path / "c.html")


# --- coverage ---------------------------------------------------------------------------------------------------------


class _Mean:
    """Stands for a CLIP: a picture's mean color is its vector, so that what is near is known."""

    name = "mean-color"

    def embed_images(self, pictures: list[PILImage.Image]) -> np.ndarray:
        return np.array([np.asarray(one.convert("RGB")).mean((0, 1)) + 1 for one in pictures], np.float32)


def test_a_failure_far_from_all_training_pictures_is_not_covered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    shades = {f"train-{n}": (200, 20 + int(rng.integers(40)), 20 + int(rng.integers(40))) for n in range(40)}
    shades |= {"test-red": (200, 40, 40), "test-blue": (20, 30, 210), "test-right": (200, 30, 45)}
    for name, color in shades.items():
        PILImage.new("RGB", (16, 16), color).save(tmp_path / "images" / f"{name}.png")
    table = pl.DataFrame(
        {
            "id": list(shades),
            "path": [f"{name}.png" for name in shades],
            "status": ["ok"] * len(shades),
            "hash": list(shades),
            "split": [name.split("-")[0] for name in shades],
        }
    )
    dataset = Dataset.create(tmp_path, name="shades", images=table)
    monkeypatch.setattr("workbench.curation.search.clip_of", lambda model: _Mean())
    asked = [row(0, 0.0, image="test-red.png"), row(1, 0.0, image="test-blue.png"), row(2, 1.0, image="test-right.png")]
    told = covered(pl.DataFrame(asked), dataset, k=3)
    assert told.uncovered == ("test-blue.png",) and (told.failed, told.right, told.uncovered_right) == (2, 1, 0)
    assert told.share == 0.5 and "1 of 2 pictures with a wrong answer" in str(told)
    assert told.table["image"].to_list() == ["test-red.png"] * 3 + ["test-blue.png"] * 3
    assert all(name.startswith("train-") for name in told.table["train_image"])
    assert told.table["near"].to_list() == [True] * 3 + [False] * 3
    text = report(pl.DataFrame(asked), tmp_path / "page.html", dataset=dataset, coverage=told).read_text()
    near = text.split("Is it covered by the training data?")[1]
    assert near.count("data:image/") == 1 + 3 and "test-blue.png" in near
    lonely = dataset.images.filter(pl.col("split") != "train")
    with pytest.raises(DataError, match="0 training pictures"):
        covered(pl.DataFrame(asked), Dataset.create(tmp_path / "b", name="b", images=lonely))


def test_photos_go_into_the_page_as_jpeg_and_drawings_as_png() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    assert picture_source(PILImage.fromarray(noise)).startswith("data:image/jpeg")
    assert picture_source(PILImage.new("RGB", (200, 200), "red")).startswith("data:image/png")
