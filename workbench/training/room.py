"""The memory there is, how the C library gives it back, and what that means for a run's settings.

Knows: what is free on a device, what a recipe says instead, glibc's two ways with freed memory, and which layers to
checkpoint so that a foreseen run fits. Does not know: how a run is foreseen (`memory.py`).

On a CPU under Linux, glibc keeps freed tensors below 32 MB for later and cannot put a tensor of the same size into such
a hole, because torch asks for aligned memory. Measured (language model 512 wide, 8 layers, vocabulary 32,000, LoRA, a
pack of 2,048 tokens): 1.04 GB in tensors took 1.93-2.02 GB of the process. `tighten` gives freed memory back at once:
1.04 GB, for 1.15-1.35 of the CPU time (in a virtual machine, whose page faults are slow).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from workbench.model.llava import Llava
from workbench.recipe import TrainSpec
from workbench.training.features import BUDGET, PENDING
from workbench.training.memory import Memory

MARGIN = 0.92
"""Share of the free memory that a foreseen run may fill."""
LOOSE = 2.0
"""A process that keeps what it freed may take so many times the memory of its tensors."""
THRESHOLD = 1 << 16
"""Bytes from which on freed memory is given back at once."""
CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device, train: TrainSpec, processes: int = 1) -> int:
    """Bytes free for each process of a run on its device, or what `train.memory_gb` says there are.

    On a CPU those beside each other have equal parts: all of them, or as many as `torchrun` says this machine has.
    """
    if train.memory_gb is not None:
        return int(train.memory_gb * 1e9)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    beside = min(processes, int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    return min(psutil.virtual_memory().available, _left_by_the_container()) // beside


def answers_left_out(more: int, llava: Llava, train: TrainSpec, processes: int = 1) -> str:
    """Why a model that is cut is not put together in every process to answer; empty where `more` bytes have room."""
    if not more:
        return ""
    if llava.device.type == "cuda":
        torch.cuda.empty_cache()  # of the model before it was cut
    free = free_memory(llava.device, train, processes)
    if train.memory_gb is not None:
        free -= sum(_part(parameter).nbytes for parameter in llava.model.parameters())
    if more <= MARGIN * free:
        return ""
    takes = f"a process needs the whole model for them, {more / 1e6:,.0f} MB more of {max(free, 0) / 1e6:,.0f} MB"
    return f"train.answers_every: no questions are answered during this run: {takes}"


def _part(weight: torch.Tensor) -> torch.Tensor:
    """What of a weight lies in this process, where FSDP2 or ZeRO 3 cut it."""
    return getattr(weight, "ds_tensor", getattr(weight, "_local_tensor", weight))


def choose_layers(peak: Callable[[int], Memory], free: int) -> tuple[int, Memory]:
    """(every, foreseen): how few layers must be checkpointed for the peak to fit; every layer if nothing else fits."""
    for every in (0, 2, 1):
        foreseen = peak(every)
        if foreseen.peak <= MARGIN * free:
            break
    return every, foreseen


def tighten() -> bool:
    """Have freed memory given back to the system at once, from now on; False where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(option, THRESHOLD) for option in (-3, -1))  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


def _left_by_the_container() -> int:
    """Bytes a container's own limit leaves."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if limit == "max" else max(0, int(limit) - used)


def held_images(llava: Llava, count: int, train: TrainSpec) -> int:
    """Bytes of the machine's memory for the features (pixels where the tower trains) of so many tiles, if they are kept
    there; else for the images that are opened ahead."""
    pixels = 3 * llava.model.config.vision_config.image_size**2 * 4
    kept = count * pixels if llava.vision_trains else kept_images(llava, count, train)
    return kept if 0 < kept <= BUDGET else min(count, PENDING * llava.tiling.most_squares) * pixels


def kept_images(llava: Llava, count: int, train: TrainSpec) -> int:
    """Bytes that the features of so many tiles take, in memory or on the disk; 0 where none are kept.

    `train.feature_cache: auto` is `on` here.
    """
    if llava.vision_trains or train.feature_cache == "off":
        return 0
    kept = torch.float16 if train.feature_cache == "fp16" else next(llava.tower.parameters()).dtype
    return count * llava.tiling.each * llava.model.config.vision_config.hidden_size * kept.itemsize
