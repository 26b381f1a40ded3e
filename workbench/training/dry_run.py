"""The worst planned pack, run for real in a process of its own, and its peak memory measured.

Knows: what a process holds before there is a model (libraries, a tokenizer, kernels that were used once). Does not
know: how its peak is read (`resident.py`), where the pack comes from, or what was foreseen for it.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from typing import Any

from workbench.errors import TrainingError
from workbench.recipe import Recipe
from workbench.resources import import_path
from workbench.training.packing import Entry, Pack, Tree

SIZES = tuple(each.name for each in fields(Entry) if each.name not in ("number", "key"))
"""What is said of an entry: everything but which one it is."""
STEPS = 2
"""The first makes the optimiser's state; the second is as full as every later one."""


@dataclass(frozen=True)
class Measured:
    """What a dry run took."""

    peak: int
    """Bytes at the fullest moment once the weights are read, over what the process held before there was a model."""
    seconds: float
    """Of one optimiser step over the worst pack, `pieces` times."""
    device: str
    loading: int
    """Bytes at the fullest moment of reading the weights, pages of their files among them; not part of `peak`."""


def dry_run(recipe: Recipe, pack: Pack, *, pieces: int = 2, every: int = 0, held: int = 0) -> Measured:
    """Run the pack forward, backward and through the optimiser in a fresh process. Arguments as in `Foresight.peak`.

    Raises `TrainingError` with the process's last words if it fails, as it does when memory is too small.
    """
    asked: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "pack": _to_lists(pack)}
    asked |= {"pieces": min(pieces, 2), "every": every, "held": held}
    environment = {**os.environ, "PYTHONPATH": import_path()}
    command = [sys.executable, "-m", "workbench.training.dry_run"]
    done = subprocess.run(command, input=json.dumps(asked), env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]
        fix = "lower train.pack_tokens, or set train.checkpointing: on"
        raise TrainingError("the dry run", found=f"a process that ended early: {last}", expected="a step", fix=fix)
    return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    """The process: one JSON object on standard input, the measurement as one on standard output."""
    asked = json.load(sys.stdin)
    recipe = Recipe.from_dict(asked["recipe"])
    pack = _to_pack(asked["pack"])
    print(json.dumps(measure(recipe, pack, asked["pieces"], asked["every"], asked["held"])))


def measure(recipe: Recipe, pack: Pack, pieces: int, every: int, held: int) -> dict[str, Any]:
    import torch

    from workbench.model.llava import build
    from workbench.model.outline import outline
    from workbench.model.stages import prepare
    from workbench.training.blank import blank
    from workbench.training.checkpointing import checkpoint_layers
    from workbench.training.features import CHUNK, group_of
    from workbench.training.forward import token_losses
    from workbench.training.optim import clip, make_optimizer
    from workbench.training.resident import forget_most, held_now, most_held
    from workbench.training.room import tighten

    tighten()
    train, settings = recipe.train, {"template": recipe.template, "image_mode": recipe.image_mode}
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    device = _warm_up(recipe, outline(recipe.model, **settings))
    before = held_now(device)
    llava = build(recipe.model, **settings, seed=train.seed)
    groups = prepare(llava, train, say=lambda text: None)
    params = [parameter for group in groups for parameter in group.params]
    optimizer = make_optimizer(groups, betas=train.betas, name=train.optimizer)
    for parameter in llava.model.parameters():
        parameter.sum()  # weights are mapped from their file, and come into memory as they are read
    loading = most_held(device) - before
    forget_most(device)
    kept = torch.ones(held, dtype=torch.uint8, device=device)
    llava.model.train()
    llava.tower.train(llava.vision_trains)
    side = llava.model.config.vision_config.image_size
    if not llava.vision_trains:
        with torch.no_grad():
            opened = torch.randn(CHUNK * llava.tiling.most_squares, 3, side, side)
            llava.tower_features(opened[: group_of(device)])
            del opened
    checkpoint_layers(llava, every)
    seconds = 0.0
    for _ in range(STEPS):
        began = time.perf_counter()
        for _ in range(pieces):
            token_losses(llava, *blank(pack, llava)).sum().backward()
        clip(params, train.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
    del kept
    return {"peak": most_held(device) - before, "seconds": seconds, "device": str(device), "loading": loading}


def _warm_up(recipe: Recipe, outline: Any) -> Any:
    """Use once, on small things, what the first step would load: modules, kernels and their buffers stay in a process.

    Returns the device.
    """
    import torch
    from torch import nn
    from transformers import AutoModel

    from workbench.training.memory import Foresight

    each = outline.llava.tiling.each
    tree = Tree((Entry(0, each + 20, each + 10, 5, 1, 1, None, 1, 1, each, each),) * 2)
    Foresight(outline, recipe.train).peak([tree], every=1)
    device = outline.llava.device
    config, dtype = outline.llava.model.config, outline.llava.dtype
    tower, language = (
        AutoModel.from_config(_small(part), dtype=dtype).to(device)
        for part in (config.vision_config, config.text_config)
    )
    seen = tower(torch.ones(2, 3, 28, 28, dtype=dtype, device=device)).last_hidden_state
    torch.mm(*torch.ones(2, 1024, 1024, dtype=dtype, device=device))  # large ones have buffers of their own
    states = language(inputs_embeds=seen.repeat(1, 40, 1)).last_hidden_state
    nn.functional.cross_entropy(states.float()[0], states.new_zeros(states.shape[1], dtype=torch.int64)).backward()
    params = list(language.parameters())
    nn.utils.clip_grad_norm_(params, 1.0)
    torch.optim.AdamW(params, fused=True).step()
    return device


def _small(config: Any) -> Any:
    """The same kind of model, one layer of it and 64 wide."""
    small = copy.deepcopy(config)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 64, "image_size": 28,
             "patch_size": 14}  # fmt: skip
    sizes |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    for name, size in sizes.items():
        if hasattr(small, name):
            setattr(small, name, size)
    return small


def _to_lists(pack: Pack) -> list[list[list[int]]]:
    return [[[getattr(entry, name) for name in SIZES] for entry in tree.members] for tree in pack]


def _to_pack(lists: list[list[list[int]]]) -> Pack:
    return [Tree(tuple(Entry(0, **dict(zip(SIZES, numbers, strict=True))) for numbers in tree)) for tree in lists]


if __name__ == "__main__":
    main()
