"""What decides the numbers a vision tower makes of an image file, as one value to compare.

Knows: weights and configuration of the tower, how pixels are made, layer and selection, number format, and what else
moves a last bit: versions, device, threads.
Does not know: the image (its file's content is the other half of the key), or where features are kept.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch
import xxhash

from workbench.model.llava import Llava
from workbench.model.tiles import AnyResMode
from workbench.origin import versions

FORMAT = 1
"""Raised whenever the same settings give other pixels or features than before."""
PACKAGES = ("llava-workbench", "torch", "transformers", "pillow", "pi-heif", "numpy")


def feature_key(llava: Llava, dtype: torch.dtype, group: int) -> dict[str, Any]:
    """All that features depend on besides the image file, ready for JSON. Equal keys: equal bits.

    `dtype`: what features are kept in. `group`: how many images go through the tower at once.
    """
    config = llava.model.config
    return {
        "format": FORMAT,
        "tower": weights_hash(llava.tower.state_dict()),
        "config": {
            k: v for k, v in llava.tower.config.to_dict().items() if k != "transformers_version" and k[0] != "_"
        },
        "layer": config.vision_feature_layer,
        "select": config.vision_feature_select_strategy,
        "pixels": {"mode": llava.image_mode.mode, **llava.image_mode.processor_settings()},
        **({"films": _films(llava)} if llava.tiling.frames else {}),
        "dtype": str(dtype).removeprefix("torch."),
        "shape": [llava.tiling.each, llava.tower.config.hidden_size],
        "group": group,
        "versions": {name: version for name, version in versions().items() if name in PACKAGES},
        "device": _device(llava.device),
    }


def _films(llava: Llava) -> dict[str, Any]:
    """How frames of a video become squares, and these rows, pooled where that is before the projector. Which frames,
    the size says."""
    assert isinstance(llava.image_mode, AnyResMode)
    return {"pool": getattr(llava.model.config, "spatial_pool_mode", None), **llava.image_mode.video_settings()}


def weights_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """32 hexadecimal digits over names, types, shapes and every bit; 0.2 s for a CLIP-L."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _device(device: torch.device) -> dict[str, Any]:
    """What the same arithmetic may round differently on."""
    precise = {"matmul": torch.get_float32_matmul_precision(), "convolution tf32": torch.backends.cudnn.allow_tf32}
    if device.type == "cpu":
        kind = torch.backends.cpu.get_cpu_capability()
        return {"name": f"{platform.machine()} {kind}", "threads": torch.get_num_threads(), **precise}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"name": name, **precise}
