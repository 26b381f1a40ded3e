"""How fast training is next to TRL, LLaMA-Factory and a plain loop, on identical rows, from identical weights.

    python tests/benchmarks/training_peers.py [--workloads 3 1.95 1 next equal] [--rounds 3] [--threads 1]

Makes a random LLaVA (59 million parameters, 576 image tokens, float32), conversations of made-up words about made-up
pictures, and an environment for each other trainer below `--envs`. Every side trains in a process of its own from the
same adapter on the same batches; the runs are interleaved and the medians told. The first step is not measured.
Prints a table; `--json FILE` keeps every number. TRL's and LLaMA-Factory's rows are compared with ours id by id first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from peers.environments import python_of
from peers.jobs import WORKLOADS, Workload, prepare
from peers.watch import Watched, environment, last_line, watch

from workbench import resources

SIDES = {
    "workbench": ("workbench_side.py", "", {}),
    "plain padded step": ("plain_side.py", "", {}),
    "TRL as documented": ("trl_side.py", "trl", {"mode": "documented"}),
    "TRL, answers only": ("trl_side.py", "trl", {"mode": "assistant"}),
    "TRL tuned": ("trl_side.py", "trl", {"mode": "tuned", "per_device": 1}),
    "LLaMA-Factory as documented": ("llamafactory_side.py", "llamafactory", {"mode": "documented"}),
    "LLaMA-Factory tuned": ("llamafactory_side.py", "llamafactory", {"mode": "tuned", "per_device": 1}),
    "LLaMA-Factory packed": ("llamafactory_side.py", "llamafactory", {"mode": "packed"}),
}
"""Name -> script, environment, and what its job says besides the common part."""
EQUAL = ("workbench", "plain padded step", "TRL, answers only", "LLaMA-Factory tuned")
"""The sides that are trained for 50 steps and judged."""
HERE = Path(__file__).parent / "peers"


class Bench:
    """The comparison of one workload in a temporary folder."""

    def __init__(self, folder: Path, work: Workload, args: argparse.Namespace) -> None:
        self.folder, self.work, self.args = folder, work, args
        self.job = prepare(folder, work, threads=args.threads, tiny=args.tiny)
        if work.name == "equal":
            self.sides = [name for name in args.sides if name in EQUAL]
        else:
            self.sides = list(args.sides)

    def command(self, side: str, **more: Any) -> tuple[list[str], dict[str, Any]]:
        """How a side is started, and its job."""
        script, environment, own = SIDES[side]
        python = str(python_of(environment, self.args.envs)) if environment else sys.executable
        name = side.replace(" ", "-")
        job = self.job | own | {"out": str(self.folder / name), "log": str(self.folder / f"{name}.jsonl")} | more
        if self.work.name == "equal":
            job["per_device"] = self.job["per_device"]
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(job))
        return [python, str(HERE / script), str(path)], job

    def check_rows(self, side: str) -> None:
        """Ids and labels of a side's first rows are ours; those that train every token have the ids at least."""
        count, file = min(self.work.batch, 6), self.folder / "shown.json"
        command, job = self.command(side, show=str(file), per_device=count)
        job["packed"] = False
        own = environment(self.args.threads, bool(SIDES[side][1]))
        subprocess.run(command, check=True, capture_output=not self.args.verbose, env=own)
        shown, ours = json.loads(file.read_text()), json.loads(Path(self.job["rendered"]).read_text())
        for number, id in enumerate(self.job["batches"][0][:count]):
            real = [bool(seen) for seen in shown["attention_mask"][number]]
            ids, labels = (
                [value for value, seen in zip(shown[key][number], real, strict=True) if seen]
                for key in ("input_ids", "labels")
            )
            wanted = ours[id][1] if job["mode"] != "documented" or "Factory" in side else ours[id][0]
            if ids != ours[id][0] or labels != wanted:
                raise SystemExit(f"{side}: row {id} is not ours\n{ids}\n{ours[id][0]}\n{labels}\n{wanted}")

    def run(self, side: str) -> dict[str, Any]:
        """Train once; seconds per supervised token, wall and of processor, peak memory, losses."""
        command, job = self.command(side)
        for held in (job["out"], job["log"]):
            shutil.rmtree(held, ignore_errors=True)
            Path(held).unlink(missing_ok=True) if Path(held).is_file() else None
        log = Path(job["out"]) / "metrics.jsonl" if side == "workbench" else Path(job["log"])
        marker = {"workbench": "grad_norm", "plain padded step": "supervised"}.get(side, "step")
        told = {"threads": self.args.threads, "clean": bool(SIDES[side][1]), "marker": marker}
        seen = watch(command, log, self.folder / "output.txt", **told)
        return self._told(side, job, seen)

    def _told(self, side: str, job: dict[str, Any], seen: Watched) -> dict[str, Any]:
        steps = self.work.steps
        if len(seen.marks) < steps:
            raise SystemExit(f"{side}: {len(seen.marks)} steps seen of {steps}")
        wall, used = seen.between(1, steps)
        supervised = sum(self.job["tokens"][id][1] for batch in self.job["batches"][1:] for id in batch)
        adapter = Path(job["out"]) / ("checkpoints/last/adapter" if side == "workbench" else "")
        return {
            "side": side,
            "cpu_ms": 1000 * used / supervised,
            "wall_ms": 1000 * wall / supervised,
            "peak_gb": seen.peak / 2**30,
            "loss": self.judge(adapter) if self.work.name in ("equal", "smoke") else None,
        }

    def judge(self, adapter: Path) -> float:
        """Mean loss of all rows under a side's adapter, by the plain loop."""
        held = next(adapter.rglob("adapter_model.safetensors")).parent
        path = self.folder / "judge.json"
        path.write_text(json.dumps(self.job))
        command = [sys.executable, str(HERE / "plain_side.py"), "judge", str(path), str(held)]
        return last_line(command, self.args.threads)["loss"]


def table(work: Workload, job: dict[str, Any], runs: Sequence[dict[str, Any]]) -> str:
    """Medians per side, and how many times ours each takes."""
    sides = list(dict.fromkeys(run["side"] for run in runs))
    held = {side: {key: _median(runs, side, key) for key in ("cpu_ms", "wall_ms", "peak_gb", "loss")} for side in sides}
    ours = held.get("workbench")
    head = f"{'':28} {'cpu ms/tok':>10} {'times':>6} {'wall ms/tok':>11} {'times':>6} {'peak GB':>8} {'times':>6}  loss"
    tokens = sum(tokens for tokens, _ in job["tokens"].values())
    count, supervised = len(job["tokens"]), sum(supervised for _, supervised in job["tokens"].values())
    lines = [
        f"\n{work.name}: {work.mean:g} conversations per image, {job['image_tokens']} image tokens, {count} rows, "
        f"{tokens / count:.0f} tokens and {supervised / count:.0f} supervised ones a row, {work.batch} rows a step",
        head,
    ]
    for side, told in held.items():
        cells = [
            f"{told[key]:{width}.2f} {told[key] / ours[key] if ours else float('nan'):6.2f}"
            for key, width in (("cpu_ms", 10), ("wall_ms", 11), ("peak_gb", 8))
        ]
        lines.append(f"{side:28} {' '.join(cells)}  " + (f"{told['loss']:.6f}" if told["loss"] else ""))
    return "\n".join(lines)


def _median(runs: Sequence[dict[str, Any]], side: str, key: str) -> Any:
    found = [run[key] for run in runs if run["side"] == side and run[key] is not None]
    return statistics.median(found) if found else None


def main(args: argparse.Namespace) -> None:
    everything = []
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {args.threads} thread(s)")
    for name in args.workloads:
        with tempfile.TemporaryDirectory(prefix="peers-") as temporary:
            asked = {key: getattr(args, key) for key in ("batch", "steps", "per_device") if getattr(args, key)}
            work = replace(WORKLOADS[name], **asked)
            if work.batch % work.per_device:  # the others would leave the rest of each step out
                raise SystemExit(f"{work.batch} rows a step are not so many times {work.per_device} at once")
            os.environ["WORKBENCH_HOME"] = str(Path(temporary) / "state")  # nothing measured or kept earlier helps
            bench = Bench(args.keep / name if args.keep else Path(temporary), work, args)
            for side in bench.sides:
                if SIDES[side][1] and not side.endswith("packed"):
                    bench.check_rows(side)
            runs = []
            for number in range(1 if name == "equal" else args.rounds):
                for side in bench.sides:
                    runs.append(bench.run(side))
                    print(f"  {name}, round {number + 1}: {runs[-1]}", file=sys.stderr, flush=True)
            print(table(bench.work, bench.job, runs), flush=True)
            everything += [{"workload": name, **run} for run in runs]
            if args.json:
                args.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["3", "1.95", "1", "next", "equal"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE", help=", ".join(SIDES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    for name, text in (("batch", "rows a step"), ("steps", "steps"), ("per-device", "rows at once, TRL as documented")):
        parser.add_argument(f"--{name}", type=int, help=f"{text}, instead of the workload's own")
    parser.add_argument("--envs", type=Path, default=resources.state_folder() / "benchmarks", help="the other trainers")
    parser.add_argument("--json", type=Path, help="every number of every run")
    parser.add_argument("--keep", type=Path, help="an empty folder that keeps what the sides were given and wrote")
    parser.add_argument("--tiny", action="store_true", help="a model of two narrow layers, to try the script")
    parser.add_argument("--verbose", action="store_true")
    main(parser.parse_args())
