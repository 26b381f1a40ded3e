"""How a model lies in the processes of a run: whole in each, in shards, or by ZeRO; the loop's few words for each.

Knows: what a step, a save and a resumption need that differs between them.
Does not know: how a model is cut (sharding.py, zero.py), the loop, checkpoints' folders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from workbench.errors import TrainingError
from workbench.model.checkpoint import Held
from workbench.model.llava import Llava
from workbench.model.precision import dtype_name
from workbench.model.stages import ParamGroup
from workbench.recipe import TrainSpec
from workbench.training.batch import Batch
from workbench.training.distributed import Processes, asks_for_shards, check_precision
from workbench.training.forward import token_losses
from workbench.training.optim import clipped_step


class Placement(Protocol):
    """What the loop asks of a model, however it lies. Methods are called by all processes at once."""

    together: bool
    """Whether a process can compute only while all of them do."""

    @property
    def groups(self) -> Sequence[ParamGroup]:
        """What trains, as parameters of this process."""

    def turns(self, pieces: int) -> int:
        """How many times this process has to compute in a step in which it has so many pieces of its own."""

    def losses(self, batch: Batch, images: torch.Tensor | None) -> torch.Tensor:
        """`token_losses` of a piece."""

    def adopt(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimiser of `groups` as it works on what lies here; the loop uses it from then on."""

    def step(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, limit: float | None) -> float:
        """One step with the sum of all processes' gradients, scaled down to the norm `limit`; returns it before.

        Each process divided by the tokens of all. Where the norm is no number, no step is made.
        """

    def whole(self, function: Callable[[], None]) -> None:
        """Call what computes without the other processes, while all weights lie in each of them."""

    def more(self, optimizer: torch.optim.Optimizer) -> int:
        """Bytes that `whole` takes in a process beside what it holds by then."""

    def gather(self) -> Held | None:
        """What to save of the model where it does not lie whole in the main process."""

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimiser's state as one process alone has it; only the main process needs it."""

    def load_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """The way back."""


class Whole:
    """The whole model in every process: plain data parallelism, or one process alone."""

    together = False

    def __init__(self, llava: Llava, groups: Sequence[ParamGroup], processes: Processes) -> None:
        self.llava, self.processes = llava, processes
        self.groups = groups
        self.params = [parameter for group in groups for parameter in group.params]

    def turns(self, pieces: int) -> int:
        return pieces

    def losses(self, batch: Batch, images: torch.Tensor | None) -> torch.Tensor:
        return token_losses(self.llava, batch, images)

    def adopt(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return optimizer

    def step(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, limit: float | None) -> float:
        self.processes.sum_gradients(self.params)
        return clipped_step(optimizer, scaler, limit)

    def whole(self, function: Callable[[], None]) -> None:
        function()

    def more(self, optimizer: torch.optim.Optimizer) -> int:
        return 0

    def gather(self) -> Held | None:
        return None

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return optimizer.state_dict()

    def load_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        optimizer.load_state_dict(state)


def place(
    llava: Llava, groups: Sequence[ParamGroup], processes: Processes, spec: TrainSpec, zero: dict[str, Any] | None
) -> Placement:
    """Give a prepared model its place: shards or ZeRO where the recipe or `accelerate launch` asks for them.

    `zero`: a DeepSpeed config as `zero_config` gives it. Raises `TrainingError` where weights or the optimiser cannot
    be cut, or where shards are asked for and there is one process only.
    """
    check_precision(dtype_name(llava.dtype))
    where = "train.shard" if zero is None else "train.deepspeed"
    if zero is None and not (asks_for_shards() or spec.shard):
        return Whole(llava, groups, processes)
    if spec.optimizer != "adamw":
        fix = "use train.optimizer: adamw, whose averages are cut too"
        raise TrainingError(where, found=f"train.optimizer: {spec.optimizer}", expected="adamw", fix=fix)
    if zero is not None:
        from workbench.training.zero import Zero

        return Zero(llava, groups, processes, zero, spec.clip)
    if processes.world == 1:
        fix = "start several, as with `workbench train ... --processes 8`, or set train.shard=false"
        raise TrainingError(where, found="one process", expected="several to share the model", fix=fix)
    from workbench.training.sharding import Shards

    return Shards(llava, groups, processes)
