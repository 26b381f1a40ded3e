"""A LLaVA written in LLaVA's own layouts: a full checkpoint, LoRA weights, or a bare projector.

Knows: the configuration that LLaVA's code reads, when a tower is named and when it is carried, which rows of the
embeddings are ours alone, and that what was written is read again and compared before it gets its name.
Does not know: how such folders are read (`original.py`, `original_in.py`), the standard layout (`export.py`).
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import save_torch_state_dict
from tokenizers.processors import TemplateProcessing

from workbench.errors import CheckpointError, ModelError
from workbench.model.llava import NEWLINE, Llava
from workbench.model.lora import VISION, adapted, adapter_parameters, has_adapter
from workbench.model.mode_names import ANYRES, ANYRES_VIDEO, pictures_in
from workbench.model.original import (
    ADAPTER,
    INSIDE,
    LANGUAGES,
    LORA,
    ORIGINAL,
    PROJECTOR,
    PROJECTOR_FILE,
    TRAINABLES,
    Original,
    ours,
    read_original,
    theirs,
    tower_inside,
)
from workbench.model.original_base import base_hashes
from workbench.model.original_in import load_original
from workbench.model.original_siglip import check_seen, is_siglip, keep_seen
from workbench.model.original_tiles import film_fields, tile_fields
from workbench.model.original_tower import FOLDERS, on_hub, write_tower
from workbench.model.precision import LANGUAGE
from workbench.model.proof import affordable, prove
from workbench.model.sources import read_json
from workbench.model.tensors import check_numbers, same_bits, write_tensors
from workbench.model.tokenizers import FILES
from workbench.resources import atomic_folder

KINDS = ("llava", "llava_next", "llava_next_video", "llava_onevision")
"""`model_type` in transformers of what LLaVA's own layout can hold."""
WEIGHTS = ("merged", "adapter", "projector")
NEAR = {"rtol": 4e-3, "atol": 1e-6}
"""How near a row of `<image>` is to the mean of all others if nothing ever trained it."""


def write_original(llava: Llava, out: Path, weights: str = "merged") -> Path:
    """Write a `Llava` in LLaVA's own layout, whole or not at all; returns the folder.

    weights: `merged`, a full checkpoint of a model without adapters; `adapter`, LoRA weights and projector beside the
    base's name and hashes; `projector`, `mm_projector.bin`. A SigLIP loses, in place, the last layer and the head that
    it computes nothing with. Raises `ModelError` for what such a layout cannot say, `CheckpointError` for weights that
    are no numbers.
    """
    _refuse(llava, weights)
    check_numbers(dict(llava.model.named_parameters()), "the model")
    with atomic_folder(out) as folder, tempfile.TemporaryDirectory(prefix="workbench-tower-") as temporary:
        config = original_config(llava)
        if is_siglip(llava.tower.config):
            keep_seen(llava)
        stand_in = write_tower(llava, config, folder, weights, Path(temporary))
        template = llava.renderer.template.model_dump(mode="json")
        (folder / "template.yaml").write_text(yaml.safe_dump(template, sort_keys=False))
        if weights == "merged":
            written = _whole(llava, config)
            save_torch_state_dict(
                written, folder, filename_pattern="model{suffix}.safetensors", metadata={"format": "pt"}
            )
            _copy_small(llava, folder)
        else:
            config |= {"base_sha256": base_hashes(llava.folders["language"])}
            written = _write_parts(llava, folder, weights)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _prove(llava, folder, written, weights, stand_in)
    return out


def keep_original(llava: Llava, folder: Path) -> None:
    """Put the small files of the original that a model came from beside its weights in another layout."""
    source, inside = llava.folders.get("original"), llava.folders.get("llava")
    if source is None and (inside is None or not (inside / ORIGINAL).is_dir()):
        return
    kept = folder / ORIGINAL
    kept.mkdir()
    held = inside / ORIGINAL if source is None and inside is not None else None
    _copy(held or llava.folders["language"], kept, [*FILES, "generation_config.json"])
    config = (held or source or folder) / "config.json"
    if config.is_file():
        told = read_json(config) | _inside(llava)
        told.pop("base_sha256", None)
        if "vision" in llava.spec["trained"]:
            told |= INSIDE  # it is in the checkpoint's own file from now on
        (kept / "config.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


# --- what config.json says --------------------------------------------------------------------------------------


def original_config(llava: Llava) -> dict[str, Any]:
    """LLaVA's `config.json`: that of the original it came from where there is one, with what has changed since."""
    kept = _kept(llava)
    config = read_json(kept / "config.json") if kept and (kept / "config.json").is_file() else _derived(llava)
    config |= _inside(llava)
    config.pop("base_sha256", None)
    told = config.get("image_aspect_ratio")
    sees = {  # of a SigLIP LLaVA's code does not read them
        "mm_vision_select_layer": (llava.spec["vision_layer"], None),
        "mm_vision_select_feature": ("patch" if llava.spec["vision_select"] == "default" else "cls_patch", "patch"),
    }
    facts: dict[str, tuple[Any, Any]] = {  # key -> (what is so, what LLaVA takes where nothing is said)
        "mm_projector_type": (llava.spec["projector"], "linear"),
        **({} if is_siglip(llava.tower.config) else sees),
        "image_aspect_ratio": (_aspect_ratio(llava.image_mode.mode, told), None),
        "torch_dtype": (str(llava.held).removeprefix("torch."), None),
        "vocab_size": (_rows(llava, config.get("vocab_size")), None),
    }
    changed = {key: value for key, (value, usual) in facts.items() if config.get(key, usual) != value}
    if "pinpoints" in llava.spec:
        grids, where = llava.spec["pinpoints"], kept or Path("config.json")
        mode, side, film = llava.image_mode.mode, llava.image_mode.side, {}
        if ANYRES_VIDEO.fullmatch(mode):
            film = film_fields(llava.model.config.spatial_pool_mode, llava.tower.config.hidden_size)
        changed |= tile_fields(config, mode, grids, side, where, film)
    return config | changed


def _inside(llava: Llava) -> dict[str, Any]:
    """What a configuration has to say beside its own where the tower came in the checkpoint's file, and it did not."""
    return INSIDE if llava.spec.get("tower_inside") else {}


def _aspect_ratio(mode: str, told: Any) -> Any:
    """`image_aspect_ratio` for an image mode; LLaVA takes everything that is neither padded nor tiles alike."""
    if mode == "pad" or mode.startswith(ANYRES):
        return ANYRES if ANYRES_VIDEO.fullmatch(mode) else pictures_in(mode)
    return "square" if told is None or told == "pad" or str(told).startswith(ANYRES) else told


def _derived(llava: Llava) -> dict[str, Any]:
    """A configuration for a model that comes from no such checkpoint, in the words of transformers 4.37."""
    text = llava.model.config.text_config
    kind = next(name for name, language in reversed(LANGUAGES.items()) if language == text.model_type)
    name = {"llava_llama": "LlavaLlama", "llava_mistral": "LlavaMistral"}.get(kind, "LlavaQwen")
    held = {key: value for key, value in text.to_dict().items() if not key.startswith("_")}
    rope = held.pop("rope_parameters", None) or {}
    scaled = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}
    for key in ("dtype", "transformers_version", "architectures", "layer_types"):
        held.pop(key, None)
    return held | {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        "rope_theta": rope.get("rope_theta", 10000.0),
        "rope_scaling": {"type": rope["rope_type"], **scaled} if scaled else None,
        "vocab_size": llava.spec["vocabulary"]["rows_before"],
        "use_mm_proj": True,
        "mm_projector_type": llava.spec["projector"],
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": llava.tower.config.hidden_size,
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": 2048,
    }  # fmt: skip


def _kept(llava: Llava) -> Path | None:
    """The folder with the small files of the original that the model came from."""
    if "original" in llava.folders:
        return llava.folders["original"]
    inside = llava.folders.get("llava")
    return inside / ORIGINAL if inside is not None and (inside / ORIGINAL).is_dir() else None


def _rows(llava: Llava, told: int | None) -> int:
    """Rows of embeddings and head to write: without those of `<image>`, if reading makes the same ones again."""
    rows = min(told or llava.spec["vocabulary"]["rows_before"], llava.spec["vocabulary"]["rows_after"])
    made = {"model.language_model.embed_tokens.weight", "lm_head.weight"}
    for name, weight in llava.model.named_parameters():
        if name in made and len(weight) > rows:
            mean = weight.data[:rows].float().mean(0).expand(len(weight) - rows, -1)
            if not torch.allclose(weight.data[rows:].float(), mean, **NEAR):
                return len(weight)
    return rows


# --- tensors ----------------------------------------------------------------------------------------------------


def _whole(llava: Llava, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor of the full checkpoint, under LLaVA's names."""
    made = {}
    for name, parameter in llava.model.named_parameters():
        tensor = parameter.data
        if name.startswith(VISION) and not tower_inside(config):
            continue  # named, or in a folder of its own
        if llava.spec["projector"] == "linear" and name.startswith(PROJECTOR + "linear_2."):
            continue  # an identity
        if name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            tensor = tensor[: config["vocab_size"]].clone()
        made[theirs(name, llava.spec["projector"])] = tensor
    return made


def _write_parts(llava: Llava, folder: Path, weights: str) -> dict[str, torch.Tensor]:
    """A LoRA folder's files, or `mm_projector.bin`; returns the tensors by the names they are read under."""
    projector = {
        theirs(name, llava.spec["projector"]): parameter.detach().cpu()
        for name, parameter in llava.model.named_parameters()
        if name.startswith((PROJECTOR, NEWLINE)) and not (llava.spec["projector"] == "linear" and ".linear_2." in name)
    }
    if weights == "projector":
        torch.save(projector, folder / PROJECTOR_FILE)
        return projector
    torch.save({LORA + name: tensor for name, tensor in projector.items()}, folder / TRAINABLES)
    adapter = adapter_parameters(llava.model)
    names = {name: LORA + theirs(name.removeprefix(LORA), "") for name in adapter}
    write_tensors(folder / f"{ADAPTER}.safetensors", {names[name]: tensor for name, tensor in adapter.items()})
    settings = llava.model.peft_config["default"]
    base = str(llava.spec["language"])
    told = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "modules_to_save": None, "r": settings.r, "lora_alpha": settings.lora_alpha,
        "lora_dropout": settings.lora_dropout, "use_rslora": settings.use_rslora,
        "base_model_name_or_path": base if on_hub(base) else Path(base).name,
        "target_modules": sorted({name.rpartition(".")[2] for name, _ in adapted(llava.model, LANGUAGE)}),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return projector


def _copy_small(llava: Llava, folder: Path) -> None:
    """The tokenizer as the original has it: LLaVA's code reads its sentencepiece model."""
    kept = _kept(llava)
    source = kept if kept and llava.folders.get("original") is None else llava.folders.get("language")
    if source is not None:
        _copy(source, folder, [*FILES, "generation_config.json"])
        return
    tokenizer = copy.deepcopy(llava.tokenizer)  # beside a chat template that writes the begin token it adds none
    if llava.renderer.bos:
        begin = [(tokenizer.bos_token, llava.renderer.bos[0])]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{tokenizer.bos_token} $A", special_tokens=begin
        )
    tokenizer.save_pretrained(folder)
    _copy(llava.folders["llava"], folder, ["tokenizer.model", "generation_config.json"])


def _copy(source: Path, target: Path, patterns: list[str]) -> None:
    for path in sorted({path for pattern in patterns for path in source.glob(pattern) if path.is_file()}):
        shutil.copyfile(path, target / path.name)


# --- what is refused, and the proof -----------------------------------------------------------------------------


def _refuse(llava: Llava, weights: str) -> None:
    text = llava.model.config.text_config
    if weights not in WEIGHTS:
        raise ModelError("weights", found=repr(weights), expected=" or ".join(WEIGHTS))
    kinds = (llava.model.config.model_type, llava.tower.config.model_type, text.model_type)
    if kinds[0] not in KINDS or kinds[1] not in FOLDERS or text.model_type not in LANGUAGES.values():
        found, languages = " of ".join((kinds[0], " and ".join(kinds[1:]))), dict.fromkeys(LANGUAGES.values())
        expected = f"a LLaVA of a CLIP or SigLIP and a {' or '.join(languages)}"
        raise ModelError("LLaVA's own layout", found=found, expected=expected, fix="use --as hf")
    if is_siglip(llava.tower.config):
        check_seen(llava)
    if weights == "merged":
        return
    if llava.spec["trained"] or "language" not in llava.folders or next(adapted(llava.model, VISION), None):
        found = "a model whose base is no language model of its own, or was trained in full"
        expected, fix = "adapters and a projector", "use --weights merged"
        raise ModelError(f"weights: {weights}", found=found, expected=expected, fix=fix)
    if (weights == "adapter") != has_adapter(llava.model):
        found = "no adapter" if weights == "adapter" else "an adapter, which would be lost"
        fix = "--weights merged" if weights == "adapter" else "--weights adapter or merged"
        raise ModelError(f"weights: {weights}", found=found, fix=fix)


def _prove(
    llava: Llava, folder: Path, written: Mapping[str, torch.Tensor], weights: str, stand_in: Path | None
) -> None:
    """Read the files again: the same bits; and, where a second model is affordable, the same answers.

    stand_in: the folder of a tower that is named there; what lies under that name may not be on this machine.
    """
    again = read_original(folder)
    for name, tensor in written.items():
        found = again.tensors.get(str(ours(name)))
        if found is None or not same_bits(tensor.detach(), found):
            raise CheckpointError(str(folder), found=f"another {name} than was written", expected="the same bits")
    if weights != "projector" and affordable(llava):
        prove(llava, lambda: _reloaded(llava, folder, again, stand_in))


def _reloaded(llava: Llava, folder: Path, again: Original, stand_in: Path | None) -> Llava:
    lora = again.kind == "lora"
    loaded = load_original(
        folder,
        vision_tower=stand_in,
        base=llava.folders["language"] if lora else None,
        load=llava.spec["load"],
        dtype=llava.spec["dtype"],
        device=str(llava.device),
    )
    rows = again.config["vocab_size"]
    live = dict(llava.model.named_parameters())
    for name in () if lora else ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        if name in live:  # those of `<image>`, which were made anew
            dict(loaded.model.named_parameters())[name].data[rows:] = live[name].data[rows:]
    return loaded
