"""Scenes are what their annotations say, and everything said about them is true."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.data import scene_text
from workbench.data.scenes import COLORS, NEVER_SEEN, SHAPES, SIZE, Scene, draw_scene, sample_scene


def scene_of(seed: int) -> Scene:
    return sample_scene(np.random.default_rng(seed))


@given(st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_a_scene_has_one_to_four_separate_things_inside_the_picture(seed: int) -> None:
    scene = scene_of(seed)
    assert 1 <= len(scene.objects) <= 4
    for thing in scene.objects:
        x0, y0, x1, y1 = thing.box
        assert 0 <= x0 < x1 <= SIZE and 0 <= y0 < y1 <= SIZE
    names = [scene_text.name(thing) for thing in scene.objects]
    assert len(set(names)) == len(names)
    assert Scene.from_json(scene.to_json()) == scene


def test_the_same_seed_draws_the_same_picture_and_another_seed_another_one() -> None:
    pictures = [np.asarray(draw_scene(scene_of(3), np.random.default_rng(seed))).astype(int) for seed in (1, 1, 2)]
    assert (pictures[0] == pictures[1]).all()
    assert np.abs(pictures[0] - pictures[2]).mean() > 1


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_each_thing_is_drawn_in_its_color_at_its_place(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    picture = np.asarray(draw_scene(scene, rng)).astype(float)
    for thing in scene.objects:
        if thing.shape == "ring":
            continue  # its centre is background
        x, y = thing.centre
        spot = picture[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].mean((0, 1))
        nearest = min(COLORS, key=lambda color: float(np.abs(spot - np.asarray(COLORS[color])).sum()))
        assert nearest == thing.color


def test_pairs_kept_from_the_starting_parts_are_at_least_a_tenth_and_can_be_avoided() -> None:
    assert len(NEVER_SEEN) >= len(SHAPES) * len(COLORS) / 10
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = sample_scene(rng, avoid=NEVER_SEEN)
        assert not {(thing.shape, thing.color) for thing in scene.objects} & NEVER_SEEN


# --- an evaluator of its own: from boxes and pixels of the annotation, never from the words being tested -----------


def place_by_box(box: tuple[float, float, float, float]) -> str:
    column = ("left", "center", "right")[int((box[0] + box[2]) / 2 // (SIZE / 3))]
    return ("top", "middle", "bottom")[int((box[1] + box[3]) / 2 // (SIZE / 3))] + " " + column


def size_by_box(box: tuple[float, float, float, float]) -> str:
    return "large" if box[2] - box[0] > 25 else "small"


def true_answer(scene: Scene, question: str) -> str:
    """The answer by geometry alone."""
    things = scene.objects
    by_name = {f"{thing.color} {thing.shape}": thing for thing in things}
    if question == "How many objects are there?":
        return str(len(things))
    if found := re.fullmatch(r"What color is the object at the (.+)\?", question):
        return next(thing.color for thing in things if place_by_box(thing.box) == found[1])
    if found := re.fullmatch(r"What color is the (\w+)\?", question):
        (thing,) = [thing for thing in things if thing.shape == found[1]]
        return thing.color
    if found := re.fullmatch(r"What shape is the (\w+) object\?", question):
        (thing,) = [thing for thing in things if thing.color == found[1]]
        return thing.shape
    if found := re.fullmatch(r"What shape is at the (.+)\?", question):
        return next(thing.shape for thing in things if place_by_box(thing.box) == found[1])
    if found := re.fullmatch(r"Is the (.+) small or large\?", question):
        return size_by_box(by_name[found[1]].box)
    if found := re.fullmatch(r"Where is the (.+)\?", question):
        return place_by_box(by_name[found[1]].box)
    if found := re.fullmatch(r"Is there an? (.+)\?", question):
        return "yes" if found[1] in by_name else "no"
    if found := re.fullmatch(r"Is the (.+?) (left of|right of|above|below) the (.+)\?", question):
        a, b = by_name[found[1]].centre, by_name[found[3]].centre
        holds = {"left of": a[0] < b[0], "right of": a[0] > b[0], "above": a[1] < b[1], "below": a[1] > b[1]}
        return "yes" if holds[found[2]] else "no"
    raise AssertionError(f"a question the evaluator does not know: {question}")


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_every_answer_is_right_by_an_independent_evaluator(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    for question in scene_text.questions(scene, rng, 8):
        assert question.answer == true_answer(scene, question.text), question


@pytest.mark.parametrize("kind", ["exist", "relation", "size"])
def test_answers_cannot_be_guessed_from_the_type(kind: str) -> None:
    rng = np.random.default_rng(5)
    answers = []
    while len(answers) < 3000:
        question = scene_text.QUESTIONS[kind](sample_scene(rng), rng)
        if question is not None:
            answers.append(question.answer)
    shares = [answers.count(answer) / len(answers) for answer in set(answers)]
    assert len(shares) == 2 and max(shares) < 0.53


def test_wordings_are_grammatical() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        scene = sample_scene(rng)
        for text in (scene_text.caption(scene), scene_text.detail(scene), scene_text.short_caption(scene)):
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text.lower())
