"""Several processes as one run: who they are, what they add up, what they agree on.

Knows: the processes that `accelerate launch`, `torchrun` or `workbench train --processes` started, sums over all of
them, and reasons not to start together. With one process everything here is a few lines that do nothing.
Does not know: the loop, how a model is cut (sharding.py, zero.py), what becomes of the others when one fails
(peers.py).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs, patch_environment

from workbench.errors import TrainingError

BUCKET = 32 << 20
"""Bytes of gradients that travel at once: large enough for the wire, small enough to be held twice."""
TIMEOUT = timedelta(hours=2)
"""So long may one process wait for another that saves or validates; a failed one is told of at once (peers.py)."""


class Processes:
    """All processes of a run as one of them sees them. `rank` counts from 0; 0 is the `main` one, which writes."""

    def __init__(self, device: str) -> None:
        """`device` as in the recipe. Raises `TrainingError` for processes that cannot work together on it."""
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1:
            _check_devices(device)
        cpu = device == "cpu" or started > 1 and not torch.cuda.is_available()
        handlers = [InitProcessGroupKwargs(timeout=TIMEOUT)]
        with patch_environment(accelerate_use_deepspeed="false"):  # else models would be cut while they load
            self.accelerator = Accelerator(cpu=cpu, kwargs_handlers=handlers)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if self.world < started:
            found = f"{started} processes, of which accelerate sees {self.world}"
            raise TrainingError("the processes", found=found, fix="start them by `workbench train --processes N`")
        self.main = self.rank == 0
        self.device = self.accelerator.device

    def __repr__(self) -> str:
        return f"rank {self.rank} of {self.world}" + (f" on {socket.gethostname()}" if self.world > 1 else "")

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            self.accelerator.wait_for_everyone()

    def main_first(self) -> AbstractContextManager[None]:
        """A block that the main process has left before the others enter it."""
        return self.accelerator.main_process_first()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on the tensor's own device and in every process."""
        if self.world == 1:
            return tensor
        moved = tensor.detach().to(self.device, copy=True)  # they talk through their devices
        dist.all_reduce(moved)
        return moved.to(tensor.device)

    def largest(self, number: int) -> int:
        """The largest of the numbers that the processes bring."""
        if self.world == 1:
            return number
        held = torch.tensor([number], device=self.device)
        dist.all_reduce(held, dist.ReduceOp.MAX)
        return int(held.item())

    def gather(self, what: Any) -> list[Any]:
        """What every process brings, by rank, in every process. Small things only: they are pickled."""
        if self.world == 1:
            return [what]
        held: list[Any] = [None] * self.world
        dist.all_gather_object(held, what)
        return held

    def agree(self, **facts: Any) -> None:
        """Raise `TrainingError` in every process unless all see the same: they would train on different things."""
        told = self.gather(facts)
        for rank, seen in enumerate(told):
            for name, value in seen.items():
                if value != told[0][name]:
                    raise TrainingError(
                        f"rank {rank} of {self.world}",
                        found=f"{name}: {value}",
                        expected=f"{told[0][name]}, as rank 0 has it",
                        fix="give every machine the same recipe, data and run folder (a shared disk)",
                    )

    def sum_gradients(self, params: Sequence[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes in place, bucket by bucket.

        One that no conversation of a process needed is zero, on one process as on several.
        The next bucket is laid out while the one before travels; at most two are held beside the gradients.
        """
        for parameter in params:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.world == 1:
            return
        waiting: tuple[list[torch.Tensor], torch.Tensor, Any] | None = None
        for bucket in _buckets(params):
            flat = torch.cat([grad.flatten() for grad in bucket])
            work = dist.all_reduce(flat, async_op=True)
            if waiting is not None:
                _arrive(*waiting)
            waiting = bucket, flat, work
        if waiting is not None:
            _arrive(*waiting)


def asks_for_shards() -> bool:
    """Whether `accelerate launch` was told to use FSDP. Raises `TrainingError` for what of it is not done here."""
    if not _told("ACCELERATE_USE_FSDP"):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise _refused(f"fsdp_version: {version}", "FSDP2", "set `fsdp_version: 2`")
    if _told("FSDP_OFFLOAD_PARAMS"):
        raise _refused("fsdp_offload_params: true", "weights on the devices", "set it to false, or use more devices")
    return True


def asks_for_zero() -> dict[str, Any] | None:
    """The DeepSpeed config that `accelerate launch --use_deepspeed` names, or makes of its own flags."""
    if not _told("ACCELERATE_USE_DEEPSPEED"):
        return None
    try:
        return dict(DeepSpeedPlugin().deepspeed_config)
    except ValueError as error:
        found = str(error).splitlines()[0]
        raise _refused(found, "a DeepSpeed config", "name a JSON file by --deepspeed_config_file") from error


def check_precision(computed: str) -> None:
    """Raise `TrainingError` where accelerate's config asks for another number format than the recipe, which decides."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", computed):
        found, fix = f"mixed_precision: {asked}", f"set it to no, or --set model.dtype={asked}"
        raise _refused(found, f"{computed}, as the recipe has it", fix)


def _told(variable: str) -> bool:
    """Whether `accelerate launch` set this switch for its processes."""
    return os.environ.get(variable, "false").lower() in ("true", "1")


def _refused(found: str, expected: str, fix: str) -> TrainingError:
    return TrainingError("accelerate's config", found=found, expected=expected, fix=fix)


def _check_devices(device: str) -> None:
    """Every process computes on a device of its own."""
    where, local = "model.device", int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if ":" in device:
        fix = "use auto: every process takes a device of its own; CUDA_VISIBLE_DEVICES chooses which"
        raise TrainingError(where, found=f"{device} for several processes", expected="a kind of device", fix=fix)
    if device in ("mps", "xpu"):
        raise TrainingError(where, found=f"several processes on {device}", expected="cuda or cpu", fix="start one")
    cards = torch.cuda.device_count()
    if device != "cpu" and cards and local > cards:
        found = f"{local} processes on a machine with {cards} GPUs"
        raise TrainingError(where, found=found, expected="at most one a GPU", fix=f"start {cards}")


def _buckets(params: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.Tensor]]:
    """The gradients in their order, of one type and at most `BUCKET` bytes a bucket."""
    held: list[torch.Tensor] = []
    for parameter in params:
        grad = parameter.grad
        assert grad is not None
        full = held and sum(one.nbytes for one in held) + grad.nbytes > BUCKET
        if full or held and held[0].dtype != grad.dtype:
            yield held
            held = []
        held.append(grad)
    if held:
        yield held


def _arrive(bucket: list[torch.Tensor], flat: torch.Tensor, work: dist.Work) -> None:
    work.wait()
    for grad, summed in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
        grad.copy_(summed.view_as(grad))
