"""Stage 1 with the features of a frozen tower on the disk, against computing them: seconds, losses and disk space.

    python tests/benchmarks/feature_cache.py [--images 24] [--rounds 3] [--width 384] [--layers 12] [--epochs 1]
                                             [--from-disk] [--json]

Stage 1, one caption per image, 576 image tokens at 336 pixels: the shipped tiny language model behind a
CLIP-type tower with random weights that is large next to it. Every run is a process of its own; rounds are interleaved
and medians printed. `off` computes every feature, `cold` also writes them, `warm` reads them, `fp16` reads rounded
ones, `auto` begins with an empty disk, like `cold`, and does what it says below the table. The ratio is off / this one:
what a run gains. With `--from-disk` no features stay in memory, as in a run whose images are too many for it. Losses of
off, cold, warm and auto must be equal bit for bit; those of fp16 are near at equal
weights, and then go their own way, as they do after any other rounding of the last bits.

How much there is to gain follows from the sizes. Stage 1 sends an image's tokens through the tower (2 operations per
weight and token) and through the language model forward and back to its inputs (4): with t and l weights about
1 + t / 2l for a warm cache. That is 1.02 for a CLIP-L before a 7B model, where decoding is saved besides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = {"off": "off", "cold": "on", "warm": "on", "fp16": "fp16", "auto": "auto"}
TARGET = 1.4
PAYS = 1.0
"""What `auto` must gain at least where it writes features."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--from-disk", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(one_run(*given.child.split("|"))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_tower(folder / "tower", given.width, given.layers)
        make_dataset(folder / "data", given.images)
        runs = measure(folder, given.rounds, [str(given.epochs), "disk" if given.from_disk else ""])
    found = summary(runs, given.images)
    print(json.dumps(found, indent=1) if given.json else table(found))
    gained = {way: times["cpu_ratio"] for way, times in found["ways"].items()}
    pays = gained["auto"] >= PAYS or not found["chosen"].startswith("feature cache on")
    return 0 if found["equal"] and gained["warm"] >= TARGET and pays else 1


def measure(folder: Path, rounds: int, how: list[str]) -> dict[str, list[dict[str, Any]]]:
    """`how`: epochs, and `disk` where no features stay in memory."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    start(folder, "fp16", "before", folder / "state warm", how)  # so that fp16 finds its features
    start(folder, "warm", "before", folder / "state warm", how)
    for number in range(rounds):
        for way in WAYS:
            state = folder / ("state warm" if way in ("warm", "fp16") else f"state {way} {number}")
            runs[way].append(start(folder, way, str(number), state, how))
    return runs


def start(folder: Path, way: str, number: str, state: Path, how: list[str]) -> dict[str, Any]:
    """One training run in a process of its own."""
    quiet = {"WORKBENCH_HOME": str(state), "WORKBENCH_PROGRESS": "off", "OMP_NUM_THREADS": "1"}
    words = "|".join([str(folder), WAYS[way], str(folder / f"run {way} {number}"), *how])
    command = [sys.executable, __file__, "--child", words]
    done = subprocess.run(command, env={**os.environ, **quiet}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def one_run(folder: str, cache: str, out: str, epochs: str, kept: str) -> dict[str, Any]:
    from workbench.recipe import Recipe
    from workbench.resources import state_sizes
    from workbench.training import features
    from workbench.training.plan import plan
    from workbench.training.trainer import train

    if kept == "disk":
        features.BUDGET = 0
    train_part = {"stage": "align", "language": "frozen", "lr": 1e-3, "batch_size": 8, "threads": 1}
    train_part["epochs"] = float(epochs)
    recipe = Recipe.from_dict(
        {
            "name": "feature cache",
            "model": {"vision": f"{folder}/tower", "language": "tiny", "device": "cpu"},
            "data": {"dataset": f"{folder}/data", "val_fraction": 0.0},
            "template": "plain",
            "image_mode": "pad",
            "train": {**train_part, "feature_cache": cache},
        }
    )
    cpu, wall = time.process_time(), time.perf_counter()
    run = train(recipe, out=out, progress=False)
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    sizes, chosen = state_sizes(), str(plan(recipe).cache) if cache == "auto" else ""
    return {**spent, "losses": [row["loss"] for row in run.metrics()], "disk": sizes.get("features", 0),
            "chosen": chosen}  # fmt: skip


def summary(runs: dict[str, list[dict[str, Any]]], images: int) -> dict[str, Any]:
    middle = {
        way: {kind: statistics.median(run[kind] for run in held) for kind in ("cpu", "wall")}
        for way, held in runs.items()
    }
    for times in middle.values():
        times["cpu_ratio"] = middle["off"]["cpu"] / times["cpu"]
        times["wall_ratio"] = middle["off"]["wall"] / times["wall"]
    exact = runs["off"][0]["losses"]
    rounded = [abs(a / b - 1) for a, b in zip(runs["fp16"][0]["losses"], exact, strict=True)]
    return {
        "ways": middle,
        "equal": all(run["losses"] == exact for way in ("off", "cold", "warm", "auto") for run in runs[way]),
        "fp16_first_loss_moved": rounded[0],
        "fp16_last_loss_moved": rounded[-1],
        "chosen": runs["auto"][0]["chosen"],
        "megabytes_per_image": runs["cold"][0]["disk"] / images / 1e6,
    }


def table(found: dict[str, Any]) -> str:
    lines = [f"{'':6} {'CPU s':>8} {'wall s':>8} {'CPU ratio':>10} {'wall ratio':>11}"]
    for way, times in found["ways"].items():
        ratios = f"{times['cpu_ratio']:9.2f}x {times['wall_ratio']:10.2f}x"
        lines.append(f"{way:6} {times['cpu']:8.2f} {times['wall']:8.2f} {ratios}")
    lines.append(f"auto: {found['chosen']}")
    lines.append(f"losses of off, cold, warm and auto {'are equal bit for bit' if found['equal'] else 'DIFFER'}")
    first, last = found["fp16_first_loss_moved"], found["fp16_last_loss_moved"]
    lines.append(f"with fp16 the first loss, at equal weights, moved by {first:.1e} of itself, the last by {last:.1e}")
    lines.append(f"disk: {found['megabytes_per_image']:.2f} MB per image in float32, index included")
    return "\n".join(lines)


# --- what is trained on -----------------------------------------------------------------------------------------


def make_tower(folder: Path, width: int, layers: int) -> None:
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    CLIPVisionModel(CLIPVisionConfig(**sizes, num_hidden_layers=layers, image_size=336, patch_size=14)).save_pretrained(
        folder
    )


def make_dataset(folder: Path, count: int) -> None:
    """Smooth random pictures of 640 x 480 pixels, each with a caption of a dozen words."""
    import numpy as np
    import polars as pl
    from PIL import Image as Picture

    from workbench.conversation import Conversation, Image, Message
    from workbench.data.dataset import Dataset

    rng = np.random.default_rng(0)
    words = "a the small large red blue old dog house tree river street person on in beside under".split()
    (folder / "images").mkdir(parents=True)
    conversations = []
    for number in range(count):
        coarse = Picture.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        coarse.resize((640, 480)).save(folder / "images" / f"{number}.jpg")
        said = " ".join(rng.choice(words, 12)) + "."
        asked = (Message("user", (Image(f"{number}.jpg"),)), Message("assistant", (said,)))
        conversations.append(Conversation(f"c{number}", asked, task="caption"))
    rows = pl.DataFrame({"id": [f"i{n}" for n in range(count)], "path": [f"{n}.jpg" for n in range(count)]})
    Dataset.create(folder, name="pictures", images=rows, conversations=conversations)


if __name__ == "__main__":
    sys.exit(main())
