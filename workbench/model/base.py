"""What a checkpoint was trained on: kept beside it or named with its hashes, and found again unchanged.

Knows: when a base is copied, where a named one lies, how it is rebuilt in the number format it had or in another.
Does not know: trained tensors.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from workbench.errors import CheckpointError, ModelError
from workbench.model import hf_folder
from workbench.model.llava import Llava, assemble
from workbench.model.original import ORIGINAL
from workbench.model.precision import DTYPES, QUANTISED, dequantise, dtype_name, hold_in, pick_dtypes
from workbench.model.proof import weight_bytes, weight_hashes
from workbench.model.sources import resolve
from workbench.model.templates import Template

COPY_BELOW = 200_000_000
"""A base part with fewer bytes of weights is copied into the checkpoint; a larger one is named with its hashes."""
COPIED = (".json", ".safetensors", ".model", ".txt", ".jinja", ".yaml")


def keep_base(part: str, llava: Llava, folder: Path) -> dict[str, Any]:
    """Copy a small base part into the checkpoint, or note a large one's hashes; says which."""
    source = llava.folders[part]
    if weight_bytes(source) >= COPY_BELOW:
        return {"source": str(llava.spec[part]), "copied": False, "sha256": weight_hashes(source)}
    target = folder / "base" / part
    target.mkdir(parents=True)
    if (source / ORIGINAL).is_dir():
        shutil.copytree(source / ORIGINAL, target / ORIGINAL)
    for path in source.iterdir():
        if path.suffix in COPIED and path.is_file():
            shutil.copyfile(path, target / path.name)
    return {"source": str(llava.spec[part]), "copied": True}


def _find_base(folder: Path, part: str, held: dict[str, Any]) -> Path:
    """Where a base part lies now, its weights unchanged. Raises `CheckpointError`."""
    if held["copied"]:
        return folder / "base" / part
    try:
        found = resolve(held["source"], part=part)
    except ModelError as error:
        fix = f"put the {part} base back there"
        raise CheckpointError(str(folder), found=f"no base at {held['source']}", fix=fix) from error
    if weight_hashes(found) != held["sha256"]:
        expected = "the very weights this checkpoint was trained on"
        raise CheckpointError(
            str(found), found="weights that changed since the checkpoint was saved", expected=expected
        )
    return found


def rebuild_base(
    folder: Path, manifest: dict[str, Any], load: str | None, dtype: str, device: str, template: str | Template
) -> Llava:
    """The base as it was when saved. A quantised one is dequantised where a floating-point load is asked for."""
    folders = {part: _find_base(folder, part, held) for part, held in manifest["base"].items()}
    spec = dict(manifest["spec"])
    as_trained = spec.pop("quantised_as", None) or {"load": spec["load"], "dtype": spec["dtype"]}
    loose = as_trained["load"] in QUANTISED and (load or spec["load"]) in DTYPES
    asked = {"load": spec["load"], "dtype": spec["dtype"]} if load is None else {"load": load, "dtype": dtype}
    built = spec | (as_trained if loose else asked)
    if "llava" in folders:
        options = {key: built[key] for key in ("load", "dtype", "image_mode")}
        llava = hf_folder.load_folder(
            folders["llava"], source=spec["llava"], device=device, template=template, **options
        )
    else:
        folders["tokenizer"] = folder / "tokenizer"
        llava = assemble(built, folders, template=template, device=device)
    llava.spec = spec | {"load": llava.spec["load"], "dtype": llava.spec["dtype"]}
    if loose:
        held, llava.dtype = pick_dtypes(asked["load"], asked["dtype"], llava.device)
        dequantise(llava.model, held)
        hold_in(llava.model, held)
        llava.spec |= {"load": asked["load"], "dtype": dtype_name(llava.dtype), "quantised_as": as_trained}
    return llava
