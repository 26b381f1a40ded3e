"""A typed recipe: what to train, from what, on what, and how.

Knows: every field with its effect and unit, and which fields exclude each other.
Does not know: YAML (`recipe_yaml`), tensors, or how any of it is carried out.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from workbench import resources
from workbench.errors import RecipeError, kind_of
from workbench.recipe_yaml import OF_PARTS, PARTS, apply_overrides, explain, is_file, read_json, read_yaml, to_yaml
from workbench.resources import expanded

Trains = Literal["frozen", "lora", "full"]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
PACK = 2048
"""Tokens of a pack where a recipe leaves them out."""
FITTED = ("pack_tokens", "checkpointing", "feature_cache")
"""The fields of `train` that `train.fit` chooses."""
FREE = frozenset(
    ("name", "data.images", *(f"train.{name}" for name in (
        "allocator", "answers_every", "checkpointing", "feature_cache_gb", "keep_last", "log_every", "memory_gb",
        "pack_tokens", "save_every", "threads", "trackers",
    )))
)  # fmt: skip
"""Fields that do not decide what is learned (beyond the last digit): a run may go on with others."""
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Strict and frozen: an unknown key or a wrong type is refused, and a recipe never changes under a run.

    A number is a finite one: no infinity, and no NaN.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class ModelSpec(Section):
    """Which model: an existing LLaVA (`checkpoint`), or two parts (`vision`, `language`) joined by a new projector."""

    checkpoint: str | None = None
    """An existing LLaVA: a folder, a run folder, or a name on the Hub. Excludes `vision` and `language`."""
    vision: str | None = None
    """A CLIP or SigLIP tower: `tiny`, a folder, or a name on the Hub."""
    language: str | None = None
    """A Llama, Mistral or Qwen type language model and its tokenizer: `tiny`, a folder, or a name on the Hub."""
    projector: Literal["linear", "mlp2x_gelu"] = "mlp2x_gelu"
    """Shape of a new projector: one linear layer (LLaVA 1) or linear, GELU, linear (LLaVA 1.5). A checkpoint has its
    own."""
    projector_from: str | None = None
    """A run folder or checkpoint whose trained projector is taken instead of a fresh one."""
    load: Literal["fp32", "bf16", "fp16", "8bit", "4bit"] = "fp32"
    """Number format of the stored weights. 8bit and 4bit (NF4, double quantisation) are for the language model's
    linear layers only; tower, projector and head stay in floating point."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the computation (mixed precision). auto: that of `load`, and for quantised weights bf16 on CUDA
    devices that have it, else fp32."""
    vision_layer: int = -2
    """Which hidden state of the tower is projected, counted from the end: -2 is the last but one layer. A checkpoint
    has its own."""
    vision_select: Literal["default", "full"] = "default"
    """default drops the tower's class token, full keeps it. A checkpoint has its own."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps or xpu. auto: the first accelerator, else the CPU."""

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|xpu|cuda(:\d+)?", value):
            raise ValueError("auto, cpu, cuda, cuda:1, mps or xpu")
        return value

    @model_validator(mode="after")
    def _parts_or_checkpoint(self) -> ModelSpec:
        parts = [key for key in ("vision", "language") if getattr(self, key)]
        if self.checkpoint and parts:
            found = f"checkpoint and {' and '.join(parts)}"
            raise RecipeError("model", found=found, expected="a checkpoint, or vision and language")
        if not self.checkpoint and len(parts) < 2:
            raise RecipeError(
                "model", found=parts[0] if parts else "neither", expected="a checkpoint, or vision and language"
            )
        return self

    @model_validator(mode="after")
    def _checkpoint_has_its_own(self) -> ModelSpec:
        """A recipe that a run wrote out says every field, also the parts that are null; nobody chose them there."""
        said = self.model_fields_set
        if not self.checkpoint or said.issuperset(PARTS):
            return self
        for key in OF_PARTS:
            value = getattr(self, key)
            if key in said and value != type(self).model_fields[key].default:
                found, fix = f"{key}: {value} with a checkpoint", "leave it out: the checkpoint has its own"
                raise RecipeError(f"model.{key}", found=found, expected="it only with vision and language", fix=fix)
        return self


class MixSpec(Section):
    """One more dataset in a training mixture, for example a general one against forgetting."""

    dataset: str
    """A dataset folder, or a LLaVA JSON or JSONL file."""
    images: str | None = None
    """Folder the image paths of a LLaVA JSON file start from. Only with such a file."""
    tasks: list[str] | None = None
    """Only conversations of these tasks; all when absent."""
    max_conversations: Count | None = None
    """At most so many training conversations, chosen by the seed, before `repeat` or `weight`; all when absent."""
    repeat: Positive | None = None
    """How often an epoch sees each of its conversations: 2 is twice, 0.25 a quarter of them, chosen by the seed. 1 when
    absent. Excludes `weight`."""
    weight: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Which share (0-1) of an epoch's conversations it makes up: 0.2 is every fifth. It is repeated, or a part is
    chosen by the seed, until that is so; the datasets without a weight keep their size. Excludes `repeat`."""

    @model_validator(mode="after")
    def _possible(self) -> MixSpec:
        _check_images("data.mix", self.dataset, self.images)
        if self.repeat is not None and self.weight is not None:
            raise RecipeError("data.mix", found=f"repeat and weight of {self.dataset!r}", expected="one of the two")
        return self


class DataSpec(Section):
    """Which conversations."""

    dataset: str
    """A dataset folder, or a LLaVA JSON or JSONL file."""
    images: str | None = None
    """Folder the image paths of a LLaVA JSON file start from. Only with such a file."""
    tasks: list[str] | None = None
    """Only conversations of these tasks, for example `[caption]`; all when absent."""
    videos: bool = True
    """false leaves out conversations about videos, here and in `mix`: for a model that reads pictures only."""
    val_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    """Share of conversations (0-0.5) kept for validation, by image, when the data has no validation split."""
    max_conversations: Count | None = None
    """At most so many training conversations, chosen by the seed; all when absent."""
    mix: list[MixSpec] = []
    """More datasets to train on together with `dataset`, which itself is seen once an epoch. Each has a validation part
    of its own, by its own split or by `val_fraction`."""

    @model_validator(mode="after")
    def _possible(self) -> DataSpec:
        _check_images("data", self.dataset, self.images)
        weights = sum(part.weight or 0 for part in self.mix)
        if weights >= 1:
            found = f"weights that add up to {weights:g}"
            raise RecipeError("data.mix", found=found, expected=f"less than 1: the rest is {self.dataset!r}")
        return self


def mix_names(datasets: Iterable[str]) -> list[str]:
    """The name of each dataset's folder or file, with a number where one occurs again.

    In a mixture the ids of all but the first dataset begin with it: `NAME:ID`.
    """
    names: list[str] = []
    for place in datasets:
        stem = Path(place).stem.replace(":", "-").replace("/", "-")
        count = sum(name == stem or name.startswith(f"{stem}-") for name in names)
        names.append(f"{stem}-{count + 1}" if count else stem)
    return names


def mix_marks(datasets: Iterable[str]) -> list[str]:
    """What the ids of each dataset begin with in a mixture: nothing for the first, `NAME:` for the others."""
    return ["" if number == 0 else f"{name}:" for number, name in enumerate(mix_names(datasets))]


def _check_images(where: str, dataset: str, images: str | None) -> None:
    if images and not is_file(dataset):
        found = f"images with the dataset folder {dataset!r}"
        fix = "leave it out: --set data.images=null" if where == "data" else "take it out of that entry"
        raise RecipeError(f"{where}.images", found=found, expected="it only with a LLaVA JSON file", fix=fix)


class LoraSpec(Section):
    """Low-rank adapters on linear layers."""

    r: Count = 64
    """Rank: the width of each adapter."""
    alpha: Positive = 128.0
    """Scale: an adapter's output is multiplied by alpha / r."""
    dropout: Share = 0.0
    """Share of an adapter's inputs set to zero while training. Above 0 a shared image prefix has one mask for all its
    conversations; `train.share: false` gives each its own."""
    targets: Annotated[list[str], Field(min_length=1)] = [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    """Names of the linear layers, inside the language model (and inside the tower where `vision: lora`)."""


class TrainSpec(Section):
    """What trains, how fast, for how long."""

    stage: Literal["align", "finetune"]
    """align trains the projector alone, on captions; finetune trains what the next three fields say."""
    language: Trains
    """The language model: frozen, lora (adapters only) or full."""
    vision: Trains = "frozen"
    """The vision tower: frozen, lora or full."""
    projector: Literal["frozen", "full"] = "full"
    """The projector: frozen or full."""
    lora: LoraSpec = LoraSpec()
    lr: Positive
    """Peak learning rate of the language model (in align: of the projector)."""
    projector_lr: Positive | None = None
    """Peak learning rate of the projector; `lr` when absent."""
    vision_lr: Positive | None = None
    """Peak learning rate of the vision tower; `lr` when absent."""
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit"] = "adamw"
    """AdamW of torch, or of bitsandbytes: 8bit keeps its two averages in a quarter of the memory, paged lets them move
    to the main memory when a CUDA device is full."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decay per step, times the learning rate; not on biases and norms."""
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = (0.9, 0.999)
    """AdamW's averaging of the gradient and of its square."""
    clip: Positive | None = 1.0
    """Largest norm of the whole gradient; longer ones are scaled down to it. null: no clipping."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How learning rates fall to zero after the warm-up; constant: they do not."""
    warmup: Share = 0.03
    """Share of all steps (0-1) in which learning rates rise from zero."""
    epochs: Positive = 1.0
    """Passes over the training conversations; may be a fraction."""
    max_steps: Count | None = None
    """Stop after so many optimiser steps, whatever `epochs` says."""
    batch_size: Count = 16
    """Conversations per optimiser step, over all processes."""
    pack_tokens: Count | None = None
    """Tokens in one pack, which is what goes through the model at once: conversations about several images, and such
    without one, end to end, with no padding. Lower takes less memory and gives the same result. A single conversation
    that is longer is a pack of its own. Left out: 2,048, and up to `max_tokens` for conversations about one image (in
    tiles, or a video), so that long ones share it too."""
    share: bool = True
    """Conversations about one image share its tokens. Exact, and faster by about the number sharing. A step has
    conversations about fewer images then, so that its batch is less varied."""
    max_share: Count = 8
    """At most so many conversations of one image in an optimiser step."""
    max_tokens: Count = 2048
    """Longest conversation in tokens, image tokens included. Longer ones are reported before step 1; so is one that
    the language model has no places for."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides a fresh projector, adapters, order and dropout."""
    feature_cache: Literal["auto", "on", "read", "off", "fp16"] = "auto"
    """What a frozen tower makes of an image is kept on the disk, for all runs. on: bit for bit what the tower gives.
    read: what earlier runs left is read, and nothing is added. auto: on where a tower that sees each image once instead
    of every time spares a twentieth of the run and all features have room, else read: the same bits; `plan` and the
    run say which and why. fp16: rounded, to half the size of float32 (at equal weights a loss moves by less than 1e-3
    of itself), also where it is computed, so that a run does not depend on what it finds. off: nothing is kept, in
    memory neither: the tower sees an image again whenever its turn comes. No effect where the tower trains."""
    feature_cache_gb: Annotated[float, Field(ge=0)] = 20.0
    """Gigabytes (2**30 bytes) of the disk for such features, of all towers together; those used least recently go."""
    eval_every: Count | None = None
    """Validate every so many steps; at the end only when absent."""
    early_stop: Count | None = None
    """End the run after so many validations in a row without a lower loss; never when absent. Needs `eval_every`."""
    save_every: Count | None = None
    """Save a checkpoint to resume from every so many steps; at the end only when absent."""
    keep_last: Count = 2
    """So many of the latest checkpoints are kept besides the best."""
    log_every: Count = 1
    """Write a line of metrics every so many steps."""
    answers_every: Count | None = None
    """Have five held-out questions answered before the first step, every so many steps and after the last, to see what
    the model says as it learns; never when absent. Where the model is cut among processes each puts it together for
    that; without room for it no questions are answered, and the run says so."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Where metrics go besides `metrics.jsonl`: TensorBoard (into the run folder), Weights & Biases, trackio."""
    shard: bool = False
    """Several processes each hold a part of the weights, gradients and optimiser state (FSDP2) instead of all of them:
    for models that do not fit on one device. The same losses; more is sent between the processes."""
    deepspeed: dict[str, Any] | None = None
    """A DeepSpeed config, or the name of a JSON file with one: ZeRO of stage 1, 2 or 3. What this recipe says too
    (batch size, optimiser, clipping, number format) stays out of it, is `auto`, or is equal. Excludes `shard`."""
    checkpointing: Literal["auto", "off", "on"] = "auto"
    """Drop the activations of each layer and compute them again on the way back: the same numbers in less memory, for
    about a third more time. auto: only if the run would not fit otherwise, and then of every second layer if that is
    enough."""
    fit: bool = False
    """Choose `pack_tokens`, `checkpointing` and `feature_cache` so that the run fits and is quick; `batch_size`
    stays as it is."""
    memory_gb: Positive | None = None
    """Memory the run may fill, in GB; what is free on the device when absent. For planning a run of another machine."""
    compile: bool = False
    """Compile the language model's norms and MLPs: about a tenth less time on a CPU, once they are compiled (seconds);
    more time in float32 on AMD processors with AVX-512, whose products are quicker uncompiled. The last digits differ
    from a run without it."""
    allocator: Literal["auto", "fast", "tight"] = "auto"
    """CPU under Linux: whether freed memory is kept for later (fast, and up to twice the memory) or given back at once
    (tight). auto: fast where there is room for it."""
    threads: Count | None = None
    """CPU threads for the computation; as the machine has them when absent. The same number gives the same bits."""

    @field_validator("checkpointing", "feature_cache", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        """YAML reads a bare `on` or `off` as true or false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("deepspeed", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """The content of the file, so that the recipe in a run folder is complete."""
        return read_json(value) if isinstance(value, str) else value

    @property
    def pack_size(self) -> int:
        """Tokens that packs are filled up to."""
        return self.pack_tokens or PACK

    @property
    def tree_size(self) -> int:
        """Most tokens of one image with the conversations that share it."""
        return self.pack_tokens or max(PACK, self.max_tokens)

    @model_validator(mode="after")
    def _possible(self) -> TrainSpec:
        trained = [part for part in ("language", "vision", "projector") if getattr(self, part) != "frozen"]
        if self.stage == "align" and trained != ["projector"]:
            wrong = [f"{part}: {getattr(self, part)}" for part in trained if part != "projector"]
            found = f"stage: align with {' and '.join(wrong) or 'projector: frozen'}"
            fix = "freeze language and vision, or use stage: finetune"
            raise RecipeError("train", found=found, expected="the projector alone to train", fix=fix)
        if not trained:
            raise RecipeError("train", found="every part frozen", expected="language, vision or projector to train")
        if self.deepspeed is not None and self.shard:
            raise RecipeError("train", found="deepspeed and shard: true", expected="one way to cut the model")
        if self.early_stop is not None and self.eval_every is None:
            found, fix = f"early_stop: {self.early_stop} without eval_every", "set train.eval_every, in steps"
            raise RecipeError("train.early_stop", found=found, expected="a validation every so many steps", fix=fix)
        for part, rate in (("vision", "vision_lr"), ("projector", "projector_lr")):
            if getattr(self, rate) is not None and getattr(self, part) == "frozen":
                raise RecipeError(
                    f"train.{rate}", found=f"a learning rate with {part}: frozen", expected=f"{part} to train"
                )
        return self


class Recipe(Section):
    """One training stage, complete: the resolved recipe in a run folder is enough to run it again.

    >>> recipe = wb.Recipe.load("tiny-align", ["train.lr=2e-4"])
    >>> recipe.train.stage, recipe.with_overrides("train.max_steps=10").train.max_steps
    ('align', 10)
    """

    name: str
    """A short name for lists and reports."""
    model: ModelSpec
    data: DataSpec
    template: str
    """Prompt template: plain, v1, llava_v1, llama_2, llama_3, mistral, gemma, phi, chatml, qwen, tiny, or a YAML file
    of your own."""
    image_mode: str = "pad"
    """How an image becomes the tower's square: squash it, pad it with the mean colour, or cut out its centre. `anyres`
    shows it whole and in tiles beside that, as LLaVA-NeXT (1.6) does: more tokens for larger images. `anyres_max_9`
    (or another number) makes at most as many as 9 tiles have, as LLaVA-OneVision does, and shows videos by 8 frames at
    most, or by as many as `anyres_max_9_video_16` says. `anyres_video_8` (or another number) is LLaVA-NeXT-Video's:
    images as `anyres`, and videos by 8 frames at most."""
    train: TrainSpec

    @field_validator("image_mode")
    @classmethod
    def _image_mode_is_known(cls, value: str) -> str:
        number = r"[1-9]\d*"
        tiles = rf"anyres(_video_{number}|_max_{number}(_video_(0|{number}))?)?"
        if not re.fullmatch(rf"square|pad|crop|{tiles}", value):
            several = "'anyres', 'anyres_video_8', 'anyres_max_9' or 'anyres_max_9_video_8' (any numbers)"
            raise ValueError(f"'square', 'pad', 'crop', {several}")
        return value

    @model_validator(mode="after")
    def _quantised_cannot_train(self) -> Recipe:
        if self.model.load in ("4bit", "8bit") and self.train.language == "full":
            found = f"model.load: {self.model.load} with train.language: full"
            fix = "use train.language: lora, or model.load: bf16"
            raise RecipeError("recipe", found=found, expected="floating point weights where all of them train", fix=fix)
        return self

    @classmethod
    def load(cls, path_or_name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
        """Read a YAML file, or a shipped recipe by its name, and apply an override such as `train.lr=2e-4`, or several.

        Overriding `model.checkpoint` replaces `model.vision` and `model.language`, and the other way round. Raises
        `RecipeError` naming file and key.
        """
        path = find_recipe(path_or_name)
        data = read_yaml(path)
        if data.get("kind"):
            fix = "use it with workbench curate" if data["kind"] == "curate" else ""
            raise RecipeError(path.name, found=f"kind: {data['kind']}", expected="a recipe that trains", fix=fix)
        changed = apply_overrides(data, overrides)
        return cls.from_dict(data, where=path.name, changed=changed)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "recipe", changed: Iterable[str] = ()) -> Recipe:
        """Check a mapping; `where` names its file in errors, `changed` the dotted keys set on the command line."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise explain(error, cls, where, set(changed)) from None
        except RecipeError as error:
            place = where if error.where == "recipe" else f"{where}, {error.where}"
            raise RecipeError(place, found=error.found, expected=error.expected, fix=error.fix) from None

    def with_overrides(self, *overrides: str) -> Recipe:
        """A changed copy: `recipe.with_overrides("train.lr=1e-4", "train.max_steps=10")`."""
        data = self.model_dump(mode="json")
        return Recipe.from_dict(data, where=self.name, changed=apply_overrides(data, overrides))

    def _repr_html_(self) -> str:
        """What it says itself, and folded the whole of it."""
        from workbench.display import block, folded

        model, train = self.model, self.train
        facts = {
            "model": model.checkpoint or f"{model.vision} + {model.language}, {model.projector}",
            "held in": model.load,
            "trains": ", ".join(f"{part} {how}" for part in ("language", "vision", "projector")
                                if (how := getattr(train, part)) != "frozen"),
            "data": f"{self.data.dataset}{': ' + ', '.join(self.data.tasks) if self.data.tasks else ''}",
            "template": self.template,
            "learning rate": f"{train.lr:g}, {train.schedule}",
            "length": f"{train.max_steps} steps at most" if train.max_steps else f"{train.epochs:g} epochs",
            "batch": f"{train.batch_size} conversations a step",
        }  # fmt: skip
        return block(self.name, facts, folded("every field", self.to_yaml()), note=f"recipe, stage {train.stage}")

    def to_yaml(self) -> str:
        """The whole recipe, every default written out."""
        return to_yaml(self.model_dump(mode="json"))

    def hash(self) -> str:
        """16 hexadecimal digits of SHA-256 over every field; equal for equal recipes."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_recipe(recipe: Recipe | str | Path) -> Recipe:
    """A recipe, or the one that a path or a shipped name means."""
    return recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)


def recipe_names(kind: str | None = None) -> list[str]:
    """Names of the shipped recipes of a `kind:`; None: those that train."""
    paths = sorted(resources.recipes_folder().glob("*.yaml"))
    return [path.stem for path in paths if read_yaml(path).get("kind") == kind]


def find_recipe(path_or_name: str | Path, kind: str | None = None) -> Path:
    """The file meant by a path or by the name of a shipped recipe. Raises `RecipeError` with the nearest name."""
    if not isinstance(path_or_name, (str, Path)):
        expected = "a recipe, its file, or the name of a shipped one"
        raise RecipeError("recipe", found=kind_of(path_or_name), expected=expected)
    path = expanded(path_or_name, RecipeError)
    if path.is_file():
        return path
    shipped = resources.recipes_folder() / f"{str(path_or_name).removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return shipped
    if path.is_dir():
        inside = path / "recipe.yaml"
        fix = f"did you mean {inside}?" if inside.is_file() else ""
        raise RecipeError(str(path_or_name), found="a folder", expected="the file of a recipe", fix=fix)
    names = recipe_names(kind)
    near = difflib.get_close_matches(path.stem, names, 1)
    fix = f"did you mean {near[0]}?" if near else ""
    raise RecipeError(
        str(path_or_name), found="no such file or recipe", expected=f"a file or one of {', '.join(names)}", fix=fix
    )
