"""Features on the disk: what was kept comes back bit for bit, or not at all, whatever happens to disk and process."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.resources import clean_state, state_folder, state_sizes
from workbench.training.feature_cache import FeatureCache
from workbench.training.feature_rows import content_of, state_of

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests are files, not a package
from killing import COUNTED  # noqa: E402

KEY = {"tower": "one", "dtype": "float32", "shape": [4, 8]}
ROW_BYTES = 4 * 8 * 4
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_home(home: Path) -> Path:
    return home


@pytest.fixture
def opened() -> Iterator[Callable[..., FeatureCache]]:
    """`opened(key={...}, budget=...)`: a cache, closed after the test. What it says is in `cache.heard`."""
    caches = []

    def made(key: dict[str, Any] = KEY, budget: int = 1 << 30, **given: Any) -> FeatureCache:
        heard: list[str] = []
        cache = FeatureCache(key, budget=budget, say=heard.append, **{"reserve": 0, **given})
        cache.heard = heard  # type: ignore[attr-defined]
        caches.append(cache)
        return cache

    yield made
    for cache in caches:
        cache.close()


def image(number: int) -> bytes:
    return content_of(str(number).encode())


def features(number: int, shape: tuple[int, ...] = (4, 8)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def fill(cache: FeatureCache, numbers: range) -> None:
    for number in numbers:
        cache.write(image(number), features(number))
    cache.flush()


def kept(cache: FeatureCache, numbers: range) -> list[int]:
    """The images that are there; each with exactly its own features."""
    there = []
    for number in numbers:
        row = cache.read(image(number))
        if row is not None:
            assert torch.equal(row, features(number)), number
            there.append(number)
    return there


def only_set() -> Path:
    (found,) = [path for path in (state_folder() / "features").iterdir() if not path.name.startswith(".")]
    return found


def test_what_one_run_kept_the_next_reads(opened: Callable[..., FeatureCache]) -> None:
    cache = opened()
    for number in range(5):
        cache.write(image(number), features(number))
    assert kept(cache, range(9)) == [0, 1, 2, 3, 4], "also before they are on the disk"
    cache.close()
    again = opened()
    assert kept(again, range(9)) == [0, 1, 2, 3, 4] and again.count == 5
    fill(again, range(3, 9))
    assert kept(opened(), range(9)) == list(range(9)), "each once"
    assert (only_set() / "rows").stat().st_size == 9 * ROW_BYTES
    assert not again.heard  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_comes_back_as_it_was(opened: Callable[..., FeatureCache], dtype: str) -> None:
    cache, row = opened({**KEY, "dtype": dtype}), features(1).to(getattr(torch, dtype))
    cache.write(image(1), row)
    cache.close()
    found = opened({**KEY, "dtype": dtype}).read(image(1))
    assert found is not None and found.dtype == row.dtype and torch.equal(found, row)


def test_another_key_sees_nothing_of_it(opened: Callable[..., FeatureCache]) -> None:
    fill(opened(), range(3))
    assert kept(opened({**KEY, "tower": "other"}), range(3)) == []
    assert kept(opened(), range(3)) == [0, 1, 2]


def test_a_file_is_read_once_and_again_when_it_changes(
    opened: Callable[..., FeatureCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"one")
    cache, state = opened(), state_of(file)
    assert cache.image(file, state) is None
    cache.remember(file, state, b"one")
    assert cache.image(file, state) is None, "too young: it may change within the same tick of the clock"
    monkeypatch.setattr("workbench.training.feature_rows.FRESH_NS", -1)
    assert cache.remember(file, state, b"one") == content_of(b"one") == cache.image(file, state)
    cache.close()
    again = opened()
    assert again.image(file, state) == content_of(b"one")
    times = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # same name, size and time of writing
    assert again.image(file, state_of(file)) is None


# --- room -------------------------------------------------------------------------------------------------------


def test_what_was_used_least_recently_goes_when_room_is_needed(opened: Callable[..., FeatureCache]) -> None:
    keys = [{**KEY, "tower": name} for name in ("opened", "unused", "written")]
    caches = [opened(key) for key in keys]
    for cache in caches:
        fill(cache, range(400))  # 51 kB, besides the index
        os.utime(cache._folder / "key.json", (0, 0))
    assert kept(opened(keys[0]), range(2)) == [0, 1]
    fill(caches[2], range(400, 401))
    fourth = opened({**KEY, "tower": "another"})
    fourth.budget = sum(state_sizes(["features"]).values()) + 10_000
    fill(fourth, range(400))
    assert kept(fourth, range(400)) == list(range(400))
    assert [kept(opened(key), range(400)) != [] for key in keys] == [True, False, True]


def test_as_many_are_kept_as_the_budget_holds(opened: Callable[..., FeatureCache]) -> None:
    cache = opened()
    empty = sum(state_sizes(["features"]).values())
    cache.close()
    cache = opened(budget=empty + 10 * ROW_BYTES + 50)
    fill(cache, range(25))
    assert kept(cache, range(25)) == list(range(10))
    fill(cache, range(25, 30))
    assert kept(cache, range(30)) == list(range(10)), "and those stay"
    (told,) = cache.heard  # type: ignore[attr-defined]
    assert "full with 10 images" in told and "train.feature_cache_gb" in told


@pytest.fixture
def full(opened: Callable[..., FeatureCache]) -> dict[str, int]:
    """`opened(**full)`: a set with ten images of an earlier run, and room for two more."""
    first = opened()
    empty = sum(state_sizes(["features"]).values())
    fill(first, range(10))
    first.close()
    return {"budget": empty + 12 * ROW_BYTES + 50}


def test_images_that_a_run_does_not_need_make_room_the_oldest_first(
    opened: Callable[..., FeatureCache], full: dict[str, int]
) -> None:
    """A full set stayed as the first dataset had filled it: a run over another one kept next to nothing."""
    cache = opened(**full)
    assert kept(cache, range(2)) == [0, 1], "needed, it seems"
    fill(cache, range(10, 15))
    assert kept(cache, range(15)) == [0, 1, *range(5, 15)]
    assert (only_set() / "rows").stat().st_size == 12 * ROW_BYTES and not cache.heard  # type: ignore[attr-defined]
    fill(cache, range(15, 30))
    assert kept(cache, range(30)) == [0, 1, *range(5, 15)], "all of them were used by now"
    assert "full with 12 images" in cache.heard[0]  # type: ignore[attr-defined]


def test_images_of_files_that_a_run_will_ask_for_stay(
    opened: Callable[..., FeatureCache], full: dict[str, int], tmp_path: Path
) -> None:
    files = []
    known = opened()
    for number in range(4):
        file = tmp_path / f"{number}.png"
        file.write_bytes(str(number).encode())
        os.utime(file, (0, 0))
        known.remember(file, "1 1 0 0", file.read_bytes())
        files.append(file)
    known.close()
    cache = opened(**full, files=files)
    fill(cache, range(10, 20))
    there = kept(cache, range(20))
    assert there[:4] == [0, 1, 2, 3] and there[-8:] == [*range(10, 18)] and len(there) == 12


def test_two_runs_do_not_drive_each_other_out_for_ever(
    opened: Callable[..., FeatureCache], full: dict[str, int]
) -> None:
    one, other = opened(**full), opened(**full)
    for turn in range(1, 10):
        for cache, first in ((one, 100), (other, 200)):
            fill(cache, range(first * turn, first * turn + 10))
    assert not one.writes and not other.writes


def test_a_row_that_makes_room_as_it_is_read_is_no_damage(
    opened: Callable[..., FeatureCache], full: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = opened(), opened(**full)
    rows = reader._set
    assert rows is not None
    read = rows._row

    def late(slot: int) -> Any:
        fill(writer, range(10, 20))
        return read(slot)

    monkeypatch.setattr(rows, "_row", late)
    assert reader.read(image(0)) is None and not reader.damaged and not reader.heard  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert kept(reader, range(20)) == kept(writer, range(20)) == list(range(8, 20))


def test_who_keeps_nothing_takes_nothing_from_others(opened: Callable[..., FeatureCache]) -> None:
    fill(opened({**KEY, "tower": "other"}), range(3))
    none = opened(budget=0)
    fill(none, range(3))
    assert kept(none, range(3)) == [] and kept(opened({**KEY, "tower": "other"}), range(3)) == [0, 1, 2]


def test_features_of_another_shape_are_not_kept(opened: Callable[..., FeatureCache]) -> None:
    cache = opened()
    cache.write(image(1), features(1, (5, 8)))
    fill(cache, range(2, 4))
    assert kept(cache, range(4)) == [] and "(5, 8) instead of" in cache.heard[0]  # type: ignore[attr-defined]


def test_room_is_left_on_the_disk(opened: Callable[..., FeatureCache]) -> None:
    cache = opened(reserve=1 << 60)
    fill(cache, range(3))
    assert kept(cache, range(3)) == [] and len(cache.heard) == 1  # type: ignore[attr-defined]


def test_memory_is_bounded_while_much_is_written(opened: Callable[..., FeatureCache]) -> None:
    cache = opened(flush_bytes=10 * ROW_BYTES)
    for number in range(200):
        cache.write(image(number), features(number))
        assert len(cache._rows) < 10 and len(cache._being_written) <= 10
    assert kept(cache, range(200)) == list(range(200))


# --- damage -----------------------------------------------------------------------------------------------------


def damage_byte(folder: Path) -> None:
    with open(folder / "rows", "r+b") as file:
        file.seek(3 * ROW_BYTES + 17)
        byte = file.read(1)[0]
        file.seek(3 * ROW_BYTES + 17)
        file.write(bytes([byte ^ 1]))


def cut_rows(folder: Path) -> None:
    os.truncate(folder / "rows", 7 * ROW_BYTES + 5)


def remove_rows(folder: Path) -> None:
    (folder / "rows").unlink()


def swap_rows(folder: Path) -> None:
    with sqlite3.connect(folder / "index.sqlite") as index:
        index.execute("UPDATE rows SET slot = slot + 100")
        index.execute("UPDATE rows SET slot = 109 - slot")
    index.close()


@pytest.mark.parametrize(
    "harm, left",
    [(damage_byte, {*range(10)} - {3}), (cut_rows, {*range(7)}), (remove_rows, set[int]()), (swap_rows, set[int]())],
)
def test_damaged_rows_are_noticed_and_written_anew(
    opened: Callable[..., FeatureCache], harm: Callable[[Path], None], left: set[int]
) -> None:
    cache = opened()
    fill(cache, range(10))
    cache.close()
    harm(only_set())
    again = opened()
    assert set(kept(again, range(10))) == left, "the others are right or absent"
    assert again.damaged == 10 - len(left)
    (told,) = again.heard  # type: ignore[attr-defined]
    assert "computed anew" in told
    fill(again, range(10))
    again.close()
    last = opened()
    assert kept(last, range(10)) == list(range(10)) and not last.heard  # type: ignore[attr-defined]


def test_a_damaged_index_is_begun_anew(opened: Callable[..., FeatureCache]) -> None:
    cache = opened()
    fill(cache, range(10))
    cache.close()
    path = only_set() / "index.sqlite"
    path.write_bytes(b"not a database" * 1000)
    again = opened()
    assert kept(again, range(10)) == [] and "not a database" in again.heard[0]  # type: ignore[attr-defined]
    fill(again, range(10))
    assert kept(opened(), range(10)) == list(range(10))


def test_an_index_that_breaks_while_it_is_read_ends_the_cache_not_the_run(opened: Callable[..., FeatureCache]) -> None:
    cache = opened()
    fill(cache, range(2000))
    cache.close()
    again = opened()
    path = only_set() / "index.sqlite"
    with open(path, "r+b") as file:  # every page but the first
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    assert kept(again, range(2000)) == []
    fill(again, range(3))
    assert any("malformed" in text for text in again.heard)  # type: ignore[attr-defined]
    last = opened()
    fill(last, range(10))
    assert kept(last, range(10)) == list(range(10))


def test_a_set_that_is_removed_while_it_is_used_goes_on_being_read(opened: Callable[..., FeatureCache]) -> None:
    cache = opened()
    fill(cache, range(10))
    assert kept(cache, range(10)) == list(range(10))
    clean_state(["features"])
    assert kept(cache, range(10)) == list(range(10))
    fill(cache, range(10, 12))
    assert "removed by another process" in cache.heard[0]  # type: ignore[attr-defined]
    assert not (state_folder() / "features").exists()
    assert kept(opened(), range(12)) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="whoever may write everywhere is not stopped")
def test_a_folder_that_cannot_be_written_is_told_once(opened: Callable[..., FeatureCache]) -> None:
    state_folder().chmod(0o500)
    cache = opened()
    fill(cache, range(3))
    assert kept(cache, range(3)) == [] and len(cache.heard) == 1  # type: ignore[attr-defined]
    state_folder().chmod(0o700)


def test_a_file_in_the_place_of_the_folder_is_told_once(opened: Callable[..., FeatureCache]) -> None:
    (state_folder() / "features").write_text("in the way")
    cache = opened()
    fill(cache, range(3))
    assert kept(cache, range(3)) == [] and len(cache.heard) == 1  # type: ignore[attr-defined]


# --- other processes ----------------------------------------------------------------------------------------------

WRITER = """
import sys
sys.path.insert(0, {folder!r})
from test_feature_cache import KEY, features, image
from workbench.training.feature_cache import FeatureCache
"""
KILLED = (
    WRITER
    + COUNTED
    + """
cache = FeatureCache(KEY, budget=1 << 30, say=print, reserve=0, flush_bytes=1 << 30)
for part in range(3):
    if part == 1:
        kill_before(int(sys.argv[1]), "open", "fsync", "utime")
    for number in range(10 * part, 10 * part + 10):
        cache.write(image(number), features(number))
    cache.flush()
print("left", left)
cache.close()
"""
)
EVICTING = (
    WRITER
    + COUNTED
    + """
cache = FeatureCache(KEY, budget=int(sys.argv[2]), say=print, reserve=0, flush_bytes=1 << 30)
kill_before(int(sys.argv[1]), "open", "fsync", "utime")
for number in range(10, 20):
    cache.write(image(number), features(number))
cache.flush()
cache.close()
"""
)
TWO = (
    WRITER
    + """
cache = FeatureCache(KEY, budget=1 << 30, say=print, reserve=0, flush_bytes=20 * 128)
import torch
order = torch.randperm(600, generator=torch.Generator().manual_seed(int(sys.argv[1]))).tolist()
for number in order:
    row = cache.read(image(number))
    if row is None:
        cache.write(image(number), features(number))
    else:
        assert torch.equal(row, features(number)), number
cache.close()
"""
)


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code.format(folder=str(Path(__file__).parent)), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_a_kill_before_any_step_on_the_disk_leaves_whole_rows(opened: Callable[..., FeatureCache]) -> None:
    whole = 0
    for step in range(1, 20):
        shutil.rmtree(state_folder() / "features", ignore_errors=True)
        process = child(KILLED, str(step))
        out, error = process.communicate()
        cache = opened()
        there = kept(cache, range(30))
        if process.returncode == 0:
            assert there == list(range(30)) and "left" in out
            break
        assert process.returncode == -9, error
        assert len(there) in (10, 20, 30) and there == list(range(len(there))) and not cache.damaged, step
        whole = max(whole, len(there))
        fill(cache, range(30))
        cache.close()
        assert kept(opened(), range(30)) == list(range(30))
        assert (only_set() / "rows").stat().st_size == 30 * ROW_BYTES, "what the dead one left is written over"
    else:
        raise AssertionError("never came to the end")
    assert step > 4 and whole >= 20


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_a_kill_while_rows_make_room_leaves_whole_rows(
    opened: Callable[..., FeatureCache], full: dict[str, int]
) -> None:
    shutil.copytree(state_folder() / "features", state_folder() / "before")
    for step in range(1, 20):
        shutil.rmtree(state_folder() / "features")
        shutil.copytree(state_folder() / "before", state_folder() / "features")
        process = child(EVICTING, str(step), str(full["budget"]))
        out, error = process.communicate()
        assert process.returncode in (0, -9) and not out, out + error
        cache = opened(**full)
        there = kept(cache, range(20))
        assert there in ([*range(10)], [8, 9], [*range(8, 20)]) and not cache.damaged, step
        fill(cache, range(10, 20))
        assert kept(cache, range(10, 20)) == list(range(10, 20))
        assert (only_set() / "rows").stat().st_size == 12 * ROW_BYTES
        cache.close()
        if process.returncode == 0:
            break
    assert step > 2 and there == [*range(8, 20)]


def test_two_processes_fill_one_set(opened: Callable[..., FeatureCache]) -> None:
    processes = [child(TWO, str(seed)) for seed in range(2)]
    for process in processes:
        out, error = process.communicate()
        assert process.returncode == 0 and not out, out + error
    cache = opened()
    assert kept(cache, range(600)) == list(range(600)) and cache.count == 600
    assert (only_set() / "rows").stat().st_size == 600 * ROW_BYTES, "nothing twice"


FULL = (
    WRITER
    + """
import os, shutil, subprocess
from pathlib import Path
room = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", room], check=True)
os.environ["WORKBENCH_HOME"] = str(room)
cache = FeatureCache(KEY, budget=1 << 30, say=print, reserve=0)
def fill(numbers):
    for number in numbers:
        cache.write(image(number), features(number))
    cache.flush()
fill(range(10))
ballast = room / "ballast"
ballast.write_bytes(bytes(shutil.disk_usage(room).free - 4096))
usage, shutil.disk_usage = shutil.disk_usage, lambda path: usage("/")  # another took the room after we looked
fill(range(10, 2000))
fill(range(2000, 2010))
found = [cache.read(image(number)) for number in range(2010)]
print([row is not None for row in found] == [True] * 10 + [False] * 2000)
ballast.unlink()
cache.close()
cache = FeatureCache(KEY, budget=1 << 30, say=print, reserve=0)
fill(range(500))
print(all((cache.read(image(number)) == features(number)).all() for number in range(500)), cache.count)
"""
)


def test_a_full_disk_ends_the_writing_only(tmp_path: Path, own_mounts: list[str]) -> None:
    (tmp_path / "room").mkdir()
    command = [
        *own_mounts,
        sys.executable,
        "-c",
        FULL.format(folder=str(Path(__file__).parent)),
        str(tmp_path / "room"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told, before, after = done.stdout.splitlines()
    assert "no more features are kept" in told and ("No space" in told or "full" in told)
    assert (before, after) == ("True", "True 500")
