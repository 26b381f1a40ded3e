"""One self-contained folder per checkpoint: saved whole, proven by loading it again, loaded by its content.

Knows: which tensors and settings a trained LLaVA needs beside its base, their hashes, and the proof after saving.
Does not know: how the base is kept and found (base.py), optimisers and runs (whoever saves may put own files into the
folder), the exported layout (export.py).
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from peft import LoraConfig

from workbench.errors import CheckpointError, ModelError, kind_of
from workbench.model import hf_folder
from workbench.model.base import keep_base, rebuild_base
from workbench.model.export import export_hf as export_hf
from workbench.model.llava import NEWLINE, Llava
from workbench.model.lora import adapter_parameters, attach_config, has_adapter
from workbench.model.original import layout_of, read_original
from workbench.model.original_in import load_original
from workbench.model.precision import LANGUAGE
from workbench.model.proof import Probed, affordable, check_files, compare_named, file_table, prove
from workbench.model.sources import full_name, local, read_json, resolve, safetensors_files
from workbench.model.templates import Template, load_template
from workbench.model.tensors import check_numbers, fill, named, read_tensors, write_tensors
from workbench.resources import atomic_folder, expanded

if TYPE_CHECKING:
    from workbench.recipe import Recipe

FORMAT = 1
MANIFEST = "checkpoint.json"
PREFIXES = {
    "projector": ("model.multi_modal_projector.", NEWLINE),
    "vision": ("model.vision_tower.",),
    "language": (LANGUAGE, "lm_head."),
}
PACKAGES = ("llava-workbench", "torch", "transformers", "peft", "bitsandbytes", "tokenizers")


def save(
    llava: Llava,
    folder: str | Path,
    *,
    recipe: Recipe | None = None,
    step: int = 0,
    extra: dict[str, Any] | None = None,
    also: Callable[[Path], None] | None = None,
    held: Held | None = None,
) -> Path:
    """Write a checkpoint folder whole or not at all, and prove it; returns its path. An older one there is replaced.

    `held`: the trained tensors, where this process holds only a part of each. `extra` is JSON kept in
    `checkpoint.json`; `also` may write more files (an optimiser's state) into the folder before it is sealed: their
    hashes are recorded too. Every tensor file is read again and compared bit for bit.
    For models up to 2 GB the whole folder is loaded again before it gets its name, and all tensors and the logits of
    a probe conversation are compared. Raises `CheckpointError` if they differ, `DiskError` if the disk is full; what
    was there before is then intact.
    """
    with atomic_folder(folder, replace=True) as temporary:
        for file, tensors in (held.files if held else trained_files(llava)).items():
            check_numbers(tensors, file)
            write_tensors(temporary / file, tensors)
        if has_adapter(llava.model):
            llava.model.peft_config["default"].save_pretrained(str(temporary / "adapter"))
        llava.tokenizer.save_pretrained(temporary / "tokenizer")
        renderer = llava.renderer
        template = renderer.template.model_dump(mode="json")
        (temporary / "template.yaml").write_text(yaml.safe_dump(template, sort_keys=False))
        (temporary / "chat_template.jinja").write_text(renderer.chat_template())
        if recipe is not None:
            (temporary / "recipe.yaml").write_text(recipe.to_yaml())
        base = {part: keep_base(part, llava, temporary) for part in llava.folders}
        if also is not None:
            also(temporary)
        manifest = {
            "format": FORMAT,
            "step": step,
            "spec": llava.spec,
            "base": base,
            "versions": {name: _version(name) for name in PACKAGES},
            "extra": extra or {},
            "files": file_table(temporary),
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        probed = held.probed if held else None
        if affordable(llava) if held is None else probed is not None:
            again = prove(llava, lambda: load_checkpoint(temporary, device=str(llava.device)), probed)
            for file, tensors in (held.files if held else {}).items():
                compare_named(tensors, trained_files(again)[file])
    return Path(folder)


@dataclass(frozen=True)
class Held:
    """What is saved of a model that lies in parts in several processes, put together again."""

    files: dict[str, dict[str, torch.Tensor]]
    """As `trained_files` gives them."""
    probed: Probed | None
    """What the live model says to the probe; None where a second model is too large to compare with it."""


def trained_files(llava: Llava) -> dict[str, dict[str, torch.Tensor]]:
    """File in a checkpoint -> the tensors that left their base, by name."""
    files = {
        f"{part}.safetensors": named(llava.model, PREFIXES[part]) for part in ("projector", *llava.spec["trained"])
    }
    if has_adapter(llava.model):
        files["adapter/adapter_model.safetensors"] = adapter_parameters(llava.model)
    return {file: dict(tensors) for file, tensors in files.items()}


def load_checkpoint(
    folder: str | Path,
    *,
    load: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    template: str | Template | None = None,
    image_mode: str | None = None,
) -> Llava:
    """The LLaVA of a checkpoint folder, every file and tensor checked; `load` as in `llava.load`.

    With `load=None` trained tensors keep their float32. Raises `CheckpointError`.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest["files"])
    if image_mode is not None:
        manifest["spec"]["image_mode"] = image_mode
    chosen = load_template(folder / "template.yaml") if template is None else template
    llava = rebuild_base(folder, manifest, load, dtype, device, chosen)
    adapter = folder / "adapter"
    if adapter.is_dir():
        attach_config(llava, LoraConfig.from_pretrained(str(adapter)))
        tensors = read_tensors(adapter / "adapter_model.safetensors")
        fill(adapter_parameters(llava.model), tensors, where=str(adapter))
    for part in ("projector", *llava.spec["trained"]):
        path = folder / f"{part}.safetensors"
        rounded = None if load is None or part == "projector" else llava.held
        fill(named(llava.model, PREFIXES[part]), read_tensors(path), where=str(path), dtype=rounded)
    return llava


def load_any(
    source: str | Path,
    *,
    load: str | None,
    dtype: str,
    device: str,
    template: str | Template | None = None,
    image_mode: str | None = None,
) -> Llava:
    """`llava.load`: what a folder is follows from what lies in it."""
    options: dict[str, Any] = {"dtype": dtype, "device": device, "template": template, "image_mode": image_mode}
    folder = checkpoint_folder(source)
    if layout_of(folder):
        return load_original(folder, load=load, **options)
    if (folder / MANIFEST).is_file():
        return load_checkpoint(folder, load=load, **options)
    return hf_folder.load_folder(folder, source=full_name(source), load=load or "fp32", **options)


def checkpoint_folder(source: str | Path) -> Path:
    """The folder that holds the model: a run's best checkpoint, a checkpoint, or a LLaVA of transformers or its own."""
    folder = expanded(source, ModelError) if layout_of(source) else resolve(source)
    if (folder / "run.json").is_file():
        from workbench.run import Run

        run = Run.open(folder)
        best = run.checkpoint
        if best is None:
            why = f": it failed before it saved one ({run.info['error']})" if run.status == "failed" else " yet"
            raise CheckpointError(str(source), found=f"a run without a checkpoint{why}", expected="one that has saved")
        return best
    if (folder / MANIFEST).is_file() or hf_folder.is_llava(folder) or layout_of(folder):
        return folder
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
    expected = f"run.json (a run), {MANIFEST} (a checkpoint) or config.json of a LLaVA"
    raise ModelError(str(source), found=f"a folder with {held}", expected=expected)


def read_projector(source: str | Path) -> tuple[str, dict[str, torch.Tensor]]:
    """(kind, tensors) of the projector in a run, a checkpoint or a LLaVA, a newline among them; or in LLaVA's own
    `mm_projector.bin`."""
    folder = checkpoint_folder(source)
    if layout_of(folder):
        original = read_original(folder)
        start = PREFIXES["projector"]
        return original.projector, {name: each for name, each in original.tensors.items() if name.startswith(start)}
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        check_files(folder, manifest["files"], only="projector.safetensors")
        return manifest["spec"]["projector"], read_tensors(folder / "projector.safetensors")
    act = read_json(folder / "config.json").get("projector_hidden_act", "gelu")
    found = {}
    for path in safetensors_files(folder):
        for part in ("multi_modal_projector.", "image_newline"):
            for name, tensor in read_tensors(path, containing=part).items():
                found["model." + name.removeprefix("model.")] = tensor
    return hf_folder.projector_name(act, folder), found


def check_trainable(source: str | Path) -> None:
    """Raise `ModelError` for what is answered with here, but not trained: other architectures, LLaVA's own layout."""
    folder = expanded(source, ModelError) if expanded(source, ModelError).exists() else local(source, "")
    if folder is None:
        return
    if layout_of(folder):
        fix = f"convert it once: workbench export {source} FOLDER --as hf"
        raise ModelError(str(source), found="LLaVA's own layout", expected="a LLaVA of transformers to train", fix=fix)
    config = folder / "config.json"
    if not (folder / MANIFEST).is_file() and config.is_file() and not hf_folder.is_llava(folder):
        found = f"a {read_json(config).get('model_type')} model"
        fix = "chat, generate, evaluate and compare work with it; train it with its makers' own code"
        raise ModelError(str(source), found=found, expected="a LLaVA: no other architecture is trained here", fix=fix)


def read_manifest(folder: Path) -> dict[str, Any]:
    """`checkpoint.json`. Raises `CheckpointError` if it is missing, cut off, or of a format unknown here."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(str(folder), found=f"no {MANIFEST}", expected="a checkpoint folder") from error
    except ValueError as error:
        raise CheckpointError(str(path), found="a file that is cut off", expected="JSON") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(str(path), found=kind_of(manifest), expected="an object, as workbench writes it")
    if manifest.get("format") != FORMAT:
        found, fix = f"format {manifest.get('format')!r}", "use the version of workbench that wrote it"
        raise CheckpointError(str(path), found=found, expected=f"format {FORMAT}", fix=fix)
    return manifest


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
