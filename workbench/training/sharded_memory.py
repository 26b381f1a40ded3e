"""The memory of one process where a model lies in shards, from the memory of one that holds it whole.

Knows: what `sharding.py` cuts, and what is together for a moment: the layer that computes, the next one, which arrives
meanwhile, and for the whole pass all that lies outside of layers.
Does not know: how the whole is foreseen (`memory.py`). Nothing here was measured on several GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from workbench.model.llava import Llava
from workbench.training.memory import Memory, part_of

TOGETHER = 2
"""Layers that are whole at once: FSDP2 fetches the next one while one computes."""


def in_shards(memory: Memory, llava: Llava, processes: int) -> Memory:
    """`memory` of a prepared model that is cut among so many processes. What is computed is as large in each of them,
    a frozen tower too.
    """
    trains = llava.vision_trains
    names = {id(parameter): name for name, parameter in llava.model.named_parameters()}
    layers = [*llava.model.model.language_model.layers, *(llava.tower.encoder.layers if trains else ())]
    cut = [parameter for parameter in llava.model.parameters() if trains or "vision_tower" not in names[id(parameter)]]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    largest = max((list(layer.parameters()) for layer in layers), key=lambda held: sum(each.nbytes for each in held))
    outside = [parameter for parameter in cut if id(parameter) not in inside]
    all_of, once, twice = (_sizes(some, names) for some in (cut, outside, largest))
    items = dict(memory.items)
    for name in items:
        if name in ("gradients", "optimiser"):
            items[name] //= processes
        else:
            items[name] += once[name] + TOGETHER * twice[name] - all_of[name] + all_of[name] // processes
    items["gradients"] += _trained(outside) + _trained(largest)  # before they are added up and cut
    return replace(memory, items=items)


def _sizes(parameters: Iterable[nn.Parameter], names: dict[int, str]) -> Counter[str]:
    """Bytes of these weights, by item of the memory."""
    sizes: Counter[str] = Counter()
    for parameter in parameters:
        sizes[part_of(names[id(parameter)])] += parameter.nbytes
    return sizes


def _trained(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
