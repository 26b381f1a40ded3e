"""LLaVA, built from a vision tower and a language model, or loaded: transformers' own classes, unmodified.

Knows: how two models and a fresh projector become one LLaVA 1.5, LLaVA-NeXT, its Video or OneVision in any number
format, how an image or a video becomes squares, tower features and projected tokens, and what has to be recorded to
build the same thing again.
Does not know: what trains (stages.py), LoRA (lora.py), folders that hold trained weights (checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image as Picture
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from workbench.data.video import Film
from workbench.errors import ModelError, kind_of
from workbench.model.anyres import AnyRes
from workbench.model.film import film_size, frames_of, pooled
from workbench.model.images import MODES, ImageMode
from workbench.model.joint import (
    CLASSES,
    AnyLlava,
    AnyProjector,
    fresh_newline,
    fresh_projector,
    llava_config,
    own_mode,
    tiling_of,
)
from workbench.model.mode_names import frames_in, pictures_in, reads_videos
from workbench.model.parts import IMAGE_TOKEN, VIDEO_TOKEN, add_media_tokens, image_settings, load_language, load_tower
from workbench.model.places import Places
from workbench.model.precision import check_quantised, dtype_name, keep_weights_readable, pick_device, pick_dtypes
from workbench.model.renderer import Renderer
from workbench.model.sources import full_name, resolve_parts
from workbench.model.templates import Template, load_template
from workbench.model.tiles import AnyResMode
from workbench.model.tiling import Shown, Size, Tiling
from workbench.model.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from workbench.recipe import ModelSpec

NEWLINE = "model.image_newline"
"""The name of LLaVA-NeXT's and OneVision's newline among the parameters."""
FAMILIES = {
    "llava_next": "LLaVA-NeXT",
    "llava_next_video": "LLaVA-NeXT-Video",
    "llava_onevision": "LLaVA-OneVision",
}
"""`model_type` of a model that sees tiles -> what people call it."""


@dataclass
class Llava:
    """A LLaVA and all that is needed to talk to it. `spec` says how it was built; see `build` for its keys."""

    model: AnyLlava
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    image_mode: ImageMode | AnyResMode
    spec: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    """The floating-point type the model computes in; trainable weights are float32 whatever this says."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Where the base lies on this disk: `vision` and `language`, or `llava`; and LLaVA's own layout, `original`."""

    def __repr__(self) -> str:
        return f"Llava({self._sources}, {self.spec.get('load')}, {self.device})"

    def _repr_html_(self) -> str:
        from workbench.display import block

        parts = {"tower": self.tower, "projector": self.projector, "language model": self.model.model.language_model}
        counts = {name: f"{_weights(part):,} weights" for name, part in parts.items()}
        facts = {
            "made from": self._sources,
            **counts,
            "held in": self.spec.get("load"),
            "template": self.renderer.template.name,
            "an image": f"{self.image_tokens:,} tokens, {self.spec.get('image_mode')}",
            "device": f"{self.device}, computes in {str(self.dtype).removeprefix('torch.')}",
        }
        return block("LLaVA", facts)

    @property
    def _sources(self) -> str:
        return " + ".join(str(self.spec[key]) for key in ("llava", "vision", "language") if self.spec.get(key))

    @property
    def tower(self) -> PreTrainedModel:
        return self.model.model.vision_tower

    @property
    def projector(self) -> AnyProjector:
        return self.model.model.multi_modal_projector

    @property
    def newline(self) -> nn.Parameter | None:
        """(width of the language model,): what LLaVA-NeXT puts after each row of tokens; trains with the projector."""
        return getattr(self.model.model, "image_newline", None)

    @property
    def tiling(self) -> Tiling:
        """How pictures of which size become how many tokens, and videos of how many frames."""
        return tiling_of(self.model.config, frames_in(self.image_mode.mode))

    @property
    def image_token_id(self) -> int:
        return self.model.config.image_token_id

    @property
    def image_tokens(self) -> int:
        """Tokens of one square that the tower sees: all of an image's in LLaVA 1.5; see `tiling` for LLaVA-NeXT."""
        return self.model.config.image_seq_length

    @property
    def held(self) -> torch.dtype:
        """The floating-point type of the base's weights that are not quantised."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def vision_trains(self) -> bool:
        return any(parameter.requires_grad for parameter in self.tower.parameters())

    def tower_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels -> (B, image_tokens, D_vision): the chosen hidden state, without the class token.

        Outside autograd unless a weight of the tower trains.
        """
        config = self.model.config
        layer: int = config.vision_feature_layer
        pixels = pixel_values.to(self.device, self._tower_dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.vision_trains):
            states = self.tower(pixels, output_hidden_states=[layer]).hidden_states
        features = states[layer]
        return features[:, 1:] if config.vision_feature_select_strategy == "default" else features

    def gather(self, features: torch.Tensor, sizes: Sequence[Size]) -> torch.Tensor:
        """(squares, N, D_vision) tower features of pictures and videos of these sizes -> (tiles, N, D_vision): what the
        projector is given. Frames of a video that are pooled before it lie in as few tiles as hold them."""
        how = getattr(self.model.config, "spatial_pool_mode", None)
        if how is None or not any(map(frames_of, sizes)):
            return features
        parts = features.split(list(map(self.tiling.squares, sizes)))
        made = [pooled(part, how) if frames_of(size) else part for part, size in zip(parts, sizes, strict=True)]
        return torch.cat(made)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """(B, N, D_vision) tower features -> (B, N, D_language) in the type the projector is held in."""
        return self.projector(features.to(self.device, self.projector.linear_1.weight.dtype))

    def arrange(self, projected: torch.Tensor, places: Places | None) -> torch.Tensor:
        """(B, N, D) projected tiles of some images -> (1, tokens of all of them, D), newlines among them.

        `places`: as `tiling.places` gives them for the images' sizes; without any the tiles stay as they are.
        """
        if places is None:
            return projected
        assert self.newline is not None
        rows = torch.cat([projected.flatten(0, 1), self.newline[None].to(projected)])
        return places.to(rows.device).take(rows)[None]

    def image_inputs(self, rows: Iterable[torch.Tensor]) -> dict[str, BaseModelOutputWithPooling]:
        """(n, D) rows in the order of their tokens as transformers' `mm_encoder_outputs`, which replaces `pixel_values`
        in `forward`."""
        return {"image": BaseModelOutputWithPooling(pooler_output=list(rows))}

    def mode_among(self, count: int) -> ImageMode | AnyResMode:
        """How each of so many pictures of one conversation is shown."""
        mode = self.image_mode
        several = mode.beside if isinstance(mode, AnyResMode) and count > 1 else None
        return several or mode

    def show(self, picture: Picture | Film, among: int = 1) -> Shown:
        """A picture or a video as the tower sees it, as one of so many of its conversation.

        Raises `ImageError` for a video that cannot be read, `ModelError` where the model reads none.
        """
        if not isinstance(picture, Film):
            return Shown(self.mode_among(among).tiles(picture), self.tiling.seen(picture.size, among))
        if not isinstance(self.image_mode, AnyResMode) or not self.tiling.frames:
            raise ModelError("a video", found="a model that reads pictures", expected="a LLaVA-NeXT-Video or OneVision")
        frames = picture.frames(self.tiling.frames)
        return Shown(self.image_mode.frames(frames), film_size(len(frames)))

    def look(self, shown: Sequence[Shown]) -> list[torch.Tensor]:
        """(tokens, D) of each picture: through tower and projector, and in the order the language model reads them."""
        sizes = [one.size for one in shown]
        features = self.tower_features(torch.cat([one.tiles for one in shown]))
        each = self.project(self.gather(features, sizes)).split(list(map(self.tiling.tiles, sizes)))
        return [self.arrange(tiles, self.tiling.places([one.size]))[0] for one, tiles in zip(shown, each, strict=True)]

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision: float32 weights (trainable ones are) compute in `dtype`. Does nothing for float32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @property
    def _tower_dtype(self) -> torch.dtype:
        return next(self.tower.parameters()).dtype


def _weights(part: torch.nn.Module) -> int:
    """How many there are; those held in 4 bits lie two to a byte."""
    states = [(one, getattr(one, "quant_state", None)) for one in part.parameters()]
    return sum(one.numel() if state is None else state.shape.numel() for one, state in states)


def build(spec: ModelSpec, *, template: str | Template, image_mode: str, seed: int = 0) -> Llava:
    """A LLaVA with a fresh projector from any CLIP or SigLIP tower and any Llama-, Mistral- or Qwen-type model.

    With `spec.checkpoint` an existing LLaVA is loaded instead. The recorded `spec` has the keys `vision` and
    `language` (or `llava`): the sources; `projector`, `vision_layer`, `vision_select`, `load`, `dtype`, `seed`,
    `template`, `image_mode`, `image_settings`, `pinpoints` (the grids of a LLaVA-NeXT, each [height, width]),
    `vocabulary` (tokens, rows before and after), and `trained`: the parts besides projector and adapter that left their
    base.
    Raises `ModelError` where the parts do not fit together.
    """
    if not hasattr(spec, "checkpoint"):
        raise ModelError("model", found=kind_of(spec), expected="a ModelSpec, such as a recipe's `model`")
    if spec.checkpoint is not None:
        from workbench.model.checkpoint import check_trainable  # builds on this module, as in `load`

        check_trainable(spec.checkpoint)
        loaded = load(
            spec.checkpoint,
            load=spec.load,
            dtype=spec.dtype,
            device=spec.device,
            template=template,
            image_mode=image_mode,
        )
        return _take_projector(loaded, spec.projector_from)
    record: dict[str, Any] = {
        "vision": full_name(str(spec.vision)),
        "language": full_name(str(spec.language)),
        "projector": spec.projector,
        "vision_layer": spec.vision_layer,
        "vision_select": spec.vision_select,
        "load": spec.load,
        "dtype": spec.dtype,
        "seed": seed,
        "image_mode": image_mode,
        "trained": [],
    }
    folders = resolve_parts({part: record[part] for part in ("vision", "language")})
    return _take_projector(assemble(record, folders, template=template, device=spec.device), spec.projector_from)


def load(
    source: str | Path,
    *,
    load: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    template: str | Template | None = None,
    image_mode: str | None = None,
) -> Llava:
    """A LLaVA from a Hugging Face LLaVA folder or Hub name, LLaVA's own layout, a checkpoint of ours, or a run folder.

    What a folder is follows from its content. `load=None` means as it was saved (float32 for a Hugging Face folder).
    A checkpoint trained on a quantised base and loaded as `fp32`, `bf16` or `fp16` gets that base dequantised: the
    numbers it was trained on. Raises `CheckpointError` for missing, changed, misshapen or surplus tensors.

    >>> wb.load("runs/align")
    Llava(tiny + tiny, fp32, cpu)
    """
    from workbench.model.checkpoint import load_any  # checkpoint.py builds on this module

    return load_any(source, load=load, dtype=dtype, device=device, template=template, image_mode=image_mode)


def assemble(
    record: dict[str, Any],
    folders: dict[str, Path],
    *,
    template: str | Template,
    device: str = "auto",
    read: tuple[Callable[..., PreTrainedModel], Callable[..., PreTrainedModel]] = (load_tower, load_language),
    tokens: Sequence[str] = (),
) -> Llava:
    """Put a tower and a language model from these folders together, as `record` says. No weight exists twice.

    `read`: what makes them of their folders. `tokens`: what the tokenizer has to know besides, before `<image>`.
    """
    place = pick_device(device)
    held, dtype = pick_dtypes(record["load"], record["dtype"], place)
    tower = read[0](folders["vision"], held, place)
    language = read[1](folders["language"], record["load"], held, place)
    tokenizer = load_tokenizer(folders.get("tokenizer", folders["language"]))
    if new := [token for token in tokens if token not in tokenizer.get_vocab()]:
        tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    marks = (IMAGE_TOKEN, VIDEO_TOKEN) if reads_videos(record["image_mode"]) else (IMAGE_TOKEN,)
    vocabulary = add_media_tokens(language, tokenizer, marks)
    config = llava_config(record, tower, language, *tokenizer.convert_tokens_to_ids(marks))
    with torch.device("meta"):
        model = CLASSES[config.model_type](config)
    if type(model.model.language_model) is not type(language.model):
        raise ModelError(record["language"], found=type(language).__name__, expected="a Llava-compatible causal LM")
    model.model.vision_tower, model.model.language_model, model.lm_head = tower, language.model, language.lm_head
    model.model.multi_modal_projector = fresh_projector(config, record["seed"]).to(place, held)
    if hasattr(model.model, "image_newline"):
        model.model.image_newline = nn.Parameter(fresh_newline(config, record["seed"]).to(place, held))
    model.generation_config = language.generation_config
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # peft chooses its layers by these
        setattr(model, flag, getattr(language, flag, False))
    model.requires_grad_(False).eval()
    check_quantised(model, record["load"])
    settings = image_settings(folders["vision"], tower.config)
    kept = {part: folders[part] for part in ("vision", "language")}
    return finish(model, tokenizer, record | vocabulary, kept, settings, template, place, dtype)


def finish(
    model: AnyLlava,
    tokenizer: PreTrainedTokenizerBase,
    record: dict[str, Any],
    folders: dict[str, Path],
    settings: dict[str, Any],
    template: str | Template,
    device: torch.device,
    dtype: torch.dtype,
) -> Llava:
    """The last step of building and of loading: renderer and image mode beside the model."""
    keep_weights_readable(model)
    held = template if isinstance(template, Template) else load_template(template)
    mode = _image_mode(record["image_mode"], model, settings)
    renderer = Renderer(tokenizer, held, videos=reads_videos(mode.mode))
    if mode.side != model.config.vision_config.image_size:
        expected = f"{model.config.vision_config.image_size}, the vision tower's"
        raise ModelError("the image processor", found=f"images {mode.side} pixels wide", expected=expected)
    record = record | {"template": held.name, "dtype": dtype_name(dtype), "image_settings": settings}
    return Llava(model, tokenizer, renderer, mode, record, device, dtype, folders)


def _image_mode(mode: str, model: AnyLlava, settings: dict[str, Any]) -> ImageMode | AnyResMode:
    """The image mode of this name. Raises `ModelError` for one that the model was not made for."""
    tiling = tiling_of(model.config, frames_in(mode))
    if isinstance(tiling, AnyRes):
        if pictures_in(mode) == pictures_in(str(own_mode(model.config, tiling.frames))):
            return AnyResMode(tiling, settings)
        family, own = FAMILIES[model.config.model_type], str(own_mode(model.config))
        others = {"LLaVA-NeXT-Video": "another number", "LLaVA-OneVision": f"{own}_video_16 with another number"}
        expected = f"{own}, or {others[family]} of frames" if family in others else own
        found, fix = f"{mode!r} for a {family}", f"set image_mode: {own}"
        raise ModelError("image mode", found=found, expected=expected, fix=fix)
    if mode.startswith("anyres"):
        found, fix = f"{mode!r} for a LLaVA 1.5", "build a LLaVA-NeXT from its two parts"
        raise ModelError("image mode", found=found, expected=" or ".join(MODES), fix=fix)
    return ImageMode(mode, settings)


def _take_projector(llava: Llava, source: str | None) -> Llava:
    """Put the projector of another run or checkpoint into this model.

    One that was trained on whole squares brings no newline, and a fresh one stays: so is LLaVA-NeXT's stage 1.
    """
    if source is None:
        return llava
    from workbench.model.checkpoint import PREFIXES  # builds on this module, as in `load`
    from workbench.model.tensors import fill, named

    tensors = projector_for(llava, source)
    weights = named(llava.model, PREFIXES["projector"])
    if NEWLINE not in tensors:
        weights.pop(NEWLINE, None)
    fill(weights, tensors, where=f"projector_from {source}")
    llava.spec["projector_from"] = full_name(source)
    return llava


def projector_for(llava: Llava, source: str) -> dict[str, torch.Tensor]:
    """The projector of a run or checkpoint. Raises `ModelError` where there is none, or one of another kind."""
    from workbench.model.checkpoint import read_projector  # builds on this module, as in `load`

    kind, tensors = read_projector(source)
    if kind != llava.spec["projector"]:
        raise ModelError(f"projector_from {source}", found=f"a {kind} projector", expected=llava.spec["projector"])
    return tensors
