"""What `gpu.py` trains on and opens: rows and pictures, and the folder of a random model of a given size.

Knows: the product's own reading of them, from a model that has shapes only; how the random model is opened as any other
is, its weights made on the device in place of being read. Does not know: trainers, what is measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from peers.jobs import order
from peers.material import CHAT, SYSTEM, TARGETS, make_rows, make_tokenizer, per_image
from peers.random_llava import Size, configured, make

LORA = {"r": 128, "alpha": 256.0}
"""LLaVA's own."""
STAGES = {
    "align": {"stage": "align", "language": "frozen", "projector": "full", "lr": 1e-3, "pack_tokens": 4096},
    "finetune": {"stage": "finetune", "language": "lora", "projector": "full", "lr": 2e-4, "projector_lr": 2e-5,
                 "lora": {**LORA, "targets": list(TARGETS)}, "pack_tokens": 4096},
    "adapters": {"stage": "finetune", "language": "lora", "projector": "frozen", "lr": 2e-4,
                 "lora": {**LORA, "targets": list(TARGETS)}},
}  # fmt: skip
"""LLaVA's two stages with its own rates; `adapters`: what TRL trains as well, every knob of speed the default."""


def recipe_of(
    folder: Path, size: Size, load: str, stage: str, *, batch: int, steps: int, device: str
) -> dict[str, Any]:
    """The recipe of a stage on the model in `folder/processor` and the rows in `folder`.

    On a CPU, where only the logic is tried, bf16 is float32.
    """
    return {
        "name": f"{size.name}-{load}-{stage}",
        "model": {
            "checkpoint": str(folder / "processor"),
            "load": "fp32" if load == "bf16" and device == "cpu" else load,
            "device": device,
        },
        "data": {"dataset": str(folder / "rows.json"), "images": str(folder / "images"), "val_fraction": 0.0},
        "template": "v1",
        "image_mode": "anyres" if size.tiles else "pad",
        "train": {
            **STAGES[stage],
            "schedule": "constant",
            "warmup": 0.0,
            "max_tokens": 4096,
            "batch_size": batch,
            "max_steps": steps,
        },
    }


def write_folder(folder: Path, size: Size, recipe: Any) -> Any:
    """Write what a model's folder holds beside weights: configuration, tokenizer, processor; returns it of shapes."""
    from workbench.model.outline import outline

    folder.mkdir()
    configured(size).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    seen = recipe.model.model_copy(update={"device": "cpu", "load": "fp32"})
    llava = outline(seen, template=recipe.template, image_mode=recipe.image_mode).llava
    (folder / "preprocessor_config.json").write_text(json.dumps(llava.image_mode.processor_settings()))
    tells = {"processor_class": "LlavaNextProcessor" if size.tiles else "LlavaProcessor", "patch_size": 14}
    tells |= {"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default", "image_token": "<image>"}
    (folder / "processor_config.json").write_text(json.dumps(tells))
    (folder / "chat_template.jinja").write_text(CHAT.replace("SYSTEM", SYSTEM))
    return llava


def write_weights(folder: Path, size: Size, device: torch.device) -> None:
    """Put the weights beside it, for processes that each read their own."""
    make(size, "bf16", device).save_pretrained(folder)


def as_llava(recipe: Any, size: Size) -> Any:
    """The recipe's model, opened as the product opens any. Weights that are not in its folder are made on the device.

    A model that was made has no base on a disk: its checkpoints hold what trained and nothing to build it from.
    """
    from workbench.model.hf_folder import load_folder
    from workbench.model.llava import build

    settings = {"template": recipe.template, "image_mode": recipe.image_mode}
    folder = Path(recipe.model.checkpoint)
    if any(folder.glob("*.safetensors")):
        return build(recipe.model, **settings)

    def read(_: Path, load: str, __: torch.dtype, device: torch.device) -> Any:
        return make(size, load, device)

    held = {"load": recipe.model.load, "device": recipe.model.device}
    llava = load_folder(folder, source="random weights", read=read, **held, **settings)
    llava.folders.clear()
    return llava


def prepare(folder: Path, size: Size, load: str, *, batch: int, steps: int, device: str) -> dict[str, Any]:
    """Write rows, pictures and a model's folder below `folder`; returns what every side of the comparison is told.

    On a CPU the weights are written too: a small model is proven by loading it again when a run saves.
    """
    from workbench.recipe import Recipe

    make_rows(folder, per_image(batch * steps // 3, 3))
    recipe = recipe_of(folder, size, load, "adapters", batch=batch, steps=steps, device=device)
    llava = write_folder(folder / "processor", size, Recipe.from_dict(recipe))
    if device == "cpu":
        write_weights(folder / "processor", size, torch.device("cpu"))
    job = {"rows": str(folder / "rows.json"), "images": str(folder / "images"), "lora": LORA, "targets": TARGETS}
    job |= {"processor": str(folder / "processor"), "recipe": recipe, "lr": 2e-4, "size": size.name, "load": load}
    return job | order(Recipe.from_dict(recipe), llava, folder, steps)
