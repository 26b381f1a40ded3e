"""LLaVA's own layouts, read: a full checkpoint, a folder of LoRA weights, a bare projector; told by what is in them.

Knows: the files of each, what `config.json` says about tower and projector, and the name that every tensor has
there and in transformers' LLaVA; a tensor without one is an error.
Does not know: how a model is made of them (`original_in.py`) or how they are written (`original_out.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench.errors import CheckpointError, ModelError
from workbench.model.joint import PROJECTORS
from workbench.model.original_tiles import check_tiles
from workbench.model.pickles import read_pickle
from workbench.model.sources import read_json, weight_map
from workbench.model.tensors import check_numbers, check_types, read_tensors
from workbench.resources import expanded

ORIGINAL = "original"
"""Folder in an exported Hugging Face folder with the small files of the original that it was made of."""
PROJECTOR_FILE, TRAINABLES, ADAPTER = "mm_projector.bin", "non_lora_trainables.bin", "adapter_model"
LANGUAGES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}
"""`model_type` of a LLaVA -> that of its language model; of `llava` its architecture says it, where it is another."""
ARCHITECTURES = {"LlavaMistralForCausalLM": "mistral", "LlavaQwenForCausalLM": "qwen2"}
TEMPLATES = {"llama": "v1", "mistral": "mistral", "qwen2": "qwen"}
"""The template of a language model's type, where nothing says another: LLaVA itself goes by the folder's name."""
MARKS = {"<|start_header_id|>": "llama_3", "<|im_start|>": "chatml"}
"""A token of a Llama's tokenizer -> the template it is there for: Llama 3, Nous-Hermes-2-Yi-34B."""
PATCH = "<im_patch>"
SELECTED = {"patch": "default", "cls_patch": "full"}
"""`mm_vision_select_feature` -> what transformers calls it."""
NAMES = (
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.mm_projector.", "model.multi_modal_projector.linear_1."),
    ("model.image_newline", "model.image_newline"),
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
    ("model.vision_tower.vision_tower.", "model.vision_tower."),
    ("model.layers.", "model.language_model.layers."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.norm.", "model.language_model.norm."),
    ("lm_head.", "lm_head."),
)
"""How a tensor's name begins in LLaVA's layout, and in transformers'; of several that fit the first."""
COMPUTED = re.compile(r".*\.rotary_emb\.inv_freq|.*\.embeddings\.position_ids")
"""Names of what older files keep although it follows from the configuration."""
INSIDE = {"unfreeze_mm_vision_tower": True}
"""What says that a tower is in the checkpoint's own file."""
LORA = "base_model.model."
PROJECTOR = "model.multi_modal_projector."


@dataclass(frozen=True)
class Original:
    """What such a folder holds. Tensors are under transformers' names, adapters under peft's."""

    folder: Path
    kind: str
    """full | lora | projector"""
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    adapter: dict[str, torch.Tensor] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    """`adapter_config.json`."""

    @property
    def projector(self) -> str:
        """Our name of its projector: `linear` or `mlp2x_gelu`. Raises `ModelError` for another, and for none."""
        if not any(name.startswith(PROJECTOR) for name in self.tensors):
            fix = "copy it whole again; one in a file of its own: workbench export mm_projector.bin OUT --base DIR"
            found = "no projector among its tensors"
            raise CheckpointError(str(self.folder), found=found, expected="model.mm_projector.*", fix=fix)
        two = any(".linear_2." in name for name in self.tensors)
        told = self.config.get("mm_projector_type") or ("mlp2x_gelu" if two and not self.config else "linear")
        if told not in PROJECTORS:
            raise ModelError(str(self.folder), found=f"a projector {told!r}", expected=" or ".join(PROJECTORS))
        if two != (told == "mlp2x_gelu"):
            found = f"mm_projector_type {told} and a projector of {1 + two} layers"
            raise CheckpointError(str(self.folder), found=found, expected="a projector as config.json says")
        return told


def layout_of(source: str | Path) -> str | None:
    """`full`, `lora` or `projector` if this is a folder (or a projector's file) of LLaVA's own; None for all else."""
    if not isinstance(source, (str, Path)):
        return None
    folder = expanded(source, ModelError)
    if folder.is_file():
        return "projector" if folder.suffix in (".bin", ".pt", ".pth") else None
    if not folder.is_dir():
        return None
    config = folder / "config.json"
    own = config.is_file() and says_llava(read_json(config))
    beside = (folder / TRAINABLES).is_file() or (own and not has_weights(folder))  # without it: `read_original` says so
    if beside and (folder / "adapter_config.json").is_file():
        return "lora"
    if own and has_weights(folder):
        return "full"
    return "projector" if (folder / PROJECTOR_FILE).is_file() else None


def says_llava(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of LLaVA's own: those of transformers have no such fields."""
    return "mm_vision_tower" in config or "mm_hidden_size" in config


def tower_inside(config: Mapping[str, Any]) -> bool:
    """Whether a configuration of LLaVA's own says that its tower was trained, and is in the checkpoint's own file."""
    trained = str(config.get("mm_tunable_parts") or "").split(",")
    return bool(config.get("unfreeze_mm_vision_tower")) or "mm_vision_tower" in trained


def has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _INDEXES + _WHOLE)


def read_original(source: str | Path) -> Original:
    """Everything a folder holds. Raises `CheckpointError` for a tensor that no LLaVA has, values that are no numbers, a
    pickle that would run code and files that are missing; `ModelError` for a kind of LLaVA that is not read."""
    folder, kind = expanded(source, ModelError), layout_of(source)
    if kind is None:
        raise ModelError(str(source), found="no checkpoint of LLaVA's own", expected="config.json and its weights")
    if folder.is_file():
        return Original(folder, kind, {}, _named(_only_projector(folder), folder))
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    check_config(config, folder)
    if kind == "full":
        return Original(folder, kind, config, _named(read_weights(folder), folder))
    if kind == "projector":
        return Original(folder, kind, config, _named(_only_projector(folder / PROJECTOR_FILE), folder))
    if not (folder / TRAINABLES).is_file():
        fix = "copy it from where these LoRA weights were trained"
        raise CheckpointError(str(folder), found=f"no {TRAINABLES}", expected="the projector beside the rest", fix=fix)
    rest = _renamed(read_pickle(folder / TRAINABLES), _without_lora, folder / TRAINABLES)
    lora = _adapter(folder)
    check_types(lora, str(folder))
    check_numbers(lora, str(folder))
    adapter = _renamed(lora, partial(_adapter_name, where=folder), folder)
    return Original(folder, kind, config, _named(rest, folder), adapter, read_json(folder / "adapter_config.json"))


def check_config(config: Mapping[str, Any], where: Path) -> None:
    """Raise `ModelError` for a LLaVA that is not read here, saying which field says so."""
    if config:
        language_of(config, where)
    check_tiles(config, where)
    if config.get("mm_use_im_start_end"):
        found = "mm_use_im_start_end: true, a LLaVA that wants <im_start> and <im_end> around its images"
        raise ModelError(str(where), found=found, expected="one that takes its images as they are, as LLaVA 1.5 does")
    if config.get("s2"):
        raise ModelError(str(where), found="s2: true, a tower at several scales", expected="a tower at one scale")


def language_of(config: Mapping[str, Any], where: Path) -> str:
    """`model_type` of the language model inside. Raises `ModelError` for one that is not read here."""
    kind = config.get("model_type")
    architecture = next(iter(config.get("architectures") or []), "LlavaLlamaForCausalLM")
    if kind not in LANGUAGES:
        raise ModelError(str(where), found=f"model_type {kind!r}", expected=" or ".join(LANGUAGES))
    if kind != "llava" or architecture == "LlavaLlamaForCausalLM":
        return LANGUAGES[kind]
    if architecture not in ARCHITECTURES:
        expected = " or ".join(["LlavaLlamaForCausalLM", *ARCHITECTURES])
        raise ModelError(str(where), found=f"architectures {architecture}", expected=expected)
    return ARCHITECTURES[architecture]


def settings_of(original: Original) -> dict[str, Any]:
    """The fields of our record that its configuration decides. Raises `ModelError` for a value that decides nothing."""
    feature = original.config.get("mm_vision_select_feature") or "patch"
    layer, where = original.config.get("mm_vision_select_layer", -2), f"{original.folder}: config.json"
    if str(feature) not in SELECTED:
        found, expected = f"mm_vision_select_feature {feature!r}", " or ".join(SELECTED)
        raise ModelError(where, found=found, expected=expected)
    if type(layer) is not int:
        found, expected = f"mm_vision_select_layer {layer!r}", "a whole number, such as -2"
        raise ModelError(where, found=found, expected=expected)
    return {"projector": original.projector, "vision_layer": layer, "vision_select": SELECTED[str(feature)]}


def usual_template(language: str, words: Container[str]) -> str | None:
    """The template of a language model of this type with these tokens; None where any would be a guess."""
    marked = (name for mark, name in MARKS.items() if language == "llama" and mark in words)
    return next(marked, TEMPLATES.get(language))


# --- names ------------------------------------------------------------------------------------------------------


def ours(name: str) -> str | None:
    """The name in transformers' LLaVA; None if there is none."""
    for theirs, own in NAMES:
        if name.startswith(theirs):
            return own + name.removeprefix(theirs)
    return None


def theirs(name: str, projector: str) -> str:
    """The name in LLaVA's layout of a parameter of transformers' LLaVA."""
    there, own = NAMES[2]
    if name.startswith(own) and (projector == "linear" or name[len(own)].isdigit()):  # of more layers than two
        return there + name.removeprefix(own)
    return next(there + name.removeprefix(own) for there, own in NAMES if name.startswith(own))


def _named(tensors: Mapping[str, torch.Tensor], where: Path) -> dict[str, torch.Tensor]:
    """Under our names; what follows from the configuration is left out, anything unknown or no number raises."""
    kept = {name: tensor for name, tensor in tensors.items() if not COMPUTED.fullmatch(name)}
    strange = sorted(name for name in kept if ours(name) is None)
    if strange:
        found = f"{len(strange)} surplus tensors, the first: {strange[0]}"
        raise CheckpointError(str(where), found=found, expected="exactly the tensors of a LLaVA")
    check_types(kept, str(where))
    check_numbers(kept, str(where))
    return _renamed(kept, lambda name: str(ours(name)), where)


def _renamed(tensors: Mapping[str, torch.Tensor], called: Callable[[str], str], where: Path) -> dict[str, torch.Tensor]:
    """Under other names. Raises `CheckpointError` for two that get the same: either could be the one that was meant."""
    before: dict[str, str] = {}
    for name in tensors:
        first = before.setdefault(called(name), name)
        if first != name:
            found = f"{first} and {name}, two names of one tensor"
            raise CheckpointError(str(where), found=found, expected="each tensor once", fix="leave out the wrong one")
    return {new: tensors[old] for new, old in before.items()}


def _only_projector(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a projector's file, whatever stands before `mm_projector` in their names."""
    return _renamed(read_pickle(path), partial(re.sub, r"^.*?\bmm_projector\.", "model.mm_projector."), path)


def _without_lora(name: str) -> str:
    """A tensor's name without what peft puts before it (`base_model.model.`)."""
    return name.removeprefix(LORA) if name.startswith(LORA) else name.removeprefix("base_model.")


def _adapter_name(name: str, where: Path) -> str:
    """peft's name of an adapter's tensor in transformers' LLaVA."""
    inner = ours(name.removeprefix(LORA))
    if not name.startswith(LORA) or inner is None or ".lora_" not in name:
        found = f"surplus tensor {name} among the adapter's"
        raise CheckpointError(str(where), found=found, expected="lora_A and lora_B of the language model's linears")
    return LORA + inner


# --- files ------------------------------------------------------------------------------------------------------

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDEXES = tuple(f"{name}.index.json" for name in _WHOLE)


def weight_files(folder: Path) -> list[Path]:
    """A model folder's weights, safetensors or pickles. Raises `CheckpointError` if a listed file is missing."""
    for whole, index in zip(_WHOLE, _INDEXES, strict=True):
        if (folder / index).is_file():
            names = sorted(set(weight_map(folder / index).values()))
            missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
            if missing:
                raise CheckpointError(str(folder), found=f"no {missing[0]}", expected="every file its index lists")
            return [folder / name for name in names]
        if (folder / whole).is_file():
            return [folder / whole]
    raise CheckpointError(str(folder), found="no weights", expected=" or ".join(_WHOLE))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model folder by name, as its files and its index say alike."""
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        read = read_pickle(path) if path.suffix == ".bin" else read_tensors(path)
        if twice := sorted(tensors.keys() & read.keys()):
            raise CheckpointError(str(path), found=f"{twice[0]} a second time", expected="each tensor in one file")
        tensors |= read
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    if index is not None and (odd := sorted(weight_map(index).keys() ^ tensors.keys())):
        found = f"{len(odd)} tensors that only the index or only the files have, the first: {odd[0]}"
        raise CheckpointError(str(folder), found=found, expected="the tensors its index lists")
    return tensors


def _adapter(folder: Path) -> dict[str, torch.Tensor]:
    for suffix, read in ((".safetensors", read_tensors), (".bin", read_pickle)):
        if (folder / f"{ADAPTER}{suffix}").is_file():
            return read(folder / f"{ADAPTER}{suffix}")
    raise CheckpointError(str(folder), found=f"no {ADAPTER}.safetensors or .bin", expected="the adapter's weights")
