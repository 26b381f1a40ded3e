"""How many answers about images a server gives, `workbench serve` beside `transformers serve`, same machine, same run.

    python tests/benchmarks/serving_throughput.py [--images 500] [--questions 4] [--slice 20] [--clients 16]
    python tests/benchmarks/serving_throughput.py --images 2000 --questions 1        # every image is new

Makes a random LLaVA (59 million parameters, 576 image tokens, float32) and pictures. Both servers hold it, each in a
process of its own; they are asked the same slices of images in turn, greedy, 32 new tokens an answer, with as many
clients at once. The first slice warms both and is not measured. Prints answers per second, by the wall and by
processor time of the server, and the time to the first token with 16 clients at once. Both servers' prompts have to be
equally long, and their answers are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from peers.material import Shape, make_model, make_rows
from peers.served import Asked, Served, crowd, free_port, request, served

AT_ONCE = 16
"""Clients when the time to the first token is measured."""


def commands(folder: Path) -> dict[str, tuple[list[str], int, str]]:
    """Side -> how it is started, its port, how clients call the model."""
    ours, theirs = free_port(), free_port()
    python = Path(sys.executable)
    transformers = [str(python.parent / "transformers"), "serve", str(folder), "--port", str(theirs), "--device", "cpu"]
    mine = [str(python), "-m", "workbench.cli", "serve", str(folder), "--port", str(ours), "--device", "cpu"]
    return {
        "workbench serve": (mine, ours, folder.name),
        "transformers serve": ([*transformers, "--dtype", "float32"], theirs, str(folder)),
    }


def questions(folder: Path, images: int, each: int) -> list[list[tuple[Path, str]]]:
    """Per image its questions: the first of the made-up rows about it."""
    rows = make_rows(folder, [each] * images)
    per_image: dict[str, list[tuple[Path, str]]] = {}
    for row in rows:
        text = row["conversations"][0]["value"].removeprefix("<image>\n")
        per_image.setdefault(row["image"], []).append((folder / "images" / row["image"], text))
    return list(per_image.values())


def measure(side: Served, asked: list[tuple[Path, str]], args: argparse.Namespace) -> tuple[float, float, list[Asked]]:
    """(wall, processor) seconds, answers."""
    bodies = [request(side.model, image, text, args.tokens) for image, text in asked]
    wall, used = time.perf_counter(), side.cpu()
    answers = asyncio.run(crowd(side.url, bodies, args.clients))
    return time.perf_counter() - wall, side.cpu() - used, answers


def first_tokens(side: Served, asked: list[tuple[Path, str]], args: argparse.Namespace) -> list[float]:
    more = {"stream": True}
    bodies = [request(side.model, image, text, args.tokens, **more) for image, text in asked]
    return [one.first for one in asyncio.run(crowd(side.url, bodies, AT_ONCE))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--slice", type=int, default=20, help="images that one server is asked about in a turn")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        size = make_model(folder / "model", Shape())
        about = questions(folder / "rows", args.images + args.slice, args.questions)
        sides = {}
        for name, (command, port, model) in commands(folder / "model").items():
            log = folder / f"{name.replace(' ', '-')}.log"
            sides[name] = stack.enter_context(served(command, port, model, log, args.threads))
        told = compare(sides, about, args)
    print(f"\n{size / 1e6:.0f} M parameters, {Shape().image_tokens} image tokens, {args.tokens} new tokens, "
          f"{args.images} images x {args.questions} questions, {args.clients} clients, {args.threads} threads, "
          f"{platform.processor() or platform.machine()}")  # fmt: skip
    print(table(told))
    if args.json:
        args.json.write_text(json.dumps(told, indent=1))


def compare(sides: dict[str, Served], about: list[list[tuple[Path, str]]], args: argparse.Namespace) -> dict[str, Any]:
    told: dict[str, Any] = {name: {"wall": [], "cpu": [], "answers": 0, "first": []} for name in sides}
    equal = seen = 0
    for number, start in enumerate(range(0, len(about), args.slice)):
        asked = [each for one in about[start : start + args.slice] for each in one]
        random.Random(number).shuffle(asked)
        answers = {}
        for name in random.Random(-number).sample(list(sides), len(sides)):
            wall, used, answers[name] = measure(sides[name], asked, args)
            bad = [one for one in answers[name] if one.status != 200]
            if bad or len(answers[name]) != len(asked):
                raise SystemExit(f"{name}: {len(bad)} of {len(asked)} failed, such as {bad[:1]}")
            if number:
                told[name]["wall"].append(wall)
                told[name]["cpu"].append(used)
                told[name]["answers"] += len(asked)
                print(
                    f"slice {number}, {name}: {len(asked) / wall:.2f} answers/s, {len(asked) / used:.2f} by processor",
                    flush=True,
                )
        ours, theirs = (answers[name] for name in sides)
        for mine, other in zip(ours, theirs, strict=True):
            if other.prompt_tokens and mine.prompt_tokens != other.prompt_tokens:
                raise SystemExit(f"prompts differ: {mine.prompt_tokens} and {other.prompt_tokens} tokens")
            seen += 1
            equal += mine.text.strip() == other.text.strip()
    told["equal answers"] = equal / seen
    asked = [one[-1] for one in about[-2 * AT_ONCE :]]
    for name, side in sides.items():
        told[name]["first"] = first_tokens(side, asked, args)
        told[name]["memory_gb"] = side.memory() / 2**30
    return told


def table(told: dict[str, Any]) -> str:
    sides = [name for name in told if isinstance(told[name], dict)]
    lines = [
        f"{'':20} {'answers/s':>10} {'times':>6} {'cpu':>8} {'times':>6} {'first token: s':>20} {'worst':>7} {'GB':>6}"
    ]
    rates = {}
    for name in sides:
        each = told[name]
        rates[name] = each["answers"] / sum(each["wall"]), each["answers"] / sum(each["cpu"])
    theirs = rates[sides[-1]]
    for name in sides:
        each, (wall, used) = told[name], rates[name]
        lines.append(
            f"{name:20} {wall:10.2f} {wall / theirs[0]:6.2f} {used:8.2f} {used / theirs[1]:6.2f} "
            f"{statistics.median(each['first']):20.2f} {max(each['first']):7.2f} {each['memory_gb']:6.2f}"
        )
    lines.append(f"equal answers: {told['equal answers']:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
