"""LoRA adapters: where they land, how they are attached, and how they are merged away again.

Knows: the anchored name patterns that keep LoRA on the part it is meant for, peft's adapter tensors and their names
in a file, and merging onto the base the adapter was trained on or onto the original weights.
Does not know: learning rates, folders' layout, what is exported.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from workbench.errors import ModelError
from workbench.model.parts import load_language
from workbench.model.precision import LANGUAGE, dequantise, dequantised_weight, dtype_name, plain_linear

if TYPE_CHECKING:
    from workbench.model.llava import Llava
    from workbench.recipe import LoraSpec

VISION = "model.vision_tower."
TOWER_NAMES = {"o_proj": "out_proj", "up_proj": "fc1", "down_proj": "fc2"}
"""A language model's name of a linear -> the tower's name of the same, so that one list of targets serves both."""
ADAPTER = "default"
FILE_PREFIX = "base_model.model."
"""What peft puts before a module's name in an adapter file."""


def used_layers(llava: Llava) -> int:
    """How many of the tower's layers the chosen hidden state passes through; later ones are computed for nothing."""
    config = llava.model.config
    return config.vision_feature_layer % (config.vision_config.num_hidden_layers + 1)


def target_pattern(llava: Llava, targets: Mapping[str, list[str]]) -> str:
    """One pattern for peft, matched against whole module names; `targets`: part -> last names of its linears.

    A bare list of names such as `q_proj` would put LoRA on the vision tower too, whose linears have the same names.
    """
    patterns = []
    if "language" in targets:
        patterns.append(rf"{re.escape(LANGUAGE)}.*\.({'|'.join(map(re.escape, targets['language']))})")
    if "vision" in targets:
        layers = "|".join(map(str, range(used_layers(llava))))
        names = "|".join(map(re.escape, targets["vision"]))
        patterns.append(rf"{re.escape(VISION)}encoder\.layers\.({layers})\.(?:.*\.)?({names})")
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def attach(llava: Llava, lora: LoraSpec, *, language: bool = True, vision: bool = False, seed: int = 0) -> None:
    """Put fresh float32 adapters on the language model's linears, and on the tower's only if `vision`.

    An adapter that is already there and has the same settings is kept and goes on training. Raises `ModelError`
    for a name that no linear has, or if another adapter is attached.
    """
    targets = {"language": list(lora.targets)} if language else {}
    if vision:
        targets["vision"] = [TOWER_NAMES.get(name, name) for name in lora.targets]
    for part, names in targets.items():
        if not _matches(llava, target_pattern(llava, {part: names})):
            found = f"no linear of the {part} part named {', '.join(names)}"
            raise ModelError("lora.targets", found=found, expected=_linears(llava))
    for name in lora.targets:  # one list serves both parts, of which the tower has no gate_proj
        every = {"language": [name], "vision": [TOWER_NAMES.get(name, name)]}
        if not _matches(llava, target_pattern(llava, every)):
            raise _no_linear(name, _linears(llava))
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=target_pattern(llava, targets)
    )
    if not has_adapter(llava.model):
        attach_config(llava, config, seed=seed)
    held = llava.model.peft_config[ADAPTER]
    for name in ("r", "lora_alpha", "lora_dropout", "target_modules"):
        if getattr(held, name) != getattr(config, name):
            raise ModelError(
                f"the attached adapter's {name}",
                found=repr(getattr(held, name)),
                expected=repr(getattr(config, name)),
                fix="keep the settings, or export the run merged and start from that folder",
            )
    _check_places(llava, set(targets))


def attach_config(llava: Llava, config: LoraConfig, *, seed: int = 0, name: str = ADAPTER) -> None:
    """Inject the adapters a peft configuration describes, in float32, without moving any other random state.

    name: beside others that are there.
    """
    model = llava.model
    if not _matches(llava, str(config.target_modules)):
        raise ModelError("the adapter", found="no module in this model that it fits", expected="the base it came from")
    devices = [llava.device] if llava.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are meant
        inject_adapter_in_model(config, model, adapter_name=name)
    for tensor in adapter_parameters(model, name).values():
        tensor.data = tensor.data.float()
    model.requires_grad_(False).eval()


def has_adapter(model: nn.Module) -> bool:
    return bool(getattr(model, "peft_config", None))


def adapted(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, LoraLayer]]:
    """The modules that carry an adapter, under a name prefix."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and name.startswith(prefix):
            yield name, module


def adapter_parameters(model: nn.Module, adapter: str = ADAPTER) -> dict[str, nn.Parameter]:
    """The adapter's parameters under the names peft gives them in a file, so that vanilla peft loads the file."""
    mark = f".{adapter}."
    return {
        FILE_PREFIX + name.replace(mark, "."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name and mark in name
    }


@torch.no_grad()
def merge_into(llava: Llava, base: str = "nf4") -> Llava:
    """Merge the adapter into the weights, in place; every linear is an ordinary one afterwards. Returns `llava`.

    `base="nf4"` keeps the base the adapter was trained on: a quantised one is dequantised, so the logits stay equal
    within rounding. `base="original"` takes the weights as they were before quantisation: better numbers that the
    adapter never met, so the answers may change. Sums are made in float32 and held in the base's type.
    """
    if base not in ("nf4", "original"):
        raise ModelError("base", found=repr(base), expected="nf4 or original")
    quantised = llava.spec["load"] in ("4bit", "8bit")
    original = _originals(llava) if base == "original" and quantised else None
    vision = next(adapted(llava.model, VISION), None) is not None
    for name, module in list(adapted(llava.model)):
        linear = module.get_base_layer()
        held = dequantised_weight(linear) if original is None or not name.startswith(LANGUAGE) else original(name)
        summed = held.float() + module.get_delta_weight(ADAPTER).float()
        llava.model.set_submodule(name, plain_linear(summed.to(llava.device), linear.bias, llava.held))
    dequantise(llava.model, llava.held, original)
    if has_adapter(llava.model):
        del llava.model.peft_config
    parts = {"language"} | ({"vision"} if vision else set())
    llava.spec.pop("quantised_as", None)
    llava.spec |= {"load": dtype_name(llava.held), "merged": base, "trained": sorted(parts | {*llava.spec["trained"]})}
    return llava


def _originals(llava: Llava) -> Callable[[str], torch.Tensor]:
    """Module name inside LLaVA -> the weight its base had before it was quantised, on the CPU."""
    cpu = torch.device("cpu")
    if "llava" in llava.folders:
        from workbench.model.hf_folder import load_model  # a whole LLaVA was the base; that module builds on llava.py

        whole = load_model(llava.folders["llava"], "fp32", llava.held, cpu)
        return lambda name: whole.get_submodule(name).weight
    model = load_language(llava.folders["language"], "fp32", llava.held, cpu).model
    return lambda name: model.get_submodule(name.removeprefix(LANGUAGE)).weight


def _matches(llava: Llava, pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name, _ in llava.model.named_modules())


def _linears(llava: Llava) -> str:
    """The last names of the language model's linears, each once."""
    linears = [name for name, module in llava.model.named_modules() if isinstance(module, (nn.Linear, LoraLayer))]
    return " or ".join(dict.fromkeys(name.rpartition(".")[2] for name in linears if name.startswith(LANGUAGE)))


def _no_linear(name: str, known: str) -> ModelError:
    near = difflib.get_close_matches(name, known.split(" or "), 1)
    fix = f"did you mean {near[0]}?" if near else ""
    return ModelError("lora.targets", found=f"no linear named {name!r}", expected=known, fix=fix)


def _check_places(llava: Llava, wanted: set[str]) -> None:
    """Count the adapters of each part; raise `ModelError` for a part without any, or with any it must not have."""
    for part, prefix in (("language", LANGUAGE), ("vision", VISION)):
        count = sum(1 for _ in adapted(llava.model, prefix))
        if bool(count) != (part in wanted):
            raise ModelError(
                f"LoRA on the {part} part", found=f"{count} adapters", expected=f"some on {sorted(wanted)}"
            )
