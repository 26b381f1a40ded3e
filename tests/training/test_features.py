"""Each image goes through the tower once if there is room, in an order of its own; a bad one is named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from workbench.errors import ImageError
from workbench.progress import Progress
from workbench.training.feature_cache import FeatureCache
from workbench.training.features import PENDING, FeatureStore, ImageFiles, Opened


class Images(ImageFiles):
    """Pixels by key without files, counting how often each is opened and how many go through the encoder."""

    def __init__(self, *broken: str) -> None:
        self.broken, self.opened, self.encoded = broken, list[str](), 0

    def open(self, key: str, cache: FeatureCache | None = None) -> Opened:
        self.opened.append(key)
        if key in self.broken:
            raise ImageError(key, found="a truncated file")
        return Opened(pixels=torch.full((1, 3, 2, 2), float(key.removeprefix("i"))))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.encoded += len(pixels)
        assert not torch.is_grad_enabled()
        return pixels.flatten(1)[:, None, :4] * 10  # (B, 1, 4)


@pytest.fixture
def keys() -> Iterator[list[str]]:
    yield [f"i{number}" for number in range(70)]


def test_features_are_computed_once_and_read_back_by_key(keys: list[str]) -> None:
    images = Images()
    store = FeatureStore(images, images.encode)
    bar = Progress("images", total=70)
    assert store.fill([*keys, *keys], bar) == [] and bar.done == 70
    assert store.holds_all and images.encoded == 70
    found = store.get(["i7", "i3", "i7"])
    assert found.shape == (3, 1, 4) and found[:, 0, 0].tolist() == [70, 30, 70]
    assert len(images.opened) == 70
    store.close()


def test_what_does_not_fit_is_computed_for_every_batch_each_image_once(keys: list[str]) -> None:
    images = Images()
    store = FeatureStore(images, images.encode, budget=69 * 16)
    bar = Progress("images")
    assert store.fill(keys, bar) == [] and bar.note.startswith("more than memory holds")
    assert not store.holds_all
    images.opened.clear()
    assert store.get(["i7", "i3", "i7"])[:, 0, 0].tolist() == [70, 30, 70]
    assert sorted(images.opened) == ["i3", "i7"]
    store.close()


def test_pixels_are_kept_where_the_tower_trains(keys: list[str]) -> None:
    images = Images()
    store = FeatureStore(images, None)
    store.fill(keys, Progress("images"))
    assert store.get(["i5"]).shape == (1, 3, 2, 2) and store.get(["i5"]).unique().tolist() == [5]
    store.close()


def test_every_broken_image_is_told_at_once(keys: list[str]) -> None:
    images = Images("i3", "i69")
    store = FeatureStore(images, images.encode)
    assert [error.where for error in store.fill(keys, Progress("images"))] == ["i3", "i69"]
    store.close()


def test_an_image_that_breaks_later_names_itself() -> None:
    images = Images()
    store = FeatureStore(images, images.encode, budget=0)
    bar = Progress("images")
    store.fill(["i1", "i2"], bar)
    assert bar.note.startswith("none is kept (train.feature_cache: off)"), "it once was more than memory holds"
    images.broken = ("i2",)
    with pytest.raises(ImageError, match="i2: found a truncated file"):
        store.get(["i1", "i2"])
    store.close()


def test_the_tower_sees_groups_of_one_size_whatever_is_asked_for(keys: list[str]) -> None:
    images, sizes = Images(), set[int]()

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        sizes.add(len(pixels))
        return images.encode(pixels)

    store = FeatureStore(images, encode, group=8, budget=0)
    for wanted in (keys[:1], keys[:8], keys[3:50]):
        found = store.get(wanted)
        assert found[:, 0, 0].tolist() == [float(key[1:]) * 10 for key in wanted]
    assert sizes == {8}
    store.close()


def test_images_are_opened_ahead_but_not_without_end() -> None:
    images = Images()
    store = FeatureStore(images, images.encode, budget=0)
    names = [f"i{number}" for number in range(3 * PENDING)]
    store.expect(names)
    wait_for(lambda: len(images.opened) == PENDING)
    time.sleep(0.05)
    assert len(images.opened) == PENDING, "the others wait until these are taken"
    store.get(names[:10])
    wait_for(lambda: len(images.opened) == PENDING + 10)
    assert store.get(names)[:, 0, 0].tolist() == [number * 10 for number in range(3 * PENDING)]
    store.close()


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)
