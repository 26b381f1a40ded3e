"""A LLaVA without its weights: the very model a recipe builds, of which only the shapes exist.

Knows: that configurations and tokenizers are enough to count parameters, to place adapters and to follow the memory of
a step; which few small files of a Hub repository that takes. Tensors are torch's fake ones: each has a shape, a type
and a device, and operations on them give what they would give, in no memory.
Does not know: what is done with it (`training/memory.py`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode, unset_fake_temporarily
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from workbench.errors import CheckpointError, ModelError
from workbench.model import hf_folder
from workbench.model.checkpoint import MANIFEST, check_trainable, read_manifest
from workbench.model.joint import CLASSES, AnyLlava
from workbench.model.llava import Llava, assemble
from workbench.model.lora import attach_config
from workbench.model.parts import language_config, quietly, read_config, tower_config
from workbench.model.precision import is_quantised, quantisation
from workbench.model.sources import full_name, local, small_files
from workbench.model.templates import Template
from workbench.model.tokenizers import FILES

if TYPE_CHECKING:
    from workbench.recipe import ModelSpec

UNCHECKED = "TRANSFORMERS_DISABLE_TORCH_CHECK"
SETTINGS = ["*.json", "*.yaml", *FILES]
"""What is downloaded of a repository: settings and tokenizers, no weights."""


class Outline:
    """A model of shapes. Whatever is done with it is done inside `with outline.shapes():`, and is of shapes, too."""

    llava: Llava

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def shapes(self) -> Iterator[None]:
        swap, checked = torch.utils.swap_tensors, os.environ.get(UNCHECKED)
        torch.utils.swap_tensors = _take_over  # how `Module.to` changes shapes; it refuses those the mode knows of
        os.environ[UNCHECKED] = "1"  # transformers counts image tokens in values, which shapes have not
        try:
            with self.mode, quietly(0):
                yield
        finally:
            torch.utils.swap_tensors = swap
            os.environ.pop(UNCHECKED) if checked is None else os.environ.update({UNCHECKED: checked})


def _take_over(parameter: nn.Parameter, moved: torch.Tensor) -> None:
    parameter.data = moved.data


def outline(spec: ModelSpec, *, template: str | Template, image_mode: str) -> Outline:
    """What `llava.build` makes of the same arguments, without reading a weight.

    Raises `ModelError` as `build` does for whatever can be seen from configurations and tokenizers.
    """
    made = Outline()
    if spec.checkpoint is not None:
        check_trainable(spec.checkpoint)
    options = {"template": template, "image_mode": image_mode, "load": spec.load, "dtype": spec.dtype}
    with made.shapes():
        made.llava = (
            _of_parts(spec, template, image_mode)
            if spec.checkpoint is None
            else _of_folder(_settings(spec.checkpoint), spec.checkpoint, spec.device, **options)
        )
    return made


def outline_of(llava: Llava) -> Outline:
    """The shapes of a model that is already there."""
    made = Outline()
    with FakeCopyMode(made.mode):
        made.llava = copy.copy(llava)
        made.llava.model = copy.deepcopy(llava.model)
        made.llava.spec = copy.deepcopy(llava.spec)
    return made


def _of_parts(spec: ModelSpec, template: str | Template, image_mode: str) -> Llava:
    sources = {"vision": str(spec.vision), "language": str(spec.language)}
    record: dict[str, Any] = {part: full_name(source) for part, source in sources.items()}
    record |= {key: getattr(spec, key) for key in ("projector", "vision_layer", "vision_select", "load", "dtype")}
    record |= {"seed": 0, "image_mode": image_mode, "trained": []}
    folders = {part: _settings(source, part) for part, source in sources.items()}
    return assemble(record, folders, template=template, device=spec.device, read=(_tower, _language))


def _of_folder(folder: Path, source: str, device: str, **options: Any) -> Llava:
    """A run, a checkpoint of ours with its adapter, or a Hugging Face LLaVA."""
    if (folder / "run.json").is_file():
        folder = folder / "checkpoints" / "best"
    if not (folder / MANIFEST).is_file():
        return hf_folder.load_folder(folder, source=source, device=device, read=_llava, **options)
    manifest = read_manifest(folder)
    folders = {part: _base(folder, part, held) for part, held in manifest["base"].items()}
    if "llava" in folders:
        llava = hf_folder.load_folder(folders["llava"], source=source, device=device, read=_llava, **options)
    else:
        folders["tokenizer"] = folder / "tokenizer"
        template, record = options.pop("template"), manifest["spec"] | options
        llava = assemble(record, folders, template=template, device=device, read=(_tower, _language))
    if (folder / "adapter").is_dir():
        attach_config(llava, LoraConfig.from_pretrained(str(folder / "adapter")))
    return llava


def _base(folder: Path, part: str, held: dict[str, Any]) -> Path:
    if held["copied"]:
        return folder / "base" / part
    try:
        return _settings(held["source"], part)
    except ModelError as error:
        raise CheckpointError(str(folder), found=f"no base at {held['source']}") from error


def _settings(source: str, part: str = "") -> Path:
    """The folder of a source, or of its few small files on the Hub."""
    return local(source, part) or small_files(source, SETTINGS)


def _tower(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """`parts.load_tower`, of shapes."""
    return _undrawn(AutoModel.from_config, tower_config(folder), dtype).to(device)


def _language(folder: Path, load: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """`parts.load_language`, of shapes."""
    model = _undrawn(AutoModelForCausalLM.from_config, language_config(folder), dtype)
    return _quantised(model, load, dtype, inside_llava=False).to(device)


def _llava(folder: Path, load: str, dtype: torch.dtype, device: torch.device) -> AnyLlava:
    """`hf_folder.load_model`, of shapes."""
    config = read_config(folder)
    model = _undrawn(CLASSES[config.model_type]._from_config, config, dtype)
    return _quantised(model, load, dtype, inside_llava=True).to(device).requires_grad_(False).eval()


def _undrawn(make: Callable[..., Any], config: Any, dtype: torch.dtype) -> Any:
    """A model whose weights are not drawn: some ways to draw them (SigLIP's) look at the numbers."""
    with no_init_weights():
        model = make(config, dtype=dtype)
    model.tie_weights()  # left out with the drawing
    return model


def _quantised(model: Any, load: str, dtype: torch.dtype, *, inside_llava: bool) -> Any:
    """The linears that are held in 4 or 8 bits, held so."""
    settings = quantisation(load, dtype, inside_llava=inside_llava)
    if settings is None:
        return model
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    sizes = {name: each.weight.shape for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    with unset_fake_temporarily():  # bitsandbytes' own parameters cannot be shapes
        replace_with_bnb_linear(model, settings.llm_int8_skip_modules, settings)
    for name, shape in sizes.items():
        linear = model.get_submodule(name)
        if is_quantised(linear):
            linear.weight, linear.bias = _packed(load, shape), None
            linear.forward = partial(_multiply, linear, shape)
    setattr(model, f"is_loaded_in_{load}", True)
    return model


def _packed(load: str, shape: torch.Size) -> nn.Parameter:
    """The bytes of a quantised weight with its statistics: of NF4 a byte per 64 numbers and a float per 256 of those
    bytes, of int8 a float per row."""
    numbers = shape.numel()
    size = numbers // 2 + numbers // 64 + numbers // 4096 if load == "4bit" else numbers + 4 * shape[0]
    packed = nn.Parameter(torch.empty(size, dtype=torch.uint8), requires_grad=False)
    packed.compress_statistics, packed.quant_type = True, "nf4"  # type: ignore[attr-defined]
    return packed


def _multiply(linear: Any, shape: torch.Size, x: torch.Tensor) -> torch.Tensor:
    """A quantised linear's forward."""
    computed = getattr(linear, "compute_dtype", None) or x.dtype
    return _Quantised.apply(x.to(computed), linear.weight, shape).to(x.dtype)


class _Quantised(torch.autograd.Function):
    """What bitsandbytes does in memory: the weight is made whole for a moment, forward and backward, and not kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        ctx.packed, ctx.shape = packed, shape
        return nn.functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grad @ grad.new_empty(ctx.shape), None, None
