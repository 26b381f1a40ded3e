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
WHICH = "Which caption fits?"
TURNS_PER_CONVERSATION = 5
MOST_LISTED = 20
"""More classes than this are not listed in a question."""
CAPTIONS_LISTED = 4


@dataclass(frozen=True)
class Material:
    """What is known about one image, and about the dataset it is in."""

    scene: Scene | None = None
    """Exact annotations."""
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
        listed = rng.random() < 0.5
        turns.append((class_question(material, rng) if listed else material.question, material.label))
    if material.captions:
        turns += which_caption(material, rng)
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
    """Which of the classes the image shows; where they are few they are listed in the question."""
    return [(class_question(material, rng), material.label)] if material.label else []


def class_question(material: Material, rng: np.random.Generator) -> str:
    """ "What is this?", with the classes in random order where there are at most 20."""
    if not 2 <= len(material.classes) <= MOST_LISTED:
        return material.question
    names = [material.classes[int(index)] for index in rng.permutation(len(material.classes))]
    return f"{material.question} Choose from: {', '.join(names)}."


def which_caption(material: Material, rng: np.random.Generator) -> Turns:
    """The image's caption among those of other images, in random order; none where there is no other."""
    truth = str(material.captions[int(rng.integers(len(material.captions)))])
    others = [text for text in material.all_captions if text not in material.captions]
    if not others:
        return []
    chosen = [others[int(index)] for index in rng.permutation(len(others))[: CAPTIONS_LISTED - 1]]
    listed = [[truth, *chosen][int(index)] for index in rng.permutation(len(chosen) + 1)]
    return [(f"{WHICH} Choose from: {'; '.join(listed)}", truth)]


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
