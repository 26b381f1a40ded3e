"""LLaVA at full size on a CUDA device: answers, training and memory against plan; ours against TRL; shards.

    python tests/benchmarks/gpu.py --out gpu.json [--minutes 8] [--parts NAME ...] [--tiny]

Random weights of real shapes are made on the device, in bf16 and NF4. Of LLaVA-1.5 7B and 13B, LLaVA-1.6 7B and 34B
(`house`): seconds to make them, to a first token and for an answer, what reused prefixes spare, two optimiser steps of
each stage, and the memory of each beside what was foreseen; a model that does not fit by the plan is not tried. The 7B
cut among as many devices as there are (`shards`). LLaVA-1.5-7B and a 7B with 2,304 image tokens, LoRA in bf16 and
QLoRA in NF4, 3 conversations per image, rows as in `training_peers.py`: ours against TRL; the ways to compute shared
attention.

It runs unattended, in parts that each end within `--minutes` in a process of their own; what is in `--out` already is
not measured again, so the same command goes on where it was cut off. `--parts` takes those whose names begin so, such
as `"house / llava-1.5-7b"`. The temporary folder takes up to 20 GB for a while. Without a device it says so and ends
with 0. `--tiny` runs the whole logic on the CPU with models of two narrow layers, shards in two processes: its numbers
mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))

from peers.attention_table import measure
from peers.environments import python_of
from peers.gpu_report import report
from peers.gpu_rows import prepare
from peers.random_llava import SIZES

from workbench import resources

PEERS = Path(__file__).parent / "peers"
MODELS = ("llava-1.5-7b", "next-7b-like")
HOUSE = ("llava-1.5-7b", "llava-1.5-13b", "llava-v1.6-vicuna-7b", "llava-v1.6-34b")
LOADS = ("bf16", "4bit")
KINDS = ("chat", "align", "finetune")
SIDES = {"workbench": {}, "TRL as documented": {"mode": "documented"}, "TRL tuned": {"mode": "tuned"}}
NOMINAL = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 operations per second that a maker claims for its device."""
Part = tuple[str, ...]


def parts(tiny: bool) -> list[Part]:
    """Every measurement in its order."""
    models, house = (("tiny",), ("tiny", "tiny-next")) if tiny else (MODELS, HOUSE)
    found: list[Part] = [("peak",), *(("attention", model) for model in models)]
    found += [("house", model, load, kind) for model in house for load in LOADS for kind in KINDS]
    found += [("shards", house[0])]
    return found + [(model, load, side) for model in models for load in LOADS for side in SIDES]


def run_part(part: Part, args: argparse.Namespace) -> dict[str, Any]:
    """One measurement, in a process that is ended when its time is over."""
    if part[0] in ("peak", "attention"):
        command = [sys.executable, __file__, "--part", json.dumps(part), "--out", str(args.out)]
        return _ended(command + ["--tiny"] * args.tiny, args.minutes)
    with tempfile.TemporaryDirectory(prefix="gpu-") as temporary:
        os.environ["WORKBENCH_HOME"] = f"{temporary}/state"  # nothing measured or kept earlier helps
        run = of_house if part[0] in ("house", "shards") else of_trainers
        return run(part, args, Path(temporary))


def of_house(part: Part, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The product alone: an answer, a stage, or a model in shards."""
    model, load, kind = part[1:] if part[0] == "house" else (part[1], "bf16", "shards")
    job = {"size": model, "load": load, "kind": kind, "device": "cpu" if args.tiny else "cuda"}
    job |= {"batch": 6 if args.tiny else 24, "rounds": 1 if args.tiny else 5}
    return _of_job("gpu_house.py", sys.executable, job, args, folder)


def of_trainers(part: Part, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A side of the comparison of trainers."""
    model, load, side = part
    batch, steps, device = (6, 2, "cpu") if args.tiny else (48, 5, "cuda")
    job = prepare(folder, SIZES[model], load, batch=batch, steps=steps, device=device)
    job |= {"side": side, "name": side.replace(" ", "-"), "per_device": 2 if args.tiny else 16}
    job |= {"device": device, "steps": steps, **SIDES[side]}
    theirs = side.startswith("TRL")
    try:
        python = str(python_of("trl", args.envs)) if theirs else sys.executable
    except subprocess.CalledProcessError as error:
        return {"error": f"TRL's environment could not be made: {error}"}
    told = _of_job("gpu_side.py", python, job, args, folder, clean=theirs)
    if "seconds" in told:
        rows = [id for step in job["batches"][1:] for id in step]
        told["samples_per_s"] = len(rows) / told["seconds"]
        told["tokens_per_s"] = sum(job["tokens"][id][0] for id in rows) / told["seconds"]
        told["supervised_per_s"] = sum(job["tokens"][id][1] for id in rows) / told["seconds"]
    return told


def inner(part: Part, tiny: bool) -> dict[str, Any]:
    """What is measured without a model: the device's peak, or the table of attentions."""
    device = torch.device("cpu" if tiny else "cuda")
    if part[0] == "peak":
        return peak(device)
    size = SIZES[part[1]]
    tree = (size.image_tokens + 35, (140, 120, 150))
    return measure([tree] * (2 if tiny else 4), size.language[3], size.language[0] // size.language[3], device)


def peak(device: torch.device) -> dict[str, Any]:
    """What the device is, and what it does at best."""
    from workbench.training.flops import measured_peak

    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name() if cuda else "CPU"
    memory = torch.cuda.mem_get_info()[1] if cuda else psutil.virtual_memory().total
    nominal = next((value for key, value in NOMINAL.items() if key in name), None)
    told = {"device": name, "count": torch.cuda.device_count() if cuda else 1, "memory_gb": memory / 1e9}
    told |= {"measured": measured_peak(device, torch.bfloat16 if cuda else torch.float32), "nominal": nominal}
    return told | {"torch": torch.__version__, "date": datetime.date.today().isoformat()}


def _of_job(
    script: str, python: str, job: dict[str, Any], args: argparse.Namespace, folder: Path, clean: bool = False
) -> dict[str, Any]:
    path = folder / "job.json"
    path.write_text(json.dumps(job | {"folder": str(folder)}))
    return _ended([python, str(PEERS / script), str(path)], args.minutes, clean=clean)


def _ended(command: list[str], minutes: float, clean: bool = False) -> dict[str, Any]:
    """The last line a process prints as JSON, or what was wrong with it."""
    own = {name: value for name, value in os.environ.items() if not (clean and name.startswith("PYTHON"))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own)
    try:
        said, wrong = process.communicate(timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {minutes:g} minutes"}
    finally:
        _end(process)
    if process.returncode:
        return {"error": wrong.strip()[-600:]}
    return json.loads(said.strip().splitlines()[-1])


def _end(process: subprocess.Popen[str]) -> None:
    """The process and those it started: one that lives on would hold the device's memory."""
    if process.poll() is None:
        family = [*psutil.Process(process.pid).children(recursive=True), process]
        for one in family:
            one.kill()
        process.communicate()


def main(args: argparse.Namespace, chosen: list[Part]) -> None:
    if not args.tiny and not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured (--tiny runs the logic on the CPU)")
        return
    results = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for part in chosen:
        name = " / ".join(part)
        if name in results and "error" not in results[name]:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = run_part(part, args)
        resources.write_atomic(args.out, json.dumps(results, indent=1) + "\n")
    print(report(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=8, help="the longest a part may take")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only those whose names begin so")
    parser.add_argument("--envs", type=Path, default=resources.state_folder() / "benchmarks", help="TRL's environment")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        print("\n" + json.dumps(inner(tuple(json.loads(asked.part)), asked.tiny)))
        sys.exit()
    names = parts(asked.tiny)
    wanted = [part for part in names if " / ".join(part).startswith(tuple(asked.parts or ("",)))]
    if not wanted:
        parser.error(f"--parts: found {asked.parts}, expected the beginnings of some of: {names}")
    main(asked, wanted)
