"""Who was asked: the name, and what tells one model from another of the same name.

Knows: a fingerprint of weights in memory, of the template and tokenizer, and the address of a model elsewhere.
Does not know: how a model was made or loaded.
"""

from __future__ import annotations

import hashlib
from typing import Any

from workbench.chat_model import ChatModel

SAMPLED = 4096
"""Values of each tensor that are looked at, evenly spaced: training moves nearly all."""


def identity(model: ChatModel) -> dict[str, Any]:
    """`name`, `kind`, and what is known: `weights` and `template` of a model in this process, `url` of another."""
    told: dict[str, Any] = {"name": model.name, "kind": type(model).__name__}
    llava = getattr(model, "llava", None)
    network = getattr(llava, "model", None) or getattr(model, "model", None)
    if hasattr(network, "named_parameters"):
        told["weights"] = weights(network)
        told["dtype"] = str(getattr(network, "dtype", "")).removeprefix("torch.")
    if llava is not None:
        told["template"] = llava.renderer.template.name
        told["template_hash"] = llava.renderer.fingerprint()
    if getattr(model, "url", None):
        told["url"] = str(model.url).split("?")[0]  # type: ignore[attr-defined]
    return told


def weights(network: Any) -> str:
    """16 hexadecimal digits that change when a model trains: names, shapes, types and sampled values of its tensors."""
    import torch

    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in network.named_parameters():
        flat = tensor.detach().reshape(-1)
        picked = flat[:: max(1, len(flat) // SAMPLED)].contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(picked.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
