"""What can truthfully be said and asked about a scene.

Knows: captions, descriptions, questions with their only right answer, and short arguments, all from the annotation.
Does not know: pictures, conversations or models; everything here is a pure function of a scene and a random generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from workbench.data.scenes import COLORS, COLUMNS, ROWS, SHAPES, Scene, SceneObject

NUMBERS = ("no", "one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Question:
    """A question of a known type with its only right answer."""

    type: str
    text: str
    answer: str


def name(thing: SceneObject) -> str:
    """The shortest name that is unique in a scene: "red star"."""
    return f"{thing.color} {thing.shape}"


def phrase(thing: SceneObject) -> str:
    """Everything known about a thing, as a list of words: "small red star top left"."""
    return f"{thing.size} {name(thing)} {thing.place}"


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def caption(scene: Scene) -> str:
    """One sentence that names everything, in reading order."""
    return join([f"{article(f'{thing.size} {name(thing)}')} at the {thing.place}" for thing in scene.objects])


def short_caption(scene: Scene) -> str:
    """The things alone: "a red star and a blue ring"."""
    return join([article(name(thing)) for thing in scene.objects])


def detail(scene: Scene) -> str:
    """Several sentences: how many, then each thing, then what they share."""
    count = len(scene.objects)
    lines = ["There is one object." if count == 1 else f"There are {NUMBERS[count]} objects."]
    for thing in scene.objects:
        lines.append(f"{article(f'{thing.size} {name(thing)}').capitalize()} is at the {thing.place}.")
    return " ".join(lines)


# --- questions, one function a type ---------------------------------------------------------------------------

Asker = Callable[[Scene, np.random.Generator], Question | None]


def ask_count(scene: Scene, rng: np.random.Generator) -> Question:
    return Question("count", "How many objects are there?", str(len(scene.objects)))


def ask_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    thing = _pick(scene, rng)
    shapes = [other.shape for other in scene.objects]
    if rng.random() < 0.5 and shapes.count(thing.shape) == 1:
        return Question("color", f"What color is the {thing.shape}?", thing.color)
    return Question("color", f"What color is the object at the {thing.place}?", thing.color)


def ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    thing = _pick(scene, rng)
    colors = [other.color for other in scene.objects]
    if rng.random() < 0.5 and colors.count(thing.color) == 1:
        return Question("shape", f"What shape is the {thing.color} object?", thing.shape)
    return Question("shape", f"What shape is at the {thing.place}?", thing.shape)


def ask_size(scene: Scene, rng: np.random.Generator) -> Question:
    thing = _pick(scene, rng)
    return Question("size", f"Is the {name(thing)} small or large?", thing.size)


def ask_place(scene: Scene, rng: np.random.Generator) -> Question:
    thing = _pick(scene, rng)
    return Question("place", f"Where is the {name(thing)}?", thing.place)


def ask_exist(scene: Scene, rng: np.random.Generator) -> Question:
    """Half yes, half no; half of the absent ones share color or shape with something present."""
    present = {(thing.shape, thing.color) for thing in scene.objects}
    if rng.random() < 0.5:
        return Question("exist", f"Is there {article(name(_pick(scene, rng)))}?", "yes")
    near = _pick(scene, rng)
    while True:
        shape, color = str(rng.choice(SHAPES)), str(rng.choice(list(COLORS)))
        if rng.random() < 0.5:
            shape, color = (near.shape, color) if rng.random() < 0.5 else (shape, near.color)
        if (shape, color) not in present:
            return Question("exist", f"Is there {article(f'{color} {shape}')}?", "no")


def ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Asked only of things in different columns (left, right) or rows (above, below); half yes, half no."""
    if len(scene.objects) < 2:
        return None
    a, b = (scene.objects[int(index)] for index in rng.permutation(len(scene.objects))[:2])
    across = COLUMNS.index(b.column) - COLUMNS.index(a.column)
    down = ROWS.index(b.row) - ROWS.index(a.row)
    axis = rng.random() < 0.5
    if (across if axis else down) == 0:
        axis = not axis
    relation = RELATIONS[(0 if axis else 2) + int(rng.integers(2))]
    before = (across if axis else down) > 0
    answer = before == (relation in ("left of", "above"))
    return Question("relation", f"Is the {name(a)} {relation} the {name(b)}?", "yes" if answer else "no")


QUESTIONS: dict[str, Asker] = {
    "count": ask_count,
    "color": ask_color,
    "shape": ask_shape,
    "size": ask_size,
    "place": ask_place,
    "exist": ask_exist,
    "relation": ask_relation,
}


def questions(scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
    """`count` different questions, types in random order; fewer where the scene does not give as many."""
    asked: dict[str, Question] = {}
    types = list(QUESTIONS)
    for _ in range(4 * count):
        kind = types[int(rng.integers(len(types)))]
        question = QUESTIONS[kind](scene, rng)
        if question is not None:
            asked.setdefault(question.text, question)
        if len(asked) == count:
            break
    return list(asked.values())


# --- short arguments ------------------------------------------------------------------------------------------


def reason_remove(scene: Scene, rng: np.random.Generator) -> Question:
    """What is left when one thing is taken away, with the reason."""
    thing, count = _pick(scene, rng), len(scene.objects)
    noun = "object" if count == 1 else "objects"
    left = NUMBERS[count - 1] if count > 1 else "none"
    answer = f"There {'is' if count == 1 else 'are'} {NUMBERS[count]} {noun}, so {left} would remain."
    return Question("remove", f"How many objects would remain without the {name(thing)}?", answer)


def reason_same(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Whether two things share their color, with the reason."""
    if len(scene.objects) < 2:
        return None
    a, b = (scene.objects[int(index)] for index in rng.permutation(len(scene.objects))[:2])
    question = f"Do the objects at the {a.place} and the {b.place} have the same color?"
    if a.color == b.color:
        return Question("same", question, f"Yes, both are {a.color}.")
    return Question("same", question, f"No, one is {a.color} and the other is {b.color}.")


REASONING: dict[str, Asker] = {"remove": reason_remove, "same": reason_same}


def _pick(scene: Scene, rng: np.random.Generator) -> SceneObject:
    return scene.objects[int(rng.integers(len(scene.objects)))]
