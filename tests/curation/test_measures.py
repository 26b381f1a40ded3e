from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from PIL.Image import Image

from workbench.curation import measures
from workbench.curation.measures import vectors
from workbench.data.dataset import Dataset
from workbench.errors import DataError


@pytest.fixture
def dataset(tmp_path: Path, helpers: SimpleNamespace) -> Dataset:
    (tmp_path / "images").mkdir()
    for number in range(5):
        helpers.draw(number).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "5.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    (tmp_path / "images" / "6.png").write_bytes(b"nothing")
    return helpers.dataset_of(tmp_path, [f"{number}.png" for number in range(7)])


class Colors:
    """Measures the mean colour, and remembers how many pictures it was shown."""

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, pictures: Sequence[Image]) -> np.ndarray:
        self.shown += len(pictures)
        return np.stack([np.asarray(picture).mean(axis=(0, 1)) for picture in pictures])


def test_each_content_is_measured_once_and_kept(dataset: Dataset) -> None:
    colors = Colors()
    found = vectors(dataset, colors, name="colors-1", batch=2)
    assert found["id"].to_list() == ["0", "1", "2", "3", "4", "5"], "the broken one is left out"
    assert colors.shown == 5 and found["vector"][0].to_list() == found["vector"][5].to_list()
    assert vectors(Dataset.open(dataset.path), colors, name="colors-1").equals(found)
    assert colors.shown == 5
    vectors(dataset, colors, name="colors-2")
    assert colors.shown == 10


def test_an_interruption_loses_little(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "SAVE_EVERY", 2)
    colors = Colors()

    def stops(pictures: Sequence[Image]) -> np.ndarray:
        if colors.shown >= 4:
            raise KeyboardInterrupt
        return colors(pictures)

    with pytest.raises(KeyboardInterrupt):
        vectors(dataset, stops, name="colors", batch=2)
    assert vectors(dataset, colors, name="colors").height == 6
    assert colors.shown == 5


def test_another_model_under_the_same_name_is_refused(dataset: Dataset) -> None:
    _set_status(dataset, "removed")
    vectors(dataset, Colors(), name="colors")
    _set_status(dataset, "ok")
    with pytest.raises(DataError, match=r"an array \(1, 2\); expected \(1, 3\) .* another model needs another name"):
        vectors(dataset, lambda pictures: np.zeros((len(pictures), 2)), name="colors")


def test_what_is_no_vector_for_each_picture_is_refused(dataset: Dataset) -> None:
    for wrong in (np.zeros((5, 2, 2)), np.zeros((1, 3)), np.full((5, 3), np.nan)):
        with pytest.raises(DataError, match=r"expected \(5, D\) finite numbers"):
            vectors(dataset, lambda pictures, wrong=wrong: wrong, name="wrong")
    with pytest.raises(DataError, match="no file name"):
        vectors(dataset, Colors(), name="../colors")


def _set_status(dataset: Dataset, status: str) -> None:
    dataset.update_images(pl.DataFrame({"id": ["4"], "status": [status]}), operation={"name": "test"})


KILLED = """
import sys, time
import numpy as np
from workbench.curation import measures
from workbench.data.dataset import Dataset
measures.SAVE_EVERY = 8

def slow(pictures):
    time.sleep(0.05)
    return np.stack([np.asarray(picture).mean(axis=(0, 1)) for picture in pictures])

measures.vectors(Dataset.open(sys.argv[1]), slow, name="color", batch=4)
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_embeddings_of_a_killed_process_go_on_where_they_were(tmp_path: Path, helpers: SimpleNamespace) -> None:
    (tmp_path / "images").mkdir()
    names = [f"{number}.png" for number in range(80)]
    for number, name in enumerate(names):
        helpers.draw(number).resize((32, 32)).save(tmp_path / "images" / name)
    dataset, folder = helpers.dataset_of(tmp_path, names), tmp_path / "measures" / "color"
    here = {**os.environ, "PYTHONPATH": str(Path(measures.__file__).parents[2])}
    worker = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=here)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    kept = pl.concat([pl.read_parquet(path) for path in folder.glob("*.parquet")]).height
    assert 16 <= kept < 80, "it was killed half way"
    colors = Colors()
    found = vectors(dataset, colors, name="color", batch=4)
    assert colors.shown == 80 - kept, "what was measured is not measured again"
    assert found.equals(vectors(dataset, colors, name="undisturbed", batch=4))
