"""One measurement of `gpu.py` of the product alone, in a process of its own: an answer, a stage, or shards.

    python gpu_house.py JOB.json        prints a line of JSON

Knows: how the engine, the trainer and `workbench train --processes` are given a model of random weights, and what was
foreseen for each. Whatever does not fit by the plan is not tried: the plan's own words are the result.
Does not know: which measurements there are, or how they are told. GB are 10**9 bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.gpu_rows import as_llava, recipe_of, write_folder, write_weights
from peers.material import make_rows, per_image
from peers.random_llava import SIZES, Size
from peers.reuse import KINDS, Ours, Spent, medians, one_round
from workbench.chat_model import SamplingOptions
from workbench.recipe import Recipe
from workbench.resources import import_path
from workbench.run import Run
from workbench.training.cards import CONTEXT, answer_memory, as_on_a_card
from workbench.training.forecast import Forecast
from workbench.training.plan import plan
from workbench.training.resident import held_now, most_held
from workbench.training.room import MARGIN, free_memory
from workbench.training.trainer import train
from workbench.training.usual import context

STEPS = 2
"""The first makes the optimiser's state; the second is as full as every later one."""
ANSWER = SamplingOptions(max_tokens=32)
PICTURE = (640, 480)


def chat(job: dict[str, Any]) -> dict[str, Any]:
    """Answers by the engine: seconds to the first token, tokens a second, shares of reused prefixes, memory."""
    recipe, size, device = _begin(job, "finetune")
    foreseen, free = answer_memory(as_on_a_card(recipe), job["load"]), free_memory(device, recipe.train)
    if foreseen > MARGIN * free:
        return {"skipped": f"it does not fit: an answer takes {foreseen / 1e9:.1f} GB of {free / 1e9:.1f} GB"}
    before, began = held_now(device), time.perf_counter()
    llava = as_llava(recipe, size)
    _wait(device)
    told: dict[str, Any] = {"made_s": time.perf_counter() - began}
    told["held_gb"] = (held_now(device) - before) / 1e9
    longest(llava, size, Path(job["folder"]))
    told |= _compared(foreseen, most_held(device) - before)
    return told | speed(Ours(llava, Path(job["folder"]), job["rounds"] + 2, PICTURE), job["rounds"])


def longest(llava: Any, size: Size, folder: Path) -> None:
    """One token of an answer to as many tokens, with the largest picture, as `answer_memory` counts."""
    side = Ours(llava, folder, 1, (2 * size.side, 2 * size.side))
    shown = llava.tiling.tokens((2 * size.side, 2 * size.side)) - 1
    room = context(llava.tiling, CONTEXT) - shown
    words = room - len(llava.renderer.prompt(side.asked(0, "w1", [])).ids) + 1
    with side.engine:
        usage = side.answer(0, " ".join(["w1"] * words), SamplingOptions(max_tokens=1))
        _ = usage.text
        assert usage.usage.prompt_tokens == context(llava.tiling, CONTEXT), usage.usage


def speed(side: Ours, rounds: int) -> dict[str, Any]:
    """First token and tokens a second of an answer, and what a prefix that is there already spares of the first."""
    spent: Spent = {kind: [] for kind in KINDS}
    with side.engine:
        for number in range(rounds + 1):
            one_round(side, number, spent)
        began, first = time.perf_counter(), 0.0
        answer = side.answer(rounds + 1, "w1 w2 w3 ?", ANSWER)
        for _ in answer:
            first = first or time.perf_counter()
        ended = time.perf_counter()
    told: dict[str, Any] = {"first_token_s": first - began, "answered_tokens": answer.usage.completion_tokens}
    told["tokens_per_s"] = (answer.usage.completion_tokens - 1) / (ended - first) if ended > first else None
    found = medians(spent)
    told["first_question_s"] = found[KINDS[0]][0][1]
    return told | {"shares": {kind: found[kind][1][1] for kind in KINDS[1:]}}


def stage(job: dict[str, Any]) -> dict[str, Any]:
    """Two optimiser steps of `align` or `finetune` by the trainer, and its memory beside the plan's."""
    recipe, size, device = _begin(job, job["kind"])
    began = time.perf_counter()
    forecast = plan(recipe)
    told: dict[str, Any] = {"plan_s": time.perf_counter() - began}
    if not forecast.fits:
        return told | {"skipped": verdict(forecast)}
    before = held_now(device)
    run = train(settled(recipe, forecast), out=Path(job["folder"], "run"), llava=as_llava(recipe, size), progress=False)
    told |= _compared(forecast.memory.peak, most_held(device) - before)
    return told | _steps(run) | {"checkpointed": forecast.checkpointed, "fullest": forecast.memory.phase}


def shards(job: dict[str, Any]) -> dict[str, Any]:
    """Two steps of `finetune` by `workbench train --processes`, the model cut among all devices (FSDP2)."""
    from workbench.training.launch import launch

    count = 2 if job["device"] == "cpu" else torch.cuda.device_count()
    if count < 2:
        return {"skipped": "one device here: shards take at least two"}
    recipe, size, device = _begin(job, "finetune")
    recipe = recipe.with_overrides("train.shard=true")
    forecast = plan(recipe, processes=count)
    if not forecast.fits:
        return {"skipped": verdict(forecast)}
    if device.type == "cuda":
        write_weights(Path(str(recipe.model.checkpoint)), size, device)
        torch.cuda.empty_cache()
    file, out = Path(job["folder"], "recipe.yaml"), Path(job["folder"], "run")
    file.write_text(settled(recipe, forecast).to_yaml())
    os.environ["PYTHONPATH"] = import_path()
    if status := launch(["train", str(file), "--out", str(out)], count):
        raise RuntimeError(f"workbench train --processes {count} ended with {status}")
    run = Run.open(out)
    measured = max(row["memory"] for row in run.metrics() if "grad_norm" in row)
    return _compared(forecast.memory.peak, measured) | _steps(run) | {"processes": count}


def verdict(forecast: Forecast) -> str:
    """The plan's own words on what there is and what it would take."""
    lines = [" ".join(line.split()) for line in str(forecast).splitlines()]
    return f"{next(line for line in lines if line.startswith('in all'))}: {lines[-1]}"


def settled(recipe: Recipe, forecast: Forecast) -> Recipe:
    """The recipe, which computes activations again as the plan says, whatever is free when it begins."""
    chosen = {0: "off", 1: "on"}.get(forecast.checkpointed)
    return recipe.with_overrides(f"train.checkpointing={chosen}") if chosen else recipe


def _begin(job: dict[str, Any], stage: str) -> tuple[Recipe, Size, torch.device]:
    """Rows and the model's folder below the job's; the recipe of a stage on them."""
    folder, size = Path(job["folder"]), SIZES[job["size"]]
    made = recipe_of(folder, size, job["load"], stage, batch=job["batch"], steps=STEPS, device=job["device"])
    recipe = Recipe.from_dict(made)
    make_rows(folder, per_image(job["batch"] * STEPS // 3, 3))
    write_folder(folder / "processor", size, recipe)
    if job["device"] == "cpu":  # a small model is proven by loading it again when a run saves
        write_weights(folder / "processor", size, torch.device("cpu"))
    return recipe, size, torch.device(job["device"])


def _compared(foreseen: int, measured: int) -> dict[str, float]:
    return {"foreseen_gb": foreseen / 1e9, "measured_gb": measured / 1e9, "error_of_plan": foreseen / measured - 1}


def _steps(run: Run) -> dict[str, Any]:
    rows = [row for row in run.metrics() if "grad_norm" in row]
    told = {name: [row[name] for row in rows] for name in ("loss", "seconds")}
    return {"losses": told["loss"], "step_s": told["seconds"], "tokens_per_s": rows[-1]["tokens_per_s"]}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


PARTS = {"chat": chat, "align": stage, "finetune": stage, "shards": shards}


def main(job: dict[str, Any]) -> None:
    if job["device"] == "cpu":
        torch.set_num_threads(1)
    print("\n" + json.dumps(PARTS[job["kind"]](job)))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
