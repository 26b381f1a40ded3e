"""A DeepSpeed config beside a recipe: what of it is used, and where it contradicts the recipe, which decides.

Knows: the keys of a DeepSpeed config, the fields of a recipe that say the same, and what of ZeRO is not done here.
Does not know: DeepSpeed's own code (zero.py), tensors, processes.

Keys, defaults and the meaning of `auto` as in https://www.deepspeed.ai/docs/config-json and in transformers'
integration, so that one file serves both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from workbench.errors import MissingPackageError, TrainingError
from workbench.recipe import Recipe, TrainSpec
from workbench.training.distributed import asks_for_zero

AUTO = "auto"
PASSED = {
    "zero_optimization", "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "comms_logger", "dump_state",
    "communication_data_type",
}  # fmt: skip
"""What DeepSpeed is given as it stands."""
CHECKED = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "optimizer", "scheduler", "bf16", "fp16",
}  # fmt: skip
"""What the recipe says too."""
UNUSED = {"zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "activation_checkpointing"}
"""What may be there and has no effect: the optimiser is torch's AdamW, and `train.checkpointing` decides."""
SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
REFUSED = {
    "zero_quantized_weights": False, "zero_quantized_nontrainable_weights": False, "zero_quantized_gradients": False,
    "zenflow": None, "zero_hpz_partition_size": 1, "legacy_stage1": False,
}  # fmt: skip
"""Parts of `zero_optimization` that need compiled operators or lay weights out in another way, and their off values."""


def zero_config(recipe: Recipe) -> dict[str, Any] | None:
    """The DeepSpeed config of the recipe, or else of `accelerate launch`, as it was written; None without one.

    Raises `TrainingError` for a config that contradicts the recipe or asks for what is not done here,
    `MissingPackageError` where DeepSpeed is not installed.
    """
    spec, asked = recipe.train, asks_for_zero() if recipe.train.deepspeed is None else recipe.train.deepspeed
    if asked is None:
        return None
    if spec.shard:
        raise _refused("train.shard: true beside it", "one way to cut the model", "set train.shard: false")
    _check_numbers(asked, spec)
    for key in asked.keys() - PASSED - UNUSED - CHECKED:
        raise _refused(key, "ZeRO alone: the recipe decides the rest", f"delete {key}")
    _check_zero(_section(asked, "zero_optimization"))
    if find_spec("deepspeed") is None:
        fix = "pip install 'llava-workbench[deepspeed]', or use train.shard: true (FSDP2), which needs no package"
        raise MissingPackageError("train.deepspeed", found="no package deepspeed", fix=fix)
    return asked


def passed(config: Mapping[str, Any], *, hidden: int, clip: float | None) -> dict[str, Any]:
    """What DeepSpeed itself is given. `hidden`: width of the language model, from which sizes that are `auto` follow.

    A pack is as large as it is: one of them counts as one sample, and a step has as many as it needs.
    """
    zero = dict(config["zero_optimization"])
    sizes = {
        "reduce_bucket_size": hidden * hidden,
        "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden),
        "stage3_param_persistence_threshold": 10 * hidden,
    }  # as transformers has them
    zero = {key: sizes.get(key) if value == AUTO else value for key, value in zero.items()}
    if zero["stage"] == 1:  # where there is nothing to send before the step
        zero["overlap_comm"] = False
    own = {
        "zero_optimization": {key: value for key, value in zero.items() if value is not None},
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": clip or 0.0,
        "zero_force_ds_cpu_optimizer": False,
    }
    return {"steps_per_print": None} | {key: value for key, value in config.items() if key in PASSED} | own


def check_format(config: Mapping[str, Any], computed: str) -> None:
    """Raise `TrainingError` where the config asks for another number format than the model computes in, or for fp16."""
    if computed == "fp16":
        fix = "use model.dtype: bf16, or train.shard: true (FSDP2)"
        raise _refused("fp16", "bf16 or fp32: DeepSpeed scales losses in a way of its own", fix)
    for name in ("bf16", "fp16"):
        enabled = _section(config, name).get("enabled", AUTO)
        if enabled not in (AUTO, name == computed):
            fix = f"set it to auto, or --set model.dtype={name if enabled else 'auto'}"
            raise _refused(f"{name}.enabled: {str(enabled).lower()}", f"{computed}, as the recipe has it", fix)


def _check_numbers(asked: Mapping[str, Any], spec: TrainSpec) -> None:
    """What both say is the same, or `auto`."""
    for key, value, wanted, field in _both(asked, spec):
        if value != AUTO and value != wanted:
            fix = f"set it to auto, or delete it{f', or change {field}' if field else ''}"
            expected = f"{wanted}, as {field} has it" if field else f"{wanted}"
            raise _refused(f"{key}: {value}", expected, fix)


def _both(asked: Mapping[str, Any], spec: TrainSpec) -> Iterator[tuple[str, Any, Any, str]]:
    """(key, what the config says, what the recipe says, the recipe's field) of what both can say."""
    packs = "auto, as a pack of train.pack_tokens is what goes through the model at once"
    optimizer, scheduler = _section(asked, "optimizer"), _section(asked, "scheduler")
    rates, kind = _section(optimizer, "params"), scheduler.get("type", AUTO)
    settings = {
        "lr": (spec.lr, "train.lr"),
        "betas": (list(spec.betas), "train.betas"),
        "weight_decay": (spec.weight_decay, "train.weight_decay"),
        "eps": (1e-8, ""),
    }
    yield "train_batch_size", asked.get("train_batch_size", AUTO), spec.batch_size, "train.batch_size"
    yield "train_micro_batch_size_per_gpu", asked.get("train_micro_batch_size_per_gpu", AUTO), packs, ""
    steps = asked.get("gradient_accumulation_steps", AUTO)
    yield "gradient_accumulation_steps", AUTO if steps == 1 else steps, packs, ""  # accelerate writes 1 unasked
    yield "gradient_clipping", asked.get("gradient_clipping", AUTO), spec.clip or 0.0, "train.clip"
    yield "optimizer.type", optimizer.get("type", AUTO), "AdamW", ""
    for name, value in rates.items():
        wanted, field = settings.get(name, ("nothing: the optimiser is torch's AdamW", ""))
        yield f"optimizer.params.{name}", value, wanted, field
    yield "scheduler.type", SCHEDULES.get(kind, kind), spec.schedule, "train.schedule"
    for name, value in _section(scheduler, "params").items():
        yield f"scheduler.params.{name}", value, "auto: rates rise and fall as train.warmup and train.schedule say", ""


def _check_zero(zero: Mapping[str, Any]) -> None:
    stage = zero.get("stage")
    if stage not in (1, 2, 3):
        found = "no zero_optimization.stage" if stage is None else f"zero_optimization.stage: {stage}"
        raise _refused(found, "1, 2 or 3", "set it; without train.deepspeed each process holds all")
    for key, off in REFUSED.items():
        if zero.get(key, off) != off:
            raise _refused(f"zero_optimization.{key}", "plain ZeRO", f"delete {key}")
    for part, least in (("offload_optimizer", 1), ("offload_param", 3)):
        offload = _section(zero, part)
        device = offload.get("device") or "none"
        if device == "nvme":
            found, fix = f"zero_optimization.{part}.device: nvme", "use cpu"
            raise _refused(found, "cpu or none: reading from NVMe needs the operator async_io compiled", fix)
        if device == "cpu" and stage < least:
            raise _refused(f"zero_optimization.{part} in stage {stage}", "stage 3, which cuts weights", "set stage 3")
        if offload.get("super_offload"):
            raise _refused(f"zero_optimization.{part}.super_offload", "plain ZeRO", "delete it")


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    held = config.get(key) or {}
    if not isinstance(held, Mapping):
        raise _refused(f"{key}: {held!r}", "an object", f"see {key} in DeepSpeed's documentation")
    return held


def _refused(found: str, expected: str, fix: str) -> TrainingError:
    return TrainingError("train.deepspeed", found=found, expected=expected, fix=fix)
