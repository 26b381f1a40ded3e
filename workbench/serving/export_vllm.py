"""A hand-over to vLLM: the merged model, the exact launch command, and an environment of vLLM's own.

Knows: which version of vLLM the command is for, what that version pins, and which settings follow from the model.
Does not know: how weights are merged and proven (`model/export.py`). vLLM itself is never run here: it needs packages
that exclude this one's, and usually a GPU. The texts say so, and name the check that tells (`workbench conformance`).
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from workbench.errors import ModelError
from workbench.model.checkpoint import MANIFEST, checkpoint_folder, read_manifest
from workbench.model.export import export_hf, refuse_full
from workbench.model.joint import tiling_of
from workbench.model.mode_names import ANYRES_VIDEO
from workbench.model.parts import read_config
from workbench.model.sources import read_json
from workbench.resources import atomic_folder
from workbench.serving.cards import fill, origins, write_model_card

VLLM = "0.33.0"
"""The version the command was written for, from its documentation and its package's metadata."""
READ = "2026-11"
"""When those were read."""


def export_vllm(source: str | Path, out: str | Path, *, base: str = "nf4", device: str = "auto") -> Path:
    """Write `model/`, `serve.sh`, `requirements.txt`, `README.md` and `MODEL_CARD.md` into a new folder; returns it.

    The adapter is merged, because vLLM refuses one that brings a trained projector; the merged folder is loaded again
    and compared before it gets its name. Raises `ModelError` where `out` holds files and for a LLaVA-NeXT-Video, and
    what `export_hf` raises.
    """
    out = Path(out)
    refuse_full(out)
    _refuse_videos(source)
    with atomic_folder(out) as folder:
        export_hf(source, folder / "model", base=base, device=device)
        config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
        image_tokens = tiling_of(read_config(folder / "model")).longest
        name = shlex.quote(Path(source).name)
        facts = origins(source) | {
            "name": name, "vllm": VLLM, "read": READ, "longest": config["text_config"]["max_position_embeddings"],
            "image_tokens": image_tokens, "dtype": config.get("dtype") or "auto",
            "images": _images(config, image_tokens),
        }  # fmt: skip
        for text, file in (("vllm_serve.sh.jinja", "serve.sh"), ("vllm_readme.md.jinja", "README.md")):
            (folder / file).write_text(fill(text, facts), encoding="utf-8")
        write_model_card(source, folder, {"weights": "merged", "dtype": facts["dtype"]})
        (folder / "serve.sh").chmod(0o755)
        (folder / "requirements.txt").write_text(f"vllm=={VLLM}\n", encoding="utf-8")
    return out


def _refuse_videos(source: str | Path) -> None:
    """Before anything is merged: of a LLaVA-NeXT-Video vLLM takes videos only (its `llava_next_video.py`: "Only video
    modality is supported"), while everything that is handed over here asks about pictures."""
    folder = checkpoint_folder(source)
    kind = read_json(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
    mode = read_manifest(folder)["spec"]["image_mode"] if (folder / MANIFEST).is_file() else ""
    if kind == "llava_next_video" or ANYRES_VIDEO.fullmatch(mode):
        fix = "use workbench serve; or --as hf, which vLLM opens for videos alone"
        found, expected = "a LLaVA-NeXT-Video, whose pictures vLLM does not read", "a LLaVA for pictures"
        raise ModelError(str(source), found=found, expected=expected, fix=fix)


def _images(config: dict[str, int], image_tokens: int) -> int:
    """How many pictures a request may bring: as many as fit beside half a context of text, at most 8."""
    room = config["text_config"]["max_position_embeddings"] // 2  # type: ignore[index]
    return max(1, min(8, room // image_tokens))
