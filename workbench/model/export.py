"""What leaves the house: one merged LLaVA folder that vanilla transformers loads, with the same ids, pixels, answers.

Knows: the standard layout, the processor's settings for it, and which base an adapter is merged onto.
Does not know: demos and other hand-overs (serving/export.py), how checkpoints lie on disk.
"""

from __future__ import annotations

import copy
import errno
from pathlib import Path
from typing import Any, TypeAlias

import torch
import yaml
from tokenizers import processors
from transformers import (
    GenerationConfig,
    LlavaNextProcessor,
    LlavaNextVideoProcessor,
    LlavaOnevisionProcessor,
    LlavaProcessor,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from workbench.errors import ModelError
from workbench.model.hf_folder import is_llava, load_folder, load_model
from workbench.model.joint import tower_tokens
from workbench.model.llava import Llava, load
from workbench.model.lora import merge_into
from workbench.model.original import layout_of
from workbench.model.original_in import load_original
from workbench.model.original_out import keep_original, write_original
from workbench.model.parts import IMAGE_TOKEN, VIDEO_TOKEN, quietly
from workbench.model.precision import DTYPES, hold_in
from workbench.model.proof import affordable, compare_tensors, prove
from workbench.model.sources import safetensors_files
from workbench.model.tensors import check_numbers, types_of
from workbench.model.tiles import AnyResMode
from workbench.model.unpickle import is_pickled, unpickle
from workbench.resources import atomic_folder

AnyProcessor: TypeAlias = LlavaProcessor | LlavaNextProcessor | LlavaNextVideoProcessor | LlavaOnevisionProcessor
PROCESSORS: dict[str, tuple[Any, Any]] = {
    "LlavaImageProcessor": (LlavaProcessor, LlavaImageProcessorPil),
    "LlavaNextImageProcessor": (LlavaNextProcessor, LlavaNextImageProcessorPil),
    "LlavaOnevisionImageProcessor": (LlavaOnevisionProcessor, LlavaOnevisionImageProcessorPil),
}
"""Image processor -> transformers' class for the whole, and for images without torchvision."""


def export_hf(
    source: str | Path,
    out: str | Path,
    *,
    base: str = "nf4",
    device: str = "auto",
    vision_tower: str | Path | None = None,
    template: str | None = None,
) -> Path:
    """Merge a run or checkpoint, or convert LLaVA's own layout, into a standard LLaVA folder; returns the folder.

    `base="nf4"` merges onto the base the adapter was trained on, dequantised: logits equal within rounding.
    `base="original"` merges onto the weights before quantisation. The folder is loaded again and compared before it
    gets its name. Raises `ModelError` if `out` holds files, `CheckpointError` if the source is damaged.
    A language model, tower or LLaVA of transformers whose weights are pickles is written as it is, with safetensors.
    For LLaVA's own layouts `base` is the language model of LoRA weights or a projector, and as `load_original` says.
    """
    out = Path(out)
    refuse_full(out)
    if is_pickled(source):
        return unpickle(source, out)
    llava, base = opened(source, base, device, vision_tower, template)
    return write_folder(merge_into(llava, base), out)


def export_original(
    source: str | Path,
    out: str | Path,
    *,
    weights: str = "merged",
    base: str = "nf4",
    device: str = "auto",
    vision_tower: str | Path | None = None,
    template: str | None = None,
) -> Path:
    """Write a run, a checkpoint or any LLaVA in LLaVA's own layout; returns the folder.

    weights: see `write_original`. Everything else, and what is raised, is as for `export_hf`.
    """
    out = Path(out)
    refuse_full(out)
    llava, base = opened(source, base, device, vision_tower, template)
    if weights == "merged":
        llava = merge_into(llava, base)
        hold_in(llava.model, llava.held)
    return write_original(llava, out, weights)


def opened(
    source: str | Path, base: str, device: str, vision_tower: str | Path | None, template: str | None
) -> tuple[Llava, str]:
    """(the model with all its bits, the way to merge it)."""
    from workbench.model.checkpoint import checkpoint_folder  # builds on this module

    folder = checkpoint_folder(source)
    if layout_of(folder):  # a name of the Hub says nothing of it
        named = None if base == "nf4" else base
        return load_original(folder, vision_tower=vision_tower, base=named, device=device, template=template), "nf4"
    if vision_tower is not None:
        fix = "leave --vision-tower out"
        raise ModelError(str(source), found="a model with its tower", expected="one of LLaVA's own", fix=fix)
    found = load(source, load=saved_as(folder), device=device, template=template)
    check_numbers(dict(found.model.named_parameters()), str(source))
    return found, base


def saved_as(folder: Path) -> str | None:
    """The number format of a Hugging Face folder's weights, float32 where they have several; None for a run of ours."""
    if not is_llava(folder):
        return None
    types = {name for path in safetensors_files(folder) for name in types_of(path)}
    return next((name for name, dtype in DTYPES.items() if types == {str(dtype)}), "fp32")


def refuse_full(out: Path) -> None:
    """Raise `ModelError` unless the folder is new or empty. Nothing is ever overwritten."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(str(out), found="files", expected="a new or empty folder", fix="choose another name")


def write_folder(llava: Llava, out: Path) -> Path:
    """Write a `Llava` without adapters as a Hugging Face folder, whole or not at all, and prove it."""
    model = llava.model
    hold_in(model, llava.held)
    model.generation_config = generation_config(llava)
    for config in (model.config, model.config.text_config, model.config.vision_config):
        config._name_or_path = ""  # where the base lay on this disk is nobody's business
    try:
        with atomic_folder(out) as temporary:
            with quietly(sum(parameter.nbytes for parameter in model.parameters())):
                model.save_pretrained(temporary)
            processor(llava).save_pretrained(temporary)
            keep_original(llava, temporary)
            template = llava.renderer.template.model_dump(mode="json")
            (temporary / "template.yaml").write_text(yaml.safe_dump(template, sort_keys=False))
            _prove(llava, temporary)
    except OSError as error:
        if error.errno == errno.EEXIST:
            refuse_full(out)
        raise
    return out


def _prove(llava: Llava, folder: Path) -> None:
    """Load the folder again: equal tensors always, equal logits where a second model is affordable beside the first."""
    spec = llava.spec
    if affordable(llava):
        device = str(llava.device)
        prove(llava, lambda: load_folder(folder, source="", load=spec["load"], dtype=spec["dtype"], device=device))
    else:
        compare_tensors(llava.model, load_model(folder, spec["load"], llava.held, torch.device("cpu")))


def processor(llava: Llava) -> AnyProcessor:
    """transformers' processor that gives the pixels, image token counts and ids that `llava` sees.

    The chat template writes the begin token, so the tokenizer beside it adds none.
    """
    renderer = llava.renderer
    tokenizer = copy.deepcopy(llava.tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    tokenizer.padding_side = "left"
    tokenizer.chat_template = text = renderer.chat_template()
    settings = dict(llava.image_mode.processor_settings())
    kind, images = PROCESSORS[settings.pop("image_processor_type")]
    parts = {
        "image_processor": images(**settings),
        "tokenizer": tokenizer,
        "vision_feature_select_strategy": llava.model.config.vision_feature_select_strategy,
        "image_token": IMAGE_TOKEN,
        "chat_template": text,
    }
    extra, patches = tower_tokens(llava.tower)
    mode = llava.image_mode
    if isinstance(mode, AnyResMode) and kind is LlavaOnevisionProcessor:
        more = {"num_image_tokens": patches + extra, "vision_aspect_ratio": llava.model.config.vision_aspect_ratio}
        return _with_videos(kind, mode.video_settings(), **more, **parts)
    if isinstance(mode, AnyResMode) and renderer.videos:
        more = {"patch_size": llava.tower.config.patch_size, "num_additional_image_tokens": extra}
        return _with_videos(LlavaNextVideoProcessor, mode.video_settings(), **more, **parts)
    return kind(patch_size=llava.tower.config.patch_size, num_additional_image_tokens=extra, **parts)


class _VideoSettings(dict[str, Any]):
    """What a video processor writes into a folder."""

    _auto_class = None


def _with_videos(kind: Any, film: dict[str, Any], **parts: Any) -> AnyProcessor:
    """transformers makes one only around a video processor, which needs torchvision: its settings stand in for it."""
    made = kind.__new__(kind)
    made.video_processor = _VideoSettings(film)
    made.video_token = VIDEO_TOKEN
    for part, token in (("image", parts["image_token"]), ("video", VIDEO_TOKEN)):
        setattr(made, f"{part}_token_id", parts["tokenizer"].convert_tokens_to_ids(token))
    vars(made).update(parts)
    return made


def generation_config(llava: Llava) -> GenerationConfig:
    """Greedy by default, and it stops: every id that ends an answer under the template."""
    ends = list(llava.renderer.end_ids)
    pad = llava.tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=llava.tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=ends[0] if pad is None else pad,
        do_sample=False,
    )
