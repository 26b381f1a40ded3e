"""A LLaVA out of LLaVA's own layouts: its tower, its base and its tensors put together, each accounted for.

Knows: where the tower of such a folder is looked for, how rows of added tokens and number formats are kept.
Does not know: the files and names (`original.py`), what was trained on what (`original_base.py`), training.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModel, PreTrainedModel

from workbench.errors import CheckpointError, ModelError
from workbench.model.anyres import check_pinpoints, from_llava
from workbench.model.hf_folder import mode_of
from workbench.model.llava import NEWLINE, Llava, assemble
from workbench.model.lora import VISION, adapter_parameters, attach_config, target_pattern
from workbench.model.mode_names import ANYRES, ANYRES_VIDEO, limit_in, pictures_in, reads_videos
from workbench.model.original import (
    LORA,
    PATCH,
    PROJECTOR,
    Original,
    read_original,
    settings_of,
    theirs,
    tower_inside,
    usual_template,
)
from workbench.model.original_base import Base, base_of, carries_tower, inherit, spoken
from workbench.model.original_siglip import SEEN, is_siglip, seen_config, seen_part
from workbench.model.original_tiles import pinpoints_in, pool_of, tiles_of
from workbench.model.parts import check_report, image_settings, load_tower, quietly, tower_config
from workbench.model.precision import DTYPES, LANGUAGE, let_go_of_file, quantisation
from workbench.model.sources import local, read_json, resolve, small_files
from workbench.model.templates import Template, load_template
from workbench.model.tensors import fill, named
from workbench.model.tokenizers import load_tokenizer

SMALL = ["*.json"]
"""What is downloaded of a tower whose weights are elsewhere."""
SIZE = re.compile(r"-(\d{3})$")
"""How a tower's name says for how many pixels it is, such as openai/clip-vit-large-patch14-336."""
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

    vision_tower: a CLIP's or SigLIP's folder or Hub name (default: what its config.json names). base: the language
    model, or the LLaVA in LLaVA's own layout, that a LoRA folder or projector was trained on (default: what it names).
    The record says `tower_inside` where the tower's tensors are in a checkpoint's own file and its config.json does not
    say so. `load=None`: as its weights are, and float32 where they have several types, so that no bit is lost. Raises
    `CheckpointError` for a missing, surplus or misshapen tensor, a wrong base and a pickle that would run code;
    `ModelError` for a LLaVA that is not read here, or a tower or base that is not found.
    """
    found = read_original(source)
    tower = _tower_folder(found, vision_tower)
    below = base_of(found, base)
    extra = {} if found.kind == "full" else spoken(found.tensors)
    found = inherit(found, below)
    carried = carries_tower(found) and not tower_inside(found.config)
    seeing = tower_config(tower)
    _tell_size(found, vision_tower, seeing)
    settings = image_settings(tower, seeing)
    weighed = {} if found.kind == "lora" else found.tensors
    record = settings_of(found) | (SEEN if is_siglip(seeing) else {})
    record |= {
        "vision": str(vision_tower or found.config.get("mm_vision_tower")),
        "language": str(below.folder),
        "load": load or _held([*weighed.values(), *below.language.values()]),
        "dtype": dtype,
        "seed": 0,
        "image_mode": _image_mode(found, image_mode, settings),
        "trained": [],
        **({"tower_inside": True} if carried else {}),
    }
    if tiles_of(found.config):
        record["pinpoints"] = pinpoints_in(found.config, found.folder, seeing.image_size)
        check_pinpoints(from_llava(record["pinpoints"]), seeing.image_size, str(found.folder))
    if ANYRES_VIDEO.fullmatch(record["image_mode"]):
        record["spatial_pool"] = pool_of(found.config)
    chosen = template if template is not None else _template(found.folder, below)
    llava = assemble(
        record,
        {"vision": tower, "language": below.folder},
        template=chosen,
        device=device,
        read=(partial(_tower, found, seeing), partial(_language, below.text, below.language)),
        tokens=_added_tokens(found.config, below.folder),
    )
    _check_ids(llava, below.folder)
    _fill_projector(llava, found)
    _fill_rows(llava, extra, str(found.folder))
    if found.kind == "lora":
        _attach(llava, found)
    llava.folders["original"] = found.folder
    return llava


# --- what lies beside -------------------------------------------------------------------------------------------


def _tower_folder(found: Original, given: str | Path | None) -> Path:
    """The folder of the tower: given, in the checkpoint's own folder, or what its configuration names.

    Of a tower whose tensors are in the checkpoint's own file nothing but its small files is downloaded.
    """
    named_there = found.config.get("mm_vision_tower") or found.config.get("vision_tower")
    if given is None and named_there is None:
        raise ModelError(str(found.folder), found="no vision tower named", fix=_tower_fix(found))
    inside = found.folder / str(named_there)
    if given is None and inside.is_dir():
        return inside
    told = str(given or named_there)
    try:
        if tower_inside(found.config) or carries_tower(found):
            return local(told, "vision") or small_files(told, SMALL)
        return resolve(told, part="vision")
    except ModelError as error:
        if given is not None:
            raise
        where = f"the vision tower {named_there!r} of {found.folder}"
        raise ModelError(where, found=error.found or str(error), fix=_tower_fix(found)) from error


def _tell_size(found: Original, given: str | Path | None, seeing: Any) -> None:
    """Say so where a given tower sees another resolution than the name of the one it stands for says.

    It fits, and gives other tokens. A tower in the checkpoint's own file is compared tensor by tensor.
    """
    told = str(found.config.get("mm_vision_tower") or "")
    size = SIZE.search(told)
    if given is None or size is None or carries_tower(found) or int(size[1]) == seeing.image_size:
        return
    sees = f"sees {seeing.image_size} pixels, where {found.folder} was trained with {told}"
    print(f"vision tower: {given} {sees}: another number of tokens for each image", file=sys.stderr)


def _tower_fix(found: Original) -> str:
    return (
        f"say where a folder with it lies: workbench export {found.folder} OUT --as hf --vision-tower DIR; then use OUT"
    )


def _image_mode(found: Original, given: str | None, settings: Mapping[str, Any]) -> str:
    """The image mode of its configuration, or another one that the model can have. Raises `ModelError`."""
    own, told = tiles_of(found.config), found.config.get("image_aspect_ratio")
    if given is not None and own and reads_videos(own) and pictures_in(given) == pictures_in(own):
        return given  # with another number of frames
    if given is not None and given != own and (own or given.startswith(ANYRES)):
        kind = "1.5" if own is None else "OneVision" if limit_in(own) else "NeXT"
        kind, expected = f"{kind}{'-Video' if ANYRES_VIDEO.fullmatch(own or '') else ''}", own or "square, pad or crop"
        raise ModelError("image mode", found=f"{given!r} for a LLaVA {kind}", expected=expected)
    return given or own or ("pad" if told == "pad" else mode_of(dict(settings)))


def _template(folder: Path, below: Base) -> str | Template:
    """The template beside the weights or their base, else that of the language model's type and tokenizer."""
    for place in (folder, below.folder):
        if (place / "template.yaml").is_file():
            return load_template(place / "template.yaml")
    language = below.text.model_type
    found = usual_template(language, load_tokenizer(below.folder).get_vocab())
    if found is None:
        raise ModelError(
            str(folder), found=f"a {language} model and no template.yaml", fix="say which: --template NAME"
        )
    return found


def _added_tokens(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Tokens with rows in the embeddings that a bare tokenizer.model does not know, in the order of their ids."""
    path = folder / "added_tokens.json"
    held = read_json(path) if path.is_file() else {}
    if odd := next((f"{token} as {id!r}" for token, id in held.items() if type(id) is not int), ""):
        raise ModelError(str(path), found=odd, expected="the id of each token, a whole number")
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
    """The tower in the checkpoint's own file, where it is or is said to be, else that of the folder."""
    inside = {name.removeprefix(VISION): each for name, each in found.tensors.items() if name.startswith(VISION)}
    if not inside and not tower_inside(found.config):  # said to be there and gone: `fill` tells
        tower = load_tower(folder, dtype, device)
        return seen_part(tower) if is_siglip(config) else tower
    tower = AutoModel.from_config(seen_config(config) if is_siglip(config) else config, dtype=dtype).to(device)
    fill(dict(tower.named_parameters()), inside, where=str(found.folder), dtype=dtype, called=_tower_name)
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
    called = partial(theirs, projector=found.projector)
    fill(named(llava.model, (start, NEWLINE)), tensors, where=str(found.folder), dtype=held, called=called)


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
        r=_number(found, "r"),
        lora_alpha=_number(found, "lora_alpha"),
        lora_dropout=_number(found, "lora_dropout", usual=0.0),
        use_rslora=told.get("use_rslora", False),
        target_modules=target_pattern(llava, {"language": names}),
    )
    attach_config(llava, config)
    adapter = {name: tensor.float() for name, tensor in found.adapter.items()}
    fill(adapter_parameters(llava.model), adapter, where=str(found.folder), called=_adapter_name)


def _number(found: Original, name: str, usual: float | None = None) -> Any:
    """A setting of the adapter's. Raises `ModelError` for one that is missing, or no number that LoRA can have."""
    held = found.lora.get(name, usual)
    fits = type(held) is int and held > 0 if name == "r" else type(held) in (int, float)
    if not fits:
        expected = "a whole number from 1 on" if name == "r" else "a number"
        raise ModelError(f"{found.folder}: adapter_config.json", found=f"{name}: {held!r}", expected=expected)
    return held


# --- names as the person's files have them ----------------------------------------------------------------------


def _tower_name(name: str) -> str:
    return theirs(VISION + name, "")


def _adapter_name(name: str) -> str:
    return LORA + theirs(name.removeprefix(LORA), "")
