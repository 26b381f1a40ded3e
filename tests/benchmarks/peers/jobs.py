"""One workload made ready for every trainer: model, first adapter, rows, and the order of the steps.

Knows: the recipe of our side, and how the product orders rows, so that the others are given the same batches.
Does not know: how the others are set up.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.material import LORA, SYSTEM, TARGETS, Shape, make_model, make_rows, per_image


@dataclass(frozen=True)
class Workload:
    """Rows of one kind. `batch` conversations a step, `steps` steps, every conversation in one of them."""

    name: str
    mean: float
    """Conversations about each image."""
    side: int = 336
    batch: int = 24
    steps: int = 2
    per_device: int = 8
    """Rows the others take at once."""

    @property
    def images(self) -> int:
        return round(self.batch * self.steps / self.mean)


WORKLOADS = {
    each.name: each
    for each in (
        Workload("3", 3),
        Workload("1.95", 1.95),
        Workload("1", 1),
        Workload("next", 3, side=616, batch=12, per_device=4),
        Workload("equal", 3, batch=3, steps=50, per_device=3),
        Workload("smoke", 3, batch=6, per_device=3),
    )
}


def prepare(folder: Path, work: Workload, *, threads: int, tiny: bool = False) -> dict[str, Any]:
    """Write model, adapter and rows below `folder`; returns what the sides are told (see `job` in their files)."""
    shape = Shape(side=work.side)
    if tiny:
        small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        shape = Shape(side=56, language=small | {"num_key_value_heads": 2}, tower=small)
    parameters = make_model(folder / "model", shape)
    make_rows(folder, per_image(work.images, work.mean))
    recipe = our_recipe(folder, work, threads)
    job = {
        "model": str(folder / "model"),
        "adapter": str(folder / "adapter"),
        "rows": str(folder / "rows.json"),
        "images": str(folder / "images"),
        "recipe": recipe,
        "system": SYSTEM,
        "lora": LORA,
        "targets": TARGETS,
        "lr": recipe["train"]["lr"],
        "per_device": work.per_device,
        "cutoff": 2048 if work.side == 336 else 4096,
        "packed_rows": 2,
        "threads": threads,
        "parameters": parameters,
        "image_tokens": shape.image_tokens,
    }
    return job | _order(recipe, folder / "adapter", work)


def our_recipe(folder: Path, work: Workload, threads: int) -> dict[str, Any]:
    """What a person writes: what the task is; every knob of speed is the default, but that features are not kept."""
    return {
        "name": f"peers-{work.name}",
        "model": {"checkpoint": str(folder / "model"), "device": "cpu"},
        "data": {"dataset": str(folder / "rows.json"), "images": str(folder / "images"), "val_fraction": 0.0},
        "template": "v1",
        "image_mode": "pad",
        "train": {
            "stage": "finetune",
            "language": "lora",
            "projector": "frozen",
            "lora": {**LORA, "targets": list(TARGETS)},
            "lr": 1e-3,
            "schedule": "constant",
            "warmup": 0.0,
            "max_tokens": 4096,
            "batch_size": work.batch,
            "max_steps": work.steps,
            "threads": threads,
            "feature_cache": "off",
        },
    }


def _order(fields: dict[str, Any], adapter: Path, work: Workload) -> dict[str, Any]:
    """Save the adapter a run begins with; the order of the rows."""
    from workbench.model.llava import build
    from workbench.model.lora import adapter_parameters
    from workbench.model.stages import prepare as free
    from workbench.model.tensors import write_tensors
    from workbench.recipe import Recipe

    recipe = Recipe.from_dict(fields)
    llava = build(recipe.model, template=recipe.template, image_mode=recipe.image_mode, seed=recipe.train.seed)
    found = order(recipe, llava, adapter.parent, work.steps)
    free(llava, recipe.train, say=lambda _: None)
    write_tensors(adapter / "adapter_model.safetensors", adapter_parameters(llava.model))
    llava.model.peft_config["default"].save_pretrained(str(adapter))
    return found


def order(recipe: Any, llava: Any, folder: Path, steps: int) -> dict[str, Any]:
    """`batches`: the ids of each step as the product plans them; `rendered`: a file with ids and labels of every row;
    `tokens`: (all, supervised, in the prefix that can be shared) of every row.
    """
    from workbench.training.examples import Examples
    from workbench.training.lengths import measure
    from workbench.training.packing import Plan
    from workbench.training.source import read_source

    spec = recipe.train
    source = read_source(recipe.data, seed=spec.seed)
    examples = Examples(source.train, llava)
    plan = Plan.of(measure(examples, name=recipe.data.dataset).entries(), spec)
    trees = [plan.step(number) for number in range(steps)]
    ids = [row["id"] for row in json.loads((folder / "rows.json").read_text())]  # in whose order they are read
    rendered = {}
    for id, conversation in zip(ids, source.train, strict=True):
        held = llava.renderer.render(conversation)
        counts = (llava.image_tokens,) * len(held.images)
        rendered[id] = llava.renderer.expand(held, counts, llava.image_token_id)
    file = folder / "rendered.json"
    file.write_text(json.dumps(rendered))
    return {
        "batches": [[ids[entry.number] for tree in step for entry in tree.members] for step in trees],
        "trees": [
            [(tree.prefix, [entry.branch for entry in tree.members], tree.supervised) for tree in step]
            for step in trees
        ],
        "rendered": str(file),
        "tokens": {id: (e.tokens, e.supervised) for id, e in zip(ids, examples, strict=True)},
    }
