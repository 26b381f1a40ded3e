"""The text the tiny language model starts from: scenes told in words, questions about them, simple English.

Knows: how to write documents of text and how one phrase can be given at one position (the mean of its words).
Does not know: pictures, towers or projectors; the starting language model saw nothing but what is made here.

A context is a list of phrases such as "small red star top left", with filler words between them, as plain words or with
every phrase pooled into one position, or the same as full sentences. After it come turns of question and answer in the
layout of LLaVA's `v1` template, or a caption as in `plain`. Pooling teaches the model to read a phrase from one
position; noise on pooled positions teaches it not to depend on exact values.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np

from workbench.data import scene_text
from workbench.data.scenes import NEVER_SEEN, SHAPES, Scene, sample_scene

GLYPHS = tuple([f"letter {letter}" for letter in string.ascii_uppercase] + [f"digit {digit}" for digit in range(10)])
FILLER = "."
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
NOUNS = (
    "cat dog bird fish horse cow sheep tree flower leaf house door window table chair lamp book cup plate knife fork "
    "spoon car bus train boat plane bicycle road river sea hill cloud sun moon rain snow shirt shoe hat coat bag box "
    "ball clock phone bread apple pear plum grape cake egg milk hand foot eye face man woman child king queen"
).split()
_VERBS = "sees likes finds holds moves keeps wants has takes opens paints shows".split()
_ADJECTIVES = "old new big little good bad warm cold long short clean quiet bright dark heavy light".split()


@dataclass(frozen=True)
class Document:
    """One training text: a context of phrases, and turns after it. A `plain` one has one answer and no question."""

    system: str
    context: tuple[str, ...]
    pooled: bool
    turns: tuple[tuple[str, str], ...]
    plain: bool = False


def scene_document(rng: np.random.Generator, *, filler: int) -> Document:
    """A scene as a context, then questions, a caption, a description or a short argument about it."""
    shapes = SHAPES if rng.random() < 0.85 else GLYPHS
    scene = sample_scene(rng, avoid=NEVER_SEEN, shapes=shapes)
    context, pooled = _context(scene, rng, filler)
    kind = rng.random()
    system = SYSTEM if rng.random() < 0.3 else ""
    if kind < 0.15:
        return Document("", context, pooled, (("", scene_text.caption(scene)),), plain=True)
    asked = scene_text.questions(scene, rng, 8)
    turns = [(question.text, question.answer) for question in asked if not _kept_back(question.text)]
    if kind < 0.25:
        turns.insert(0, ("Describe the image in detail.", scene_text.detail(scene)))
        turns = turns[:4]
    elif kind < 0.30:
        turns.insert(0, ("Describe the image briefly.", scene_text.short_caption(scene)))
    elif kind < 0.40:
        reasons = [ask(scene, rng) for ask in scene_text.REASONING.values()]
        turns = [(reason.text, reason.answer) for reason in reasons if reason is not None] + turns[:4]
    return Document(system, context, pooled, tuple(turns))


def recall_document(rng: np.random.Generator, *, filler: int) -> Document:
    """A scene as a context, then its things told again, the words of each in another order.

    After the first word of a thing all others follow from the context, so nearly every token asks for a look-up.
    """
    shapes = SHAPES if rng.random() < 0.85 else GLYPHS
    scene = sample_scene(rng, avoid=NEVER_SEEN, shapes=shapes)
    context = _scatter([scene_text.phrase(thing) for thing in scene.objects], rng, filler)
    told = []
    for index in rng.integers(0, len(scene.objects), 12):
        thing = scene.objects[int(index)]
        words = [thing.size, thing.color, thing.shape, thing.place]
        told.append(" ".join(words[int(place)] for place in rng.permutation(4)))
    return Document("", context, True, (("", ", ".join(told)),), plain=True)


def choice_document(rng: np.random.Generator, *, filler: int) -> Document:
    """One noun, letter or digit as a context, and the question what it is, with or without a list to choose from."""
    bank = NOUNS if rng.random() < 0.6 else [glyph.split()[1] for glyph in GLYPHS]
    names = [str(word) for word in rng.choice(bank, size=int(rng.integers(2, 11)), replace=False)]
    truth = names[int(rng.integers(len(names)))]
    context = _scatter([f"photo of {truth}"], rng, filler)
    question = "What is this?"
    if rng.random() < 0.6:
        question += " Choose from: " + ", ".join(names) + "."
    return Document(SYSTEM if rng.random() < 0.3 else "", context, bool(rng.random() < 0.7), ((question, truth),))


def english_document(rng: np.random.Generator) -> Document:
    """A few sentences of simple English, and a question whose answer is one of their words."""
    facts = []
    for _ in range(int(rng.integers(2, 5))):
        who, what = (str(word) for word in rng.choice(NOUNS, size=2, replace=False))
        facts.append((str(rng.choice(_ADJECTIVES)), who, str(rng.choice(_VERBS)), what))
    told = tuple(f"The {adjective} {who} {verb} the {what}." for adjective, who, verb, what in facts)
    turns = []
    for adjective, who, verb, what in facts:
        if [fact[1] for fact in facts].count(who) == 1:
            like = (f"What is the {who} like?", adjective)
            does = (f"What does the {who} do?", f"It {verb} the {what}.")
            turns.append(like if rng.random() < 0.5 else does)
    return Document("", told, False, tuple(turns or [("How many sentences are there?", str(len(facts)))]))


def told_document(rng: np.random.Generator, *, filler: int) -> Document:
    """A scene with questions, a thing to name, or simple English."""
    draw = rng.random()
    if draw < 0.86:
        return scene_document(rng, filler=filler)
    return choice_document(rng, filler=filler) if draw < 0.95 else english_document(rng)


def document(rng: np.random.Generator, *, filler: int, recall: float = 0.0) -> Document:
    """One document; `recall` is the share of those that train looking up and nothing else."""
    if recall and rng.random() < recall:
        return recall_document(rng, filler=filler)
    return told_document(rng, filler=filler)


def _kept_back(question: str) -> bool:
    """Whether a question names a pair that is kept back: "no" would be the only answer that is ever heard about it."""
    return any(f"{color} {shape}" in question for shape, color in NEVER_SEEN)


def _context(scene: Scene, rng: np.random.Generator, filler: int) -> tuple[tuple[str, ...], bool]:
    style = rng.random()
    if style < 0.08:
        return (scene_text.caption(scene) + ".",), False
    if style < 0.14:
        return (scene_text.detail(scene),), False
    phrases = [scene_text.phrase(thing) for thing in scene.objects]
    return _scatter(phrases, rng, filler), style > 0.26


def _scatter(phrases: list[str], rng: np.random.Generator, filler: int) -> tuple[str, ...]:
    """The phrases in random order with `filler` filler words between them."""
    words = [FILLER] * filler + phrases
    return tuple(words[int(index)] for index in rng.permutation(len(words)))
