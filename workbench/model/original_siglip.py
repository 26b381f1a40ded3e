"""A SigLIP as LLaVA's own code holds it: without its last layer and its pooling head, with which nothing is computed.

LLaVA takes last layer and head off when it loads the tower (`siglip_encoder.py` of LLaVA-VL/LLaVA-NeXT) and uses what
the layer before gives, before the last norm; that norm stays among the tensors. So a checkpoint of LLaVA's has 26 of
so400m's 27 layers, as the LLaVA-OneVisions of transformers do.

Knows: how a whole tower becomes that one, and how a folder must be written so that taking a layer off gives it back.
Does not know: configurations of LLaVA (`original.py`), other towers.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModel, PreTrainedModel

from workbench.errors import ModelError
from workbench.model.llava import Llava
from workbench.model.parts import quietly

KIND = "siglip_vision_model"
SEEN = {"vision_layer": -1, "vision_select": "full"}
"""The fields of our record about a tower without its last layer: what its last one gives, every patch."""
FOLDER = "siglip_vision_tower"
"""Folder of such a tower, in the folder of the checkpoint: LLaVA's code goes by the word."""
PUBLISHED = "google/siglip-so400m-patch14-384"
SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
}  # fmt: skip
"""The shape of the one SigLIP that LLaVA's code can hold, all but its layers."""
LAYERS = 26


def is_siglip(config: Any) -> bool:
    return bool(config.model_type == KIND)


def seen_config(whole: Any) -> Any:
    """The configuration of what LLaVA keeps of a whole tower."""
    config = copy.deepcopy(whole)
    config.num_hidden_layers -= 1
    config.vision_use_head = False
    return config


def seen_part(tower: PreTrainedModel) -> PreTrainedModel:
    """A whole tower, in place, without what LLaVA takes off."""
    return _cut(tower, tower.config.num_hidden_layers - 1)


def check_seen(llava: Llava) -> None:
    """Raise `ModelError` for a model that sees through another layer of its SigLIP, or crops its pictures."""
    depth, layer = llava.tower.config.num_hidden_layers, llava.model.config.vision_feature_layer
    if layer not in (-2, -1, depth - 1, depth):
        found, expected = f"vision_layer {layer} of {depth}", "the last layer of a SigLIP or the one before"
        raise ModelError("LLaVA's own layout", found=found, expected=expected, fix="use --as hf")
    if llava.image_mode.mode == "crop":
        found = "image_mode crop: LLaVA's own code squashes a SigLIP's pictures"
        raise ModelError("LLaVA's own layout", found=found, expected="square, pad or tiles", fix="use --as hf")


def keep_seen(llava: Llava) -> None:
    """Take off a model's tower, in place, what it computes nothing with: layers after the one it sees through, head."""
    config = llava.model.config
    depth, layer = llava.tower.config.num_hidden_layers, config.vision_feature_layer
    _cut(llava.tower, layer if layer >= 0 else depth + 1 + layer)
    config.vision_config = copy.deepcopy(llava.tower.config)
    config.vision_feature_layer = SEEN["vision_layer"]
    llava.spec |= SEEN


def is_published(tower: PreTrainedModel) -> bool:
    """Whether this is, in its shape, what LLaVA keeps of the tower that it knows by name."""
    held = tower.config.to_dict()
    return held["num_hidden_layers"] == LAYERS and all(held[key] == value for key, value in SO400M.items())


def write_whole(tower: PreTrainedModel, folder: Path, *, weights: bool) -> None:
    """Write what `keep_seen` left so that taking its last layer off gives it again: with one layer more, a copy.

    weights: False writes the configuration alone, where the tensors are elsewhere.
    """
    config = copy.deepcopy(tower.config)
    config.num_hidden_layers += 1
    if not weights:
        config.save_pretrained(folder)
        return
    last = f"encoder.layers.{tower.config.num_hidden_layers - 1}."
    more = f"encoder.layers.{tower.config.num_hidden_layers}."
    held = tower.state_dict()
    held |= {more + name.removeprefix(last): each for name, each in held.items() if name.startswith(last)}
    whole = AutoModel.from_config(config, dtype=tower.dtype)
    whole.load_state_dict(held)
    with quietly(0):
        whole.save_pretrained(folder)


def _cut(tower: PreTrainedModel, layers: int) -> PreTrainedModel:
    """The tower, in place, with so many layers and no head."""
    tower.encoder.layers = nn.ModuleList(tower.encoder.layers[:layers])
    if hasattr(tower, "head"):
        del tower.head
    tower.use_head = tower.config.vision_use_head = False
    tower.config.num_hidden_layers = layers
    return tower
