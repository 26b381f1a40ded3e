"""Kill -9 at any moment of an import: called again, it ends in the folder of an undisturbed one, nothing left over."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image as PILImage

from workbench.data import tables
from workbench.data.dataset import Dataset
from workbench.data.formats import export_hf, import_files, import_llava

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kill -9")

# Counts what the process asks of the disk once the import begins, and kills it with kill -9 before one of these steps.
IMPORTER = """
import json, os, signal, sys
from workbench.data.formats import import_files

last, options = int(sys.argv[1]), json.loads(sys.argv[2])
for warm in ("datasets", "pypdfium2", "pyarrow.parquet"):
    __import__(warm)
steps = 0

def count(event, arguments):
    global steps
    if event in ("open", "os.rename", "os.mkdir", "os.remove") and not str(arguments[0]).endswith((".py", ".pyc")):
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
import_files(workers=1, **options)
print("steps", steps)
"""


def run(last: int, options: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    here = {**os.environ, "PYTHONPATH": str(Path(tables.__file__).parents[2])}
    command = [sys.executable, "-c", IMPORTER, str(last), json.dumps(options)]
    return subprocess.run(command, capture_output=True, text=True, env=here, timeout=120, check=False)


def held(path: Path) -> dict[str, Any]:
    """All that a dataset folder is: tables, card, report, and every other file."""
    dataset = Dataset.open(path)
    card = yaml.safe_load((path / "card.yaml").read_text())
    own = {"images.parquet", "conversations.parquet", "card.yaml"}
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    return {
        "images": dataset.images.rows(),
        "conversations": dataset.conversation_rows.rows(),
        "card": {key: value for key, value in card.items() if key != "created"},
        "files": {name: None if name in own else file.read_bytes() for name, file in files.items()},
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """For every kind of import, what it is called with."""
    folder = tmp_path_factory.mktemp("sources")
    names = [f"{kind}/{number:02}.png" for kind in ("cat", "dog") for number in range(12)]
    for number, name in enumerate(names):
        (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (30, 20 + number), (9 * number, 80, 40)).save(folder / "pictures" / name)
    (folder / "pictures/dog/broken.png").write_bytes(b"\x89PNG, and no more")
    records = [
        {"id": str(number), "image": name, "conversations": [{"from": "human", "value": "<image>\nWhat?"},
                                                            {"from": "gpt", "value": f"Number {number}."}]}
        for number, name in enumerate(names)
    ]  # fmt: skip
    (folder / "llava.json").write_text(json.dumps([*records, {"id": "bad"}]))
    pages = [PILImage.new("RGB", (72, 72), (10 * number, 0, 90)) for number in range(20)]
    pages[0].save(folder / "pages.pdf", "PDF", save_all=True, append_images=pages[1:])
    export_hf(import_llava(folder / "llava.json", folder / "pictures", folder / "ds", workers=1), folder / "hf")
    return {
        "images": {"source": str(folder / "pictures")},
        "llava": {"source": str(folder / "llava.json"), "images": str(folder / "pictures")},
        "pdf": {"source": str(folder / "pages.pdf"), "dpi": 30},
        "hf-dataset": {"source": str(folder / "hf")},
    }


@pytest.mark.parametrize("kind", ["images", "llava", "pdf", "hf-dataset"])
def test_killed_at_random_moments_and_called_again_it_is_an_undisturbed_import(
    kind: str, sources: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    whole = run(0, {**sources[kind], "out": str(tmp_path / "whole")})
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout.split()[-1])
    assert steps > 20
    pick = random.Random(kind)
    moments = sorted({*pick.sample(range(1, steps - 20), 4), steps - 17, *pick.sample(range(steps - 20, steps), 4)})
    for moment in moments:  # one while the report is written, whose temporary file was left over once
        out = tmp_path / f"killed-{moment}"
        options = {**sources[kind], "out": str(out)}
        assert run(moment, options).returncode == -signal.SIGKILL
        if not (out / "card.yaml").exists():  # the card is written last: with it the import was done
            import_files(workers=1, **options)
        assert held(out) == held(tmp_path / "whole"), f"killed before step {moment} of {steps}"
