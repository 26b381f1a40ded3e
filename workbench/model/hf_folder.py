"""An existing LLaVA in Hugging Face's layout: read, checked, in any number format.

Knows: that layout, and what its image processor's settings say about the image mode.
Does not know: training, our checkpoints, how such a folder is written (export.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from workbench.errors import ModelError
from workbench.model.chat_templates import Alike, alike, chat_template_in
from workbench.model.joint import CLASSES, PROJECTORS, AnyLlava, own_mode, tower_tokens
from workbench.model.llava import Llava, finish
from workbench.model.mode_names import FRAMES, reads_videos
from workbench.model.original import says_llava, usual_template
from workbench.model.parts import (
    IMAGE_TOKEN,
    VIDEO_TOKEN,
    add_media_tokens,
    image_settings,
    load_exactly,
    read_config,
    video_settings,
)
from workbench.model.precision import check_quantised, let_go_of_file, pick_device, pick_dtypes, quantisation
from workbench.model.sources import read_json
from workbench.model.templates import Template, load_template, template_names
from workbench.model.tokenizers import load_tokenizer


def is_llava(folder: Path) -> bool:
    """Whether the folder's configuration says it is a LLaVA in this layout; LLaVA's own has the same `model_type`."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return config.get("model_type") in CLASSES and not says_llava(config)


def load_model(folder: Path, load: str, dtype: torch.dtype, device: torch.device) -> AnyLlava:
    """The whole model on the device, frozen, only the language model's linears quantised. Raises `ModelError`."""
    kind = CLASSES[read_config(folder).model_type]
    quantised, place = quantisation(load, dtype, inside_llava=True), {"": device}
    model = load_exactly(kind, folder, dtype=dtype, quantization_config=quantised, device_map=place)
    check_quantised(model, load)
    let_go_of_file(model, load)
    return model.requires_grad_(False).eval()


def load_folder(
    folder: Path,
    *,
    source: str,
    load: str = "fp32",
    dtype: str = "auto",
    device: str = "auto",
    template: str | Template | None = None,
    image_mode: str | None = None,
    read: Callable[..., AnyLlava] = load_model,
) -> Llava:
    """A `Llava` around a Hugging Face LLaVA folder; template and image mode as the folder says unless given.

    `read`: what makes the model of the folder.
    """
    place = pick_device(device)
    held, computed = pick_dtypes(load, dtype, place)
    model = read(folder, load, held, place)
    tokenizer = load_tokenizer(folder)
    config = model.config
    settings = image_settings(folder, config.vision_config)
    if reads_videos(own_mode(config) or ""):
        settings = settings | {"video_processor": video_settings(folder)}
    mode = image_mode or own_mode(config, _frames(settings)) or mode_of(settings)
    marks = {IMAGE_TOKEN: config.image_token_id}
    if reads_videos(mode):
        marks[VIDEO_TOKEN] = _video_token(config, tokenizer)
    vocabulary = add_media_tokens(model, tokenizer, tuple(marks))
    for mark, id in marks.items():
        if tokenizer.convert_tokens_to_ids(mark) != id:
            found = f"{mark} as token {tokenizer.convert_tokens_to_ids(mark)}"
            raise ModelError(str(folder), found=found, expected=f"token {id}, as config.json says")
    if not isinstance(config.vision_feature_layer, int):
        raise ModelError(str(folder), found="several vision_feature_layer", expected="one layer")
    extra, patches = tower_tokens(model.model.vision_tower)
    config.image_seq_length = patches + (extra if config.vision_feature_select_strategy == "full" else 0)
    pinpoints = _pinpoints(folder, config, settings)
    record = {
        "llava": source,
        "projector": projector_name(config.projector_hidden_act, folder),
        "vision_layer": config.vision_feature_layer,
        "vision_select": config.vision_feature_select_strategy,
        "load": load,
        "image_mode": mode,
        "trained": [],
        **({} if pinpoints is None else {"pinpoints": pinpoints}),
    }
    chosen = template if template is not None else template_of(folder, config, tokenizer)
    return finish(model, tokenizer, record | vocabulary, {"llava": folder}, settings, chosen, place, computed)


def _frames(settings: dict[str, Any]) -> int:
    """Of a video, as its processor says; ours where it leaves that to who asks, as published ones do."""
    told = settings.get("video_processor", {}).get("num_frames")
    return FRAMES if told is None else int(told)


def _video_token(config: Any, tokenizer: Any) -> int:
    """The id of `<video>`, as the configuration says; of a tokenizer that has none, the next one. So it was written
    here while only the pictures of a LLaVA-OneVision were read."""
    if VIDEO_TOKEN not in tokenizer.get_vocab():
        config.video_token_id = len(tokenizer)
    return int(config.video_token_id)


def _pinpoints(folder: Path, config: Any, settings: dict[str, Any]) -> list[list[int]] | None:
    """The grids of a LLaVA-NeXT or OneVision, each [height, width]; None for a LLaVA 1.5.

    Raises `ModelError` where its image processor has others, or has them in another order.
    """
    held = getattr(config, "image_grid_pinpoints", None)
    if held is None:
        return None
    own = [list(pinpoint) for pinpoint in held]
    beside = [list(pinpoint) for pinpoint in settings.get("image_grid_pinpoints", own)]
    if beside != own:
        found, expected = f"image_grid_pinpoints {beside}", f"{own}, as in config.json"
        raise ModelError(f"{folder}, the image processor", found=found, expected=expected)
    return own


def projector_name(act: str, folder: Path) -> str:
    """Our name for a projector, from the activation between its linears."""
    for name, held in PROJECTORS.items():
        if held == act:
            return name
    raise ModelError(str(folder), found=f"projector_hidden_act {act!r}", expected=" or ".join(PROJECTORS.values()))


def mode_of(settings: dict[str, Any]) -> str:
    """The image mode that an image processor's settings describe."""
    if settings.get("do_pad"):
        return "pad"
    whole = isinstance(settings.get("size"), dict) and "shortest_edge" not in settings["size"]
    return "square" if whole or settings.get("do_center_crop") is False else "crop"


def template_of(folder: Path, config: Any, tokenizer: Any) -> str | Template:
    """The template beside an exported model.

    Without one that of ours which writes to the letter what the folder's own chat template writes. Else, because those
    that are published leave system texts and end tokens out: `qwen` for a LLaVA-OneVision on Qwen2, which all published
    ones were trained with, for a Llama what its tokens are for or `v1`, and for others the one that is alike but for
    these two. Raises `ModelError` where it is a guess.
    """
    language = config.text_config.model_type
    path = folder / "template.yaml"
    if path.is_file():
        return load_template(path)
    written = chat_template_in(folder, tokenizer)
    found = alike(written, tokenizer) if written else Alike()
    usual = usual_template(language, tokenizer.get_vocab())
    if found.exactly:  # of several any: with this tokenizer they write the same
        return found.exactly[0]
    if language == "llama" or (config.model_type, language) == ("llava_onevision", "qwen2"):
        return usual or "v1"
    if usual in found.nearly:
        return str(usual)
    if len(found.nearly) == 1:
        return found.nearly[0]
    says = "a chat template that writes as none of ours" if written else "no chat template"
    says = f"a chat template that may be {', '.join(found.nearly)}" if found.nearly else says
    expected = f"a template.yaml, or to be told one of {', '.join(template_names())}"
    fix = "say which: workbench export FOLDER OUT --as hf --template NAME"
    raise ModelError(str(folder), found=f"a {language} model with {says}", expected=expected, fix=fix)
