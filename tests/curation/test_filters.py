from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from PIL import Image

from workbench.curation.filters import broken, curate, exact_duplicates, min_size, near_duplicates
from workbench.data.dataset import Dataset


@pytest.fixture
def untidy(tmp_path: Path, helpers: SimpleNamespace) -> Dataset:
    """Ten images: six good, two copies, one broken, one whose file has gone since."""
    folder = tmp_path / "images"
    folder.mkdir()
    good = [f"p{number}.png" for number in range(6)]
    for number, name in enumerate(good):
        helpers.draw(number).save(folder / name)
    (folder / "z-same.png").write_bytes((folder / "p0.png").read_bytes())
    helpers.draw(1).save(folder / "z-again.jpg", quality=85)
    (folder / "torn.png").write_bytes((folder / "p2.png").read_bytes()[:200])
    helpers.draw(99).save(folder / "gone.png")
    dataset = helpers.dataset_of(tmp_path, [*good, "z-same.png", "z-again.jpg", "torn.png", "gone.png"])
    (folder / "gone.png").unlink()
    return dataset


def test_the_funnel_counts_what_each_filter_leaves_out(untidy: Dataset) -> None:
    funnel = curate(untidy)
    assert funnel.table.rows() == [
        ("broken", 10, 8, 2),
        ("exact duplicates", 8, 7, 1),
        ("near duplicates", 7, 6, 1),
    ]
    assert str(funnel).splitlines()[0] == "broken: 10 -> 8"
    assert set(funnel.removed["id"]) == {"torn", "gone", "z-same", "z-again"}


def test_the_dataset_says_what_was_removed_and_why(untidy: Dataset) -> None:
    curate(untidy)
    said = {name: (status, reason) for name, status, reason in untidy.images.select("id", "status", "reason").rows()}
    assert said["p0"] == ("ok", None)
    assert said["z-same"] == ("removed", "exact duplicates: copy of p0.png")
    assert said["z-again"] == ("removed", "near duplicates: copy of p1.png")
    assert said["gone"] == ("quarantined", "broken: no such file")
    assert said["torn"][0] == "quarantined" and "damaged or truncated" in str(said["torn"][1])
    again = curate(untidy)
    assert again.table["removed"].to_list() == [2, 0, 0], "what was removed before is not counted again"


def test_a_view_handed_in_shows_the_same(untidy: Dataset, fiftyone: object) -> None:
    from workbench.curation.table import changes, ids_of, to_fiftyone

    view = to_fiftyone(untidy)
    view.select_by("workbench_id", ["p3", "z-same"]).tag_samples("mine")
    curate(untidy, view=view)
    assert (
        set(ids_of(view.match_tags("removed"))) == set(ids_of(view.load_saved_view("removed"))) == {"z-same", "z-again"}
    )
    assert set(ids_of(view.match_tags("broken"))) == {"torn", "gone"}
    assert set(ids_of(view.match_tags("mine"))) == {"p3", "z-same"}
    assert view.select_by("workbench_id", ["z-same"]).first().reason == "exact duplicates: copy of p0.png"
    tagged = untidy.images.filter(pl.col("tags").list.contains("mine"))
    assert set(tagged["id"]) == {"p3", "z-same"} and changes(view, untidy).is_empty(), "a person's tags are taken in"


def test_images_that_are_too_small_are_left_out_with_their_size(tmp_path: Path, helpers: SimpleNamespace) -> None:
    (tmp_path / "images").mkdir()
    for name, size in (("wide.png", (90, 20)), ("large.png", (90, 60))):
        Image.new("RGB", size, "red").save(tmp_path / "images" / name)
    dataset = helpers.dataset_of(tmp_path, ["wide.png", "large.png"])
    funnel = curate(dataset, [min_size(32)])
    assert funnel.removed.rows() == [("wide", "min size", "90 x 20, less than 32 pixels")]


def test_the_order_of_filters_is_the_callers(untidy: Dataset) -> None:
    funnel = curate(untidy, [broken(), near_duplicates(), exact_duplicates()])
    assert funnel.table["removed"].to_list() == [2, 2, 0], "an exact copy is a near one too"
    reasons = dict(untidy.images.filter(pl.col("status") == "removed").select("id", "reason").rows())
    assert set(reasons) == {"z-same", "z-again"}


def test_no_filter_and_no_image_change_nothing(untidy: Dataset, tmp_path: Path) -> None:
    before = untidy.images
    assert curate(untidy, []).table.is_empty() and untidy.images.equals(before)
    empty = Dataset.create(tmp_path / "empty", name="empty")
    assert curate(empty).table["before"].to_list() == [0, 0, 0]


def test_a_quarantined_path_that_climbs_out_does_not_stop_the_others(untidy: Dataset) -> None:
    climbs = {
        "id": "climbs",
        "root": "images",
        "path": "../secret.png",
        "status": "quarantined",
        "reason": "climbs out",
    }
    untidy.add_images(pl.DataFrame([climbs]))
    assert curate(untidy).table.rows()[0] == ("broken", 11, 8, 3)
