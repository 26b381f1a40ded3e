"""A model cut among processes by torch's FSDP2: each holds a part of every weight, gradient and optimiser state.

Knows: what is cut and what every process holds whole, how a step keeps all processes in step, and how trained weights
and optimiser state come together again in the very form that one process alone would save.
Does not know: the loop, checkpoints' folders, plain data parallelism (distributed.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from workbench.errors import TrainingError
from workbench.model.checkpoint import Held, trained_files
from workbench.model.llava import Llava
from workbench.model.precision import QUANTISED
from workbench.model.proof import affordable, probe
from workbench.model.stages import ParamGroup
from workbench.training.batch import Batch
from workbench.training.distributed import Processes
from workbench.training.lockstep import Root, joint_losses
from workbench.training.optim import clipped_step


class Shards:
    """A prepared model cut among all processes, in place: a `Placement`.

    Layers of the language model, and of a tower that trains, are put together one at a time; embeddings, head and
    projector for the whole pass. A frozen tower stays whole in every process: it is small and computes ahead.
    Raises `TrainingError` for quantised weights, which cannot be cut.
    """

    together = True

    def __init__(self, llava: Llava, groups: Sequence[ParamGroup], processes: Processes) -> None:
        self.llava, self.processes = llava, processes
        load = llava.spec["load"]
        if load in QUANTISED:
            fix = "use model.load: bf16, or train.shard: false: quantised weights are small enough to be held whole"
            raise TrainingError("train.shard", found=f"model.load: {load}", expected="floating-point weights", fix=fix)
        names = {id(parameter): name for name, parameter in llava.model.named_parameters()}
        self.root = _cut(llava, processes.world)
        cut = dict(llava.model.named_parameters())
        params = {id(group): [cut[names[id(parameter)]] for parameter in group.params] for group in groups}
        self.groups: Sequence[ParamGroup] = [replace(group, params=params[id(group)]) for group in groups]

    def turns(self, pieces: int) -> int:
        """As many as the busiest process: shards come together only where all compute."""
        return self.processes.largest(pieces)

    def losses(self, batch: Batch, images: torch.Tensor | None) -> torch.Tensor:
        return self.root(joint_losses, self.llava, batch, images)

    def adopt(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return optimizer

    def step(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, limit: float | None) -> float:
        """The gradients were added up as they came."""
        return clipped_step(optimizer, scaler, limit)

    def whole(self, function: Callable[[], None]) -> None:
        """Every layer is put together first and stays so: what computes inside may take as many passes as it likes."""
        layers = [
            module for module in self.root.modules() if isinstance(module, FSDPModule) and module is not self.root
        ]

        def call() -> None:
            for layer in layers:
                layer.unshard()
            function()

        for layer in layers:
            layer.set_reshard_after_forward(False, recurse=False)
        self.root(call)
        for layer in layers:
            layer.set_reshard_after_forward(True, recurse=False)
            layer.reshard()
        self.root.reshard()  # type: ignore[operator]  # fully_shard gave it this method

    def more(self, optimizer: torch.optim.Optimizer) -> int:
        cut = sum(each.numel() * each.element_size() for each in self.root.parameters() if isinstance(each, DTensor))
        mine = [each.to_local() for group in self.groups for each in group.params if isinstance(each, DTensor)]
        return cut + (0 if optimizer.state else 2 * sum(each.nbytes for each in mine))  # AdamW's two averages

    def gather(self) -> Held | None:
        main = self.processes.main
        probed = self.root(probe, self.llava) if affordable(self.llava) else None
        self.root.reshard()  # type: ignore[operator]  # fully_shard gave it this method
        files = {
            file: {name: _whole(tensor, main) for name, tensor in tensors.items()}
            for file, tensors in trained_files(self.llava).items()
        }
        return Held(files, probed) if main else None

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        state, main = optimizer.state_dict(), self.processes.main
        whole = {
            index: {name: _whole(value, main) if isinstance(value, DTensor) else value for name, value in held.items()}
            for index, held in state["state"].items()
        }
        return state | {"state": whole}

    def load_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        params = [parameter for group in self.groups for parameter in group.params]
        cut = {
            index: {name: _like(value, params[index]) for name, value in held.items()}
            for index, held in state["state"].items()
        }
        optimizer.load_state_dict(state | {"state": cut})


def _cut(llava: Llava, world: int) -> Root:
    mesh = init_device_mesh(llava.device.type, (world,))
    root = Root(llava, llava.model)
    trains = llava.vision_trains
    layers = [*llava.model.model.language_model.layers, *(llava.tower.encoder.layers if trains else ())]
    whole = set() if trains else set(llava.tower.parameters())
    for module in (*layers, root):
        fully_shard(module, mesh=mesh, ignored_params=whole)
    for module in root.modules():
        if isinstance(module, FSDPModule):  # the loss is divided by the tokens of all processes: gradients add up
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return root


def _whole(tensor: torch.Tensor, main: bool) -> torch.Tensor:
    """All of a tensor on the CPU; nothing of it in a process that does not need it."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu() if main else torch.empty(0)


def _like(value: Any, parameter: torch.Tensor) -> Any:
    """A tensor of the parameter's shape, cut as the parameter is; anything else as it is."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    assert isinstance(parameter, DTensor)
    whole = value.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
