"""An import that was killed while it checked images opens only the rest when it is called again, and ends the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from workbench.data import tables
from workbench.data.checks import AT_ONCE, Checks
from workbench.data.dataset import Dataset
from workbench.data.folder import CHECKS
from workbench.errors import DataError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kill -9")
COUNT = 150

# Counts the pictures that are opened, and kills itself with kill -9 before one of them.
IMPORTER = """
import json, os, signal, sys
from workbench.data.formats import import_files

last, options = int(sys.argv[1]), json.loads(sys.argv[2])
opened = 0

def count(event, arguments):
    global opened
    if event == "open" and str(arguments[0]).endswith(".png"):
        opened += 1
        if opened == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
import_files(**{"workers": 1, **options})
print("opened", opened)
"""


def command(last: int, options: dict[str, Any]) -> dict[str, Any]:
    env = {**os.environ, "PYTHONPATH": str(Path(tables.__file__).parents[2]), "WORKBENCH_PROGRESS": "plain"}
    return {"args": [sys.executable, "-c", IMPORTER, str(last), json.dumps(options)], "env": env, "text": True}


def opened(options: dict[str, Any]) -> tuple[int, str]:
    """How many pictures an import that ends has opened, and what it said on stderr."""
    done = subprocess.run(**command(0, options), capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]), done.stderr


def killed(last: int, options: dict[str, Any]) -> None:
    done = subprocess.run(**command(last, options), capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def held(path: Path) -> dict[str, Any]:
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    dataset = Dataset.open(path)
    rows = dataset.images.rows(), dataset.conversation_rows.rows()
    return {"files": files, "rows": rows, "report": (path / "import.json").read_text()}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """For every kind of import that names pictures, what it is called with; all of the same pictures."""
    names = [f"{number % 3}/{number:03}.png" for number in range(COUNT)]
    for number, name in enumerate(names):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (30, 20 + number), (number, 80, 40)).save(tmp_path / "pictures" / name)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "One."}]
    records = [{"id": name, "image": name, "conversations": turns} for name in names]
    (tmp_path / "llava.json").write_text(json.dumps(records))
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    root = {"images": str(tmp_path / "pictures")}
    return {
        "images": {"source": root["images"], "format": "images"},  # telling the format opens some, too
        "llava": {"source": str(tmp_path / "llava.json"), "format": "llava", **root},
        "coco": {"source": str(tmp_path / "coco.json"), "format": "coco", **root},
    }


@pytest.mark.parametrize(("kind", "moments"), [("images", [1, 33, 100, COUNT]), ("llava", [70]), ("coco", [120])])
def test_only_what_was_not_checked_is_opened_and_the_end_is_the_same(
    kind: str, moments: list[int], sources: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    assert opened({**sources[kind], "out": str(tmp_path / "whole")})[0] == COUNT
    for moment in moments:
        options = {**sources[kind], "out": str(tmp_path / f"killed-{moment}")}
        killed(moment, options)
        before = (moment - 1) // AT_ONCE * AT_ONCE  # in whole lines
        count, said = opened(options)
        assert count == COUNT - before
        assert (f"{before} done before" in said) == (before > 0), said
        assert held(Path(options["out"])) == held(tmp_path / "whole")


def test_killed_three_times_every_picture_is_opened_about_once(
    sources: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    options = {**sources["images"], "out": str(tmp_path / "out")}
    for _ in range(3):
        killed(AT_ONCE + 5, options)  # four more than a line: lost
    assert opened(options)[0] == COUNT - 3 * AT_ONCE
    assert not (tmp_path / "out" / CHECKS).exists()


def test_half_a_last_line_is_left_out_and_does_not_spoil_the_next_one(
    sources: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    options = {**sources["images"], "out": str(tmp_path / "out")}
    killed(2 * AT_ONCE + 2, options)
    file = tmp_path / "out" / CHECKS
    file.write_bytes(file.read_bytes()[:-40])
    killed(AT_ONCE + 2, options)
    assert opened(options)[0] == COUNT - 2 * AT_ONCE


def test_a_picture_that_changed_or_broke_since_is_checked_anew(
    sources: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    options = {**sources["images"], "out": str(tmp_path / "out")}
    killed(COUNT, options)
    pictures = tmp_path / "pictures"
    PILImage.new("RGB", (77, 5)).save(pictures / "0/000.png")
    data = (pictures / "0/003.png").read_bytes()
    (pictures / "0/003.png").write_bytes(b"x" * len(data))  # of the same size, at another time
    (pictures / "0/006.png").unlink()
    assert opened(options)[0] == COUNT - 4 * AT_ONCE + 2
    assert opened({**options, "out": str(tmp_path / "whole")})[0] == COUNT - 1
    assert held(tmp_path / "out") == held(tmp_path / "whole")
    assert "77" in str(Dataset.open(tmp_path / "out").images.row(0))


def test_broken_pictures_are_looked_at_again(sources: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """What was wrong may be mended by what leaves size and time as they are: a permission, memory, a new decoder."""
    (tmp_path / "pictures/0/000.png").write_bytes(b"\x89PNG, and no more")
    options = {**sources["images"], "out": str(tmp_path / "out")}
    killed(COUNT, options)
    assert opened(options)[0] == COUNT - 4 * AT_ONCE


def test_an_import_into_the_folder_of_the_pictures_lists_no_file_of_its_own(
    sources: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    options = {**sources["images"], "out": str(tmp_path / "pictures")}
    killed(100, options)
    assert opened(options)[0] == COUNT - 3 * AT_ONCE
    assert json.loads((tmp_path / "pictures/import.json").read_text())["hidden files"] == []


def test_killed_with_workers_it_goes_on_too(sources: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert opened({**sources["images"], "out": str(tmp_path / "whole")})[0] == COUNT
    out = tmp_path / "out"
    options = {**sources["images"], "out": str(out), "workers": 2}
    with subprocess.Popen(**command(0, options), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not (out / CHECKS).exists() and process.poll() is None:
            time.sleep(0.0005)
        process.kill()
    if (out / "card.yaml").exists():
        pytest.skip("it was faster than the kill")
    assert " done before" in opened({**options, "workers": 1})[1]
    assert held(out) == held(tmp_path / "whole")


def test_what_is_known_of_one_root_is_not_told_of_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"same")
        os.utime(tmp_path / name / "1.png", ns=(5, 5))
    with Checks(tmp_path / "out", tmp_path / "a") as checks:
        checks.add("1.png", (4, 5), ["found"])
    with Checks(tmp_path / "out", tmp_path / "a") as checks:
        assert checks.known(["1.png", "2.png"]) == {"1.png": ["found"]}
    with Checks(tmp_path / "out", tmp_path / "b") as checks:
        assert checks.known(["1.png"]) == {}


def test_the_folder_of_an_interrupted_import_says_that_it_goes_on(
    sources: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    killed(40, {**sources["images"], "out": str(tmp_path / "out")})
    with pytest.raises(DataError, match="run it again: it goes on"):
        Dataset.open(tmp_path / "out")
