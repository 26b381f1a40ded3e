"""What is annotated of a picture as facts, and whether a part of a claim fits one of them.

Knows: the exact annotations of a drawn scene; what labels, boxes and captions decide of any image, and what not.
Does not know: claims, and how they are read (`claims.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.data.scenes import SHAPES, SIZE
from workbench.instruct.english import Reader
from workbench.instruct.material import Material
from workbench.instruct.phrases import Part
from workbench.instruct.words import plural_of

_SHAPE_WORDS = {"disc": "circle", "disk": "circle", "donut": "ring", "rhombus": "diamond", "plus sign": "cross"}
_SHAPE_WORDS |= {"circular": "circle", "triangular": "triangle"}
_LABEL_WORDS = {  # words for a label of COCO's kind, "~" before those that are narrower
    "person": "~man ~woman ~boy ~girl ~child ~guy ~lady ~kid ~toddler ~baby ~skier ~surfer ~snowboarder ~skateboarder",
    "dog": "~puppy",
    "cat": "~kitten",
    "bicycle": "bike",
    "motorcycle": "motorbike",
    "airplane": "plane aeroplane ~jet",
    "couch": "sofa",
    "cell phone": "cellphone ~smartphone",
    "tv": "television",
    "refrigerator": "fridge",
    "cow": "~calf ~bull",
    "horse": "~pony",
    "sheep": "~lamb",
    "boat": "~sailboat ~canoe ~kayak",
}
_FAR, _GREY = 0.6, 0.1  # of the image's side: where a centre is beyond doubt, and how far apart two must be
_GREY_SCENE = 0.01


@dataclass(frozen=True)
class Fact:
    """An annotated thing. `box` is from 0 to 1 of the image's width and height; None where nothing is known."""

    noun: str
    color: str | None = None
    size: str | None = None
    place: tuple[str, str] | None = None
    box: tuple[float, float, float, float] | None = None
    crowd: bool = False


@dataclass(frozen=True)
class Ground:
    """What claims are held against."""

    facts: tuple[Fact, ...]
    reader: Reader
    """Reads with the words for labels, each standing for (label, whether it says the same as the label)."""
    exact: bool = False
    """A drawn scene: what is not annotated is not there."""
    mentioned: frozenset[str] = frozenset()
    """Labels that captions name and no annotation has."""


def ground_of(material: Material) -> Ground:
    """What is known about an image as facts, and the words for them."""
    if material.scene is not None:
        facts = tuple(
            Fact(one.shape, one.color, one.size, (one.row, one.column), _share(one.box, SIZE, SIZE))
            for one in material.scene.objects
        )
        shapes = dict.fromkeys((*SHAPES, *(fact.noun for fact in facts)))
        nouns = {word: (word, True) for word in shapes} | {word: (shape, True) for word, shape in _SHAPE_WORDS.items()}
        return Ground(facts, Reader(nouns, compounds=False), exact=True)
    size = (material.image.width or 0, material.image.height or 0) if material.image else (0, 0)
    facts = tuple(
        Fact(one.label.lower(), box=_share(one.box, *size), crowd=bool(one.more.get("iscrowd")))
        for one in material.things
    )
    nouns = _label_words({label.lower() for label in material.labels} | {fact.noun for fact in facts})
    told = [*material.captions, *([material.label] if material.label else [])]
    words = {label for word, (label, _) in nouns.items() if any(_has_word(text, word) for text in told)}
    return Ground(facts, Reader(nouns), mentioned=frozenset(words - {fact.noun for fact in facts}))


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"\b(?:{re.escape(word)}|{re.escape(plural_of(word))})\b", text.lower()) is not None


def _share(box: Sequence[float] | None, width: int, height: int) -> tuple[float, float, float, float] | None:
    if box is None or not width or not height:
        return None
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _label_words(labels: set[str]) -> dict[str, tuple[str, bool]]:
    nouns = {}
    for label in labels:
        for word in re.findall(r"~?[\w-]+", _LABEL_WORDS.get(label, "")):
            nouns[word.removeprefix("~")] = (label, not word.startswith("~"))
    return nouns | {label: (label, True) for label in labels}


def all_fit(fact: Fact, parts: Sequence[Part], ground: Ground) -> bool | None:
    """Whether every part holds for an annotated thing."""
    found = [fit(fact, part, ground) for part in parts]
    return False if False in found else None if None in found else True


def fit(fact: Fact, part: Part, ground: Ground) -> bool | None:
    """Whether a part holds for an annotated thing; None where its annotation does not say."""
    if part.kind == "object":
        label, same = part.value
        if fact.noun == label:
            return True if same else None
        return None if label in ground.mentioned else False
    if part.kind in ("color", "size"):
        have = fact.color if part.kind == "color" else fact.size
        return None if have is None else have in part.value if isinstance(part.value, tuple) else have == part.value
    if part.kind == "place":
        return _placed(fact, *part.value)
    if part.kind == "relation":
        relation, other = part.value
        return _related(fact, relation, other, ground)
    return None


def _placed(fact: Fact, row: str | None, column: str | None) -> bool | None:
    if fact.place is not None:
        return row in (None, fact.place[0]) and column in (None, fact.place[1])
    if fact.box is None:
        return None
    x0, y0, x1, y1 = fact.box
    found = [_along(low, high, word) for low, high, word in ((y0, y1, row), (x0, x1, column)) if word is not None]
    return False if False in found else None if None in found else True


def _along(low: float, high: float, word: str) -> bool | None:
    """Whether an extent is at that end of the image's side (or in its middle); None in the grey."""
    centre = (low + high) / 2
    if word in ("bottom", "right"):
        low, high, centre, word = 1 - high, 1 - low, 1 - centre, "top"
    if word in ("top", "left"):
        return False if centre > _FAR and low > 1 / 3 else True if centre < 1 - _FAR else None
    return False if high < 1 / 3 or low > 2 / 3 else True if abs(centre - 0.5) < 0.15 else None


def _related(fact: Fact, relation: str, other: tuple[Part, ...], ground: Ground) -> bool | None:
    others = [one for one in ground.facts if one is not fact and all_fit(one, other, ground) is not False]
    found = [_before(fact, one, relation, ground.exact) for one in others]
    return None if not found else False if all(one is False for one in found) else True if all(found) else None


def _before(fact: Fact, other: Fact, relation: str, exact: bool) -> bool | None:
    if relation not in ("left", "right", "above", "below") or fact.box is None or other.box is None:
        return None
    axis = 0 if relation in ("left", "right") else 1
    apart = (other.box[axis] + other.box[axis + 2] - fact.box[axis] - fact.box[axis + 2]) / 2
    apart = apart if relation in ("left", "above") else -apart
    return None if abs(apart) < (_GREY_SCENE if exact else _GREY) else apart > 0
