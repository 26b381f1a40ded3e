"""How much of a heat map lies in the box of the object that a question names, in times of the box's part of the image.

    python tests/benchmarks/heatmap_boxes.py runs/quickstart [DATASET] [--count 60]

A trained run answers held-out questions about scenes ("What color is the cross?") whose one named object has a known
box; only right answers count. For the first token of each answer with text in it, by each method: the mass of the map
inside the box over the box's share of the image, mean and median. 1 is what a map that knows nothing gives.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import workbench as wb
from workbench.conversation import Conversation
from workbench.inference.engine import Engine
from workbench.inference.relevance import Relevance
from workbench.model.pieces import pieces
from workbench.widgets.pictures import opener

WAYS = (("relevance", True), ("relevance", False), ("attention", True), ("attention", False), ("occlusion", False))
TYPES = ("color", "size", "place", "shape")


def named(question: str, row: dict[str, Any]) -> dict[str, Any] | None:
    """The one object that the question is about, if it names exactly one."""
    objects = json.loads(row["objects"])
    by_shape = [one for one in objects if re.search(rf"\b{one['shape']}\b", question)]
    found = [one for one in by_shape if one["color"] in question] or by_shape
    return found[0] if len(found) == 1 else None


def part_inside(box: list[float], width: int, height: int, side: int) -> np.ndarray:
    """(side, side): how much of each patch lies in the box, 0 to 1."""
    edges = np.arange(side + 1)
    across = np.clip(
        np.minimum(box[2], edges[1:] * width / side) - np.maximum(box[0], edges[:-1] * width / side), 0, None
    )
    down = np.clip(
        np.minimum(box[3], edges[1:] * height / side) - np.maximum(box[1], edges[:-1] * height / side), 0, None
    )
    return np.outer(down, across) / (width * height / side**2)


def ratios(engine: Engine, asked: Conversation, row: dict[str, Any], box: list[float]) -> dict[tuple[str, bool], float]:
    with engine.alone() as llava:
        looked = Relevance(llava, asked, engine.open_image)
        said = pieces(llava.renderer, looked.rendered)
        token = next(place for place, number in enumerate(looked.tokens) if said[number].text.strip())
        made = {way: looked.map(token, way[0], relative=way[1])[0].numpy() for way in WAYS}
    inside = part_inside(box, row["width"], row["height"], len(made[WAYS[0]]))
    return {way: float((grid * inside).sum() / inside.mean()) for way, grid in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--count", type=int, default=60)
    given = parser.parse_args()
    where = given.dataset or yaml.safe_load((given.run / "recipe.yaml").read_text())["data"]["dataset"]
    dataset = wb.Dataset.open(where)
    engine = wb.open_model(given.run, open_image=opener(dataset))
    assert isinstance(engine, Engine)
    rows = {(row["root"], row["path"]): row for row in dataset.images.iter_rows(named=True)}
    found: dict[tuple[str, bool], list[float]] = {way: [] for way in WAYS}
    for asked in dataset.conversations("test", tasks=["question"]):
        row = rows[asked.images[0].root, asked.images[0].path]
        thing = named(asked.prompt.messages[-1].text, row)
        if asked.metadata.get("type") not in TYPES or thing is None or len(found[WAYS[0]]) >= given.count:
            continue
        if engine.reply(asked.prompt).text.strip().lower() != (asked.reference or "").lower():
            continue
        for way, ratio in ratios(engine, asked, row, thing["box"]).items():
            found[way].append(ratio)
    print(f"{len(found[WAYS[0]])} questions answered right, one named object each")
    for (method, relative), values in found.items():
        name = f"{method}{', relative' if relative else ''}"
        print(f"{name:<20} mean {statistics.mean(values):5.1f}  median {statistics.median(values):5.1f}")


if __name__ == "__main__":
    main()
