"""The two models a LLaVA is made of, read from folders: vision tower, language model, tokenizer, image settings.

Knows: which towers and language models fit, how they are loaded without a made-up or lost tensor, and what the tokens
of images and videos need. Does not know: the projector, or what becomes of the parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from workbench.errors import ModelError
from workbench.model.precision import let_go_of_file, quantisation
from workbench.model.sources import read_json, safetensors_files
from workbench.model.tensors import WHOLE

IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"
TOWERS = ("clip_vision_model", "siglip_vision_model")
QUIET_BELOW = 500_000_000
"""Bytes of weights below which loading shows no progress bar."""


def load_tower(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The vision tower of a folder that holds one, or a whole CLIP or SigLIP (its text half is left out)."""
    left_out = ("text_model.", "text_projection.", "visual_projection.", "logit_")
    return load_exactly(AutoModel, folder, allowed=left_out, config=tower_config(folder), dtype=dtype).to(device)


def tower_config(folder: Path) -> Any:
    """The configuration of the folder's vision tower. Raises `ModelError` if it holds none."""
    config = read_config(folder)
    vision = getattr(config, "vision_config", config)
    if vision.model_type not in TOWERS:
        raise ModelError(str(folder), found=f"a {config.model_type} model", expected="a CLIP or SigLIP vision tower")
    return vision


def places_of(text: Any) -> int:
    """Tokens that a language model of this configuration has places for, with those that linear and dynamic RoPE
    scaling add (transformers' `modeling_rope_utils`: by `factor`)."""
    rope = getattr(text, "rope_parameters", None) or {}
    factor = rope.get("factor", 1.0) if rope.get("rope_type") in ("linear", "dynamic") else 1.0
    return int(text.max_position_embeddings * factor)


def load_language(folder: Path, load: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The language model, its linears quantised if `load` says so, on the device."""
    language_config(folder)
    quantised = quantisation(load, dtype, inside_llava=False)
    place = {"": device}
    model = load_exactly(AutoModelForCausalLM, folder, dtype=dtype, quantization_config=quantised, device_map=place)
    let_go_of_file(model, load)
    if not isinstance(getattr(model, "lm_head", None), nn.Linear) or not hasattr(model, "model"):
        raise ModelError(str(folder), found=type(model).__name__, expected="a Llama-, Mistral- or Qwen2-type model")
    return model


def language_config(folder: Path) -> Any:
    """The configuration of the folder's language model. Raises `ModelError` if it holds something else."""
    config = read_config(folder)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        expected = "a language model of Llama, Mistral or Qwen type"
        raise ModelError(str(folder), found=f"a {config.model_type} model", expected=expected)
    return config


def read_config(folder: Path) -> Any:
    """The folder's configuration. Raises `ModelError` for one that is missing, or of a type or with a setting that
    transformers does not know."""
    if not (folder / "config.json").is_file():
        raise ModelError(str(folder), found="no config.json", expected="a model folder in transformers' layout")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except StrictDataclassError as error:
        line, expected = " ".join(str(error).split()), "settings that transformers takes"
        raise ModelError(str(folder / "config.json"), found=line, expected=expected) from error
    except (ValueError, OSError) as error:
        line = str(error).splitlines()[0]
        raise ModelError(str(folder / "config.json"), found=line, expected="a known model type") from error


def load_exactly(kind: Any, folder: Path, *, allowed: tuple[str, ...] = (), **settings: Any) -> Any:
    """A model of transformers' class `kind` from the safetensors of a folder, with no tensor lost or made up.

    `allowed`: beginnings of tensor names that may be left over. Raises `ModelError` as `check_report` does, and for
    weights that are missing, pickles, or cut off.
    """
    with loading_quietly(folder):
        model, report = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # `check_report` names them
            output_loading_info=True,
            **settings,
        )
    check_report(folder, report, allowed)
    return model


def check_report(where: Path | str, report: dict[str, Any], allowed: tuple[str, ...] = ()) -> None:
    """Raise `ModelError` if loading left a tensor out, made one up, or met one of another shape."""
    surplus = [key for key in report["unexpected_keys"] if not key.startswith(allowed or ("\0",))]
    for what, keys in (
        ("missing", report["missing_keys"]),
        ("misshapen", [key[0] for key in report["mismatched_keys"]]),
        ("surplus", surplus),
    ):
        if keys:
            some = ", ".join(sorted(keys)[:3]) + (" ..." if len(keys) > 3 else "")
            fix = WHOLE if what == "missing" else ""
            found = f"{len(keys)} {what} tensors: {some}"
            raise ModelError(str(where), found=found, expected="exactly the model's", fix=fix)


def add_media_tokens(
    language: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str] = (IMAGE_TOKEN,)
) -> dict[str, Any]:
    """Give the tokenizer these tokens where it lacks them, and the embeddings and head rows for them if they are too
    few.

    New rows are the mean of the old ones, so that building again gives the same numbers.
    """
    if new := [token for token in tokens if token not in tokenizer.get_vocab()]:
        tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    before, needed = language.get_input_embeddings().weight.shape[0], len(tokenizer)
    if needed > before:
        language.resize_token_embeddings(needed, mean_resizing=False)
        for module in (language.get_input_embeddings(), language.get_output_embeddings()):
            weight = module.weight.data
            weight[before:] = weight[:before].float().mean(0).to(weight.dtype)
    after = language.get_input_embeddings().weight.shape[0]
    return {"vocabulary": {"tokens": needed, "rows_before": before, "rows_after": after}}


def image_settings(folder: Path, vision_config: Any) -> dict[str, Any]:
    """The image processor's settings beside a tower; without any, those of its family at the tower's size."""
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (folder / name).is_file():
            held = read_json(folder / name)
            return held if key is None else held.get(key, {})
    mean, std = [0.5] * 3, [0.5] * 3
    if vision_config.model_type == "clip_vision_model":
        mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    size = {"height": vision_config.image_size, "width": vision_config.image_size}
    return {"size": size, "crop_size": size, "image_mean": mean, "image_std": std, "resample": 3}


def video_settings(folder: Path) -> dict[str, Any]:
    """The video processor's settings beside a model; empty without any."""
    for name, key in (("video_preprocessor_config.json", None), ("processor_config.json", "video_processor")):
        if (folder / name).is_file():
            held = read_json(folder / name)
            if found := held if key is None else held.get(key):
                return dict(found)
    return {}


@contextmanager
def loading_quietly(folder: Path) -> Iterator[None]:
    """Silence transformers' load report: `check_report` raises instead.

    Raises `ModelError` for weights that are missing, pickles, or cut off.
    """
    with quietly(sum(path.stat().st_size for path in safetensors_files(folder))):
        try:
            yield
        except SafetensorError as error:
            found = f"weights that are damaged or cut off ({error})"
            raise ModelError(str(folder), found=found, expected="whole safetensors files") from error


@contextmanager
def quietly(size: int) -> Iterator[None]:
    """transformers without its notices and, for a small model of `size` bytes, without its progress bar."""
    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.set_verbosity_error()
    if size < QUIET_BELOW:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
