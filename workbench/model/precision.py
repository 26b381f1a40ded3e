"""The number formats a model is held in, and which of its linears may be quantised.

Knows: what `fp32`, `bf16`, `fp16`, `8bit` and `4bit` mean for loading, where quantised modules must and must not be,
and how to turn a quantised linear back into the floating-point numbers it stands for.
Does not know: where weights come from, LoRA, checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from workbench.errors import ModelError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUANTISED = ("8bit", "4bit")
LANGUAGE = "model.language_model."
"""Where the language model's modules live inside transformers' LLaVA; its head and all else is outside."""


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is the current CUDA device if there is one, else another accelerator, else the CPU.

    Raises `ModelError` for a device that this machine, or this torch, does not have.
    """
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:  # torch says it in either way
            told = f"{device!r} ({str(error).splitlines()[0]})"
            raise ModelError("device", found=told, expected="a device of this machine", fix="use auto or cpu") from None
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def pick_dtypes(load: str, dtype: str, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """(held, computed): the type of the weights that are not quantised, and of the computation.

    `dtype="auto"` computes in the type of `load`; beside quantised weights it is bfloat16 on CUDA devices that have
    it, else float32. Raises `ModelError` for an unknown name, or a computation finer than the weights.
    """
    for name, found, known in (("load", load, (*DTYPES, *QUANTISED)), ("dtype", dtype, ("auto", *DTYPES))):
        if found not in known:
            raise ModelError(name, found=repr(found), expected=", ".join(known))
    if load in QUANTISED:
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        computed = DTYPES.get(dtype, torch.bfloat16 if half else torch.float32)
        return computed, computed
    held = DTYPES[load]
    computed = DTYPES.get(dtype, held)
    if held != torch.float32 and computed != held:
        raise ModelError("dtype", found=f"{dtype} over {load} weights", expected=f"{load} or auto", fix="or load: fp32")
    return held, computed


def dtype_name(dtype: torch.dtype) -> str:
    """The recipe's name of a floating-point type."""
    return next(name for name, held in DTYPES.items() if held == dtype)


def quantisation(load: str, dtype: torch.dtype, *, inside_llava: bool) -> BitsAndBytesConfig | None:
    """How transformers is told to quantise the language model's linears only; None for a floating-point load.

    Inside a whole LLaVA the names to skip need the `model.` prefix: without it they match nothing, in silence.
    """
    if load not in QUANTISED:
        return None
    from transformers import BitsAndBytesConfig

    # bitsandbytes announces on every forward that 8-bit products are made in half precision
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    skip = ["lm_head", "model.vision_tower", "model.multi_modal_projector"] if inside_llava else ["lm_head"]
    if load == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )


def let_go_of_file(model: nn.Module, load: str) -> None:
    """Copy what is left in floating point out of the weight file, of which every page would stay in memory otherwise,
    those of the numbers before they were quantised too."""
    if load in QUANTISED:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu" and tensor.is_floating_point():
                tensor.data = tensor.data.clone()


def hold_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold every parameter in this type. Buffers stay: rounded frequencies would turn far-off tokens elsewhere."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def is_quantised(module: nn.Module) -> bool:
    """Whether this very module holds 4-bit or 8-bit weights of bitsandbytes."""
    kind = type(module)  # by name: bitsandbytes need not be importable for a floating-point model
    return kind.__module__.startswith("bitsandbytes.") and kind.__name__ in ("Linear4bit", "Linear8bitLt")


def check_quantised(model: PreTrainedModel, load: str) -> int:
    """Walk the modules and return how many linears are quantised, else raise `ModelError`.

    All linears of the language model are quantised when `load` says so; nothing else ever is.
    """
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linears:
        wanted = load in QUANTISED and name.startswith(LANGUAGE) and ".lora_" not in name
        if is_quantised(module) != wanted:
            found = "floating-point weights" if wanted else "quantised weights"
            raise ModelError(name, found=found, expected=f"{load}: quantised linears in the language model only")
    count = sum(is_quantised(module) for _, module in linears)
    if load in QUANTISED and not count:
        raise ModelError("the language model", found="no linear layer that could be quantised", expected=load)
    return count


def keep_weights_readable(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16 when they first answer.

    The repacked layout has no backward pass, its way back rounds the block scales, and making it fails for a linear
    whose width is not a multiple of the block size. Without it every CPU computes from the same numbers.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def dequantised_weight(linear: nn.Module) -> torch.Tensor:
    """The numbers a linear stands for, (out, in): dequantised, or the weight itself if it is not quantised."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    if not is_quantised(linear):
        return linear.weight.data
    return dequantize_bnb_weight(linear.weight, getattr(linear, "state", None))


def plain_linear(weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> nn.Linear:
    """An ordinary frozen `nn.Linear` around these numbers, on their device."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.data.to(dtype), requires_grad=False)
    return linear


def dequantise(
    model: PreTrainedModel, dtype: torch.dtype, original: Callable[[str], torch.Tensor] | None = None
) -> int:
    """Replace every quantised linear by an ordinary one, in place; returns how many.

    It holds the numbers the quantised one stood for, or those that `original` gives for its name.
    """
    found = [(name, module) for name, module in model.named_modules() if is_quantised(module)]
    for name, module in found:
        weight = dequantised_weight(module) if original is None else original(name).to(module.weight.device)
        model.set_submodule(name, plain_linear(weight, module.bias, dtype))
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        setattr(model, flag, False)
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    return len(found)
