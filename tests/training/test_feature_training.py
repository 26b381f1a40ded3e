"""Training with features from the disk is training: the same losses and weights, bit for bit, or it is not used."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from workbench.errors import TrainingError
from workbench.model.llava import build
from workbench.model.parts import load_tower
from workbench.recipe import Recipe
from workbench.resources import state_folder
from workbench.training import features, trainer
from workbench.training.feed import Feed, Piece, Work

Made = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_home(home: Path) -> Path:
    return home


class Trained:
    """One run: its losses, its final weights, and how many images went through the tower for it."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        llava = build(recipe.model, template=recipe.template, image_mode=recipe.image_mode, seed=recipe.train.seed)
        stores: list[features.FeatureStore] = []
        open_store = features.open_store

        def opened(*given: Any, **named: Any) -> features.FeatureStore:
            stores.append(open_store(*given, **named))
            return stores[0]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "open_store", opened)
            self.run = trainer.train(recipe, out=out, llava=llava, progress=False)
        self.tower = stores[0].computed
        self.losses = [row.get("loss", row.get("val_loss")) for row in self.run.metrics()]
        self.weights = {name: weight.clone() for name, weight in llava.model.state_dict().items()}

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Trained)
            and self.losses == other.losses
            and all(torch.equal(weight, other.weights[name]) for name, weight in self.weights.items())
        )


@pytest.fixture
def trained(tmp_path: Path, make_recipe: Made, make_dataset: Made) -> Callable[..., Trained]:
    """`trained("train.feature_cache=off")`: a run over seven pictures."""
    dataset, runs = make_dataset(images=7, split=True), iter(range(100))

    def made(*overrides: str) -> Trained:
        settings = ("train.eval_every=2", "train.max_steps=6", "train.lr=5e-3", "train.feature_cache=on")
        recipe = make_recipe(dataset, *settings, *overrides)
        return Trained(recipe, tmp_path / f"run {next(runs)}")

    return made


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image's features fit in memory: everything comes from the disk, or from the tower, batch by batch."""
    monkeypatch.setattr(features, "BUDGET", 0)


def test_off_cold_and_warm_train_the_same_bits_in_memory(trained: Callable[..., Trained]) -> None:
    off, cold, warm = (trained(f"train.feature_cache={kind}") for kind in ("off", "on", "on"))
    assert off == cold and off == warm
    assert off.tower > 14 and (cold.tower, warm.tower) == (7, 0), "off: an image goes through the tower every time"
    assert off.losses[0] != off.losses[-2], "it trained"


def test_off_cold_and_warm_train_the_same_bits_from_the_disk(
    trained: Callable[..., Trained], little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    off, cold, warm = (trained(f"train.feature_cache={kind}") for kind in ("off", "on", "on"))
    assert off == cold and off == warm
    assert off.tower > 14 and cold.tower == 7 and warm.tower == 0
    monkeypatch.undo()
    os.environ["WORKBENCH_HOME"] = str(state_folder() / "empty")
    assert trained() == off, "held in memory, without a cache"


def test_every_image_is_opened_once_by_the_disk_s_account(
    trained: Callable[..., Trained], little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.training.feature_rows.FRESH_NS", -1)
    first, opened, decode = trained(), list[str](), features.load_image

    def counted(source: Any, **given: Any) -> Any:
        opened.append(given["where"])
        return decode(source, **given)

    monkeypatch.setattr(features, "load_image", counted)
    monkeypatch.setattr(features, "read_file", None)
    assert trained() == first and not opened, "neither decoded nor read"


def test_a_picture_that_changes_is_seen(
    trained: Callable[..., Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.training.feature_rows.FRESH_NS", -1)  # files of this test are young
    trained()
    path = tmp_path / "data" / "images" / "3.png"
    times = path.stat()
    with PIL.Image.open(path) as picture:
        picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    warm = trained()
    assert warm.tower == 1
    assert warm == trained("train.feature_cache=off")


def test_another_way_to_make_pixels_is_another_set(trained: Callable[..., Trained], make_recipe: Made) -> None:
    square = trained()
    padded = trained("image_mode=pad")
    assert padded.tower == 7 and padded.losses != square.losses
    assert padded == trained("image_mode=pad", "train.feature_cache=off")
    assert trained("model.vision_layer=-1").tower == trained("model.vision_select=full").tower == 7


def test_another_tower_of_the_same_name_is_another_set(
    trained: Callable[..., Trained], parts: dict[str, Path], tmp_path: Path
) -> None:
    trained()
    tower = load_tower(parts["clip"], torch.float32, torch.device("cpu"))
    with torch.no_grad():
        next(tower.parameters()).view(-1)[0] += 1e-3
    tower.save_pretrained(tmp_path / "clip")
    changed = trained(f"model.vision={tmp_path / 'clip'}")
    assert changed.tower == 7
    assert changed == trained(f"model.vision={tmp_path / 'clip'}", "train.feature_cache=off")


def test_a_copy_of_dataset_and_tower_elsewhere_is_the_same_set(
    tmp_path: Path, trained: Callable[..., Trained], make_recipe: Made, parts: dict[str, Path]
) -> None:
    trained()
    (tmp_path / "data").rename(tmp_path / "moved")
    shutil.copytree(parts["clip"], tmp_path / "clip")
    read = (f"model.vision={tmp_path / 'clip'}", "train.feature_cache=read")
    recipe = make_recipe(tmp_path / "moved", "train.max_steps=1", *read)
    assert Trained(recipe, tmp_path / "run").tower == 0


def test_a_damaged_set_changes_no_number(
    trained: Callable[..., Trained], little_memory: None, capsys: pytest.CaptureFixture[str]
) -> None:
    off = trained("train.feature_cache=off")
    trained()
    (folder,) = (state_folder() / "features").iterdir()
    raw = bytearray((folder / "rows").read_bytes())
    raw[len(raw) // 2] ^= 64
    (folder / "rows").write_bytes(raw)
    mended = trained()
    assert mended == off and mended.tower >= 1
    assert trained().tower == 0
    (folder / "index.sqlite").write_bytes(b"no database at all" * 300)
    assert trained() == off and trained().tower == 0


def test_a_budget_below_one_image_trains_the_same(trained: Callable[..., Trained], little_memory: None) -> None:
    full, none = trained(), trained("train.feature_cache_gb=0", "model.vision_layer=-2", "image_mode=pad")
    assert none == trained("train.feature_cache=off", "image_mode=pad") and none.losses != full.losses


def test_fp16_is_near_and_the_same_cold_warm_and_resumed(trained: Callable[..., Trained], little_memory: None) -> None:
    exact = trained("train.feature_cache=off")
    cold, warm = (trained("train.feature_cache=fp16") for _ in range(2))
    assert cold == warm and cold != exact and warm.tower == 0
    assert cold.losses[0] == pytest.approx(exact.losses[0], rel=1e-3), "at equal weights; later any rounding grows"
    whole = {path.parent.name: path.stat().st_size for path in (state_folder() / "features").glob("*/rows")}
    assert list(whole.values()) == [7 * 9 * 32 * 2]


def test_features_too_large_for_fp16_are_refused(
    trained: Callable[..., Trained], parts: dict[str, Path], tmp_path: Path
) -> None:
    tower = load_tower(parts["clip"], torch.float32, torch.device("cpu"))
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            if "mlp.fc2.weight" in name:
                weight *= 1e6
    tower.save_pretrained(tmp_path / "clip")
    wild = f"model.vision={tmp_path / 'clip'}"
    with pytest.raises(
        TrainingError, match="fp16: found features of the vision tower up to .*set train.feature_cache: auto"
    ):
        trained(wild, "train.feature_cache=fp16")


def test_a_tower_that_trains_keeps_nothing(trained: Callable[..., Trained]) -> None:
    trained("train.vision=full", "train.vision_lr=1e-4")
    assert not (state_folder() / "features").exists()


@pytest.mark.parametrize("kind", ["on", "off"])
def test_on_and_off_may_be_written_bare_and_nothing_else_is_taken(kind: str, make_recipe: Made) -> None:
    from workbench.errors import RecipeError

    recipe = make_recipe("unused", f"train.feature_cache={kind}")
    assert recipe.train.feature_cache == kind and Recipe.from_dict(recipe.model_dump(mode="json")) == recipe
    assert f"feature_cache: '{kind}'" in recipe.to_yaml()
    with pytest.raises(RecipeError, match="feature_cache"):
        make_recipe("unused", "train.feature_cache=sometimes")


def test_read_adds_nothing_to_what_it_reads(trained: Callable[..., Trained], little_memory: None) -> None:
    nothing = trained("train.feature_cache=read")
    assert not (state_folder() / "features").exists() and nothing.tower > 14
    some = trained("data.max_conversations=4", "train.max_steps=1")
    (folder,) = (state_folder() / "features").iterdir()
    rows = (folder / "rows").read_bytes()
    read = trained("train.feature_cache=read")
    assert (folder / "rows").read_bytes() == rows and 0 < some.tower < 7
    assert read == nothing and 0 < read.tower < nothing.tower


def test_a_set_full_of_another_dataset_makes_room_for_the_one_that_is_trained_on(
    make_dataset: Made, make_recipe: Made, tmp_path: Path, little_memory: None
) -> None:
    """As the plan promises, which knows of the budget alone."""
    one, two = (make_dataset(images=40, each=1, name=name) for name in ("one", "two"))
    for number in range(40):
        PIL.Image.new("RGB", (30 + number, 24), (number, 255 - number, 7)).save(two.path / "images" / f"{number}.png")
    budget = f"train.feature_cache_gb={(40 * 9 * 32 * 4 * 1.35 + 40_000) / 2**30}"  # and the index
    settings = ("train.max_steps=null", "train.epochs=2", "train.lr=5e-3", "data.val_fraction=0", budget)
    runs = []
    for number, dataset in enumerate((one, two, two)):
        recipe = make_recipe(dataset, *settings, "train.feature_cache=on")
        runs.append(Trained(recipe, tmp_path / str(number)))
    assert [run.tower for run in runs] == [40, 40, 0]
    assert runs[1] == runs[2] == Trained(make_recipe(two, *settings, "train.feature_cache=off"), tmp_path / "off")


def test_waiting_for_data_is_a_share_of_the_time(trained: Callable[..., Trained], little_memory: None) -> None:
    rows = [row for row in trained("train.feature_cache=off").run.metrics() if "loss" in row]
    assert all(0 < row["data_wait_fraction"] <= 1 for row in rows)
    assert all(row["data_wait_fraction"] == pytest.approx(row["data_wait"] / row["seconds"], abs=0.01) for row in rows)


def test_waiting_for_the_first_pack_of_a_step_counts(
    trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Feed.stream

    def slow(feed: Feed, start: int, stop: int) -> Iterator[Work | Piece]:
        for item in stream(feed, start, stop):
            time.sleep(0.05 * isinstance(item, Work))
            yield item

    monkeypatch.setattr(Feed, "stream", slow)
    rows = [row for row in trained().run.metrics() if "loss" in row]
    assert all(0.05 <= row["data_wait"] <= row["seconds"] for row in rows)


def test_pictures_to_validate_on_are_opened_ahead(
    make_dataset: Made, make_recipe: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: dict[str, set[str]] = {}
    get = features.FeatureStore.get

    def watched(store: features.FeatureStore, keys: Sequence[str]) -> torch.Tensor:
        if threading.current_thread() is threading.main_thread():  # those of the steps are asked for by a thread
            waiting[keys[0]] = {*store._opened, *store._wanted}
        return get(store, keys)

    monkeypatch.setattr(features.FeatureStore, "get", watched)
    few = ("train.pack_tokens=1", "train.max_steps=1", "data.val_fraction=0.4", "train.feature_cache=off")
    Trained(make_recipe(make_dataset(images=7, each=1), *few), tmp_path / "run")
    first, *others = waiting
    assert len(others) >= 2 and {*others} <= waiting[first]


def test_who_waits_is_told_for_what(tmp_path: Path) -> None:
    from workbench.training.data_wait import DataWait

    store = features.FeatureStore(features.ImageFiles({}, None), None)  # type: ignore[arg-type]
    wait = DataWait(store)
    assert wait.add(0.05, 1.0) == {"data_wait": 0.05, "data_wait_fraction": 0.05}
    assert (wait.note, wait.told) == ("", "")
    wait.add(0.95, 1.0)
    assert wait.note == ", 50% of the time waiting for data"
    assert wait.told.startswith("50% of the time was spent waiting for opening images")
    store.computed = 1200
    assert "1,200 went through the tower" in wait.told and "train.feature_cache_gb" in wait.told
    store.budget = 0  # train.feature_cache: off
    assert wait.told.endswith("with train.feature_cache: off the tower sees an image again whenever its turn comes")
    store.close()
