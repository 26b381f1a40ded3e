"""Make the tiny LLaVA's starting parts again: `python -m workbench.model.tiny.build recipes/tiny-parts.yaml OUT`.

Knows: the order (tokenizer, tower with text head, language model) and the card that says how they were made.
Does not know: how each is trained (`tower.py`, `language.py`). The two stages of LLaVA are no part of this.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch

from workbench.model.tiny.language import build_language, build_tokenizer
from workbench.model.tiny.tower import build_tower
from workbench.recipe_yaml import read_yaml
from workbench.resources import write_atomic


def build_parts(recipe: Path | str, out: Path | str, *, only: str | None = None) -> Path:
    """Train the parts that `recipe` describes into `out/vision` (a CLIP folder) and `out/language`.

    `only` is `vision` or `language`: the other part is left as it is. Returns the card, `out/parts.json`.
    """
    settings, out = read_yaml(recipe), Path(out)
    torch.set_num_threads(settings["threads"])
    tokenizer = build_tokenizer(**settings["tokenizer"])
    shared = {name: settings[name] for name in ("precision", "compile")}
    makers = {"vision": build_tower, "language": build_language}
    started = time.monotonic()
    for part, make in makers.items():
        if only in (None, part):
            folder = out / part
            folder.mkdir(parents=True, exist_ok=True)
            make(tokenizer, shared | settings[part], folder, out / f"{part}.jsonl")
    card = {
        "recipe": Path(recipe).name,
        "settings": settings,
        "seconds": round(time.monotonic() - started),
        "torch": torch.__version__,
        "sha256": {str(file.relative_to(out)): _hash(file) for file in sorted(out.rglob("*.safetensors"))},
        "figures": {part: _last(out / f"{part}.jsonl") for part in makers},
    }
    write_atomic(out / "parts.json", json.dumps(card, indent=1) + "\n")
    return out / "parts.json"


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _last(log: Path) -> dict[str, object]:
    """The last logged figures of a part."""
    return json.loads(log.read_text().splitlines()[-1]) if log.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=("vision", "language"))
    given = parser.parse_args()
    print(build_parts(given.recipe, given.out, only=given.only))


if __name__ == "__main__":
    main()
