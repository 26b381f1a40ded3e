"""What is known about one image: the ground every instruction task stands on.

Knows: a row of the images table as annotations, captions and a class.
Does not know: what is asked about an image (`tasks.py`) or who answers (`rules.py`, `teacher.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.conversation import Image
from workbench.data.boxes import Box
from workbench.data.scenes import Scene

Turns = list[tuple[str, str]]
"""Questions and answers in order."""

WHAT = "What is this?"


@dataclass(frozen=True)
class Thing:
    """One annotated object. `box` is x0, y0, x1, y1 in pixels of the image; `more` whatever else was annotated."""

    label: str
    box: Box | None = None
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Material:
    """What is known about one image, and about the dataset it is in."""

    scene: Scene | None = None
    """Exact annotations of a drawn scene."""
    captions: Sequence[str] = ()
    """What a person wrote about it."""
    label: str | None = None
    """Its class."""
    classes: Sequence[str] = ()
    """Every class of the dataset."""
    all_captions: Sequence[str] = ()
    """Every caption of the dataset, each once."""
    question: str = WHAT
    """How a class is asked for."""
    things: Sequence[Thing] = ()
    """Annotated objects, a scene's too."""
    labels: Sequence[str] = ()
    """Every label of an annotated object in the dataset, each once: what could be in an image of it."""
    image: Image | None = None
    """The picture itself, by reference."""

    @property
    def has(self) -> frozenset[str]:
        """Which of `annotations` (a scene), `captions`, `boxes`, `class` and `pixels` are known."""
        known = {
            "annotations": self.scene is not None,
            "captions": bool(self.captions),
            "boxes": any(thing.box for thing in self.things),
            "class": bool(self.label),
            "pixels": self.image is not None,
        }
        return frozenset(name for name, there in known.items() if there)


def material_of(
    row: Mapping[str, Any],
    *,
    classes: Sequence[str] = (),
    all_captions: Sequence[str] = (),
    labels: Sequence[str] = (),
    question: str = WHAT,
) -> Material:
    """The material of one row of a dataset's images table."""
    things = things_of(row["objects"])
    scene = Scene.from_json(row["objects"]) if things and all("shape" in thing.more for thing in things) else None
    image = Image(row["path"], row["root"], row["width"], row["height"], row["hash"])
    known: dict[str, Any] = {"classes": classes, "all_captions": all_captions, "question": question, "labels": labels}
    return Material(scene, row["captions"] or (), row["label"], things=things, image=image, **known)


def things_of(objects: str | None) -> tuple[Thing, ...]:
    """The column `objects` of one row: a JSON list of mappings with `label`, `box` in pixels and anything more."""
    made = []
    for item in json.loads(objects or "[]"):
        more = {key: value for key, value in item.items() if key not in ("label", "box")}
        box = tuple(float(value) for value in item["box"]) if item.get("box") else None
        made.append(Thing(str(item.get("label", "object")), box, more))  # type: ignore[arg-type]
    return tuple(made)
