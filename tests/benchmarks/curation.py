"""Seconds and peak memory of curating many small generated pictures: import, measures, funnel, duplicates.

    python tests/benchmarks/curation.py [5000 50000]

Each step runs in a process of its own, so that its peak memory is its own; the largest of its workers is told beside
it. The last column is the time per picture in proportion to that of the smallest count: 1.00 is linear growth.
"""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STEPS = ("import", "measures", "funnel", "duplicates", "leakage")
WORDS = "a the small large red blue old dog house tree river street person on in beside under walks stands".split()
RECIPE = """
kind: curate
name: benchmark
filters:
  broken: true
  aspect: {min: 0.333, max: 3.0}
  width: {max: 727}
  sharpness: {min: 1}
  entropy: {min: 1}
  alphanumeric: {min: 0.6}
  character_repetition: {max: 0.094}
  word_repetition: {max: 0.031}
  special_characters: {max: 0.42}
"""


def draw(folder: Path, count: int) -> None:
    """Pictures of coarse and fine patches with a caption each; one of every hundred is copied, one copied resized."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        picture = Image.new("RGB", (64, 64))
        for side, weight in ((3, 1.0), (7, 0.5), (15, 0.4)):  # weaker where finer, as in photographs
            patches = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
            picture = Image.blend(picture, patches.resize((64, 64), Image.Resampling.BICUBIC), weight)
        name = f"{number:06}.jpg"
        picture.save(folder / name, quality=85)
        rows.append((name, " ".join(rng.choice(WORDS, 12))))
        if number % 100 == 0:
            (folder / f"copy-{name}").write_bytes((folder / name).read_bytes())
        elif number % 100 == 1:
            picture.resize((80, 80)).save(folder / f"again-{name}", quality=75)
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("file", "caption"), *rows])


def step(name: str, folder: Path) -> dict[str, Any]:
    """Run one step in this process."""
    from workbench.curation.duplicates import near_groups
    from workbench.curation.filters import curate
    from workbench.curation.image_measures import image_measures
    from workbench.curation.splits import check_leakage, split
    from workbench.data.dataset import Dataset
    from workbench.data.formats import import_folder

    start = time.perf_counter()
    if name == "import":
        found = import_folder(folder / "pictures", folder / "dataset").images.height
    else:
        dataset = Dataset.open(folder / "dataset")
        if name == "measures":
            found = image_measures(dataset).height
        elif name == "funnel":
            (folder / "recipe.yaml").write_text(RECIPE)
            found = int(curate(dataset, folder / "recipe.yaml").table["removed"].sum())
        elif name == "duplicates":
            found = near_groups(dataset, dataset.images).height
        else:
            split(dataset)
            found = check_leakage(dataset).height
    seconds = time.perf_counter() - start
    peaks = [resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": seconds, "memory": peaks[0], "worker": peaks[1], "found": found}


def main(counts: list[int]) -> None:
    base: dict[str, float] = {}
    print(f"{'pictures':>8}  {'step':10} {'seconds':>8} {'MB':>6} {'worker MB':>9} {'found':>7} {'growth':>6}")
    for count in counts:
        with tempfile.TemporaryDirectory() as temporary:
            draw(Path(temporary) / "pictures", count)
            for name in STEPS:
                command = [sys.executable, __file__, "--step", name, temporary]
                told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1])
                each = told["seconds"] / count
                growth = each / base.setdefault(name, each)
                numbers = (
                    f"{told['seconds']:8.1f} {told['memory']:6} {told['worker']:9} {told['found']:7} {growth:6.2f}"
                )
                print(f"{count:8}  {name:10} {numbers}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        print(json.dumps(step(sys.argv[2], Path(sys.argv[3]))))
    else:
        main([int(text) for text in sys.argv[1:]] or [5000, 50000])
