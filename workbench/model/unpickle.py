"""A model that is published as pickles alone, made the same folder with safetensors; nothing in a pickle is run.

Knows: which folders those are, and what lies in them beside weights. Does not know: LLaVA's own layouts
(`original.py`), what the model is for; whoever loads the new folder checks its tensors.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict

from workbench.errors import CheckpointError
from workbench.model.original import COMPUTED, layout_of, read_weights, weight_files
from workbench.model.tensors import check_numbers, read_tensors, same_bits
from workbench.resources import atomic_folder, expanded

KEPT = (".json", ".model", ".txt", ".jinja", ".yaml")


def is_pickled(source: str | Path) -> bool:
    """Whether this is a folder in transformers' layout whose weights are pickles, such as Vicuna's or a CLIP's."""
    if not isinstance(source, (str, Path)):
        return False  # told by whoever opens it
    folder = expanded(source, CheckpointError)
    if not (folder / "config.json").is_file() or layout_of(folder) or next(folder.glob("*.safetensors"), None):
        return False
    return any((folder / name).is_file() for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"))


def unpickle(source: str | Path, out: Path) -> Path:
    """Write the folder with safetensors in place of pickles, whole or not at all, and compare bit for bit.

    Raises `CheckpointError` for a pickle that would run code, files that are missing or cut off, values that are no
    numbers, and `out` in the way.
    """
    folder = expanded(source, CheckpointError)
    tensors = _apart({name: each for name, each in read_weights(folder).items() if not COMPUTED.fullmatch(name)})
    check_numbers(tensors, str(folder))
    try:
        with atomic_folder(out) as temporary:
            save_torch_state_dict(
                tensors, temporary, filename_pattern="model{suffix}.safetensors", metadata={"format": "pt"}
            )
            for path in folder.iterdir():
                if path.suffix in KEPT and path.is_file() and not path.name.endswith(".bin.index.json"):
                    shutil.copyfile(path, temporary / path.name)
            _compare(tensors, temporary)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise CheckpointError(str(out), found="files", expected="a new or empty folder") from error
        raise
    return out


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each with a memory of its own: of tied ones, a file of safetensors would keep one name only."""
    met: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in met else tensor
        met.add(memory)
    return apart


def _compare(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    left = dict(tensors)
    for path in weight_files(folder):
        for name, tensor in read_tensors(path).items():
            if name not in left or not same_bits(left.pop(name), tensor):
                raise CheckpointError(str(path), found=f"another {name} than was written", expected="the same bits")
    if left:
        raise CheckpointError(str(folder), found=f"no {sorted(left)[0]}", expected="every tensor of the pickles")
