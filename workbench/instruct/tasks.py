"""What is asked about an image and what comes back: the instruction tasks.

Knows: each task's need (annotations, captions or a class), and how a rule-based teacher answers it exactly.
Does not know: where conversations are kept or how many are wanted (`generator.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.data import scene_text
from workbench.data.scenes import Scene

Turns = list[tuple[str, str]]

BRIEF = "Describe the image briefly."
DETAIL = "Describe the image in detail."
WHAT = "What is this?"
TURNS_PER_CONVERSATION = 5


@dataclass(frozen=True)
class Material:
    """What is known about one image: exact annotations, captions of a person, a class, and the classes there are."""

    scene: Scene | None = None
    captions: Sequence[str] = ()
    label: str | None = None
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class Task:
    """A kind of conversation. `write` returns its turns for one image, or none where the image does not give it."""

    name: str
    write: Callable[[Material, np.random.Generator], Turns]
    needs: str
    metadata: Callable[[Material, np.random.Generator], dict[str, Any]] = field(default=lambda material, rng: {})


def write_caption(material: Material, rng: np.random.Generator) -> Turns:
    """For stage 1: the template `plain` shows the answer alone."""
    if material.scene is not None:
        return [(BRIEF, scene_text.caption(material.scene))]
    if material.captions:
        return [(BRIEF, str(material.captions[int(rng.integers(len(material.captions)))]))]
    return [(BRIEF, f"photo of {material.label}")] if material.label else []


def write_conversation(material: Material, rng: np.random.Generator) -> Turns:
    """Several short questions and answers."""
    if material.scene is not None:
        asked = scene_text.questions(material.scene, rng, TURNS_PER_CONVERSATION)
        return [(question.text, question.answer) for question in asked]
    turns: Turns = []
    if material.label:
        turns.append((choose_question(material, rng), material.label))
    if material.captions:
        turns.append((BRIEF, str(material.captions[int(rng.integers(len(material.captions)))])))
    return turns


def write_detail(material: Material, rng: np.random.Generator) -> Turns:
    return [(DETAIL, scene_text.detail(material.scene))] if material.scene is not None else []


def write_reasoning(material: Material, rng: np.random.Generator) -> Turns:
    """Answers that give their reason."""
    if material.scene is None:
        return []
    told = [ask(material.scene, rng) for ask in scene_text.REASONING.values()]
    return [(question.text, question.answer) for question in told if question is not None]


def write_classify(material: Material, rng: np.random.Generator) -> Turns:
    """Which of the classes the image shows; with few classes they are listed in the question."""
    return [(WHAT, material.label)] if material.label else []


def choose_question(material: Material, rng: np.random.Generator) -> str:
    """ "What is this?", with the classes in random order where there are at most 20."""
    if not 2 <= len(material.classes) <= 20 or rng.random() < 0.5:
        return WHAT
    names = [material.classes[int(index)] for index in rng.permutation(len(material.classes))]
    return f"{WHAT} Choose from: {', '.join(names)}."


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("caption", write_caption, "annotations, a caption or a class"),
        Task("conversation", write_conversation, "annotations, a caption or a class"),
        Task("detail", write_detail, "annotations"),
        Task("reasoning", write_reasoning, "annotations"),
        Task("classify", write_classify, "a class"),
    )
}
