"""Where the tower of a checkpoint in LLaVA's own layout is: named, in the checkpoint's own file, or in a folder beside.

Knows: when a name says enough, and what LLaVA's code looks for in a tower's folder. Does not know: how towers are read
(`original_in.py`), what of a SigLIP is left out (`original_siglip.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.model.joint import ANYRES
from workbench.model.llava import Llava
from workbench.model.original import INSIDE, tower_inside
from workbench.model.original_siglip import FOLDER, KIND, PUBLISHED, is_published, is_siglip, write_whole
from workbench.model.parts import quietly
from workbench.model.proof import affordable
from workbench.model.sources import NAME

FOLDERS = {"clip_vision_model": "vision_tower", KIND: FOLDER}
"""Kind of tower -> the folder in which it is carried, in the folder of the checkpoint."""


def write_tower(llava: Llava, config: dict[str, Any], folder: Path, weights: str, temporary: Path) -> Path | None:
    """Say in `config` where the tower is, and put it there if that is neither a name nor the checkpoint's own file.

    One of the Hub is named again if it is as it was published, and what came in the checkpoint's own file stays there.
    Else a CLIP is carried in a folder of its own, and so is a SigLIP that goes with adapters or a projector; with all
    weights a SigLIP goes into the checkpoint's own file, as LLaVA's authors publish it. Returns a folder in `temporary`
    that can stand for a tower which is only named, where a second model is affordable to prove it with; else None.
    """
    tower, told = llava.tower, config.get("mm_vision_tower") or llava.spec.get("vision")
    siglip, carried = is_siglip(tower.config), FOLDERS[tower.config.model_type]
    changed = "vision" in llava.spec["trained"] or (not siglip and llava.image_mode.mode == "square")
    stays = tower_inside(config) or (told and on_hub(str(told)) and not changed)
    if stays and told not in FOLDERS.values():
        config["mm_vision_tower"] = str(told)
    else:
        config |= INSIDE if siglip and weights == "merged" else {}
        known = tower_inside(config) and siglip and is_published(tower)
        config["mm_vision_tower"] = PUBLISHED if known else carried
    if config["mm_vision_tower"] == carried:
        _write(llava, folder / carried, tower_inside(config), _settings(llava))
        return None
    if not affordable(llava):
        return None
    _write(llava, temporary, tower_inside(config), llava.spec["image_settings"])
    return temporary


def on_hub(name: str) -> bool:
    return NAME.fullmatch(name) is not None and not Path(name).exists()


def _write(llava: Llava, folder: Path, inside: bool, settings: dict[str, Any]) -> None:
    """A tower's folder; a SigLIP's without weights if they are in the checkpoint's own file."""
    if is_siglip(llava.tower.config):
        write_whole(llava.tower, folder, weights=not inside)
    else:
        with quietly(0):
            llava.tower.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _settings(llava: Llava) -> dict[str, Any]:
    """What LLaVA's code reads of a tower's image processor; borders, tiles and squares it makes by itself."""
    settings = llava.image_mode.processor_settings()
    for key in ("do_pad", "image_grid_pinpoints"):
        settings.pop(key, None)
    whole = {"height": llava.image_mode.side, "width": llava.image_mode.side}
    if is_siglip(llava.tower.config):
        return settings | {"image_processor_type": "SiglipImageProcessor", "do_center_crop": False, "size": whole}
    settings |= {"image_processor_type": "CLIPImageProcessor"}
    if llava.image_mode.mode == "pad" or llava.image_mode.mode.startswith(ANYRES):
        settings |= {"size": {"shortest_edge": llava.image_mode.side}, "crop_size": whole, "do_center_crop": True}
    return settings
