"""How far a training step is from the limit: its arithmetic against plain matrix multiplications of the same shapes.

    python tests/benchmarks/flops.py [--workload 3] [--threads 1] [--rounds 3]

The step is the product's own, on the rows and the model of `training_peers.py`. Only useful operations count: a frozen
linear layer 2 forward and 2 for the gradient of its input, per weight and token; a padded or recomputed token none. The
multiplications are those of the step's packs, one by one on warm random matrices, each by torch's own product and by
oneDNN's, whichever is faster here. Times are processor seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from peers.jobs import WORKLOADS, prepare
from peers.watch import watch

from workbench.model.llava import build
from workbench.model.products import linear
from workbench.model.stages import prepare as free
from workbench.recipe import Recipe
from workbench.training.flops import pairs, step_cost
from workbench.training.last_layer import predicting_parts

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Shapes = Counter[tuple[int, int, int]]
"""(rows, inner, columns) of a multiplication -> how often a step makes it."""


def products(llava: Any, packs: list[int], supervised: int, images: int) -> Shapes:
    """The multiplications of a step's linear layers. `packs`: tokens of each; a gradient of an input is one more."""
    shapes: Shapes = Counter()
    language, tower = llava.model.model.language_model, llava.tower
    fewer = {part for whole in predicting_parts(llava) for part in whole.modules()}
    for module in language.modules():
        if isinstance(module, torch.nn.Linear):
            for rows in [supervised // len(packs)] * len(packs) if module in fewer else packs:
                shapes[rows, module.in_features, module.out_features] += 1
                shapes[rows, module.out_features, module.in_features] += 1
                if module.weight.requires_grad:
                    shapes[module.out_features, rows, module.in_features] += 1
    head = llava.model.lm_head
    shapes[supervised // len(packs), head.in_features, head.out_features] += len(packs)
    shapes[supervised // len(packs), head.out_features, head.in_features] += len(packs)
    patches = tower.embeddings.position_embedding.num_embeddings
    for layer in list(tower.encoder.layers)[: llava.model.config.vision_feature_layer + 1 or None]:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                shapes[images * patches, module.in_features, module.out_features] += 1
    for module in (llava.projector.linear_1, llava.projector.linear_2):
        shapes[images * llava.image_tokens, module.in_features, module.out_features] += 1
    return shapes


def speed(shapes: Shapes) -> float:
    """Operations per processor second of these multiplications, each as often as the step makes it."""
    operations, seconds = 0.0, 0.0
    for (rows, inner, columns), count in shapes.items():
        one, other = torch.randn(rows, inner), torch.randn(columns, inner)
        seconds += count * min(taken(product, one, other) for product in (torch.nn.functional.linear, linear))
        operations += count * 2 * rows * inner * columns
    return operations / seconds


def taken(product: Product, one: torch.Tensor, other: torch.Tensor, repeats: int = 3) -> float:
    """Median processor seconds of a multiplication, after a first one."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.process_time()
        product(one, other)
        seconds.append(time.process_time() - began)
    return statistics.median(seconds[1:])


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="flops-") as temporary:
        folder, work = Path(temporary), WORKLOADS[args.workload]
        os.environ["WORKBENCH_HOME"] = str(folder / "state")
        job = prepare(folder, work, threads=args.threads, tiny=args.tiny)
        recipe = Recipe.from_dict(job["recipe"])
        llava = build(recipe.model, template=recipe.template, image_mode=recipe.image_mode)
        free(llava, recipe.train, say=lambda _: None)
        cost, flops = step_cost(llava, encodes=True), 0.0
        step = job["trees"][1]
        tokens = sum(prefix + sum(branches) for prefix, branches, _ in step)
        supervised = sum(count for *_, count in step)
        seen = sum(pairs(prefix, branches) for prefix, branches, _ in step)
        flops = cost.of(tokens=tokens, supervised=supervised, images=len(step), pairs=seen)
        count = -(-tokens // recipe.train.pack_size)
        shapes = products(llava, [tokens // count] * count, supervised, len(step))
        print(f"a step: {tokens:,} tokens, {supervised:,} supervised, {len(step)} images, {flops / 1e9:,.0f} GFLOP")
        print(f"{'':8} {'step GFLOP/s':>13} {'multiplications':>16} {'share':>6}")
        shares = []
        for number in range(args.rounds):
            achieved, plain = flops / seconds_of_step(folder, job, number, args.threads), speed(shapes)
            shares.append(achieved / plain)
            print(f"round {number + 1}: {achieved / 1e9:13.1f} {plain / 1e9:16.1f} {shares[-1]:6.1%}", flush=True)
        print(f"median share of the limit: {statistics.median(shares):.1%}, {args.threads} thread(s)")


def seconds_of_step(folder: Path, job: dict[str, Any], number: int, threads: int) -> float:
    """Processor seconds of the second step of a run in its own process, with its images' way through the tower."""
    path, out = folder / f"{number}.json", folder / f"run{number}"
    path.write_text(json.dumps(job | {"out": str(out)}))
    command = [sys.executable, str(Path(__file__).parent / "peers" / "workbench_side.py"), str(path)]
    seen = watch(command, out / "metrics.jsonl", folder / "output.txt", threads=threads, marker="grad_norm")
    return seen.between(1, 2)[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=["3", "1.95", "1", "next"], default="3")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a model of two narrow layers, to try the script")
    main(parser.parse_args())
