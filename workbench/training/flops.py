"""How much arithmetic a training step needs, and how fast this machine multiplies matrices.

Knows: what each linear layer costs: 2 operations a weight and token forward, 2 more for the gradient of its input, 2
more for its own gradient where it trains. So a frozen layer below which something trains counts 4, not 6. Attention
counts every pair of tokens that see each other, 3 times forward in a step.
Does not know: what is computed twice (checkpointing) or for nothing (padding): only useful work counts. Norms,
activations and the softmax are left out; they are a few parts in a thousand.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from workbench.model.llava import Llava
from workbench.model.products import linear
from workbench.training import last_layer
from workbench.training.packing import Tree

MEASURED_SECONDS = 0.01
"""Matrices grow until one multiplication takes so long."""
LARGEST = 8192


@dataclass(frozen=True)
class StepCost:
    """Floating-point operations of one training step, forward and backward, by what there is of each."""

    token: float
    """Per token in the language model; of its last layer, only what the others' attention needs."""
    supervised: float
    """Per token that is predicted: the head, and the rest of the last layer."""
    image: float
    """Per tile of an image: the projector."""
    square: float
    """Per square that the tower sees: the tower, where it runs in the step."""
    pair: float
    """Per token and token that it sees, without the last layer."""
    last_pair: float
    """Per token that is predicted and token that it sees, in the last layer."""

    def of(self, *, tokens: int, supervised: int, images: int, pairs: int, squares: int | None = None) -> float:
        """Operations of a step with so many of each; `images`: tiles of images, and as many squares unless told."""
        seen = self.image * images + self.square * (images if squares is None else squares)
        pair = self.pair + self.last_pair * supervised / max(1, tokens)
        return self.token * tokens + self.supervised * supervised + seen + pair * pairs

    def of_trees(self, trees: Sequence[Tree]) -> float:
        """Operations of a step, or of many, over these trees."""
        return self.of(
            tokens=sum(tree.tokens for tree in trees),
            supervised=sum(tree.supervised for tree in trees),
            images=sum(tree.tiles for tree in trees),
            pairs=sum(pairs(tree.prefix, [entry.branch for entry in tree.members]) for tree in trees),
            squares=sum(tree.squares for tree in trees),
        )


def step_cost(llava: Llava, *, encodes: bool) -> StepCost:
    """What a model prepared for its stage costs. `encodes`: the tower runs in every step; a trained one always does."""
    text = llava.model.config.get_text_config()
    language, vision = llava.model.model.language_model, llava.vision_trains
    projector_trains = _trains(llava.projector)
    below = vision or projector_trains  # something under the language model trains
    flows = below or _trains(language)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    # From its first layer on the projector passes a gradient down only if the tower trains.
    projector = _linear(llava.projector, flows=vision or projector_trains)
    if projector_trains and not vision:
        projector -= 2 * llava.projector.linear_1.weight.numel()
    last = sum(_linear(part, flows=flows) for part in last_layer.predicting_parts(llava))
    pair = 4 * text.num_attention_heads * width * (3 if flows else 1)
    pruned = bool(last)
    return StepCost(
        token=_linear(language, flows=flows) - last,
        supervised=_linear(llava.model.lm_head, flows=flows) + last,
        image=llava.tiling.each * projector,
        square=_tower(llava) if encodes or vision else 0,
        pair=(text.num_hidden_layers - pruned) * pair,
        last_pair=pruned * pair,
    )


def tower_cost(llava: Llava) -> float:
    """Operations of a frozen tower per square that it sees."""
    return step_cost(llava, encodes=True).square


def pairs(prefix: int, branches: Sequence[int]) -> int:
    """Pairs of tokens that see each other in a tree: a prefix, and branches that go on from it. Each sees itself."""
    return prefix * (prefix + 1) // 2 + sum(prefix * length + length * (length + 1) // 2 for length in branches)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the fastest plain matrix multiplication found here, on as many threads as are set."""
    best, side, seconds = 0.0, 256, 0.0
    while side <= LARGEST and seconds < MEASURED_SECONDS:
        made = torch.Generator("cpu").manual_seed(0)  # the run's own random numbers stay as they are
        one, other = (torch.randn(side, side, generator=made).to(device, dtype) for _ in range(2))
        _timed(one, other)  # the first one also sets things up
        seconds = min(_timed(one, other) for _ in range(3))
        best = max(best, 2 * side**3 / seconds)
        side *= 2
    return best


def _timed(one: torch.Tensor, other: torch.Tensor) -> float:
    waits = one.device.type != "cpu"
    if waits:
        torch.accelerator.synchronize(one.device)
    began = time.perf_counter()
    linear(one, other)
    if waits:
        torch.accelerator.synchronize(one.device)
    return max(time.perf_counter() - began, 1e-9)


def _linear(part: nn.Module, *, flows: bool) -> float:
    """Operations per token of the linear layers in a part, adapters too. `flows`: the gradient passes through it."""
    total = 0
    for module in part.modules():
        if isinstance(module, nn.Linear):  # the weights of a quantised one are packed: go by its sizes
            total += 2 * module.in_features * module.out_features * (1 + flows + module.weight.requires_grad)
    return total


def _tower(llava: Llava) -> float:
    """Operations per tile of the tower, up to the layer whose output is used."""
    config = llava.tower.config
    layer, layers = llava.model.config.vision_feature_layer, config.num_hidden_layers
    used = layer if layer >= 0 else layers + 1 + layer
    patches = (config.image_size // config.patch_size) ** 2
    flows = llava.vision_trains
    embed = 2 * patches * 3 * config.patch_size**2 * config.hidden_size
    attention = layers * 4 * (patches + 1) ** 2 * config.hidden_size * (3 if flows else 1)
    return embed + (_linear(llava.tower, flows=flows) * (patches + 1) + attention) * used / layers


def _trains(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())
