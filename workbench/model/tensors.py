"""Named tensors in safetensors files: written, read, and put into a model with nothing missing or left over.

Knows: safetensors, and every way in which a file and a model can disagree. Does not know: what the tensors are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from workbench.errors import CheckpointError

WHOLE = "copy or download it whole again"
"""What to do where something is missing."""


def named(model: nn.Module, prefixes: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """The model's parameters under these name prefixes, adapters aside; a tied one is there once."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith(prefixes) and ".lora_" not in name
    }


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write them as one safetensors file in the type they have, and read it again.

    Raises `CheckpointError` unless what was read is equal bit for bit: a fully written file may still be wrong.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    again = read_tensors(path)
    for name, tensor in tensors.items():
        if not same_bits(tensor.detach(), again[name]):
            raise CheckpointError(str(path), found=f"another {name} than was written", expected="the same bits")


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits, wherever they are; a NaN is equal to itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.cpu().contiguous().flatten().view(torch.uint8) for tensor in (one, other)))


def check_numbers(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise `CheckpointError` where a tensor holds a NaN or an infinity: such weights answer nothing."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        tensor = tensor.detach()
        numbers = torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor)  # not known of 8 bits
        if bool(numbers.all()):
            continue
        bad = (~numbers).nonzero()
        found = f"{len(bad):,} of {tensor.numel():,} values of {name} that are no numbers (NaN or infinite), the first "
        found += f"at {bad[0].tolist()}"
        fix = "copy or download it again; where its training diverged, take a checkpoint from before"
        raise CheckpointError(where, found=found, expected="numbers", fix=fix)


def check_types(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise `CheckpointError` for a tensor of a type that no model is held in here: float32 would round it."""
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            found = f"{name} in {str(tensor.dtype).removeprefix('torch.')}"
            raise CheckpointError(where, found=found, expected="float32, bfloat16 or float16")


def read_tensors(path: Path, *, containing: str = "") -> dict[str, torch.Tensor]:
    """The file's tensors whose names contain a text. Raises `CheckpointError` if the file is missing or cut off."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys() if containing in name}  # noqa: SIM118


def types_of(path: Path) -> set[str]:
    """The types of a file's tensors, as torch writes them, read off its header. Raises as `read_tensors` does."""
    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    with _opened(path) as file:
        held = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return {str(names.get(name, name)) for name in held}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(str(path), found="no such file", expected="a whole checkpoint folder")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        found = f"a damaged or cut-off file ({error})"
        raise CheckpointError(str(path), found=found, expected="safetensors", fix=WHOLE) from error


@torch.no_grad()
def fill(
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    *,
    where: str,
    dtype: torch.dtype | None = None,
    called: Callable[[str], str] = str,
) -> None:
    """Give each parameter the tensor of its name, in the tensor's own type unless `dtype` says otherwise.

    called: what a name is in the file that a person has. Nothing is touched unless names and shapes agree exactly.
    Raises `CheckpointError` naming what does not.
    """
    for what, names in (
        ("missing", parameters.keys() - tensors.keys()),
        ("surplus", tensors.keys() - parameters.keys()),
        ("misshapen", {n for n in parameters.keys() & tensors.keys() if parameters[n].shape != tensors[n].shape}),
    ):
        if names:
            first = sorted(names)[0]
            shapes = ""
            if what == "misshapen":
                shapes = f" is {tuple(tensors[first].shape)}, not {tuple(parameters[first].shape)}"
            found = f"{len(names)} {what} tensors, the first: {called(first)}{shapes}"
            fix = WHOLE if what == "missing" else ""
            raise CheckpointError(where, found=found, expected="exactly the tensors of this model", fix=fix)
    for name, parameter in parameters.items():
        parameter.data = tensors[name].to(parameter.device, dtype or tensors[name].dtype)
