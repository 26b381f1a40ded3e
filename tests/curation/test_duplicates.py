from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from workbench.curation import near_pairs
from workbench.curation.duplicates import exact_groups, near_groups
from workbench.curation.near_pairs import close_hashes
from workbench.data.dataset import Dataset

Pairs = set[tuple[str, ...]]


def pairs_of(groups: pl.DataFrame) -> Pairs:
    return {pair for _, group in groups.group_by("group") for pair in combinations(sorted(group["id"]), 2)}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, helpers: SimpleNamespace) -> tuple[Dataset, Pairs, Pairs]:
    """150 pictures, 20 exact and 40 near copies of some of them, and the pairs that are to be found."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "images").mkdir()
    rng = np.random.default_rng(1)
    names, exact, near = [], set(), set()
    for number in range(150):
        name = f"p{number:03d}.png"
        picture = helpers.draw(number)
        picture.save(folder / "images" / name)
        names.append(name)
        if number < 20:
            names.append(f"x{number:03d}.png")
            (folder / "images" / names[-1]).write_bytes((folder / "images" / name).read_bytes())
            exact.add((f"p{number:03d}", f"x{number:03d}"))
        elif number < 60:
            names.append(f"y{number:03d}.{('jpg', 'png')[number % 2]}")
            _altered(picture, number, rng).save(folder / "images" / names[-1], quality=80)
            near.add((f"p{number:03d}", f"y{number:03d}"))
    return helpers.dataset_of(folder, names), exact, near


def _altered(picture: Image.Image, number: int, rng: np.random.Generator) -> Image.Image:
    if number % 3 != 1:
        side = int(rng.integers(60, 180))
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    return ImageEnhance.Brightness(picture).enhance(float(rng.uniform(0.92, 1.08))) if number % 3 else picture


def test_exact_copies_are_found_exactly(planted: tuple[Dataset, Pairs, Pairs]) -> None:
    dataset, exact, _ = planted
    groups = exact_groups(dataset.images)
    assert pairs_of(groups) == exact
    assert set(groups["kind"]) == {"exact"} and set(groups["distance"]) == {0.0}
    assert groups["keeper"].to_list() == [name.replace("x", "p") for name in groups["id"]]


def test_near_copies_are_found_and_nothing_else(planted: tuple[Dataset, Pairs, Pairs]) -> None:
    dataset, exact, near = planted
    groups = near_groups(dataset, dataset.images)
    found = pairs_of(groups)
    wanted = exact | near
    assert len(found & wanted) / len(wanted) >= 0.95, wanted - found
    assert len(found & wanted) / len(found) >= 0.95, found - wanted
    copies = groups.filter(pl.col("id") != pl.col("keeper"))
    assert set(copies.filter(pl.col("id").str.starts_with("x"))["kind"]) == {"exact"}
    assert (copies.filter(kind="near")["distance"] > 0).all()


def test_one_background_with_a_small_thing_elsewhere_is_another_picture(
    tmp_path: Path, helpers: SimpleNamespace
) -> None:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    scene = np.clip(np.linspace(60, 190, 96)[None, :, None] + rng.normal(0, 2, (96, 96, 3)), 0, 255)
    names = []
    for number in range(24):
        picture = Image.fromarray(scene.astype(np.uint8))
        x, y = 6 + 30 * (number % 3), 6 + 30 * (number // 3 % 3)
        color = ((214, 40, 40), (36, 84, 214), (250, 224, 40))[number // 9]
        ImageDraw.Draw(picture).ellipse((x, y, x + 17, y + 17), fill=color)
        names.append(f"{number}.png")
        picture.save(tmp_path / "images" / names[-1])
    dataset = helpers.dataset_of(tmp_path, names)
    assert near_groups(dataset, dataset.images).is_empty()


def test_the_keeper_is_annotated_then_large_then_first(tmp_path: Path, helpers: SimpleNamespace) -> None:
    (tmp_path / "images").mkdir()
    picture = helpers.draw(3)
    for name, side in (("a.png", 96), ("b.png", 140), ("c.png", 140), ("d.png", 70)):
        picture.resize((side, side)).save(tmp_path / "images" / name)
    dataset = helpers.dataset_of(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    assert set(near_groups(dataset, dataset.images)["keeper"]) == {"b"}
    dataset.update_images(pl.DataFrame({"id": ["d"], "label": ["shape"]}), operation={"name": "label"})
    groups = near_groups(dataset, dataset.images)
    assert groups["id"].to_list() == ["a", "b", "c", "d"] and set(groups["keeper"]) == {"d"}
    assert set(groups["group"]) == {0}


def test_vectors_propose_pairs_that_the_hash_does_not_but_pictures_decide(
    tmp_path: Path, helpers: SimpleNamespace
) -> None:
    (tmp_path / "images").mkdir()
    for name, seed in (("a.png", 1), ("b.jpg", 1), ("c.png", 2)):
        helpers.draw(seed).save(tmp_path / "images" / name)
    dataset = helpers.dataset_of(tmp_path, ["a.png", "b.jpg", "c.png"], phash=pl.Series(["0" * 16, "f" * 16, "0f" * 8]))
    assert near_groups(dataset, dataset.images).is_empty()
    vectors = pl.DataFrame({"id": ["a", "b", "c"], "vector": [[1.0, 0.0], [0.99, 0.02], [1.0, 0.01]]})
    assert near_groups(dataset, dataset.images, vectors)["id"].to_list() == ["a", "b"]


def test_no_image_no_groups(tmp_path: Path) -> None:
    empty = Dataset.create(tmp_path, name="empty")
    assert exact_groups(empty.images).is_empty() and near_groups(empty, empty.images).is_empty()


def pairs_by_bits(hashes: np.ndarray) -> dict[int, set[tuple[int, int]]]:
    """Every pair of at most 10 bits, by its bits: compared one by one."""
    pairs: dict[int, set[tuple[int, int]]] = {bits: set() for bits in range(11)}
    for one, other in combinations(range(len(hashes)), 2):
        bits = int(hashes[one] ^ hashes[other]).bit_count()
        if bits <= 10:
            pairs[bits].add((one, other))
    return pairs


@pytest.mark.parametrize("crowded", [1, 10**9], ids=["by index", "each with each"])
def test_close_hashes_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch, crowded: int) -> None:
    monkeypatch.setattr(near_pairs, "_CROWDED", crowded)
    monkeypatch.setattr(near_pairs, "_PIECE", 64)  # pieces, and the choice between the two ways, also for so few
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 1200, dtype=np.uint64)
    hashes[600:] = hashes[:600]
    for row in range(600, 1200):  # 0 to 13 bits away from another
        for bit in rng.choice(64, row % 14, replace=False):
            hashes[row] ^= np.uint64(1) << np.uint64(bit)
    wanted = pairs_by_bits(hashes)
    found = [(first, int(other)) for first, others in close_hashes(hashes) for other in others]
    assert len(found) == len(set(found)) and set(found) <= set().union(*wanted.values())
    surely = set().union(*(wanted[bits] for bits in range(8)))
    assert surely <= set(found) and len(surely) > 300
    assert len(set(found)) >= (0.97 if crowded == 1 else 1.0) * len(set().union(*wanted.values()))
    assert [first for first, _ in found] == sorted(first for first, _ in found)
    assert list(close_hashes(hashes[:0])) == list(close_hashes(hashes[:1])) == []


def test_hashes_that_are_nearly_all_alike_are_compared_each_with_each() -> None:
    rng = np.random.default_rng(1)
    hashes = np.uint64(0xF0F0) ^ (np.uint64(1) << rng.integers(0, 64, 700).astype(np.uint64))
    found = {(first, int(other)) for first, others in close_hashes(hashes) for other in others}
    assert found == set(combinations(range(700), 2))


def test_a_long_chain_of_copies_is_one_group(tmp_path: Path, helpers: SimpleNamespace) -> None:
    (tmp_path / "images").mkdir()
    for number in range(40):
        helpers.draw(5 if number % 2 else 6).resize((96 + number, 96)).save(tmp_path / "images" / f"{number:02}.png")
    dataset = helpers.dataset_of(tmp_path, [f"{number:02}.png" for number in range(40)])
    groups = near_groups(dataset, dataset.images)
    parities = [{int(name) % 2 for name in group["id"]} for _, group in groups.group_by("group", maintain_order=True)]
    assert groups.height == 40 and parities == [{0}, {1}]
    assert set(groups["keeper"]) == {"38", "39"}, "the largest of each"
