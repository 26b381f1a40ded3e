from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageFilter

from workbench.curation import image_measures as module
from workbench.curation.duplicates import near_groups
from workbench.curation.image_measures import MEANING, image_measures
from workbench.data.dataset import Dataset
from workbench.data.formats import import_folder
from workbench.errors import DataError, ImageError


@pytest.fixture
def dataset(tmp_path: Path, helpers: SimpleNamespace) -> Dataset:
    (tmp_path / "images").mkdir()
    grain = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)
    pictures = {
        "grain": Image.fromarray(grain),
        "soft": Image.fromarray(grain).filter(ImageFilter.GaussianBlur(3)),
        "black": Image.new("RGB", (30, 90)),
        "halves": Image.fromarray(np.repeat([[0, 255]], 8, axis=1).repeat(8, axis=0).astype(np.uint8)),
        "large": Image.new("L", (2000, 1000), 200),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / "images" / f"{name}.png")
    return helpers.dataset_of(tmp_path, [f"{name}.png" for name in pictures])


def test_what_is_measured_is_what_a_person_sees(dataset: Dataset) -> None:
    found = image_measures(dataset)
    assert found.columns == ["id", *MEANING]
    rows = {row["id"]: row for row in found.iter_rows(named=True)}
    assert rows["black"] | {"bytes": 0} == {
        "id": "black", "width": 30, "height": 90, "aspect": 30 / 90, "bytes": 0,
        "brightness": 0, "contrast": 0, "sharpness": 0, "entropy": 0,
    }  # fmt: skip
    assert rows["halves"]["brightness"] == rows["halves"]["contrast"] == 127.5 and rows["halves"]["entropy"] == 1
    assert rows["grain"]["sharpness"] > 100 * rows["soft"]["sharpness"] > 0 and rows["grain"]["entropy"] > 7
    assert rows["large"]["brightness"] == 200 and rows["large"]["width"] == 2000
    size = (dataset.path / "images" / "grain.png").stat().st_size
    assert rows["grain"]["bytes"] == size


def test_an_edge_between_colours_of_equal_brightness_is_sharp(tmp_path: Path, helpers: SimpleNamespace) -> None:
    (tmp_path / "images").mkdir()
    halves = Image.new("RGB", (64, 64), (200, 60, 60))
    halves.paste((40, 130, 80), (32, 0, 64, 64))
    assert np.ptp(np.asarray(halves.convert("L"))) <= 5
    halves.save(tmp_path / "images/sharp.png")
    halves.filter(ImageFilter.GaussianBlur(4)).save(tmp_path / "images/soft.png")
    found = dict(
        image_measures(helpers.dataset_of(tmp_path, ["sharp.png", "soft.png"])).select("id", "sharpness").rows()
    )
    assert found["sharp"] > 300 > 10 > found["soft"]


def test_each_content_is_opened_once_and_a_missing_file_is_named(dataset: Dataset) -> None:
    first = image_measures(dataset)
    (dataset.path / "images" / "grain.png").unlink()
    assert image_measures(Dataset.open(dataset.path)).equals(first)
    for part in (dataset.path / "measures" / "pixels-2").iterdir():
        part.unlink()
    with pytest.raises(ImageError, match=r"grain\.png: found no such file"):
        image_measures(dataset)


def test_a_damaged_part_is_named_with_what_to_do(dataset: Dataset) -> None:
    image_measures(dataset)
    (part,) = (dataset.path / "measures" / "pixels-2").iterdir()
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match=r"\.parquet: found a damaged measure .*delete it: it is made anew"):
        image_measures(dataset)


def test_processes_measure_the_same_as_this_one(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = image_measures(dataset)
    for part in (dataset.path / "measures" / "pixels-2").iterdir():
        part.unlink()
    monkeypatch.setattr(module, "POOL_FROM", 1)
    assert image_measures(dataset, workers=2).equals(alone)


KILLED = """
import sys
from workbench.curation import image_measures as module, measures
from workbench.data.dataset import Dataset
measures.SAVE_EVERY = 10
import time
plain = module._measure
def slow(path):
    time.sleep(0.02)
    return plain(path)
module._measure = slow
module.image_measures(Dataset.open(sys.argv[1]), workers=1)
"""


def test_a_killed_process_goes_on_where_it_was(tmp_path: Path, helpers: SimpleNamespace) -> None:
    (tmp_path / "images").mkdir()
    names = [f"{number}.png" for number in range(120)]
    for number, name in enumerate(names):
        helpers.draw(number).resize((32, 32)).save(tmp_path / "images" / name)
    dataset = helpers.dataset_of(tmp_path, names)
    worker = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ)
    folder = tmp_path / "measures" / "pixels-2"
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    kept = pl.concat([pl.read_parquet(path) for path in folder.glob("*.parquet")])
    assert 30 <= kept.height < len(names), "it was killed half way"
    opened = [path for path in tmp_path.joinpath("images").iterdir() if path.stem in kept_ids(dataset, kept)]
    for path in opened:
        path.unlink()  # what was measured is not opened again
    found = image_measures(dataset)
    assert found["id"].to_list() == dataset.images["id"].to_list() and not any(found.null_count().row(0))
    for path in folder.iterdir():
        path.unlink()
    for number, name in enumerate(names):
        helpers.draw(number).resize((32, 32)).save(tmp_path / "images" / name)
    assert image_measures(dataset).equals(found), "an undisturbed run says the same"


def kept_ids(dataset: Dataset, kept: pl.DataFrame) -> set[str]:
    return set(dataset.images.filter(pl.col("hash").is_in(kept["key"].implode()))["id"])


def test_real_photographs_of_every_kind_are_measured(tmp_path: Path) -> None:
    """Grey, RGBA, palette, 2-bit, odd sizes: what scikit-image carries in its wheel."""
    data = pytest.importorskip("skimage.data")
    source = Path(data.__file__).parent
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix in (".png", ".jpg", ".gif", ".tif"):
            (pictures / path.name).write_bytes(path.read_bytes())
    with Image.open(source / "astronaut.png") as opened:
        astronaut = opened.convert("RGB")
        astronaut.filter(ImageFilter.GaussianBlur(6)).save(pictures / "blurred.png")
        astronaut.resize((300, 300)).save(pictures / "again.jpg", quality=80)
    dataset = import_folder(pictures, tmp_path / "dataset")
    names = dict(dataset.images.select("id", "path").iter_rows())
    refused = set(dataset.images.filter(pl.col("status") != "ok")["path"])
    assert refused <= {"multipage_rgb.tif"}, "four bands in planes of their own: Pillow cannot read it"
    found = image_measures(dataset)
    assert found.height == len(names) - len(refused) > 20 and not any(found.null_count().row(0))
    rows = {names[row["id"]]: row for row in found.iter_rows(named=True)}
    assert rows["blurred.png"]["sharpness"] < rows["astronaut.png"]["sharpness"] / 50
    assert rows["phantom.png"]["brightness"] < rows["page.png"]["brightness"]
    groups = near_groups(dataset, dataset.images)
    together = {frozenset(names[one] for one in group["id"]) for _, group in groups.group_by("group")}
    assert together == {
        frozenset({"astronaut.png", "again.jpg", "blurred.png"}),
        frozenset({"chessboard_GRAY.png", "chessboard_RGB.png"}),  # one picture in two modes
    }
