"""What a folder that is given away says of itself: how it is run, what it is made of, whose licences hold.

Knows: the texts beside this module (`cards/`), and where their facts lie: recipe, checkpoint, report.
Does not know: weights, pages. It states no licence that nobody has stated, and no score that the run did not measure.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from workbench import __version__
from workbench.errors import WorkbenchError
from workbench.model.checkpoint import MANIFEST, checkpoint_folder
from workbench.resources import write_atomic
from workbench.serving.examples import run_of

FOLDER = Path(__file__).parent / "cards"
LICENCES = {"tiny": "Apache-2.0"}
"""Of the parts that ship with workbench; of all others only their own pages say."""
PARTS = {"vision": "vision tower", "language": "language model", "llava": "base"}


def fill(text: str, facts: Mapping[str, Any]) -> str:
    """One of the texts with these facts in it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(text).render(**facts)


def write_cards(source: str | Path, about: dict[str, Any], folder: Path) -> None:
    """README.md with the metadata of a Hugging Face Space, and MODEL_CARD.md."""
    facts = about | origins(source)
    facts |= {"gradio": importlib.metadata.version("gradio"), "license_name": "see-the-model-card"}
    (folder / "README.md").write_text(fill("space.md.jinja", facts), encoding="utf-8")
    frames = (about.get("videos") or {}).get("frames")
    write_model_card(source, folder, facts | {"page": True, "frames": frames})


def write_model_card(source: str | Path, folder: Path, about: Mapping[str, Any]) -> None:
    """MODEL_CARD.md. about: `weights` and `dtype`; `frames` that are taken of a video at most; `processor_note`; of a
    demo `page` and what else it knows of its model."""
    usual: dict[str, Any] = {"title": Path(source).name, "quantisation": None, "image_modes": (), "examples": ()}
    usual |= {"page": False, "frames": None, "processor_note": ""}
    text = fill("model_card.md.jinja", usual | origins(source) | dict(about))
    write_atomic(folder / "MODEL_CARD.md", text)


def origins(source: str | Path) -> dict[str, Any]:
    """What is known of where a model comes from: `bases` (part, source, licence or None), `template`, `training`,
    `scored`, `version`, `date`."""
    manifest = checkpoint_folder(source) / MANIFEST
    spec = json.loads(manifest.read_text(encoding="utf-8"))["spec"] if manifest.is_file() else {"llava": str(source)}
    bases = [(named, _public(spec[part]), LICENCES.get(spec[part])) for part, named in PARTS.items() if spec.get(part)]
    today = datetime.now(UTC).date().isoformat()
    known = {"bases": bases, "template": spec.get("template", "as in the folder"), "version": __version__}
    return known | {"date": today, "training": _training(source), "scored": _scored(source)}


def _public(source: str) -> str:
    """A Hub name as it is; of a path on this disk the last part only: where it lies is nobody's business."""
    return Path(source).name if Path(source).is_absolute() else source


def _training(source: str | Path) -> list[tuple[str, str]]:
    run = run_of(source)
    if run is None:
        return []
    try:
        recipe = run.recipe
    except WorkbenchError:
        return []
    train, lora = recipe.train, recipe.train.lora
    adapter = f", LoRA of rank {lora.r}, alpha {lora.alpha:g}" if train.language == "lora" and lora else ""
    data = Path(recipe.data.dataset).name
    return [
        ("data", f"`{data}`, tasks: {', '.join(recipe.data.tasks or ['all'])}"),
        ("training", f"{train.stage}: language model {train.language}{adapter}, projector {train.projector}"),
        ("steps", f"batches of {train.batch_size} conversations, peak rate {train.lr:g}, seed {train.seed}"),
    ]


def _scored(source: str | Path) -> dict[str, Any] | None:
    """What a quickstart's report measured of the tuned model."""
    try:
        report = json.loads((Path(source) / "report.json").read_text(encoding="utf-8"))
        return {"accuracy": float(report["accuracy_after"]), "questions": int(report["questions"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
