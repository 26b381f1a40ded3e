"""A LLaVA out of LLaVA's own layouts: its tower, its base and its tensors put together, each accounted for.

Knows: where tower and base of such a folder are looked for, when a base is the wrong one, how rows of added tokens and
number formats are kept. Does not know: the files and names (`original.py`), training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModel, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from workbench.errors import CheckpointError, ModelError
from workbench.model.hf_folder import mode_of
from workbench.model.joint import ANYRES
from workbench.model.llava import NEWLINE, Llava, assemble
from workbench.model.lora import VISION, adapter_parameters, attach_config, target_pattern
from workbench.model.original import (
    LANGUAGES,
    PATCH,
    Original,
    check_config,
    read_original,
    read_weights,
    settings_of,
    usual_template,
    weight_files,
)
from workbench.model.original_next import is_next, pinpoints_in
from workbench.model.parts import check_report, image_settings, language_config, load_tower, quietly, tower_config
from workbench.model.precision import DTYPES, LANGUAGE, let_go_of_file, quantisation
from workbench.model.proof import sha256
from workbench.model.sources import read_json, resolve
from workbench.model.templates import Template, load_template
from workbench.model.tensors import fill, named
from workbench.model.tokenizers import load_tokenizer
from workbench.resources import expanded

PROJECTOR = "model.multi_modal_projector."
SHAPES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "rms_norm_eps", "rope_parameters",
)  # fmt: skip
"""What the configurations of a base and of what was trained on it must agree about."""
PLAIN = {"bias": ("none",), "use_dora": (False,), "modules_to_save": (None, []), "rank_pattern": ({},),
         "alpha_pattern": ({},), "fan_in_fan_out": (False,)}  # fmt: skip
"""What LLaVA's own LoRA has of peft's settings."""


def load_original(
    source: str | Path,
    *,
    vision_tower: str | Path | None = None,
    base: str | Path | None = None,
    load: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    template: str | Template | None = None,
    image_mode: str | None = None,
) -> Llava:
    """The LLaVA of a full checkpoint, a LoRA folder or a projector of LLaVA's own.

    vision_tower: a CLIP's folder or Hub name (default: what its config.json names). base: the language model of a LoRA
    folder or projector (default: what it names). `load=None`: as its weights are, and float32 where they have several
    types, so that no bit is lost. Raises `CheckpointError` for a missing, surplus or misshapen tensor, a wrong base and
    a pickle that would run code; `ModelError` for a LLaVA that is not read here, or a tower or base that is not found.
    """
    found = read_original(source)
    tower = _tower_folder(found, vision_tower)
    below = _base_folder(found, base)
    text = _text_config(found.config, found.folder) if found.kind == "full" else language_config(below)
    language = {name: tensor for name, tensor in found.tensors.items() if name.startswith((LANGUAGE, "lm_head."))}
    if found.kind != "full":
        check_base(found, below, text)
        extra, language = language, _base_tensors(below)
    seeing = tower_config(tower)
    if seeing.model_type != "clip_vision_model":
        raise ModelError(str(tower), found=f"a {seeing.model_type}", expected="a CLIP: LLaVA reads others another way")
    settings = image_settings(tower, seeing)
    record = settings_of(found) | {
        "vision": str(vision_tower or found.config.get("mm_vision_tower")),
        "language": str(below),
        "load": load or _held([*(() if found.kind == "lora" else found.tensors.values()), *language.values()]),
        "dtype": dtype,
        "seed": 0,
        "image_mode": _image_mode(found, image_mode, settings),
        "trained": [],
    }
    if is_next(found.config):
        record["pinpoints"] = pinpoints_in(found.config, found.folder)
    chosen = template if template is not None else _template(found.folder, text.model_type, below)
    llava = assemble(
        record,
        {"vision": tower, "language": below},
        template=chosen,
        device=device,
        read=(partial(_tower, found, seeing), partial(_language, text, language)),
        tokens=_added_tokens(found.config, below),
    )
    _check_ids(llava, below)
    _fill_projector(llava, found)
    if found.kind != "full":
        _fill_rows(llava, extra, str(found.folder))
    if found.kind == "lora":
        _attach(llava, found)
    llava.folders["original"] = found.folder
    return llava


# --- what lies beside -------------------------------------------------------------------------------------------


def _tower_folder(found: Original, given: str | Path | None) -> Path:
    """The folder of the tower: given, in the checkpoint's own folder, or what its configuration names."""
    named_there = found.config.get("mm_vision_tower") or found.config.get("vision_tower")
    if given is None and named_there is None:
        raise ModelError(str(found.folder), found="no vision tower named", fix="say --vision-tower DIR")
    inside = found.folder / str(named_there)
    if given is None and inside.is_dir():
        return inside
    try:
        return resolve(str(given or named_there), part="vision")
    except ModelError as error:
        if given is not None:
            raise
        fix = "say where a folder with it lies: --vision-tower DIR"
        raise ModelError(f"the vision tower {named_there!r}", found=error.found or str(error), fix=fix) from error


def _base_folder(found: Original, given: str | Path | None) -> Path:
    if found.kind == "full":
        if given is not None:
            fix = "leave --base out"
            raise ModelError(str(given), found="a base for a full checkpoint", expected="none: it is complete", fix=fix)
        return found.folder
    told = given or found.lora.get("base_model_name_or_path") or found.config.get("_name_or_path")
    if not told:
        raise ModelError(str(found.folder), found="no base named", fix="say --base DIR, its language model")
    try:
        return resolve_any(told)
    except ModelError as error:
        if given is not None:
            raise
        fix = "say where its folder lies: --base DIR"
        raise ModelError(f"the base {str(told)!r}", found=error.found or str(error), fix=fix) from error


def resolve_any(source: str | Path) -> Path:
    """`resolve`, also for a folder whose weights are pickles."""
    folder = expanded(source, ModelError)
    return folder.resolve() if folder.is_dir() else resolve(source, part="language")


def check_base(found: Original, folder: Path, text: Any) -> None:
    """Raise `CheckpointError` unless the base is the one that was trained on: by hashes where they are recorded, and
    always by its shape."""
    if found.config:
        wanted = _text_config(found.config, found.folder)
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


def base_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each of a base's weight files."""
    return {path.name: sha256(path) for path in weight_files(folder)}


def _base_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """A language model's tensors under the names they have inside LLaVA."""
    return {
        name if name.startswith("lm_head.") else LANGUAGE + name.removeprefix("model."): tensor
        for name, tensor in read_weights(folder).items()
        if not name.endswith(".rotary_emb.inv_freq")
    }


def _text_config(config: Mapping[str, Any], where: Path) -> Any:
    """The language model's configuration inside one of LLaVA's."""
    check_config(config, where)
    own = ("mm_", "image_", "tune_", "freeze_", "unfreeze_", "use_mm_", "tokenizer_", "base_sha256", "architectures",
           "vision_tower", "use_pos_skipping", "pos_skipping")  # fmt: skip
    held = {key: value for key, value in config.items() if not key.startswith(own) and key != "model_type"}
    return CONFIG_MAPPING[LANGUAGES[config["model_type"]]].from_dict(held)


def _image_mode(found: Original, given: str | None, settings: Mapping[str, Any]) -> str:
    """The image mode of its configuration, or another one that the model can have. Raises `ModelError`."""
    if given is not None and (given == ANYRES) != is_next(found.config):
        kind, expected = ("NeXT", ANYRES) if is_next(found.config) else ("1.5", "square, pad or crop")
        raise ModelError("image mode", found=f"{given!r} for a LLaVA {kind}", expected=expected)
    told = found.config.get("image_aspect_ratio")
    return given or (told if told in (ANYRES, "pad") else mode_of(dict(settings)))


def _template(folder: Path, language: str, below: Path) -> str | Template:
    """The template beside the weights, else that of the language model's type and tokenizer."""
    if (folder / "template.yaml").is_file():
        return load_template(folder / "template.yaml")
    found = usual_template(language, load_tokenizer(below).get_vocab())
    if found is None:
        raise ModelError(
            str(folder), found=f"a {language} model and no template.yaml", fix="say which: --template NAME"
        )
    return found


def _added_tokens(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Tokens with rows in the embeddings that a bare tokenizer.model does not know, in the order of their ids."""
    path = folder / "added_tokens.json"
    held: dict[str, int] = dict(read_json(path)) if path.is_file() else {}
    known = sorted(held, key=lambda token: held[token])
    return [*known, *([PATCH] if config.get("mm_use_im_patch_token") and PATCH not in held else [])]


def _check_ids(llava: Llava, folder: Path) -> None:
    """Raise `CheckpointError` if an added token has another id than the rows of the embeddings were trained with."""
    path = folder / "added_tokens.json"
    for token, id in read_json(path).items() if path.is_file() else ():
        got = llava.tokenizer.convert_tokens_to_ids(token)
        if got != id:
            raise CheckpointError(str(path), found=f"{token} as token {id}", expected=f"{got}, by the tokenizer beside")


# --- tensors ----------------------------------------------------------------------------------------------------


def _held(tensors: list[torch.Tensor]) -> str:
    """The one number format of all these, else float32, which holds float16 and bfloat16 exactly."""
    types = {tensor.dtype for tensor in tensors}
    return next((name for name, dtype in DTYPES.items() if types == {dtype}), "fp32")


def _tower(found: Original, config: Any, folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The tower in the checkpoint's own file, where it was trained, else that of the folder."""
    inside = {name.removeprefix(VISION): each for name, each in found.tensors.items() if name.startswith(VISION)}
    if not inside:
        return load_tower(folder, dtype, device)
    tower = AutoModel.from_config(config, dtype=dtype).to(device)
    fill(dict(tower.named_parameters()), inside, where=str(found.folder), dtype=dtype)
    return tower


def _language(
    config: Any, tensors: dict[str, torch.Tensor], folder: Path, load: str, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """`parts.load_language` from tensors under the names they have inside LLaVA."""
    plain = {"model." + name.removeprefix(LANGUAGE) if name.startswith(LANGUAGE) else name: each
             for name, each in tensors.items()}  # fmt: skip
    quantised = quantisation(load, dtype, inside_llava=False)
    with quietly(sum(tensor.nbytes for tensor in plain.values())):
        model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=plain,
            dtype=dtype,
            quantization_config=quantised,
            device_map={"": device},
            ignore_mismatched_sizes=True,  # `check_report` names them
            output_loading_info=True,
        )
    check_report(folder, report)
    let_go_of_file(model, load)
    return model


def _fill_projector(llava: Llava, found: Original) -> None:
    tensors = {name: tensor for name, tensor in found.tensors.items() if name.startswith((PROJECTOR, NEWLINE))}
    start = PROJECTOR + ("linear_1." if found.projector == "linear" else "")
    held = None if found.kind == "lora" else llava.held  # beside adapters it keeps the type it was trained in
    fill(named(llava.model, (start, NEWLINE)), tensors, where=str(found.folder), dtype=held)


def _fill_rows(llava: Llava, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Embeddings and head that were trained beside adapters or a projector: as many rows as the base has."""
    rows = llava.spec["vocabulary"]["rows_before"]
    held = dict(llava.model.named_parameters())
    for name, tensor in tensors.items():
        fits = name in held and tensor.shape[1:] == held[name].shape[1:] and tensor.shape[0] in (rows, len(held[name]))
        if not fits:
            raise CheckpointError(
                where, found=f"surplus or misshapen tensor {name}", expected="tensors that the base has"
            )
        with torch.no_grad():
            held[name].data[: tensor.shape[0]] = tensor.to(held[name].dtype)


def _attach(llava: Llava, found: Original) -> None:
    """The adapter on the language model's linears, whole."""
    told = found.lora
    for name, usual in PLAIN.items():
        if name in told and told[name] not in usual:
            raise ModelError(str(found.folder), found=f"{name}: {told[name]!r}", expected="plain LoRA, as LLaVA's")
    names = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in found.adapter})
    config = LoraConfig(
        r=told["r"],
        lora_alpha=told["lora_alpha"],
        lora_dropout=told.get("lora_dropout", 0.0),
        use_rslora=told.get("use_rslora", False),
        target_modules=target_pattern(llava, {"language": names}),
    )
    attach_config(llava, config)
    adapter = {name: tensor.float() for name, tensor in found.adapter.items()}
    fill(adapter_parameters(llava.model), adapter, where=str(found.folder))
