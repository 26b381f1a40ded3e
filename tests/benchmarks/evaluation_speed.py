"""How much faster benchmarks run with an image's cost shared than one row after the other, and that they say the same.

    python tests/benchmarks/evaluation_speed.py [--models tiny small large] [--images 2] [--rounds 3]

Benchmark files are made from scenes: POPE (18 questions about each picture), MMBench (CircularEval, four rotations),
MME (two questions). `tiny`: the shipped parts with a fresh projector, 64 image tokens. `small`: as wide as the tiny
one, random, 576 image tokens. `large`: random, 59 million parameters, 576 image tokens. Answers are two tokens at most,
as those of a trained model (`Yes` and the end). MMBench is measured twice: `asked` takes every answer for right, so
that no rotation is left out; `stopped` is as it is. Processor time of this process, one thread, both in turn, medians.
Prints a table; what is wanted holds for 576 image tokens: where the picture is short, little is shared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))

import benchmark_files as files
import torch
from peers.material import Shape, make_model

import workbench as wb
from workbench.evaluation.questions import read_benchmark
from workbench.evaluation.reading import Read, Rules
from workbench.evaluation.task import Evaluation
from workbench.inference.engine import Engine
from workbench.recipe import ModelSpec

WANTED = {"pope": 6.0, "mmbench, asked": 2.5, "mmbench, stopped": 2.5, "mme": 1.5}
"""Times faster, at least, where an image is 576 tokens."""
NAMES = ("tiny", "small", "large")
TINY = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
}


@dataclass(frozen=True)
class AlwaysRight:
    """A benchmark's rules that take every answer for right: every rotation is asked."""

    of: Rules

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)

    def read(self, answer: str, row: Any) -> Read:
        return replace(self.of.read(answer, row), earned=1.0)


def evaluations(folder: Path, images: int) -> dict[str, Evaluation]:
    files.pope(folder / "pope", images, 6)
    files.mme(folder / "mme", max(2, images))
    circular = read_benchmark("mmbench", files.mmbench(folder / "mmbench", 2 * images))
    return {
        "pope": read_benchmark("pope", folder / "pope"),
        "mmbench, asked": replace(circular, rules=AlwaysRight(circular.rules)),
        "mmbench, stopped": circular,
        "mme": read_benchmark("mme", folder / "mme"),
    }


def engine(name: str, folder: Path) -> Engine:
    if name == "tiny":
        spec = ModelSpec(vision="tiny", language="tiny")
        return Engine(wb.build(spec, template="tiny", image_mode="square"), name=name)
    shape = Shape()
    if name == "small":
        shape = Shape(
            language={**shape.language, **TINY}, tower={**shape.tower, "hidden_size": 128, "num_hidden_layers": 4}
        )
    make_model(folder / name, shape)
    return Engine(wb.load(folder / name), name=name)


def timed(model: Engine, evaluation: Evaluation, reuse: bool) -> tuple[float, Any]:
    fresh = Engine(model.llava, name=model.name)  # nothing is kept from the run before
    began = time.process_time()
    results = wb.evaluate(fresh, evaluation, reuse=reuse, max_tokens=2, description=f"{model.name}, {evaluation.name}")
    return time.process_time() - began, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as held:
        asked = evaluations(Path(held), given.images)
        print(f"{'':24} {'rows':>5} {'shared s':>9} {'plain s':>9} {'times':>6} {'wanted':>7}  answers that differ")
        for name in given.models:
            model = engine(name, Path(held))
            for kind, evaluation in asked.items():
                spent: dict[bool, list[float]] = {True: [], False: []}
                last: dict[bool, Any] = {}
                for _ in range(given.rounds):
                    for reuse in (True, False):
                        took, last[reuse] = timed(model, evaluation, reuse)
                        spent[reuse].append(took)
                told(name, kind, spent, last[True], last[False])


def told(name: str, kind: str, spent: dict[bool, list[float]], fast: Any, plain: Any) -> None:
    shared, alone = (statistics.median(spent[reuse]) for reuse in (True, False))
    pairs = zip(fast.rows.iter_rows(named=True), plain.rows.iter_rows(named=True), strict=True)
    differ = sum(a["answer"] is not None and a["said"] != b["said"] for a, b in pairs)
    times = alone / shared
    flag = "" if times >= WANTED[kind] or name == "tiny" else "  TOO SLOW"
    head = f"{name + ' ' + kind:24} {len(fast.rows):5} {shared:9.2f} {alone:9.2f} {times:6.2f} {WANTED[kind]:7.1f}"
    print(f"{head}  {differ}{flag}", flush=True)


if __name__ == "__main__":
    main()
