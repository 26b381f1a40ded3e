"""LLaVA at full size on a CUDA device: ours against TRL, and the ways to compute shared attention.

    python tests/benchmarks/gpu.py --out gpu.json [--minutes 8] [--tiny]

Random weights of real shapes are made on the device (LLaVA-1.5-7B; a 7B with 2,304 image tokens, as many as NeXT
takes of a large image), LoRA in bf16 and QLoRA in NF4, 3 conversations per image, rows as in `training_peers.py`. It
runs unattended, in parts that each end within `--minutes` in a process of their own; what is in `--out` already is not
measured again, so the same command goes on where it was cut off. Without a device it says so and ends with 0.
`--tiny` runs the whole logic on the CPU with a model of two narrow layers: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from peers.attention_table import measure
from peers.environments import python_of
from peers.gpu_rows import prepare
from peers.random_llava import SIZES

from workbench import resources

MODELS = ("llava-1.5-7b", "next-7b-like")
SIDES = {"workbench": {}, "TRL as documented": {"mode": "documented"}, "TRL tuned": {"mode": "tuned"}}
NOMINAL = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 operations per second that a maker claims for its device."""


def parts(tiny: bool) -> list[tuple[str, ...]]:
    """Every measurement in its order."""
    models = ("tiny",) if tiny else MODELS
    tables = [("attention", model) for model in models]
    return [("peak",), *tables, *((m, load, side) for m in models for load in ("bf16", "4bit") for side in SIDES)]


def run_part(part: tuple[str, ...], args: argparse.Namespace) -> dict[str, Any]:
    """One measurement, in a process that is ended when its time is over."""
    if len(part) < 3:
        command = [sys.executable, __file__, "--part", json.dumps(part), "--out", str(args.out)]
        return _ended(command + ["--tiny"] * args.tiny, args.minutes)
    model, load, side = part
    with tempfile.TemporaryDirectory(prefix="gpu-") as temporary:
        os.environ["WORKBENCH_HOME"] = f"{temporary}/state"  # nothing measured or kept earlier helps
        batch, steps = (6, 2) if args.tiny else (48, 5)
        device = "cpu" if args.tiny else "cuda"
        job = prepare(Path(temporary), SIZES[model], load, batch=batch, steps=steps, device=device)
        job |= {"folder": temporary, "side": side, "name": side.replace(" ", "-"), "per_device": 2 if args.tiny else 16}
        job |= {"device": device, "steps": steps, **SIDES[side]}
        path = Path(temporary) / "job.json"
        path.write_text(json.dumps(job))
        python = str(python_of("trl", args.envs)) if side.startswith("TRL") else sys.executable
        script = Path(__file__).parent / "peers" / "gpu_side.py"
        told = _ended([python, str(script), str(path)], args.minutes, clean=side.startswith("TRL"))
    if "seconds" in told:
        rows = [id for step in job["batches"][1:] for id in step]
        told["samples_per_s"] = len(rows) / told["seconds"]
        told["tokens_per_s"] = sum(job["tokens"][id][0] for id in rows) / told["seconds"]
        told["supervised_per_s"] = sum(job["tokens"][id][1] for id in rows) / told["seconds"]
    return told


def inner(part: tuple[str, ...], tiny: bool) -> dict[str, Any]:
    """What is measured without a model: the device's peak, or the table of attentions."""
    device = torch.device("cpu" if tiny else "cuda")
    if part[0] == "peak":
        from workbench.training.flops import measured_peak

        dtype = torch.float32 if tiny else torch.bfloat16
        name = "CPU" if tiny else torch.cuda.get_device_name()
        nominal = next((value for key, value in NOMINAL.items() if key in name), None)
        return {"device": name, "measured": measured_peak(device, dtype), "nominal": nominal}
    size = SIZES[part[1]]
    tree = (size.image_tokens + 35, (140, 120, 150))
    return measure([tree] * (2 if tiny else 4), size.language[3], size.language[0] // size.language[3], device)


def _ended(command: list[str], minutes: float, clean: bool = False) -> dict[str, Any]:
    """The last line a process prints as JSON, or what was wrong with it."""
    own = {name: value for name, value in os.environ.items() if not (clean and name.startswith("PYTHON"))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * minutes, env=own)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {minutes} minutes"}
    if done.returncode:
        return {"error": done.stderr.strip()[-600:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def report(results: dict[str, Any]) -> str:
    """The results as tables."""
    peak = results.get("peak", {})
    lines = [f"{peak.get('device')}: {peak.get('measured', 0) / 1e12:.3g} TFLOP/s in a plain matrix multiplication"]
    for name, told in results.items():
        key = name.split(" / ")
        if key[0] == "attention":
            ways = [f"{way} {held['ms']:.2f}" if "ms" in held else f"{way} -" for way, held in told.items()]
            lines.append(f"attention of {key[1]}, ms forward and backward: {', '.join(ways)}")
        elif "seconds" in told:
            line = f"{name:38} {told['samples_per_s']:8.2f} samples/s {told['tokens_per_s']:10,.0f} tokens/s"
            if "flops" in told and peak.get("measured"):
                speed = told["flops"] / told["seconds"]
                line += f"  {speed / peak['measured']:.0%} of measured peak"
                line += f", {speed / peak['nominal']:.0%} of nominal" if peak.get("nominal") else ""
            lines.append(line + (f"  peak {told['peak_gb']:.1f} GB" if "peak_gb" in told else ""))
        elif "error" in told:
            lines.append(f"{name:38} {told['error'].splitlines()[-1] if told['error'] else 'failed'}")
    return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
    if not args.tiny and not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured (--tiny runs the logic on the CPU)")
        return
    results = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for part in parts(args.tiny):
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
    parser.add_argument("--envs", type=Path, default=resources.state_folder() / "benchmarks", help="TRL's environment")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        print("\n" + json.dumps(inner(tuple(json.loads(asked.part)), asked.tiny)))
    else:
        main(asked)
