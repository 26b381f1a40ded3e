"""What LoRA weights or a projector of LLaVA's own were trained on: a language model, or a whole LLaVA.

Knows: where a base is looked for, how a wrong one is told, and what a whole LLaVA gives besides its language model: its
tower, where that is in the same file, its projector and its newline, unless they were trained on.
Does not know: how a model is made of them (`original_in.py`), LoRA (`lora.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from workbench.errors import CheckpointError, ModelError
from workbench.model.hf_folder import is_llava
from workbench.model.lora import VISION
from workbench.model.original import (
    PROJECTOR,
    Original,
    check_config,
    language_of,
    layout_of,
    read_original,
    read_weights,
    tower_inside,
    weight_files,
)
from workbench.model.original_tiles import COUNT
from workbench.model.parts import language_config
from workbench.model.precision import LANGUAGE
from workbench.model.proof import sha256
from workbench.model.sources import read_json, resolve
from workbench.model.tensors import check_types, same_bits
from workbench.resources import expanded

SHAPES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "rms_norm_eps", "rope_parameters",
)  # fmt: skip
"""What the configurations of a base and of what was trained on it must agree about."""

SPOKEN = (LANGUAGE, "lm_head.")
HEAD, EMBEDDINGS = "lm_head.weight", LANGUAGE + "embed_tokens.weight"


@dataclass(frozen=True)
class Base:
    """The language model that a checkpoint is made with, or was trained on."""

    folder: Path
    text: Any
    """Its configuration, transformers'."""
    language: dict[str, torch.Tensor]
    """Its tensors, under the names they have inside LLaVA."""
    beside: dict[str, torch.Tensor] = field(default_factory=dict)
    """Tower, projector and newline of a base that is a LLaVA."""


def base_of(found: Original, given: str | Path | None) -> Base:
    """The base of a checkpoint: its own language model where it is a full one, else the one that is given or named.

    Raises `ModelError` where there is none or it is of a kind that is not read, `CheckpointError` for a wrong one.
    """
    if found.kind == "full":
        if given is not None:
            fix = "leave --base out"
            raise ModelError(str(given), found="a base for a full checkpoint", expected="none: it is complete", fix=fix)
        text = text_config(found.config, found.folder)
        return Base(found.folder, text, _untied(spoken(found.tensors), text, found.folder))
    folder = _folder(found, given)
    if layout_of(folder) is None:
        _refuse_others(folder)
        text = language_config(folder)
        check_base(found, folder, text)
        language = _inside_llava(read_weights(folder))
        check_types(language, str(folder))
        return Base(folder, text, _untied(language, text, folder))
    if layout_of(folder) != "full":
        found_there, fix = f"a {layout_of(folder)} folder as base", f"workbench export {folder} OUT --as llava, once"
        expected = "a language model or a full LLaVA"
        raise ModelError(str(folder), found=found_there, expected=expected, fix=f"merge it: {fix}")
    config = read_json(folder / "config.json")
    text = text_config(config, folder)
    check_base(found, folder, text)
    whole = read_original(folder)
    _check_tower(found, whole)
    beside = {name: each for name, each in whole.tensors.items() if not name.startswith(SPOKEN)}
    return Base(folder, text, _untied(spoken(whole.tensors), text, folder), beside)


def carries_tower(found: Original) -> bool:
    """Whether there are a tower's tensors among those that were read, whatever its configuration says: LLaVA's full
    training saves the tower that it did not train, too, and says nothing of it."""
    return any(name.startswith(VISION) for name in found.tensors)


def inherit(found: Original, base: Base) -> Original:
    """What was trained on a LLaVA, with all of that LLaVA's which was not. A projector is taken whole from either."""
    own = any(name.startswith(PROJECTOR) for name in found.tensors)
    beside = {name: each for name, each in base.beside.items() if not (own and name.startswith(PROJECTOR))}
    return replace(found, tensors=beside | found.tensors)


def _folder(found: Original, given: str | Path | None) -> Path:
    told = given or found.lora.get("base_model_name_or_path") or found.config.get("_name_or_path")
    if not told:
        raise ModelError(str(found.folder), found="no base named", fix=_base_fix(found))
    try:
        return resolve_any(told)
    except ModelError as error:
        if given is not None:
            raise
        where = f"the base {str(told)!r} of {found.folder}"
        raise ModelError(where, found=error.found or str(error), fix=_base_fix(found)) from error


def _base_fix(found: Original) -> str:
    return f"say where its folder lies: workbench export {found.folder} OUT --as hf --base DIR; then use OUT"


def resolve_any(source: str | Path) -> Path:
    """`resolve`, also for a folder whose weights are pickles."""
    folder = expanded(source, ModelError)
    return folder.resolve() if folder.is_dir() else resolve(source, part="language")


def _refuse_others(folder: Path) -> None:
    if is_llava(folder):
        expected = "a language model, or a LLaVA in LLaVA's own layout"
        fix = f"write it in that layout, once: workbench export {folder} OUT --as llava; and say --base OUT"
        raise ModelError(str(folder), found="a LLaVA of transformers as base", expected=expected, fix=fix)


def check_base(found: Original, folder: Path, text: Any) -> None:
    """Raise `CheckpointError` unless the base is the one that was trained on: by hashes where they are recorded, and
    always by its shape."""
    if found.config:
        wanted = text_config(found.config, found.folder)
        for name in SHAPES if text.model_type == wanted.model_type else ("model_type",):
            held, told = getattr(text, name, None), getattr(wanted, name, None)
            if held != told:
                raise CheckpointError(
                    str(folder), found=f"a wrong base: {name} {held}", expected=f"{told}, as {found.folder} says"
                )
    recorded = found.config.get("base_sha256")
    if recorded is not None and recorded != base_hashes(folder):
        raise CheckpointError(
            str(folder), found="a wrong base: other weights", expected="those whose SHA-256 config.json records"
        )


def _check_tower(found: Original, whole: Original) -> None:
    """Raise `CheckpointError` for a LLaVA that says it has a tower in its own file, if what was trained on one says it
    had none. Where neither says so, but there is one, it was saved beside the rest, and is taken."""
    if found.config and carries_tower(whole) and tower_inside(whole.config) and not tower_inside(found.config):
        expected = f"one without: {found.folder} names its tower and does not say that it was trained"
        raise CheckpointError(str(whole.folder), found="a wrong base: a vision tower of its own", expected=expected)


def base_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each of a base's weight files."""
    return {path.name: sha256(path) for path in weight_files(folder)}


def text_config(config: Mapping[str, Any], where: Path) -> Any:
    """The language model's configuration inside one of LLaVA's. Raises `ModelError` for one that describes none."""
    check_config(config, where)
    own = ("mm_", "image_", "tune_", "freeze_", "unfreeze_", "use_mm_", "tokenizer_", COUNT, "base_sha256",
           "architectures", "vision_", "use_pos_skipping", "pos_skipping")  # fmt: skip
    held = {key: value for key, value in config.items() if not key.startswith(own) and key != "model_type"}
    kind = CONFIG_MAPPING[language_of(config, where)]
    try:
        return kind.from_dict(held)
    except Exception as error:  # the many shapes of a value that no language model has
        told = " ".join(str(error).split())
        expected = "the settings of a language model"
        raise ModelError(f"{where}: config.json", found=f"a setting amiss ({told})", expected=expected) from error


def spoken(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the language model."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(SPOKEN)}


def _untied(tensors: dict[str, torch.Tensor], text: Any, where: Path) -> dict[str, torch.Tensor]:
    """Without a head that is the embeddings a second time. Raises `CheckpointError` for one that is said to be, and is
    not."""
    if not {HEAD, EMBEDDINGS} <= tensors.keys() or not text.tie_word_embeddings:
        return tensors
    if not same_bits(tensors[HEAD], tensors[EMBEDDINGS]):
        found = "tie_word_embeddings: true and a head that is not the embeddings"
        raise CheckpointError(str(where), found=found, expected="the same numbers, or tie_word_embeddings: false")
    return {name: each for name, each in tensors.items() if name != HEAD}


def _inside_llava(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A language model's tensors under the names they have inside LLaVA."""
    return {
        name if name.startswith("lm_head.") else LANGUAGE + name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if not name.endswith(".rotary_emb.inv_freq")
    }
