"""The peak memory of training, foreseen: the very step is run on shapes, and every tensor's birth and end is counted.

Knows: which moments can be the fullest (images through a frozen tower, the worst pack forward and backward, the
optimiser), and what is alive in the fullest of them, by item. Nothing here is a formula of a model: whatever
transformers, peft, attention by trees and checkpointing keep or drop is what is counted.
Does not know: weights (an `Outline` has none), data (only the shape of a pack), what memory there is (`room.py`).

The count is of bytes in tensors. A process also holds its libraries, and an allocator may keep holes: see `room.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from workbench.model.llava import Llava
from workbench.model.outline import Outline
from workbench.model.precision import LANGUAGE
from workbench.model.stages import ParamGroup, prepare
from workbench.recipe import TrainSpec
from workbench.training.blank import blank
from workbench.training.checkpointing import recompute
from workbench.training.features import CHUNK, GROUP, group_of
from workbench.training.forward import token_losses
from workbench.training.head import CHUNK as HEAD_ROWS
from workbench.training.optim import averages, make_optimizer
from workbench.training.packing import Pack

ITEMS = (
    "language model", "vision tower", "projector", "adapters", "gradients", "optimiser", "images", "activations",
    "logits", "backward", "kernels",
)  # fmt: skip
"""What memory is used for. Behind `vision tower` stand its weights and what it computes; `images`: features or pixels;
`backward`: what the way back holds for a moment; `kernels`: code that oneDNN keeps for half precision on CPUs."""
KERNEL = 600_000
"""Bytes of such a kernel, measured over 100 products of different shapes: 0.58 MB on an AMD EPYC with AVX512-BF16;
0.83 MB on an Intel Xeon with AMX."""
QUERIES, KEYS = (32, 64, 512), 512
"""Attention's way back multiplies blocks of 32 queries (64 from 512 queries on) and 512 keys (torch's
`cpu_flash_attention_backward`), three products a pair of blocks; its way there needs no kernel of oneDNN."""


@dataclass(frozen=True)
class Memory:
    """The fullest moment of a run."""

    items: dict[str, int]
    """Bytes by item, `ITEMS` in order."""
    phase: str
    """`images`: while a frozen tower reads them, before the first step; or `step`."""
    flops: float
    """Floating-point operations of the worst pack, forward and backward."""

    @property
    def peak(self) -> int:
        """Bytes in all."""
        return sum(self.items.values())


class Foresight:
    """A recipe's training on shapes: prepared once, asked for any pack and any setting of checkpointing.

    card: what is foreseen is the memory of a card, wherever it is counted: opened images and kept features lie in the
    machine's own beside it, and a CPU's kernels are not there.
    """

    def __init__(self, outline: Outline, train: TrainSpec, *, card: bool = False) -> None:
        self.outline, self.llava, self.train = outline, outline.llava, train
        self.card = card or self.llava.device.type not in ("cpu", "mps")  # which share the machine's
        with outline.shapes():
            self.groups: list[ParamGroup] = prepare(self.llava, train, say=lambda text: None)
            self.params = [parameter for group in self.groups for parameter in group.params]
            self.llava.model.train()
            self.llava.tower.train(self.llava.vision_trains)

    def peak(self, pack: Pack, *, every: int = 0, pieces: int = 2, held: int = 0) -> Memory:
        """The fullest moment if this is the worst pack.

        `every`: as in `recompute`. `pieces`: packs of an optimiser step; from the second on gradients are there while
        activations grow. `held`: bytes of image features or pixels that stay in that memory.
        """
        pieces = min(pieces, 2)
        with self.outline.shapes(), recompute(self.llava, every), Meter() as meter:
            for name, tensor in (*self.llava.model.named_parameters(), *self.llava.model.named_buffers()):
                meter.add(tensor, part_of(name))
            meter.by["images"] = held
            moments = [("images", self._encode(meter))] if not self.llava.vision_trains else []
            optimizer = self._optimizer(meter)
            meter.flops = 0
            self._step(meter, pack, pieces, optimizer)
            moments.append(("step", meter.fullest()))
        phase, items = max(moments, key=lambda moment: sum(moment[1].values()))
        items = items | {"kernels": 0} if self.card else items
        return Memory({name: items.get(name, 0) for name in ITEMS}, phase, meter.flops)

    def _encode(self, meter: Meter) -> dict[str, int]:
        """A chunk of opened images, a group of which is on its way through a frozen tower."""
        side = self.llava.model.config.vision_config.image_size
        group = GROUP if self.card else group_of(self.llava.device)
        with torch.no_grad(), meter.label("vision tower"):
            opened = torch.empty(group if self.card else CHUNK * self.llava.tiling.most_squares, 3, side, side)
            self.llava.tower_features(opened[:group])
        return meter.fullest()

    def _optimizer(self, meter: Meter) -> torch.optim.Optimizer:
        """The optimiser after a first step, with its state."""
        with meter.label("optimiser"):
            if self.train.optimizer.endswith("8bit"):  # its own operations know no shapes
                optimizer = torch.optim.SGD(self.params)
                for parameter in self.params:
                    size = averages(parameter.numel(), self.train.optimizer)
                    held = torch.empty(size, dtype=torch.uint8, device=parameter.device)
                    optimizer.state[parameter] = {"averages": held}
            else:
                optimizer = make_optimizer(self.groups, betas=self.train.betas)  # a paged one is as large
                for parameter in self.params:
                    parameter.grad = torch.empty_like(parameter)
                optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.fullest()
        return optimizer

    def _step(self, meter: Meter, pack: Pack, pieces: int, optimizer: torch.optim.Optimizer) -> None:
        """One optimiser step; of its `pieces` the last one, which has the gradients of those before beside it."""
        if pieces > 1:
            with meter.label("gradients"):
                for parameter in self.params:
                    parameter.grad = torch.empty_like(parameter)
        with labels(self.llava, self.params, meter):
            with meter.label("images"), unset_fake_temporarily():
                batch, images = blank(pack, self.llava)
            with meter.label("logits"):
                loss = token_losses(self.llava, batch, images).sum()
            with meter.label("backward"):
                loss.backward()
            del batch, images, loss  # as the loop's next piece replaces them
        with meter.label("optimiser"):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def at_most(llava: Llava, tokens: int) -> int:
    """Bytes that training a prepared model on packs of so many tokens never reaches: quick, and about twice too many.

    What no formula should decide; it only spares the following of a step that surely fits.
    """
    text, vision = llava.model.config.text_config, llava.model.config.vision_config

    def kept(config: Any, tokens: int) -> int:
        return tokens * config.num_hidden_layers * (24 * config.hidden_size + 8 * config.intermediate_size) * 4

    tiling = llava.tiling
    images = tiling.most_squares * max(CHUNK, tokens // tiling.each) * (tiling.each + 1)
    weights = sum(p.numel() * (16 if p.requires_grad else 2 + p.element_size()) for p in llava.model.parameters())
    computed = kept(text, tokens) + kept(vision, images) + 16 * min(tokens, HEAD_ROWS) * text.vocab_size
    return weights + computed + 100 * KERNEL


class Meter(TorchDispatchMode):
    """Counts the bytes of every tensor from its birth to its end, under the label it was born with."""

    def __init__(self) -> None:
        super().__init__()
        self.by: dict[str, int] = {}
        self.flops = 0
        self.kernels: dict[tuple[Any, ...], int] = {}
        self._kept = _by_onednn()
        self._live: dict[int, tuple[str, int]] = {}
        self._label, self._peak, self._at = "other", 0, dict(self.by)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:
            return made
        if (count := COUNTS.get(func.overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=made)
            self._kernel(func, args)
        for tensor in tree_iter(made):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor, self._label)
        return made

    def add(self, tensor: torch.Tensor, label: str, *, again: bool = False) -> None:
        """Count a tensor's storage, once; `again`: under another label than before."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            if again:
                self._forget(key)
            else:
                return
        else:
            weakref.finalize(storage, self._forget, key)
        self._live[key] = label, storage.nbytes()
        self.by[label] = self.by.get(label, 0) + storage.nbytes()
        total = sum(self.by.values())
        if total > self._peak:
            self._peak, self._at = total, dict(self.by)

    @contextmanager
    def label(self, name: str) -> Iterator[None]:
        before, self._label = self._label, name
        try:
            yield
        finally:
            self._label = before

    def fullest(self) -> dict[str, int]:
        """What was alive when most was, since this was asked for the last time."""
        found, self._at = self._at, dict(self.by)
        found["kernels"] = sum(self.kernels.values())
        self._peak = sum(self.by.values())
        return found

    def _kernel(self, func: Any, args: Any) -> None:
        """Count the kernels that oneDNN makes and keeps for each product of half-precision matrices of a new shape."""
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        kept = tensors[0].dtype in self._kept or "mkldnn" in str(func)
        if tensors[0].device.type != "cpu" or not kept:
            return
        if "attention" not in str(func):
            self.kernels[func, *((tensor.shape, tensor.stride()) for tensor in tensors)] = KERNEL
        elif "backward" in str(func):
            (queries, width), keys = tensors[1].shape[-2:], tensors[2].shape[-2]
            few, many, enough = QUERIES
            for block in product(_blocks(queries, many if queries >= enough else few), _blocks(keys, KEYS)):
                self.kernels["attention", *block, width] = 3 * KERNEL

    def _forget(self, key: int) -> None:
        label, size = self._live.pop(key)
        self.by[label] -= size


@contextmanager
def labels(llava: Llava, params: Sequence[nn.Parameter], meter: Meter) -> Iterator[None]:
    """While it lasts, what the parts of the model compute is counted as theirs, and gradients as gradients."""
    inner = llava.model.model
    handles = []
    for module, name in ((inner.vision_tower, "vision tower"), (inner.multi_modal_projector, "activations"),
                         (inner.language_model, "activations")):  # fmt: skip
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: _enter(meter, name)))
        handles.append(module.register_forward_hook(lambda *_: _enter(meter, "logits"), always_call=True))
    for parameter in params:
        handles.append(
            parameter.register_post_accumulate_grad_hook(lambda held: meter.add(held.grad, "gradients", again=True))
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _enter(meter: Meter, name: str) -> None:
    meter._label = name


def part_of(name: str) -> str:
    """The item a parameter or buffer is counted under."""
    if ".lora_" in name:
        return "adapters"
    if name.startswith((LANGUAGE, "lm_head.")):
        return "language model"
    return "vision tower" if "vision_tower" in name else "projector"


_ops = torch.ops.aten
COUNTS: dict[Any, Any] = {
    **flop_registry,
    _ops._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ops._scaled_dot_product_flash_attention],
    _ops._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ops._scaled_dot_product_flash_attention_backward
    ],
}
"""torch's own counts of operations, by operation; attention on CPUs is not among them."""


def _by_onednn() -> set[torch.dtype]:
    """The half-precision types whose products oneDNN makes on this CPU; others are torch's own."""
    if not torch.backends.mkldnn.is_available():
        return set()
    asked = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return {dtype for dtype, name in asked.items() if getattr(torch.ops.mkldnn, name)()}


def _blocks(length: int, size: int) -> set[int]:
    """The lengths of blocks that so many rows are cut into."""
    return {min(size, length), length % size} - {0}
