"""Search and caption similarity with the shipped CLIP on drawn scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from workbench.curation import search as module
from workbench.curation.search import caption_similarity, search
from workbench.data.dataset import Dataset
from workbench.data.scene_files import Planted, make
from workbench.errors import DataError, ModelError
from workbench.model.clip import Clip

COUNT = 240


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip("tiny", device="cpu")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make(tmp_path_factory.mktemp("search") / "scenes", count=COUNT, seed=5, planted=Planted(1, 0, 1))


def test_words_find_images_that_hold_such_a_thing(scenes: Dataset, clip: Clip) -> None:
    """About one image in fifty holds a given thing, so that chance would be right once in fifty searches."""
    held = {
        row["id"]: {f"a {thing['size']} {thing['label']}" for thing in json.loads(row["objects"])}
        for row in scenes.images.filter(pl.col("status") == "ok").iter_rows(named=True)
    }
    wanted = sorted(set().union(*held.values()))
    first = [search(scenes, text, model=clip, count=1)["id"].item() for text in wanted]
    right = np.mean([text in held[id] for text, id in zip(wanted, first, strict=True)])
    chance = np.mean([np.mean([text in things for things in held.values()]) for text in wanted])
    assert chance < 0.05 and right > 0.2, (chance, right)


def test_the_best_come_first_and_as_many_as_asked(scenes: Dataset) -> None:
    found = search(scenes, "a large blue heart")
    assert found.columns == ["id", "path", "similarity"] and found.height == 20
    assert found["similarity"].is_sorted(descending=True) and found["similarity"].is_between(-1, 1).all()
    everything = search(scenes, "a large blue heart", count=10_000)
    assert everything.height == COUNT + 1 and everything.head(20).equals(found), "the broken one is left out"
    paths = dict(scenes.images.select("id", "path").iter_rows())
    assert all(paths[id] == path for id, path in everything.select("id", "path").iter_rows())


def test_right_captions_are_more_similar_than_those_of_other_images(scenes: Dataset, clip: Clip, tmp_path) -> None:
    right = caption_similarity(scenes, model=clip)
    images = scenes.images.filter(pl.col("status") == "ok")
    assert right["id"].to_list() == images["id"].to_list() and right["similarity"].null_count() == 0
    moved = images.with_columns(captions=pl.concat([images["captions"][7:], images["captions"][:7]]))
    wrong = caption_similarity(_beside(scenes, tmp_path, moved), model=clip)
    assert (right["similarity"] > wrong["similarity"]).mean() > 0.9
    assert right["similarity"].mean() - wrong["similarity"].mean() > 0.2


def test_the_best_caption_counts_and_none_gives_null(scenes: Dataset, clip: Clip, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    images = scenes.images.filter(pl.col("status") == "ok").head(4)
    (own,), (other,) = images["captions"][0], images["captions"][1]
    captions = [[other, own], [], ["", " "], [own, other]]
    found = caption_similarity(_beside(scenes, tmp_path, images.with_columns(captions=pl.Series(captions))), model=clip)
    alone = caption_similarity(scenes, model=clip)
    assert found["similarity"][0] == pytest.approx(alone["similarity"][0], abs=1e-5)
    assert found["similarity"].is_null().to_list() == [False, True, True, False]


def test_each_image_is_measured_once_for_a_model(scenes: Dataset, clip: Clip, monkeypatch) -> None:
    search(scenes, "a star", model=clip)
    monkeypatch.setattr(Clip, "embed_images", lambda *_: pytest.fail("measured again"))
    search(Dataset.open(scenes.path), "a ring")
    caption_similarity(scenes, model="tiny")


def test_a_dataset_without_images_gives_nothing(clip: Clip, tmp_path: Path) -> None:
    empty = Dataset.create(tmp_path, name="empty")
    assert search(empty, "a star", model=clip).is_empty() and caption_similarity(empty, model=clip).is_empty()


def test_what_cannot_be_searched_is_said(scenes: Dataset, tmp_path: Path) -> None:
    for text, count in ((" ", 20), ("a star", 0)):
        with pytest.raises(DataError, match="expected a (few words|whole number of at least 1)"):
            search(scenes, text, count=count)
    with pytest.raises(ModelError, match="no such folder"):
        search(scenes, "a star", model=tmp_path / "nowhere")


def _beside(scenes: Dataset, folder: Path, images: pl.DataFrame) -> Dataset:
    """The same pictures in a dataset of other rows."""
    return Dataset.create(folder, name="beside", roots={"images": str(scenes.roots["images"])}, images=images)
