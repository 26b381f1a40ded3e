"""What training costs as the work grows: time per conversation, and how soon a large dataset starts.

    python tests/benchmarks/training_scale.py [--counts 1000 5000 50000] [--rounds 3] [--records 665000]

A model of two narrow layers trains on so many short conversations, 3 about each image, by `workbench train` in a
process of its own: milliseconds of processor time per conversation, from the first step to the last; the medians of
interleaved runs. Then a dataset as large as LLaVA's 665K mix (see `llava_import.py`) starts twice: cold, when every
conversation is measured and the rate is printed, and warm, from the index of lengths. Start-up is from the start of the
process to the end of the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from llava_import import record
from peers.material import Shape, make_model
from peers.watch import Watched, watch

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
BATCH = 100
IMAGES = 340_000
"""Pictures of the large dataset, about as many as the mix has."""


def pictures(folder: Path, count: int) -> list[str]:
    """Names of so many small pictures; all but 100 are hard links."""
    folder.mkdir(parents=True)
    names = [f"{number:07}.png" for number in range(count)]
    for number, name in enumerate(names):
        if number < 100:
            Image.new("RGB", (32, 32), (number, 90, 90)).save(folder / name)
        else:
            os.link(folder / names[number % 100], folder / name)
    return names


def short_rows(folder: Path, count: int) -> None:
    """LLaVA records of a short question and answer, 3 about each picture."""
    rng, names = random.Random(0), pictures(folder / "images", -(-count // 3))
    rows = []
    for number in range(count):
        said = [" ".join(f"w{rng.randrange(5000)}" for _ in range(words)) for words in (8, rng.randint(3, 7))]
        turns = [{"from": "human", "value": f"<image>\n{said[0]}?"}, {"from": "gpt", "value": said[1]}]
        rows.append({"id": str(number), "image": names[number // 3], "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))


def mix(folder: Path, count: int) -> None:
    """A dataset folder of so many records like those of the 665K mix."""
    import polars as pl

    from workbench.conversation import from_llava
    from workbench.data.dataset import Dataset
    from workbench.data.tables import IMAGE_COLUMNS

    rng, names = random.Random(0), pictures(folder / "images", min(IMAGES, count // 2))
    columns = {"id": names, "root": ["images"] * len(names), "path": names, "status": ["ok"] * len(names)}
    frame = pl.DataFrame(columns, schema={name: IMAGE_COLUMNS[name] for name in columns})

    def made(number: int) -> Any:
        row = record(rng, number) | {"id": f"c{number}"}
        if "image" in row:
            row["image"] = names[rng.randrange(len(names))]
        return from_llava(row)

    Dataset.create(folder, name="mix", images=frame, conversations=(made(number) for number in range(count)))


def train(folder: Path, data: str, steps: int | None, until: int | None) -> Watched:
    """`workbench train` on the data in `folder`, watched."""
    recipe = {
        "name": "scale",
        "model": {"checkpoint": str(folder / "model"), "device": "cpu"},
        "data": {"dataset": data, "val_fraction": 0.0} | ({"images": str(folder / "images")} if "json" in data else {}),
        "template": "v1",
        "image_mode": "pad",
        "train": {
            "stage": "finetune",
            "language": "lora",
            "lora": {"r": 4, "alpha": 8.0},
            "lr": 1e-4,
            "max_tokens": 4096,
            "batch_size": BATCH,
            "max_steps": steps,
            "threads": 1,
        },
    }
    number = len(list(folder.glob("run*")))
    path, out = folder / f"recipe{number}.yaml", folder / f"run{number}"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    command = [sys.executable, "-m", "workbench.cli", "train", str(path), "--out", str(out)]
    log = folder / "output.txt"
    return watch(command, out / "metrics.jsonl", log, threads=1, marker="grad_norm", until=until)


def growth(counts: list[int], rounds: int) -> None:
    """Time per conversation for each count: medians of interleaved runs."""
    seen: dict[int, list[Watched]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory(prefix="scale-") as temporary:
        os.environ["WORKBENCH_HOME"] = str(Path(temporary) / "state")
        for count in counts:
            folder = Path(temporary) / str(count)
            make_model(folder / "model", Shape(side=56, language=SMALL | {"num_key_value_heads": 2}, tower=SMALL))
            short_rows(folder, count)
        for _, count in product(range(rounds), counts):
            folder = Path(temporary) / str(count)
            seen[count].append(train(folder, str(folder / "rows.json"), None, None))
    print("conversations start-up s  cpu ms each of first wall ms each  peak GB")
    first = None
    for count, runs in seen.items():
        steps = len(runs[0].marks)
        wall, used = (1000 * median(times) / (BATCH * (steps - 1)) for times in zip(*_spent(runs), strict=True))
        first, start = first or used, median(run.marks[0][0] for run in runs)
        cells = f"{used:12.3f} {used / first:8.3f} {wall:12.3f} {max(run.peak for run in runs) / 2**30:8.2f}"
        print(f"{count:13,} {start:10.1f} {cells}", flush=True)


def _spent(runs: list[Watched]) -> list[tuple[float, float]]:
    """Seconds of each run from its first step to its last, wall and of the processor."""
    return [run.between(1, len(run.marks)) for run in runs]


def start_up(count: int) -> None:
    """The first step of a large dataset, cold and warm."""
    with tempfile.TemporaryDirectory(prefix="scale-") as temporary:
        folder = Path(temporary)
        os.environ["WORKBENCH_HOME"] = str(folder / "state")
        make_model(folder / "model", Shape(side=56, language=SMALL | {"num_key_value_heads": 2}, tower=SMALL))
        mix(folder / "mix", count)
        print(f"\n{count:,} records   first step after s    cpu s   peak GB")
        for name in ("cold", "warm"):
            seen = train(folder, str(folder / "mix"), 2, 1)
            (wall, used), peak = seen.marks[0], seen.peak / 2**30
            print(f"{name:>{len(f'{count:,} records')}} {wall:20.1f} {used:8.1f} {peak:9.2f}", flush=True)
            told = [line for line in (folder / "output.txt").read_text().splitlines() if "lengths" in line]
            print("\n".join(f"    {line.strip()}" for line in told[-2:]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="*", default=[1_000, 5_000, 50_000])
    parser.add_argument("--rounds", type=int, default=3, help="of the growth")
    parser.add_argument("--records", type=int, default=665_000, help="0: only the growth")
    asked = parser.parse_args()
    growth(asked.counts, asked.rounds)
    if asked.records:
        start_up(asked.records)
