"""A model in another layout, with a card that says what it was made of and whose licences hold.

Knows: that every such folder has the card, and what its processor needs beside transformers.
Does not know: layouts, merging, proofs (`model/export.py`), what the card says (`cards.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.model import export as layouts
from workbench.model.mode_names import frames_in
from workbench.model.original_tiles import tiles_of
from workbench.model.parts import video_settings
from workbench.model.unpickle import is_pickled
from workbench.serving.cards import write_model_card


def export(
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
    gets its name; `MODEL_CARD.md` in it names parts and licences. Raises `ModelError` if `out` holds files,
    `CheckpointError` if the source is damaged.
    A language model, tower or LLaVA of transformers whose weights are pickles is written as it is, with safetensors.
    For LLaVA's own layouts `base` is the language model of LoRA weights or a projector, and as `load_original` says.
    """
    more: dict[str, Any] = {"device": device, "vision_tower": vision_tower, "template": template}
    written = layouts.export_hf(source, out, base=base, **more)
    if not is_pickled(source):  # such a folder is the base itself, and keeps what its authors say of it
        write_model_card(source, written, _about(written, "merged"))
    return written


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

    weights: `merged`, `adapter` or `projector`. Everything else, and what is raised, is as for `export`.
    """
    more: dict[str, Any] = {"device": device, "vision_tower": vision_tower, "template": template}
    written = layouts.export_original(source, out, weights=weights, base=base, **more)
    write_model_card(source, written, _about(written, weights))
    return written


def processor_note(folder: Path) -> str:
    """What vanilla transformers needs to read such a folder's processor, beside itself; empty where nothing."""
    if not video_settings(folder):
        return ""
    return "transformers' AutoProcessor of this family has a part for videos, which needs: pip install torchvision"


def _about(folder: Path, weights: str) -> dict[str, Any]:
    config = folder / "config.json"
    held = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    told = {"weights": weights, "dtype": held.get("dtype") or held.get("torch_dtype")}
    frames = video_settings(folder).get("num_frames") or frames_in(tiles_of(held) or "")
    return told | {"frames": frames, "processor_note": processor_note(folder)}
