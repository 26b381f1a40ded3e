from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import polars as pl
import pytest

from workbench.curation import brain
from workbench.curation.brain import MAP, embedding_map, show_measures, uniqueness
from workbench.curation.image_measures import image_measures
from workbench.curation.table import to_fiftyone
from workbench.data.dataset import Dataset
from workbench.errors import DataError, MissingPackageError


@pytest.fixture
def vectors() -> pl.DataFrame:
    """Of the six good images: five alike, one the other way round. In another order than the dataset's."""
    matrix = np.random.default_rng(0).normal(0, 0.05, (6, 4)) + np.eye(4)[0]
    matrix[4] = -np.eye(4)[2]
    return pl.DataFrame({"id": [f"shape-{row}" for row in range(6)], "vector": matrix.tolist()}).reverse()


def test_measures_become_fields_of_the_images_they_are_of(shapes: Dataset, fiftyone: object) -> None:
    view = to_fiftyone(shapes, conversations=False)
    measured = image_measures(shapes)
    extra = pl.DataFrame({"id": ["nowhere"], "brightness": [1.0]})
    show_measures(view, pl.concat([measured.reverse(), extra], how="diagonal"))
    said = dict(zip(*view.values(["workbench_id", "brightness"]), strict=True))
    assert said == {**dict(measured.select("id", "brightness").iter_rows()), "torn": None}
    assert {"sharpness", "entropy", "bytes"} <= set(view.get_field_schema())
    assert view.count_values("bytes") and view.bounds("contrast")[0] > 0


def test_measures_come_with_the_view_in_one_call(shapes: Dataset, fiftyone: ModuleType) -> None:
    texts = pl.DataFrame({"id": ["shape-0", "shape-1"], "script": ["Latin", None], "many": [3, 4], "odd": [True, None]})
    measured = image_measures(shapes).join(texts, on="id", how="left")
    view = to_fiftyone(shapes, measures=measured)
    kinds = {name: type(field).__name__ for name, field in view.get_field_schema().items()}
    assert [kinds[name] for name in ("sharpness", "bytes", "script", "odd")] == [
        "FloatField", "IntField", "StringField", "BooleanField",
    ]  # fmt: skip
    sharp = dict(measured.select("id", "sharpness").iter_rows())
    assert dict(zip(*view.values(["workbench_id", "sharpness"]), strict=True)) == {**sharp, "torn": None}
    found = view.match(fiftyone.ViewField("many") > 3).values(["workbench_id", "script", "odd"])
    assert list(map(list, found)) == [["shape-1"], [None], [None]]
    assert not to_fiftyone(shapes).has_sample_field("sharpness"), "what is not asked for"


def test_a_part_of_the_view_gets_its_measures_and_the_rest_keeps_its_own(shapes: Dataset, fiftyone: ModuleType) -> None:
    view = to_fiftyone(shapes, measures=image_measures(shapes))
    before = dict(zip(*view.values(["workbench_id", "entropy"]), strict=True))
    sample = view.first()
    show_measures(view.limit(1), pl.DataFrame({"id": [*before], "entropy": [9.5] * len(before)}))
    assert dict(zip(*view.values(["workbench_id", "entropy"]), strict=True)) == {**before, sample.workbench_id: 9.5}
    assert sample.entropy == 9.5, "also for who holds the sample already"


def test_the_odd_one_is_unique_and_the_others_are_typical(
    tmp_path: Path, helpers: SimpleNamespace, fiftyone: object
) -> None:
    (tmp_path / "images").mkdir()
    names = [f"{number}.png" for number in range(31)]
    for number, name in enumerate(names):
        helpers.draw(number).save(tmp_path / "images" / name)
    view = to_fiftyone(helpers.dataset_of(tmp_path, names))
    matrix = np.random.default_rng(0).normal(0, 0.05, (30, 4)) + np.eye(4)[0]
    matrix[4] = -np.eye(4)[2]
    found = uniqueness(view, pl.DataFrame({"id": [str(row) for row in range(30)], "vector": matrix.tolist()}))
    assert set(found["id"]) == {str(row) for row in range(30)}, "30 has no vector"
    assert found.sort("uniqueness")["id"].to_list()[-1] == "4"
    assert found["representativeness"].drop_nulls().is_between(0, 1).all()
    assert found["representativeness"].null_count() < 10 and found["representativeness"].n_unique() > 5
    said = dict(zip(*view.values(["workbench_id", "uniqueness"]), strict=True))
    assert said == {**dict(found.select("id", "uniqueness").iter_rows()), "30": None}


def test_the_map_lies_in_fiftyone_and_keeps_the_odd_one_apart(
    shapes: Dataset, vectors: pl.DataFrame, fiftyone: object
) -> None:
    view = to_fiftyone(shapes, conversations=False)
    for _ in range(2):  # made anew, the first is replaced
        found = embedding_map(view, vectors)
    assert view.list_brain_runs() == [MAP] and len(view.load_brain_results(MAP).points) == 6
    points = {row[0]: np.array(row[1:]) for row in found.iter_rows()}
    others = [points[name] for name in points if name != "shape-4"]
    near = max(np.linalg.norm(one - other) for one in others for other in others)
    assert min(np.linalg.norm(points["shape-4"] - other) for other in others) > 2 * near


def test_too_few_vectors_are_refused(shapes: Dataset, vectors: pl.DataFrame, fiftyone: object) -> None:
    view = to_fiftyone(shapes, conversations=False)
    with pytest.raises(DataError, match="found 2 images of the view with a vector; expected at least 3"):
        embedding_map(view, vectors.head(2))
    with pytest.raises(DataError, match="found 6 images .* expected at least 20"):
        uniqueness(view, vectors)


def test_umap_says_what_to_install(
    shapes: Dataset, vectors: pl.DataFrame, fiftyone: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brain, "find_spec", lambda name: None)
    view = to_fiftyone(shapes, conversations=False)
    with pytest.raises(MissingPackageError, match=r"pip install 'llava-workbench\[umap\]'"):
        embedding_map(view, vectors, method="umap")
    assert embedding_map(view, vectors).height == 6, "not asked for, it is not missed"


@pytest.mark.skipif(find_spec("umap") is None, reason="no UMAP: pip install 'llava-workbench[umap]'")
def test_the_map_is_by_umap_where_it_can_be(tmp_path: Path, helpers: SimpleNamespace, fiftyone: object) -> None:
    (tmp_path / "images").mkdir()
    names = [f"{number}.png" for number in range(40)]
    for number, name in enumerate(names):
        helpers.draw(number).save(tmp_path / "images" / name)
    view = to_fiftyone(helpers.dataset_of(tmp_path, names))
    rng = np.random.default_rng(0)
    matrix = np.eye(8)[np.arange(40) % 2 * 3] + rng.normal(0, 0.02, (40, 8))  # two kinds
    frame = pl.DataFrame({"id": [str(row) for row in range(40)], "vector": matrix.tolist()})
    found = embedding_map(view, frame)
    assert view.load_brain_results(MAP).config.method == "umap"
    points = {kind: found.filter(pl.col("id").cast(int) % 2 == kind).select("x", "y").to_numpy() for kind in (0, 1)}
    apart = np.linalg.norm(points[0].mean(axis=0) - points[1].mean(axis=0))
    assert apart > 2 * max(np.linalg.norm(part - part.mean(axis=0), axis=1).max() for part in points.values())
    assert embedding_map(view, frame).equals(found), "the same each time"
    embedding_map(view, frame.head(6))
    assert view.load_brain_results(MAP).config.method == "pca", "UMAP cannot map so few"
    with pytest.raises(DataError, match="found 6 images .* expected at least 20"):
        embedding_map(view, frame.head(6), method="umap")
