"""A model by DeepSpeed's ZeRO: optimiser state, gradients (stage 2) and weights (stage 3) in parts among processes.

Knows: DeepSpeed's engine, what of it stands between a backward pass and a step, and how weights and optimiser state
come together again in the very form that one process alone would save.
Does not know: the loop, checkpoints' folders, what a DeepSpeed config may say (zero_config.py).

The engine gets the recipe's AdamW and float32 weights, and casts nothing: number formats are the model's own
(`Llava.autocast`). It takes the mean over processes where a step's loss is a sum: gradients go in times their number.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from workbench.errors import TrainingError
from workbench.model.checkpoint import Held, trained_files
from workbench.model.llava import Llava
from workbench.model.precision import QUANTISED, dtype_name
from workbench.model.proof import affordable, probe
from workbench.model.stages import ParamGroup
from workbench.training.batch import Batch
from workbench.training.distributed import Processes
from workbench.training.lockstep import Root, joint_losses
from workbench.training.zero_config import check_format, passed

AVERAGES = ("exp_avg", "exp_avg_sq")


class Zero:
    """A prepared model under ZeRO, in place: a `Placement`. A frozen tower stays whole: it is small and computes ahead.

    Raises `TrainingError` for float16, and in stage 3 for quantised weights, which cannot be cut.
    """

    together = True

    def __init__(
        self,
        llava: Llava,
        groups: Sequence[ParamGroup],
        processes: Processes,
        config: dict[str, Any],
        limit: float | None,
    ) -> None:
        self.llava, self.groups, self.processes = llava, groups, processes
        self.params = [parameter for group in groups for parameter in group.params]
        self.stage = config["zero_optimization"]["stage"]
        _refuse(llava, self.stage)
        check_format(config, dtype_name(llava.dtype))
        self.config = passed(config, hidden=llava.model.config.get_text_config().hidden_size, clip=limit)
        self.deepspeed = _deepspeed(llava.device)
        _check(self.deepspeed, self.config["zero_optimization"])
        self.provable = affordable(llava)
        more = [llava.tower] if llava.vision_trains else []
        more += [nn.ParameterList([llava.newline])] if llava.newline is not None else []
        self.root = Root(llava, llava.model.model.language_model, llava.projector, llava.model.lm_head, *more)
        if llava.newline is not None:
            self.deepspeed.zero.register_external_parameter(self.root, llava.newline)

    def turns(self, pieces: int) -> int:
        """As many as the busiest process: gradients are added up, and weights come together, where all compute."""
        return self.processes.largest(pieces)

    def adopt(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        deepspeed = self.deepspeed
        if not dist.is_initialized():  # one process alone, which offloads
            os.environ.setdefault("LOCAL_RANK", "0")
            backend = deepspeed.accelerator.get_accelerator().communication_backend_name()
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        plain = functional.linear
        self.engine, adopted, _, _ = deepspeed.initialize(model=self.root, optimizer=optimizer, config=self.config)
        if functional.linear is not plain:  # stage 3
            functional.linear = _linear(plain, functional.linear)
        return adopted

    def losses(self, batch: Batch, images: torch.Tensor | None) -> torch.Tensor:
        losses = self.engine(joint_losses, self.llava, batch, images)
        if losses.requires_grad:
            losses.register_hook(lambda grad: grad * self.processes.world)
        return losses

    def step(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, limit: float | None) -> float:
        """The limit is in the engine's config; the scaler does nothing in the formats that are taken."""
        self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self.engine.was_step_applied() else math.inf

    def whole(self, function: Callable[[], None]) -> None:
        """Without DeepSpeed's hooks meanwhile, which would cut each part again as soon as it has computed."""
        if self.stage < 3:
            return function()
        with self.deepspeed.zero.GatheredParameters(self.root.parameters()), _unhooked(self.engine.optimizer):
            function()

    def more(self, optimizer: torch.optim.Optimizer) -> int:
        return sum(each.ds_numel * each.element_size() for each in self.root.parameters()) if self.stage == 3 else 0

    def gather(self) -> Held | None:
        """None in stages 1 and 2, where every process holds all weights."""
        if self.stage < 3:
            return None
        probed = self.engine(probe, self.llava) if self.provable else None
        files = {
            file: {name: self._whole(parameter) for name, parameter in tensors.items()}
            for file, tensors in trained_files(self.llava).items()
        }
        return Held(files, probed) if self.processes.main else None

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        _link(optimizer)
        base, main = _base(optimizer), self.processes.main
        steps = torch.stack([held["step"].cpu() for held in base.state.values()]).max()
        state = {}
        for number, parameter in enumerate(self.params):
            averages = {name: safe_get_full_optimizer_state(parameter, name) for name in AVERAGES}
            if main:
                state[number] = {"step": steps.clone()} | {name: held.cpu() for name, held in averages.items()}
        groups, first = [], 0
        for group, settings in zip(self.groups, base.param_groups, strict=True):
            groups.append(settings | {"params": [*range(first, first := first + len(group.params))]})
        return {"state": state, "param_groups": groups}

    def load_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        held, zero3 = state["state"], self.stage == 3
        rows = optimizer.fp32_partitioned_groups_flat if zero3 else optimizer.single_partition_of_fp32_groups
        for row in rows:  # as AdamW would make it in its first step
            begun = {"step": held[0]["step"].to(row.device, copy=True)}
            _base(optimizer).state[row] = begun | {name: torch.zeros_like(row) for name in AVERAGES}
        _link(optimizer)
        for number, parameter in enumerate(self.params):
            for name in AVERAGES:
                _put(parameter, held[number][name], name, self.processes)

    def _whole(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """All of a weight on the CPU; nothing of it in a process that does not need it."""
        with self.deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().cpu().clone() if self.processes.main else torch.empty(0)


def _deepspeed(device: torch.device) -> Any:
    """The package, told which device to use: it looks for one while it is imported."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False  # on CPU it would be compiled for minutes, beside gloo
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)  # what DeepSpeed calls
    return deepspeed


def _linear(plain: Callable[..., torch.Tensor], cut: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """DeepSpeed's way to compute a linear layer whose weight is cut, and torch's for all others in this process.

    DeepSpeed's keeps no weight for the way back, and rounds before it adds the bias. A frozen tower's features, which
    other runs read from the disk, must not depend on it.
    """

    def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return (cut if hasattr(weight, "ds_id") else plain)(input, weight, bias)

    return linear


def _refuse(llava: Llava, stage: int) -> None:
    load = llava.spec["load"]
    if stage == 3 and load in QUANTISED:
        fix = "use stage 1 or 2, which leave weights whole, or model.load: bf16"
        raise TrainingError("train.deepspeed", found=f"stage 3 with model.load: {load}", fix=fix)


def _check(deepspeed: Any, config: dict[str, Any]) -> None:
    """Raise `TrainingError` for a key or a value that DeepSpeed does not know."""
    try:
        deepspeed.runtime.zero.config.DeepSpeedZeroConfig(**config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        found = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise TrainingError("train.deepspeed", found=f"{found}: {first['input']}", expected=first["msg"]) from None


def _base(optimizer: Any) -> torch.optim.Optimizer:
    """The AdamW that DeepSpeed works with: of this process's part of all weights of a group in one row."""
    return optimizer.optimizer


def _link(optimizer: Any) -> None:
    """Make averages known by weight in stages 1 and 2. DeepSpeed does so once it has one group's, not all."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    rows = getattr(optimizer, "single_partition_of_fp32_groups", [])
    for params, row in zip(getattr(optimizer, "bit16_groups", []), rows, strict=True):
        lazy_init_hp_params_optimizer_state(params, row, _base(optimizer).state)


@contextmanager
def _unhooked(optimizer: Any) -> Iterator[None]:
    """Modules as they compute without ZeRO 3, whose hooks count on every process taking the same passes."""
    offload = optimizer.parameter_offload
    for hook in (*offload.forward_hooks, *offload.backward_hooks):
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
    try:
        yield
    finally:
        offload._register_deepspeed_module(offload.module)


def _put(parameter: torch.nn.Parameter, value: torch.Tensor, name: str, processes: Processes) -> None:
    """This process's part of an average to where DeepSpeed keeps it."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not hasattr(parameter, "ds_tensor"):
        return safe_set_full_optimizer_state(parameter, value, name)
    part = parameter.ds_tensor.numel()
    padded = functional.pad(value.flatten(), (0, part * processes.world - value.numel()))
    return safe_set_local_optimizer_state(parameter, padded[part * processes.rank :][:part], name)
