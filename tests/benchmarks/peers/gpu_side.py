"""One measurement of `gpu.py` in a process of its own: a LLaVA of real shapes, trained by one side.

    python gpu_side.py JOB.json        prints a line of JSON

Knows: how ours and TRL train a model that was made in memory, and how a step is timed there.
Does not know: which measurements there are. TRL's part imports nothing of workbench.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.random_llava import SIZES, make


def workbench(job: dict[str, Any]) -> dict[str, Any]:
    """Our trainer on a model in memory; packs are halved until they fit."""
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from peers.gpu_rows import as_llava
    from workbench.recipe import Recipe
    from workbench.run import Run
    from workbench.training.flops import pairs, step_cost
    from workbench.training.trainer import train

    recipe = Recipe.from_dict(job["recipe"])
    llava = as_llava(recipe, SIZES[job["size"]])
    while True:
        out = Path(job["folder"]) / f"{job['name']}-{recipe.train.pack_size}"
        try:
            train(recipe, out=out, llava=llava, progress=False)
            break
        except torch.OutOfMemoryError:
            if recipe.train.pack_size <= 1024:
                raise
            recipe = recipe.with_overrides(f"train.pack_tokens={recipe.train.pack_size // 2}")
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    rows = [row for row in Run.open(out).metrics() if "grad_norm" in row][1:]
    cost, flops = step_cost(llava, encodes=True), 0.0
    for step in job["trees"][1:]:
        tokens = sum(prefix + sum(branches) for prefix, branches, _ in step)
        seen = sum(pairs(prefix, branches) for prefix, branches, _ in step)
        supervised = sum(count for *_, count in step)
        flops += cost.of(tokens=tokens, supervised=supervised, images=len(step), pairs=seen)
    told = {"seconds": sum(row["seconds"] for row in rows), "flops": flops, "pack_tokens": recipe.train.pack_size}
    return told | {"loss": rows[-1]["loss"], "computed": sum(row["tokens"] for row in rows)}


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's trainer, as documented or tuned, with as many rows at once as fit."""
    from peft import LoraConfig
    from transformers import AutoProcessor
    from trl import SFTConfig, SFTTrainer

    from peers.marks import Marks
    from peers.trl_side import dataset as rows_of
    from peers.trl_side import settings

    class Timed(Marks):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            moments.append(time.perf_counter())

    targets = rf".*language_model.*\.({'|'.join(job['targets'])})"
    lora = LoraConfig(r=job["lora"]["r"], lora_alpha=job["lora"]["alpha"], target_modules=targets)
    model = make(SIZES[job["size"]], job["load"], torch.device(job["device"]))
    per_device = job["per_device"]
    while True:
        moments: list[float] = []
        given = settings(job | {"per_device": per_device, "out": f"{job['folder']}/{job['name']}"})
        given |= {"bf16": job["device"] == "cuda", "use_cpu": job["device"] == "cpu"}
        try:
            trainer = SFTTrainer(
                model=model,
                args=SFTConfig(**given),
                train_dataset=rows_of(job),
                processing_class=AutoProcessor.from_pretrained(job["processor"]),
                peft_config=lora,
                callbacks=[Timed(f"{job['folder']}/{job['name']}.jsonl")],
            )
            trainer.train()
            break
        except torch.OutOfMemoryError:
            if per_device == 1:
                raise
            per_device //= 2
            model = trainer.model.unload()
            del trainer
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return {"seconds": moments[-1] - moments[0], "per_device": per_device}


def main(job: dict[str, Any]) -> None:
    cuda = job["device"] == "cuda"
    if not cuda:
        torch.set_num_threads(1)
    told = trl(job) if job["side"].startswith("TRL") else workbench(job)
    told["torch"] = torch.__version__
    if cuda:
        told["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
