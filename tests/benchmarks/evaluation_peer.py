"""The same benchmark rows asked by lmms-eval and by `workbench evaluate`: the same answers, the same scores, the time.

    python tests/benchmarks/evaluation_peer.py [--images 2] [--rounds 3] [--model FOLDER [--prompts question]]

Makes POPE, MME and SEED-Bench files from scenes, and a random LLaVA of 59 million parameters with 576 image tokens
whose last layer is fitted to say what is right in two questions of three; or takes `--model`, a trained one that
`workbench export RUN FOLDER --as hf` wrote. lmms-eval has an environment of its own below `--envs`, made when it is not
there. It asks by its own tasks (wording, answer rules, scores), only rows and pictures come from local files; so its
wording must be ours, letter by letter. Each side runs in a process of its own, one thread, offline, batch size 1, both
in turn. Told are medians of the seconds from first to last question; loading the model is not counted, reading our
files is. Ends with 1 where an answer or a score differs. Answers in no form that a rule reads are scored otherwise on
purpose: what is neither yes nor no is wrong for lmms-eval's POPE and yes for POPE's script and us, and of any text it
takes SEED-Bench's letter to be the first. Scores of these two are held against each other where all answers were read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))

import benchmark_files as files
from peers.environments import python_of
from peers.fitted import make_fitted
from peers.lmms_tasks import SCORES, read_answers, read_scores, write_tasks
from peers.watch import environment

from workbench import Results, resources
from workbench.evaluation.questions import read_benchmark
from workbench.evaluation.task import Evaluation

HERE = Path(__file__).parent / "peers"
Seconds = dict[str, list[float]]


def benchmarks(folder: Path, images: int, prompts: str) -> dict[str, Evaluation]:
    """POPE with 18 questions about each picture, MME with two; SEED-Bench, whose options lmms-eval always adds."""
    files.pope(folder / "pope", images, 6)
    files.mme(folder / "mme", images)
    files.seedbench(folder / "seedbench", 3 * images)
    names = SCORES if prompts == "llava" else ("pope", "mme")
    return {name: read_benchmark(name, folder / name, prompts=prompts) for name in names}


def ask_ours(folder: Path, job: dict[str, Any]) -> Seconds:
    times, path = folder / "ours.json", folder / "job.json"
    path.write_text(json.dumps(job | {"out": str(folder / "ours"), "times": str(times)}))
    return run([sys.executable, str(HERE / "evaluate_side.py"), str(path)], folder, times, clean=False)


def ask_theirs(folder: Path, job: dict[str, Any], python: Path, tasks: Path) -> Seconds:
    times, names = folder / "theirs.json", ",".join(f"made_{name}" for name in job["benchmarks"])
    command = [str(python), str(HERE / "lmms_side.py"), str(times), "--model", "llava_hf", "--tasks", names]
    command += ["--model_args", f"pretrained={job['model']},device=cpu,device_map=cpu", "--include_path", str(tasks)]
    command += ["--batch_size", "1", "--log_samples", "--output_path", str(folder / "theirs")]
    return {name.removeprefix("made_"): told for name, told in run(command, folder, times, clean=True).items()}


def run(command: list[str], folder: Path, times: Path, *, clean: bool) -> Seconds:
    """One side from start to end, in `folder`, for lmms-eval writes where it stands; what it wrote to `times`."""
    own = environment(1, clean) | {"HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=own)
    if done.returncode or not times.is_file():  # lmms-eval ends with 0 also where it failed
        raise SystemExit(f"{command[1]} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return json.loads(times.read_text())


def compared(name: str, evaluation: Evaluation, folder: Path) -> bool:
    """Print answers that differ, with our margin, and both scores; whether all is the same."""
    ours, theirs = Results.open(folder / "ours" / name), read_answers(folder / "theirs", name)
    held = {row["id"]: row for row in ours.rows.iter_rows(named=True)}
    rows = [held[one.id] for one in evaluation.conversations]
    other = [(row["question"], text) for row, (text, _) in zip(rows, theirs, strict=True) if row["question"] != text]
    if other:
        raise SystemExit(f"{name}: {len(other)} rows are worded otherwise, the first\n{other[0][0]!r}\n{other[0][1]!r}")
    pairs = [(row, answer) for row, (_, answer) in zip(rows, theirs, strict=True) if row["answer"] != answer]
    kinds = len({answer for _, answer in theirs})
    print(f"{name}: {len(rows) - len(pairs)} of {len(rows)} answers are the same ({kinds} different ones)")
    for row, answer in pairs:
        print(f"  {row['id']}: ours {row['answer']!r}, lmms-eval's {answer!r}, our margin {row['margin']}")
    unread, found = ours.scores["unparsed"], read_scores(folder / "theirs", name)
    same = True
    for measure, (part, field), _ in SCORES[name]:
        score = ours.scores["parts"][part][field]
        same &= abs(score - found[measure]) < 0.001
        print(f"  {measure:22} {score:8.2f} ours, {found[measure]:8.2f} lmms-eval's")
    if unread:
        print(f"  {unread} answers in no form that our rule reads")
    return not pairs and (same or (unread > 0 and name != "mme"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a trained one, exported with --as hf")
    parser.add_argument("--prompts", choices=("llava", "question"), default="llava")
    parser.add_argument("--envs", type=Path, default=resources.state_folder() / "benchmarks", help="lmms-eval's")
    given = parser.parse_args()
    python = python_of("lmms", given.envs)
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        asked = benchmarks(folder / "data", given.images, given.prompts)
        model = given.model.resolve() if given.model else folder / "model"
        if given.model is None:
            print(f"{make_fitted(model, asked.values()):,} parameters", flush=True)
        write_tasks(folder / "tasks", python, asked, given.prompts)
        job = {"model": str(model), "benchmarks": list(asked), "data": str(folder / "data"), "prompts": given.prompts}
        spent: list[tuple[Seconds, Seconds]] = []
        for number in range(given.rounds):
            place = folder / f"round{number}"
            place.mkdir()
            spent.append((ask_ours(place, job), ask_theirs(place, job, python, folder / "tasks")))
        same = [compared(name, evaluation, place) for name, evaluation in asked.items()]
        told(asked, spent)
    sys.exit(not all(same))


def told(asked: dict[str, Evaluation], spent: list[tuple[Seconds, Seconds]]) -> None:
    """Medians of the rounds: seconds of processor and wall, and how many times ours lmms-eval takes."""
    clocks = "  ".join(f"{clock + ' ours':>9} {'theirs':>8} {'times':>6}" for clock in ("cpu", "wall"))
    print(f"\n{'seconds':10} {'rows':>5} {clocks}")
    for name, evaluation in asked.items():
        cells = []
        for clock in (0, 1):
            ours, theirs = (statistics.median(one[side][name][clock] for one in spent) for side in (0, 1))
            cells.append(f"{ours:9.2f} {theirs:8.2f} {theirs / ours:6.2f}")
        print(f"{name:10} {len(evaluation.conversations):5} {'  '.join(cells)}")


if __name__ == "__main__":
    main()
