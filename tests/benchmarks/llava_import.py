"""Reading a LLaVA file of 665,000 records: seconds to the first sample and peak memory, beside `json.load` and a list.

    python tests/benchmarks/llava_import.py [665000]

The generated file has the kinds and lengths of records of LLaVA's 665K mix (text only, several turns, one image used
many times, boxes, short answers). Each way runs in a process of its own; what a process holds after its imports, before
it opens the file, is the last column. The first line is what LLaVA does. `read` goes through the whole file, `import`
makes a dataset folder of it (few images, so that their checking does not hide what the records cost), `iterate` opens
that folder and goes through its conversations.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

WAYS = ("json.load", "read", "import", "iterate")
IMAGES = 200
WORDS = (
    "the a man woman dog street red large holding near table two wooden standing with sign over window field".split()
)


def turns(rng: random.Random, pairs: int, words: int, mark: bool) -> list[dict[str, str]]:
    made = []
    for number in range(pairs):
        question = " ".join(rng.choices(WORDS, k=14)).capitalize() + "?"
        made.append({"from": "human", "value": f"<image>\n{question}" if mark and not number else question})
        made.append({"from": "gpt", "value": " ".join(rng.choices(WORDS, k=words)).capitalize() + "."})
    return made


def record(rng: random.Random, number: int) -> dict[str, Any]:
    """One record; shares about those of the mix: 24 % long, 55 % short answers, 15 % boxes, 6 % text only."""
    kind, image = rng.random(), f"coco/train2017/{rng.randrange(IMAGES):012}.jpg"
    if kind < 0.06:
        return {"id": f"text{number}_0", "model": "", "conversations": turns(rng, 3, 180, False)}
    if kind < 0.30:
        return {"id": f"{number:012}", "image": image, "conversations": turns(rng, 3, 60, True)}
    if kind < 0.85:
        return {"id": f"vqa/{number}", "image": image, "conversations": turns(rng, 8, 2, True)}
    made = turns(rng, 6, 8, True)
    for answer in made[1::2]:
        answer["value"] = str([round(rng.random(), 2) for _ in range(4)])
    return {"id": f"VG_{number}", "image": image, "conversations": made}


def generate(folder: Path, count: int) -> None:
    rng = random.Random(0)
    with open(folder / "mix.json", "w", encoding="utf-8") as file:
        for number in range(count):
            file.write(("[" if not number else ", ") + json.dumps(record(rng, number)))
        file.write("]")
    (folder / "coco/train2017").mkdir(parents=True)
    for number in range(IMAGES):
        Image.new("RGB", (64, 48), (number, 90, 90)).save(folder / f"coco/train2017/{number:012}.jpg")


def peak() -> float:
    """MB that this process held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def step(way: str, folder: Path) -> dict[str, float]:
    from workbench.data.dataset import Dataset
    from workbench.data.formats import import_llava, read_conversations

    before, start, file = peak(), time.perf_counter(), folder / "mix.json"
    if way == "json.load":
        with open(file, encoding="utf-8") as handle:
            records = list(json.load(handle))
        first = time.perf_counter() - start
        count = len(records)
    elif way == "read":
        count, stream = 1, read_conversations(file)
        next(stream)
        first = time.perf_counter() - start
        count += sum(1 for _ in stream)
    elif way == "import":
        dataset = import_llava(file, folder, folder / "dataset", workers=1)
        next(dataset.iter_conversations())
        first = time.perf_counter() - start
        count = dataset.card["counts"]["conversations"]
    else:
        stream = Dataset.open(folder / "dataset").iter_conversations()
        next(stream)
        first = time.perf_counter() - start
        count = 1 + sum(1 for _ in stream)
    return {"first": first, "all": time.perf_counter() - start, "count": count, "peak": peak(), "before": before}


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary), count)
        size = (Path(temporary) / "mix.json").stat().st_size / 1e6
        print(f"{count:,} records, {size:,.0f} MB of JSON")
        print(f"{'way':10} {'first s':>9} {'faster':>8} {'all s':>7} {'peak MB':>8} {'of peak':>8} {'before':>7}")
        base: dict[str, float] = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--step", way, temporary]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            told = json.loads(done.stdout.splitlines()[-1])
            assert told["count"] == count, told
            base = base or told
            faster, share = base["first"] / told["first"], told["peak"] / base["peak"]
            times = f"{told['first']:9.3f} {faster:7.1f}x {told['all']:7.1f}"
            print(f"{way:10} {times} {told['peak']:8.0f} {share:8.2f} {told['before']:7.0f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        print(json.dumps(step(sys.argv[2], Path(sys.argv[3]))))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 665_000)
