"""What `gpu.py` trains on: rows and pictures for a model of a given size, and the order in which they come.

Knows: the product's own reading of them, from a model that has shapes only. Does not know: devices, trainers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from peers.jobs import order
from peers.material import CHAT, SYSTEM, TARGETS, make_rows, make_tokenizer, per_image
from peers.random_llava import Size, make

LORA = {"r": 128, "alpha": 256.0}
"""LLaVA's own."""


def as_llava(size: Size, load: str, device: torch.device) -> Any:
    """A random model with tokenizer, renderer and image mode, as the product holds one."""
    from workbench.model.llava import finish

    model = make(size, load, device)
    record = {"llava": "random weights", "projector": "mlp2x_gelu", "vision_layer": -2, "vision_select": "default"}
    record |= {"load": load, "image_mode": "pad", "trained": []}
    held = model.get_input_embeddings().weight.dtype
    return finish(model, make_tokenizer(), record, {}, _square(size), "v1", device, held)


def prepare(folder: Path, size: Size, load: str, *, batch: int, steps: int, cuda: bool) -> dict[str, Any]:
    """Write rows, pictures and a processor below `folder`; returns what every side is told.

    Without CUDA the model is written too: a small one is proven by loading it again when a run saves.
    """
    from workbench.recipe import Recipe

    make_rows(folder, per_image(batch * steps // 3, 3))
    (folder / "processor").mkdir()
    llava = as_llava(size, "bf16", torch.device("meta"))
    llava.tokenizer.save_pretrained(folder / "processor")
    pictures = llava.image_mode.processor_settings()
    (folder / "processor/preprocessor_config.json").write_text(json.dumps(pictures))
    tells = {"processor_class": "LlavaProcessor", "patch_size": 14, "num_additional_image_tokens": 1}
    tells |= {"vision_feature_select_strategy": "default", "image_token": "<image>"}
    (folder / "processor/processor_config.json").write_text(json.dumps(tells))
    (folder / "processor/chat_template.jinja").write_text(CHAT.replace("SYSTEM", SYSTEM))
    if not cuda:
        make(size, "bf16", torch.device("cpu")).save_pretrained(folder / "processor")
    recipe = {
        "name": f"{size.name}-{load}",
        "model": {"checkpoint": str(folder / "processor"), "load": "fp32" if load == "bf16" and not cuda else load},
        "data": {"dataset": str(folder / "rows.json"), "images": str(folder / "images"), "val_fraction": 0.0},
        "template": "v1",
        "image_mode": "pad",
        "train": {
            "stage": "finetune",
            "language": "lora",
            "projector": "frozen",
            "lora": {**LORA, "targets": list(TARGETS)},
            "lr": 2e-4,
            "schedule": "constant",
            "warmup": 0.0,
            "max_tokens": 4096,
            "batch_size": batch,
            "max_steps": steps,
        },
    }
    job = {"rows": str(folder / "rows.json"), "images": str(folder / "images"), "lora": LORA, "targets": TARGETS}
    job |= {"processor": str(folder / "processor"), "recipe": recipe, "lr": 2e-4, "size": size.name, "load": load}
    return job | order(Recipe.from_dict(recipe), llava, folder, steps)


def _square(size: Size) -> dict[str, Any]:
    side = {"height": size.side, "width": size.side}
    return {"size": side, "crop_size": side}
