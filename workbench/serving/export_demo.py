"""A demo that is given away: one folder with weights, page, examples and what a colleague or a Space needs to run it.

Knows: that folder; that whole merged weights or a base with its adapter go into it, and that what was written is
loaded again by its own code and compared before it gets its name.
Does not know: how weights are merged (`model/export.py`), the page (`demo/`), what the cards say (`cards.py`).
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage

from workbench.conversation import IMAGE_MARK, VIDEO_MARK
from workbench.data.images import load_image
from workbench.errors import CheckpointError, WorkbenchError
from workbench.model.export import export_hf, generation_config, processor, refuse_full, write_folder
from workbench.model.film import film_size
from workbench.model.images import MODES, ImageMode
from workbench.model.llava import Llava, load
from workbench.model.lora import adapted, adapter_parameters, has_adapter
from workbench.model.parts import quietly
from workbench.model.precision import QUANTISED, dtype_name, quantisation
from workbench.model.proof import affordable, gradient, probe
from workbench.model.tensors import write_tensors
from workbench.model.tiles import AnyResMode
from workbench.resources import atomic_folder
from workbench.serving.cards import write_cards
from workbench.serving.examples import validation_examples

HERE = Path(__file__).parent
WEIGHTS = ("merged", "adapter")
LARGEST_EXAMPLE = 1024
"""Pixels of the longer edge of an example's picture."""
PACKAGES = ("transformers", "gradio", "accelerate", "safetensors", "pillow", "av", "sentencepiece", "protobuf")
"""What the folder runs with, each in the version it was made and checked with."""
NOT_PIXELS = ("video_processor_type", "do_sample_frames", "num_frames")
"""Settings of a video processor that say nothing of how a frame becomes a square."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Largest difference of a logit, relative to the largest one: adapters merged or not, one word's rounding."""


def export_demo(
    source: str | Path, out: str | Path, *, weights: str = "merged", examples: int = 6, device: str = "auto"
) -> Path:
    """Write a demo of a run or checkpoint that runs alone: `pip install -r requirements.txt && python app.py`.

    weights: `merged`, one ordinary LLaVA; or `adapter`: the base beside the adapter, and where the base is a whole
    LLaVA of the Hub only its name. examples: at most so many pictures, no videos, of the validation set are copied
    into it.
    Raises `ModelError` where `out` holds files, `WorkbenchError` for an unknown choice or a run without an adapter.
    """
    out = Path(out)
    refuse_full(out)
    if weights not in WEIGHTS:
        raise WorkbenchError("weights", found=repr(weights), expected=" or ".join(WEIGHTS))
    with atomic_folder(out) as folder:
        about = _merged(source, folder, device) if weights == "merged" else _adapter(source, folder, device)
        about |= {"name": Path(source).name, "title": Path(source).name, "weights": weights}
        about["examples"] = _copy_examples(validation_examples(source, examples), folder)
        about["about"] = "Answers come from a small model and may be wrong. See MODEL_CARD.md."
        (folder / "demo.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "requirements.txt").write_text(_requirements(about), encoding="utf-8")
        _copy_page(folder)
        write_cards(source, about, folder)
        _prove(source, folder, device)
    return out


# --- weights --------------------------------------------------------------------------------------------------


def _merged(source: str | Path, folder: Path, device: str) -> dict[str, Any]:
    export_hf(source, folder / "model", device=device)
    llava = load(folder / "model", device="cpu")
    return _about(llava, base="model")


def _adapter(source: str | Path, folder: Path, device: str) -> dict[str, Any]:
    """The adapter on its own, beside the base it was trained on: in numbers, or by its name on the Hub."""
    llava = load(source, device=device)
    if not has_adapter(llava.model):
        fix = "--weights merged"
        raise WorkbenchError(str(source), found="no adapter", expected="a run that trained one", fix=fix)
    kept = llava.model.peft_config["default"]
    kept.save_pretrained(str(folder / "adapter"))
    write_tensors(folder / "adapter" / "adapter_model.safetensors", adapter_parameters(llava.model))
    hub = _hub_base(llava)
    if hub is None:
        if llava.spec["load"] in QUANTISED:  # the numbers it was trained on, as ordinary ones
            llava = load(source, load=dtype_name(llava.held), device=device)
        write_folder(_without_adapter(llava), folder / "model")
        return _about(llava, base="model")
    about = _about(llava, base=hub, quantised=quantisation(llava.spec["load"], llava.held, inside_llava=True))
    trained = {
        name: parameter
        for name, parameter in _without_adapter(llava).model.named_parameters()
        if name.startswith(_prefixes(llava))
    }
    write_tensors(folder / "trained.safetensors", trained)
    processor(llava).save_pretrained(folder / "model")
    generation_config(llava).save_pretrained(folder / "model")
    return about


def _hub_base(llava: Llava) -> str | None:
    """The Hub name of a whole LLaVA that the run started from and whose rows of tokens it kept; else None."""
    name = llava.spec.get("llava")
    rows = llava.spec["vocabulary"]
    return str(name) if name and not Path(name).exists() and rows["rows_before"] == rows["rows_after"] else None


def _prefixes(llava: Llava) -> tuple[str, ...]:
    from workbench.model.checkpoint import PREFIXES

    return tuple(prefix for part in ("projector", *llava.spec["trained"]) for prefix in PREFIXES[part])


def _without_adapter(llava: Llava) -> Llava:
    """Take the adapter off, in place: every linear is its base's again."""
    for name, module in list(adapted(llava.model)):
        llava.model.set_submodule(name, module.get_base_layer())
    del llava.model.peft_config
    return llava


def _about(llava: Llava, *, base: str, quantised: Any = None) -> dict[str, Any]:
    """What `demo/answerer.py` has to know of the model."""
    own, settings = llava.image_mode, llava.spec["image_settings"]
    modes = {own.mode: own.processor_settings()}
    if not llava.tiling.varies:
        modes |= {mode: ImageMode(mode, settings).processor_settings() for mode in MODES}
    marks = (IMAGE_MARK, VIDEO_MARK) if llava.renderer.videos else (IMAGE_MARK,)
    asked = ("do_pad", "do_resize", "size", "do_center_crop", "crop_size")
    return {
        "base": base,
        "dtype": str(llava.held).removeprefix("torch."),
        "quantisation": None if quantised is None else _plain(quantised.to_dict()),
        "image_modes": {mode: {key: held[key] for key in asked} for mode, held in modes.items()},
        "videos": _videos(llava),
        "reserved": sorted({*llava.renderer.template.reserved, *llava.tokenizer.all_special_tokens, *marks}),
    }


def _videos(llava: Llava) -> dict[str, Any] | None:
    """Of a model that reads videos: how many frames it is shown at most, the tokens of each and those more at the end,
    and how frames become squares."""
    mode = llava.image_mode
    if not isinstance(mode, AnyResMode) or not llava.tiling.frames:
        return None
    one, two = (llava.tiling.tokens(film_size(count)) for count in (1, 2))
    held = {key: value for key, value in mode.video_settings().items() if key not in NOT_PIXELS}
    return {"frames": llava.tiling.frames, "each": two - one, "more": 2 * one - two, "processor": held}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    wanted = ("load_in_4bit", "load_in_8bit", "llm_int8_skip_modules")
    return {key: value for key, value in settings.items() if key in wanted or key.startswith("bnb_")}


# --- what stands beside them ----------------------------------------------------------------------------------


def _copy_examples(examples: Sequence[tuple[str, Path]], folder: Path) -> list[dict[str, str]]:
    """Each picture as a JPEG or PNG of at most `LARGEST_EXAMPLE` pixels, without the file's metadata."""
    copied = []
    for number, (question, path) in enumerate(examples, 1):
        picture = load_image(path)
        picture.thumbnail((LARGEST_EXAMPLE, LARGEST_EXAMPLE), PILImage.Resampling.LANCZOS)
        kind = "png" if max(picture.size) <= 256 else "jpg"  # a small drawing suffers as JPEG
        (folder / "examples").mkdir(exist_ok=True)
        picture.save(folder / "examples" / f"{number}.{kind}", quality=90)
        copied.append({"question": question, "picture": f"examples/{number}.{kind}"})
    return copied


def _copy_page(folder: Path) -> None:
    """The very files that `workbench demo` shows its page with."""
    (folder / "demo").mkdir()
    for path in sorted((HERE / "demo").iterdir()):
        if path.suffix in (".py", ".css"):
            shutil.copyfile(path, folder / "demo" / path.name)
    shutil.copyfile(HERE / "cards" / "app.py.txt", folder / "app.py")


def _requirements(about: dict[str, Any]) -> str:
    more = ["peft"] if about["weights"] == "adapter" else []
    more += ["bitsandbytes"] if about["quantisation"] else []
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in (*PACKAGES, *more)]
    return "\n".join(["# without torchvision: its image processors give other pixels", "torch>=2.9,<2.14", *pinned, ""])


def _prove(source: str | Path, folder: Path, device: str) -> None:
    """Ask the written folder by its own code: the prompt's ids and the first word's logits are the run's.

    Left out where a second model is too large to hold beside the first. Raises `CheckpointError`.
    """
    from workbench.serving.demo.answerer import Answerer
    from workbench.serving.demo.turns import Settings

    llava = load(source, device=device)
    if not affordable(llava):
        return
    ids, logits = probe(llava)
    with tempfile.TemporaryDirectory() as place, quietly(0):
        gradient().save(Path(place, "probe.png"))
        content = [{"type": "image", "path": f"{place}/probe.png"}, {"type": "text", "text": "What is this?"}]
        answerer = Answerer(folder)
        inputs = answerer.inputs([{"role": "user", "content": content}], Settings())
        asked = inputs["input_ids"][0].tolist()
        with torch.no_grad():
            found = answerer.model(**inputs.to(answerer.model.device, answerer.model.dtype)).logits[0, -1].float().cpu()
    expected = logits[len(asked) - 1]
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    if list(ids[: len(asked)]) != asked or not difference <= TOLERANCE[llava.dtype]:
        told = f"other ids, or logits that differ by {difference:.1e} of the largest"
        raise CheckpointError("the written demo", found=told, expected="the run's own")
