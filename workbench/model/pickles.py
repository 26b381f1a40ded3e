"""Tensors out of torch's pickles, without running anything that is in them.

Knows: that a pickle may ask for any function of Python, and that torch's restricted reader gives it tensors alone.
Does not know: what the tensors are.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from workbench.errors import CheckpointError

ASKS = re.compile(r"GLOBAL ([\w.]+)")
"""The function that torch's reader did not call, in its own words."""


def read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that `torch.save` wrote, by name; large files stay on the disk until they are looked at.

    Raises `CheckpointError` for a pickle that would run code (it is not run), holds anything but tensors by name, or
    is cut off.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of a pickle that is not torch's; it is refused
            held = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # not written by torch.save
            raise _damaged(path, None) from error
        asked = ASKS.search(str(error))
        found = f"a pickle that would run code when it is opened{f' ({asked[1]})' if asked else ''}"
        fix = "it was not run; get these weights as safetensors from somebody you trust"
        raise CheckpointError(str(path), found=found, expected="tensors alone", fix=fix) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise _damaged(path, error) from error  # whatever the reader meets first
    if not isinstance(held, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in held.items()
    ):
        raise CheckpointError(str(path), found="a pickle of something else", expected="tensors by their names")
    return {name: tensor.detach() for name, tensor in held.items()}


def _damaged(path: Path, error: Exception | None) -> CheckpointError:
    told = f" ({(str(error).splitlines() or [type(error).__name__])[0][:120]})" if error else ""
    found, fix = f"a damaged or cut-off file{told}", "copy or download it again"
    return CheckpointError(str(path), found=found, expected="a file of torch.save", fix=fix)
