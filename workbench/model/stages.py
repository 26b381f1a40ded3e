"""What trains in a stage: the parameter groups of align and finetune, set, counted, checked and printed.

Knows: which parameters each field of a training recipe frees, their learning rates, and that nothing else trains.
Does not know: optimisers, schedules, data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from workbench.errors import ModelError
from workbench.model import linears
from workbench.model.llava import NEWLINE, Llava
from workbench.model.lora import VISION, adapted, attach, used_layers
from workbench.model.precision import LANGUAGE, QUANTISED

if TYPE_CHECKING:
    from workbench.recipe import TrainSpec

PROJECTOR = "model.multi_modal_projector."
HEAD = "lm_head."


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning rate. Never empty, never overlapping another group."""

    name: str
    """The part and how it trains, for example `language lora` or `projector`."""
    params: list[nn.Parameter]
    lr: float
    weight_decay: float
    count: int
    """Numbers in all its parameters together."""


def prepare(llava: Llava, train: TrainSpec, *, say: Callable[[str], None] = print) -> list[ParamGroup]:
    """Free what the stage trains, freeze all else, attach LoRA if asked, and return the groups.

    Trainable weights become float32, also over a half-precision or quantised base. Raises `ModelError` if a part
    cannot train this way, if LoRA met no module or one of another part, or if nothing trains.
    """
    model = llava.model
    model.requires_grad_(False)
    _refuse(llava, train)
    lora = {part: getattr(train, part) == "lora" for part in ("language", "vision")}
    if any(lora.values()):
        attach(llava, train.lora, **lora, seed=train.seed)
    if train.vision == "full":
        llava.tower.float()  # the whole tower: one part cannot compute in two types
    free = _freed(llava, train)
    groups = []
    for name, lr, params in free:
        for parameter in params:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()
        groups += _split_decay(name, params, lr, train.weight_decay)
    check(llava, groups)
    for part in ("language", "vision"):
        if getattr(train, part) == "full" and part not in llava.spec["trained"]:
            llava.spec["trained"].append(part)
    linears.use(model)
    say(table(groups))
    if any(lora.values()) and train.lora.dropout and train.share:
        told = "conversations that share an image share one mask over it; train.share: false gives each its own"
        say(f"LoRA dropout {train.lora.dropout:g}: {told}")
    return groups


def check(llava: Llava, groups: list[ParamGroup]) -> None:
    """Raise `ModelError` unless what requires a gradient is exactly what the groups hold, each once."""
    held = [id(parameter) for group in groups for parameter in group.params]
    names = {id(parameter): name for name, parameter in llava.model.named_parameters()}
    wanted = {id(parameter) for parameter in llava.model.parameters() if parameter.requires_grad}
    if not held:
        raise ModelError("the stage", found="nothing to train", expected="at least one part that is not frozen")
    if len(held) != len(set(held)):
        raise ModelError("the stage", found="a parameter in two groups", expected="each in one")
    stray = wanted.symmetric_difference(held)
    if stray:
        some = ", ".join(sorted(names.get(key, "a parameter outside the model") for key in stray)[:3])
        raise ModelError("the stage", found=f"{len(stray)} parameters that train but are in no group: {some}")


def table(groups: list[ParamGroup]) -> str:
    """What trains, one line per group: tensors, numbers, learning rate, weight decay."""
    width = max(len(group.name) for group in groups)
    lines = [f"{'trains':<{width}}  tensors      numbers        lr  decay"]
    for group in groups:
        numbers = f"{len(group.params):>7}  {group.count:>11,}  {group.lr:>8.1e}  {group.weight_decay:g}"
        lines.append(f"{group.name:<{width}}  {numbers}")
    return "\n".join(lines)


def _freed(llava: Llava, train: TrainSpec) -> list[tuple[str, float, list[nn.Parameter]]]:
    """(name, learning rate, parameters) of each part that trains."""
    named = list(llava.model.named_parameters())

    def pick(test: Callable[[str], bool]) -> list[nn.Parameter]:
        return [parameter for name, parameter in named if test(name)]

    freed = []
    if train.language == "full":
        freed.append(("language full", train.lr, pick(lambda name: name.startswith((LANGUAGE, HEAD)))))
    elif train.language == "lora":
        freed.append(("language lora", train.lr, pick(lambda name: name.startswith(LANGUAGE) and ".lora_" in name)))
    if train.projector == "full":
        # LLaVA v1's linear projector holds an identity as its second linear: it must stay one
        single = llava.spec["projector"] == "linear"
        starts = (PROJECTOR + ("linear_1." if single else ""), NEWLINE)
        freed.append(("projector", _rate(train.projector_lr, train), pick(lambda name: name.startswith(starts))))
    if train.vision == "full":
        freed.append(("vision full", _rate(train.vision_lr, train), pick(lambda name: _used(llava, name))))
    elif train.vision == "lora":
        found = pick(lambda name: name.startswith(VISION) and ".lora_" in name)
        freed.append(("vision lora", _rate(train.vision_lr, train), found))
    return freed


def _rate(own: float | None, train: TrainSpec) -> float:
    return train.lr if own is None else own


def _used(llava: Llava, name: str) -> bool:
    """Whether a tower parameter has a say in the chosen hidden state; the others never get a gradient."""
    if not name.startswith(VISION):
        return False
    rest = name.removeprefix(VISION)
    layer = re.match(r"encoder\.layers\.(\d+)\.", rest)
    return int(layer[1]) < used_layers(llava) if layer else rest.startswith(("embeddings.", "pre_layrnorm."))


def _split_decay(name: str, params: list[nn.Parameter], lr: float, decay: float) -> list[ParamGroup]:
    """One group, or two where weight decay is on: biases and norms (one-dimensional) are never decayed."""
    halves = [(name, params, decay)]
    if decay:
        flat = [parameter for parameter in params if parameter.ndim < 2]
        halves = [(name, [p for p in params if p.ndim >= 2], decay), (f"{name} (no decay)", flat, 0.0)]
    return [ParamGroup(title, held, lr, rate, _count(held)) for title, held, rate in halves if held]


def _count(params: list[torch.Tensor] | list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in params)


def _refuse(llava: Llava, train: TrainSpec) -> None:
    load = llava.spec["load"]
    if train.language == "full" and load in QUANTISED:
        raise ModelError("language: full", found=f"a {load} language model", fix="use language: lora, or load: bf16")
    for part, prefix in (("language", LANGUAGE), ("vision", VISION)):
        if getattr(train, part) == "full" and next(adapted(llava.model, prefix), None):
            fix = "export that run merged and start from the folder"
            raise ModelError(f"{part}: full", found="an attached LoRA adapter", fix=fix)
