"""The memory that loading a model onto a CPU takes: its files are mapped while their numbers are converted.

Knows: which folder is read after which, and that pages of a mapped file count as the process's own until it is closed,
although the system takes them back whenever it needs room. Does not know: what comes after (`memory.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from workbench.errors import ModelError
from workbench.model.llava import Llava
from workbench.model.sources import safetensors_files
from workbench.training.memory import part_of

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""safetensors' names of number formats."""


def while_loading(llava: Llava) -> int:
    """Most bytes a process holds while this model (or one of shapes) is read, its files' pages among them.

    To be asked before `prepare`, which holds in float32 what trains.

    0 on a device with memory of its own. Files that are not there yet, or not safetensors, count as nothing.
    """
    if llava.device.type != "cpu":
        return 0
    there = most = 0
    for folder, params in _read_in_order(llava):
        held = sum(each.numel() * each.element_size() for each in params)
        try:
            files = safetensors_files(folder)
            as_it_is = {NAMES.get(each.dtype) for each in params} == {_format(files[0])}
        except (ModelError, OSError, SafetensorError):
            files, as_it_is = [], True
        mapped = sum(file.stat().st_size for file in files)
        most = max(most, there + (max(mapped, held) if as_it_is else mapped + held))
        there += held
    return most


def _read_in_order(llava: Llava) -> Iterator[tuple[Path, list[nn.Parameter]]]:
    """Each folder of the base, and what is made of it."""
    if (whole := llava.folders.get("llava")) is not None:
        yield whole, list(llava.model.parameters())
        return
    for name, item in (("vision", "vision tower"), ("language", "language model")):
        if name in llava.folders:
            yield llava.folders[name], [each for key, each in llava.model.named_parameters() if part_of(key) == item]


def _format(file: Path) -> str:
    """The number format of the first tensor of a safetensors file."""
    with safe_open(file, framework="pt") as opened:
        return str(opened.get_slice(next(iter(opened.keys()))).get_dtype())
