"""map_batches on a Ray cluster of two workers on this machine: results, errors and restarts as with local processes."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from tests.data.test_batches import raise_at_3, square, square_but_die_at_13
from workbench.curation import image_measures as module
from workbench.curation import measures
from workbench.curation.filters import curate
from workbench.curation.image_measures import image_measures
from workbench.curation.measures import vectors
from workbench.data import batches
from workbench.data.batches import map_batches, use_engine
from workbench.data.formats import import_folder
from workbench.errors import DataError, ImageError, MissingPackageError

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="no Ray: pip install 'llava-workbench[ray]'"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    root = str(Path(batches.__file__).parents[2])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = root  # for the workers
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """40 pictures of noise, one of them torn."""
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (24, 24 + number, 3), np.uint8)).save(
            tmp_path / f"pictures/{number:02}.png"
        )
    torn = tmp_path / "pictures/07.png"
    torn.write_bytes(torn.read_bytes()[:100])
    return tmp_path / "pictures"


def mean_color(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, np.float32).mean(axis=(0, 1)) for image in images])


def worker_of(item: int) -> int:
    return os.getpid()


@needs_ray
def test_results_are_those_of_local_processes_in_the_same_order(cluster: None) -> None:
    local = list(map_batches(square, range(50), "square", batch_size=7, workers=2))
    assert list(map_batches(square, range(50), "square", batch_size=7, engine="ray")) == local
    workers = set(map_batches(worker_of, range(8), "where", batch_size=1, workers=2, engine="ray"))
    assert os.getpid() not in workers, "Ray did not do it"


@needs_ray
def test_an_exception_arrives_as_it_is_and_names_the_item(cluster: None) -> None:
    told = []
    for engine in ("local", "ray"):
        done = []
        with pytest.raises(DataError, match="^item 3: found a fault") as raised:
            done.extend(map_batches(raise_at_3, range(8), "square", batch_size=2, workers=2, engine=engine))
        told.append((str(raised.value), raised.value.__notes__))
    assert told[0] == told[1] and told[0][1] == ["while working on 3"]


@needs_ray
def test_an_item_that_kills_its_worker_is_found_and_the_others_are_done(cluster: None) -> None:
    options = {"batch_size": 5, "workers": 2, "engine": "ray"}
    found = list(map_batches(square_but_die_at_13, range(20), "square", on_crash=lambda _: -1, **options))
    assert found == [-1 if item == 13 else item * item for item in range(20)]
    with pytest.raises(DataError, match="^13: found its worker process died"):
        list(map_batches(square_but_die_at_13, range(20), "square", **options))


@needs_ray
def test_import_measures_and_embeddings_are_the_same(
    cluster: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POOL_FROM", 1)
    found = []
    for engine in ("local", "ray"):
        monkeypatch.setenv("WORKBENCH_ENGINE", engine)
        dataset = import_folder(pictures, tmp_path / engine)
        embedded = vectors(dataset, mean_color, name="color", batch=8)
        found.append((dataset.images, image_measures(dataset), embedded))
    assert all(one.equals(other) for one, other in zip(*found, strict=True))
    assert found[0][0]["status"].value_counts().sort("count").rows() == [("quarantined", 1), ("ok", 39)]


@needs_ray
def test_measures_that_broke_off_go_on_where_they_were(
    cluster: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POOL_FROM", 1)
    monkeypatch.setattr(measures, "SAVE_EVERY", 8)
    whole = image_measures(import_folder(pictures, tmp_path / "local"))
    dataset = import_folder(pictures, tmp_path / "dataset")
    last = pictures / "39.png"
    kept, _ = last.read_bytes(), last.unlink()
    with use_engine("ray"), pytest.raises(ImageError, match=r"39\.png: found no such file"):
        image_measures(dataset)
    last.write_bytes(kept)
    parts = list((tmp_path / "dataset/measures/pixels-2").glob("*.parquet"))
    done = set(pl.concat([pl.read_parquet(part) for part in parts])["key"])
    assert len(done) >= 16
    for name, key in dataset.images.select("path", "hash").iter_rows():
        if key in done:
            (pictures / name).unlink()  # what was measured is not opened again
    with use_engine("ray"):
        assert image_measures(dataset).equals(whole)


@needs_ray
def test_a_recipe_asks_for_it(cluster: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL_FROM", 1)
    import workbench.data.ray_batches as ray_batches

    real, used = ray_batches.in_ray, []
    monkeypatch.setattr(ray_batches, "in_ray", lambda *given: (used.append(given[0]), real(*given))[1])
    dataset = import_folder(pictures, tmp_path / "dataset")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("kind: curate\nname: x\nengine: ray\nfilters:\n  entropy: {min: 1}\n  width: {max: 40}\n")
    assert curate(dataset, recipe).table["removed"].to_list() == [0, 23]
    assert used, "the recipe's engine was not used"


def test_without_the_extra_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "find_spec", lambda name: None)
    with use_engine("ray"), pytest.raises(MissingPackageError, match=r"pip install 'llava-workbench\[ray\]'"):
        list(map_batches(square, range(3), "square"))


def test_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_ENGINE", "rya")
    with pytest.raises(DataError, match=r"\$WORKBENCH_ENGINE: found 'rya'; expected local or ray"):
        list(map_batches(square, range(3), "square"))
