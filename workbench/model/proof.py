"""The proof of a saved checkpoint: hashes of files, equality of tensors, equality of logits.

Knows: the probe conversation and how close two models must be. Does not know: what is in a checkpoint folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import nn

from workbench.conversation import Conversation, Image, Message
from workbench.errors import CheckpointError
from workbench.model.llava import Llava
from workbench.model.sources import safetensors_files
from workbench.model.tensors import check_numbers, same_bits

LOGITS_BELOW = 2_000_000_000
"""Bytes of weights up to which a second model in memory is affordable for comparing logits after a save."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest difference of two logits, relative to the largest logit: same weights, same machine."""
Probed = tuple[tuple[int, ...], torch.Tensor]
"""(ids, logits (T, vocabulary)) of the probe conversation."""


def file_table(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative path -> size and SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }


def check_files(folder: Path, table: Mapping[str, Mapping[str, Any]], *, only: str | None = None) -> None:
    """Raise `CheckpointError` for a listed file that is missing, cut off or changed; files not listed are ignored."""
    for name, held in table.items():
        path = folder / name
        if only is not None and name != only:
            continue
        expected = f"{held['bytes']} bytes, as saved"
        if not path.is_file():
            raise CheckpointError(str(path), found="no such file", expected=expected)
        if path.stat().st_size != held["bytes"]:
            raise CheckpointError(str(path), found=f"{path.stat().st_size} bytes", expected=expected)
        if sha256(path) != held["sha256"]:
            raise CheckpointError(str(path), found="a changed file", expected="the file that was saved (its SHA-256)")


def sha256(path: Path) -> str:
    """The file's SHA-256; read once for as long as size and time of change stay the same."""
    real = path.resolve()
    if "blobs" in real.parts and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name  # a download of the Hub is stored under its own SHA-256
    state = real.stat()
    return _sha256(real, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=512)
def _sha256(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_hashes(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 of a model folder's weights."""
    return {path.name: sha256(path) for path in safetensors_files(folder)}


def weight_bytes(folder: Path) -> int:
    """Bytes of a model folder's weights."""
    return sum(os.stat(path).st_size for path in safetensors_files(folder))


def affordable(llava: Llava) -> bool:
    """Whether a second model of this size may be held in memory for a while."""
    return sum(parameter.nbytes for parameter in llava.model.parameters()) <= LOGITS_BELOW


def prove(live: Llava, reload: Callable[[], Llava], probed: Probed | None = None) -> Llava:
    """Load what was saved and compare it with the live model; no random state moves. Returns what was loaded.

    `probed`: what the live model says to the probe, where it lies in parts in several processes; its tensors are then
    compared by whoever holds them whole. Raises `CheckpointError`.
    """
    with torch.random.fork_rng(devices=[live.device] if live.device.type == "cuda" else []):
        again = reload()
    if probed is None:
        compare_tensors(live.model, again.model)
    (ids, logits), (ids_again, logits_again) = probed or probe(live), probe(again)
    if ids != ids_again:
        raise CheckpointError("the saved tokenizer or template", found="other ids", expected="the live model's ids")
    bound = TOLERANCE[live.dtype] * max(1.0, logits.abs().max().item())
    _check_logits(live, logits)
    worst = (logits - logits_again).abs().max().item()
    if not worst <= bound:
        expected = f"at most {bound:.1e}"
        raise CheckpointError("the saved checkpoint", found=f"logits that differ by {worst:.3e}", expected=expected)
    return again


def _check_logits(live: Llava, logits: torch.Tensor) -> None:
    """Raise `CheckpointError` for a model that does not compute numbers, naming the weights that are none."""
    if torch.isfinite(logits).all():
        return
    check_numbers(dict(live.model.named_parameters()), "the model")
    bad = int((~torch.isfinite(logits)).sum())
    found = f"{bad:,} of {logits.numel():,} logits that are no numbers, of weights that are (an overflow)"
    fix = "--load bf16 or fp32, which reach further than fp16" if live.dtype == torch.float16 else ""
    raise CheckpointError("the model", found=found, expected="numbers", fix=fix)


def probe(llava: Llava) -> Probed:
    """(ids, logits (T, vocabulary) in float32) of one fixed conversation about one synthetic image."""
    turns = (Message("user", (Image("probe.png"), "What is this?")), Message("assistant", ("A gradient.",)))
    rendered = llava.renderer.render(Conversation("probe", turns))
    with evaluating(llava.model), torch.no_grad(), llava.autocast():
        rows = llava.look([llava.show(gradient())])
        ids, _ = llava.renderer.expand(rendered, [len(rows[0])], llava.image_token_id)
        inputs = llava.image_inputs(rows)
        logits = llava.model(input_ids=torch.tensor([ids], device=llava.device), mm_encoder_outputs=inputs).logits
    return tuple(ids), logits[0].float().cpu()


def gradient(size: int = 96) -> PIL.Image.Image:
    """A synthetic image, `size` pixels wide, with no two rows or columns alike."""
    across = PIL.Image.linear_gradient("L").resize((size, size))
    return PIL.Image.merge("RGB", (across, across.rotate(90), PIL.Image.radial_gradient("L").resize((size, size))))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and every module as it was afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


def compare_tensors(live: nn.Module, again: nn.Module) -> None:
    """Raise `CheckpointError` unless both models hold the same parameters, bit for bit."""
    compare_named(dict(live.named_parameters()), dict(again.named_parameters()))


def compare_named(held: Mapping[str, torch.Tensor], loaded: Mapping[str, torch.Tensor]) -> None:
    """Raise `CheckpointError` unless both are the same tensors under the same names, bit for bit, and numbers."""
    if held.keys() != loaded.keys():
        odd = sorted(held.keys() ^ loaded.keys())[0]
        raise CheckpointError("the saved checkpoint", found=f"another set of tensors: {odd}", expected="the live ones")
    for name, tensor in held.items():
        if not same_bits(tensor.detach(), loaded[name].detach()):
            raise CheckpointError("the saved checkpoint", found=f"another {name}", expected="the live tensor")
    check_numbers(held, "the model")
