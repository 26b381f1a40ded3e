"""Claims read out of free English, held against annotations: planted falsehoods are found, true statements are not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.conversation import Image
from workbench.data import scene_text
from workbench.data.scenes import COLORS, COLUMNS, PLACES, ROWS, SHAPES, SIZE_NAMES, Scene, SceneObject, sample_scene
from workbench.instruct import rules
from workbench.instruct.claims import KINDS, Claim, contradicted
from workbench.instruct.facts import Ground, ground_of
from workbench.instruct.material import Material, Thing
from workbench.instruct.questions import extract

sys.path.insert(0, str(Path(__file__).parent))
from wordings import HELD_OUT, TOLD, Said  # noqa: E402

Values = dict[str, str]


def found(ground: Ground, question: str, answer: str) -> list[Claim]:
    return [claim for claim in extract(question, answer, ground.reader) if contradicted(claim, ground)]


# --- the proof on drawn scenes: what is said, true or planted ------------------------------------------------------

ROW_WORDS = {"top": ("top", "upper"), "middle": ("middle",), "bottom": ("bottom", "lower")}
COUNT_WORDS = ("zero", "one", "two", "three", "four", "five", "six")


def pick(rng: np.random.Generator, options: Sequence) -> Any:
    return options[int(rng.integers(len(options)))]


def others(options: Sequence, true: object) -> list:
    return [option for option in options if option != true]


def an_object(scene: Scene, rng: np.random.Generator, true: bool) -> Values | None:
    thing = pick(rng, scene.objects)
    shapes = {one.shape for one in scene.objects}
    shape = thing.shape if true else pick(rng, [shape for shape in SHAPES if shape not in shapes])
    return {"a": scene_text.article(f"{thing.color} {shape}"), "shape": shape, "size": thing.size}


def a_count(scene: Scene, rng: np.random.Generator, true: bool) -> Values | None:
    total = len(scene.objects)
    number = total if true else pick(rng, others(range(1, 6), total))
    plural = "" if number == 1 else "s"
    verb = "is" if number == 1 else "are"
    return {
        "n": COUNT_WORDS[number],
        "d": str(number),
        "objects": f"object{plural}",
        "are": verb,
        "shapes": f"shape{plural}",
    }


def a_color(scene: Scene, rng: np.random.Generator, true: bool) -> Values | None:
    thing = pick(rng, scene.objects)
    if [one.shape for one in scene.objects].count(thing.shape) > 1:
        return None
    color = thing.color if true else pick(rng, others(list(COLORS), thing.color))
    return {
        "shape": thing.shape,
        "color": color,
        "place": thing.place,
        "a": scene_text.article(f"{color} {thing.shape}"),
    }


def a_size(scene: Scene, rng: np.random.Generator, true: bool) -> Values | None:
    thing = pick(rng, scene.objects)
    size = thing.size if true else {"small": "large", "large": "small"}[thing.size]
    words = {"small": ("small", "little", "tiny"), "large": ("large", "big")}[size]
    return {"name": scene_text.name(thing), "size": str(pick(rng, words)), "plain": size, "place": thing.place}


def a_place(scene: Scene, rng: np.random.Generator, true: bool) -> Values | None:
    thing = pick(rng, scene.objects)
    row, column = thing.place.split()
    if not true:
        row, column = pick(rng, others([(r, c) for r in ROWS for c in COLUMNS], (row, column)))
    both = "center" if (row, column) == ("middle", "center") else f"{pick(rng, ROW_WORDS[row])} {column}"
    name = scene_text.name(thing)
    return {"name": name, "a": scene_text.article(name), "place": both, "plain": f"{row} {column}"}


def a_relation(scene: Scene, rng: np.random.Generator, true: bool) -> Values | None:
    if len(scene.objects) < 2:
        return None
    a, b = (scene.objects[int(index)] for index in rng.permutation(len(scene.objects))[:2])
    across = COLUMNS.index(b.column) - COLUMNS.index(a.column)
    down = ROWS.index(b.row) - ROWS.index(a.row)
    sideways = bool(across) and (not down or rng.random() < 0.5)
    before = (across if sideways else down) > 0
    word = (("to the left of", "to the right of") if sideways else ("above", "below"))[before != true]
    word = str(pick(rng, ("below", "under", "underneath", "beneath"))) if word == "below" else word
    names = {"a": scene_text.name(a), "b": scene_text.name(b)}
    return names | {"rel": word, "an_a": scene_text.article(names["a"]), "a_b": scene_text.article(names["b"])}


DRAW: Mapping[str, Callable[[Scene, np.random.Generator, bool], Values | None]] = dict(
    zip(KINDS, (an_object, a_count, a_color, a_size, a_place, a_relation), strict=True)
)


def planted(
    wordings: Mapping[str, Sequence[Said]], kind: str, count: int, seed: int
) -> list[tuple[Material, str, str, bool]]:
    """`count` true and `count` false statements of a kind: material, question, answer, whether true."""
    rng = np.random.default_rng(seed)
    made: list[tuple[Material, str, str, bool]] = []
    while len(made) < 2 * count:
        true = len(made) % 2 == 0
        scene = sample_scene(rng)
        values = DRAW[kind](scene, rng, true)
        if values is None:
            continue
        if kind == "relation":
            values["rel_it"] = {"to the left of": "To its left", "to the right of": "To its right"}.get(
                values["rel"], f"{values['rel'].capitalize()} it"
            )
        number = int(rng.integers(len(wordings[kind])))
        question, answer = (text.format(**values) for text in wordings[kind][number])
        made.append((Material(scene), question, answer[0].upper() + answer[1:], true))
    return made


def score(
    wordings: Mapping[str, Sequence[Said]], title: str, seed: int = 0, count: int = 500
) -> dict[str, tuple[float, float]]:
    """Prints and returns recall and precision of each kind."""
    scores = {}
    print(f"\n{title}\n{'kind':<10} {'planted':>8} {'recall':>8} {'precision':>10}")
    for kind in KINDS:
        caught, false_alarms = 0, 0
        for material, question, answer, true in planted(wordings, kind, count, seed):
            flagged = bool(found(ground_of(material), question, answer))
            caught += flagged and not true
            false_alarms += flagged and true
        recall, precision = caught / count, caught / max(1, caught + false_alarms)
        scores[kind] = recall, precision
        print(f"{kind:<10} {count:>8} {recall:>8.3f} {precision:>10.3f}")
    return scores


def test_planted_falsehoods_are_found_and_true_statements_are_not() -> None:
    """Every kind, by wordings the reader was written or taught with."""
    scores = score(TOLD, f"wordings the reader knows ({sum(map(len, TOLD.values()))})")
    assert all(recall >= 0.95 and precision >= 0.95 for recall, precision in scores.values()), scores


def test_wordings_the_reader_never_saw_raise_no_false_alarm() -> None:
    """What is not understood is left out: recall falls, precision must not."""
    scores = score(HELD_OUT, f"wordings it was not tuned on ({sum(map(len, HELD_OUT.values()))})", seed=1)
    assert all(precision >= 0.95 for _, precision in scores.values()), scores
    assert all(recall >= 0.85 for recall, _ in scores.values()), scores


def test_questions_of_scene_text_with_a_wrong_answer() -> None:
    answers = {
        "count": ["1", "2", "3", "4"],
        "color": list(COLORS),
        "shape": list(SHAPES),
        "size": list(SIZE_NAMES),
        "place": list(PLACES),
        "exist": ["yes", "no"],
        "relation": ["yes", "no"],
    }
    rng = np.random.default_rng(4)
    asked, caught = 0, 0
    while asked < 1000:
        scene = sample_scene(rng)
        for question in scene_text.questions(scene, rng, 5):
            wrong = pick(rng, others(answers[question.type], question.answer))
            ground = ground_of(Material(scene))
            assert not found(ground, question.text, question.answer)
            asked += 1
            caught += bool(found(ground, question.text, wrong))
    print(f"\nwrong answers to questions of scene_text: {caught} of {asked} found")
    assert caught == asked


def test_nothing_the_rules_say_is_contradicted() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        material = Material(sample_scene(rng))
        ground = ground_of(material)
        for write in (rules.write_caption, rules.write_conversation, rules.write_detail, rules.write_reasoning):
            for question, answer in write(material, rng):
                assert not found(ground, question, answer), (question, answer, material.scene)


# --- single sentences ---------------------------------------------------------------------------------------------


def thing(shape: str, color: str, size: str, place: str, x: float, y: float) -> SceneObject:
    radius = 9 if size == "small" else 16
    return SceneObject(shape, color, size, place, (x - radius, y - radius, x + radius, y + radius))


SCENE = Scene(
    (
        thing("star", "red", "small", "top left", 14, 14),
        thing("ring", "blue", "large", "top right", 78, 18),
        thing("circle", "blue", "small", "bottom right", 80, 80),
    )
)
TRUE = [
    ("", "The red star sits in the upper left corner, to the left of two blue shapes."),
    ("", "A red star and a blue ring occupy the top row, while a blue circle is in the bottom right corner."),
    ("", "In the top left is a small red star; in the top right, a large blue ring. Below it is a small blue circle."),
    ("", "There are no hearts or triangles, and the star is not blue."),
    ("What color is the heart?", "There is no heart in the image, but there is a red star."),
    ("Is the red star right of the blue ring?", "No, it is to the left of it."),
    ("How many objects are in the top row?", "2"),
    ("", "Two of the shapes are blue and one is red."),
    ("How many objects would remain without the red star?", "There are three objects, so two would remain."),
    ("Do the objects at the top left and the top right have the same color?", "No, one is red and the other is blue."),
    ("", "The blue ring is larger than the red star."),
    ("", "The picture has a gray background with three shapes, and the bottom left is empty."),
    ("", "The star is red and its outline is black, and the background is gray."),
    ("", "The star is red and the background gray."),
    ("", "Both the ring and the circle are on the right-hand side. Nothing is in the center."),
    ("", "The ring is large and blue. It is located in the top right, away from the star in the top left."),
    ("", "There are no other stars in the image, and there are no green or yellow shapes."),
    ("Is there another star?", "No"),
    ("", "Two objects are in the top row, one is in the bottom row."),
    ("", "The ring has a hole in the center."),
    ("What do the ring and the circle have in common?", "They are both blue, and both are on the right."),
    ("", "If the ring were removed, two shapes would be left."),
    ("", "The red star is to the left of the blue ring and above the blue circle."),
    ("What color is the star?\nA. red\nB. blue", "A"),
    ("Describe the region.", "[0.05, 0.05, 0.24, 0.24]"),
]
FALSE = [
    ("", "A red star is at the top left and a large blue ring is at the bottom left.", "bottom left"),
    ("", "There is no red star in the picture.", "no red star"),
    ("", "There are no hearts or stars.", "no hearts or stars"),
    ("", "The star is not red.", "red"),
    ("What color is the heart?", "It is green.", "heart"),
    ("Is the star red?", "No, it is green.", "green"),
    ("Is the red star left of the blue ring?", "No.", "No"),
    ("How many blue shapes are there?", "Three.", "Three"),
    ("", "All of the objects are blue.", "blue"),
    ("", "Two objects are in the bottom row.", "bottom row"),
    ("", "There are no red or yellow shapes.", "no red or yellow shapes"),
    ("", "The red star and the blue circle are both on the right.", "right"),
    ("", "The ring, which is small and blue, sits above the circle.", "small"),
    ("What is below the blue ring?", "The red star.", "star"),
    ("", "Right of the ring we find the star.", "Right of"),
    ("What color is the star?\nA. red\nB. blue", "B", "blue"),
    ("", "A star is not present in the image.", "star"),
    ("", "A red star can be seen with a blue ring to its left.", "to its left"),
]


@pytest.mark.parametrize(("question", "answer"), TRUE)
def test_a_true_sentence_is_not_contradicted(question: str, answer: str) -> None:
    assert found(ground_of(Material(SCENE)), question, answer) == []


@pytest.mark.parametrize(("question", "answer", "words"), FALSE)
def test_the_words_that_are_wrong_are_named(question: str, answer: str, words: str) -> None:
    claims = found(ground_of(Material(SCENE)), question, answer)
    assert any(words in claim.text for claim in claims), claims
    for claim in claims:
        text = question if claim.of == "question" else answer
        assert claim.text == text[slice(*claim.span)] or claim.span == (0, len(answer))


# --- images with labels, boxes and captions -----------------------------------------------------------------------

LABELS = ["person", "dog", "cat", "bicycle", "car", "train", "orange", "bus", "umbrella", "hot dog", "bear", "chair"]
STREET = Material(
    captions=["A man walks his dog past a parked bicycle and a chair."],
    things=(
        Thing("person", (300, 100, 400, 400)),
        Thing("dog", (40, 300, 140, 400)),
        Thing("dog", (150, 310, 240, 400)),
        Thing("bicycle", (500, 200, 620, 380)),
    ),
    labels=LABELS,
    image=Image("a.jpg", width=640, height=480),
)
FITS = [
    ("", "A man walks two dogs on the left side of the street, near a bicycle and a chair."),
    ("", "The man might own a cat. Train tracks run along the street, and a bus stop is in the background."),
    ("", "An orange and white dog waits; he is not riding the bicycle."),
    ("Is there a cat?", "No"),
    ("What color is the umbrella?", "There is no umbrella in this image."),
    ("How many dogs are there?", "2"),
    ("", "The dog is to the left of the bicycle, which is on the right."),
    ("", "The dog is large and brown."),
]
DOES_NOT_FIT = [
    ("", "A man walks three dogs.", "count"),
    ("", "A cat sits on the wall.", "object"),
    ("", "There is a woman with an umbrella.", "object"),
    ("Is there a dog?", "No", "object"),
    ("Is there a cat?", "Yes", "object"),
    ("How many dogs are there?", "4", "count"),
    ("", "The bicycle is on the left side of the picture.", "place"),
    ("", "The bicycle is to the left of the dogs.", "relation"),
    ("What color is the umbrella?", "It is red.", "object"),
]


@pytest.mark.parametrize(("question", "answer"), FITS)
def test_what_boxes_and_captions_allow_or_do_not_decide(question: str, answer: str) -> None:
    assert found(ground_of(STREET), question, answer) == []


@pytest.mark.parametrize(("question", "answer", "kind"), DOES_NOT_FIT)
def test_what_boxes_contradict(question: str, answer: str, kind: str) -> None:
    assert kind in {claim.kind for claim in found(ground_of(STREET), question, answer)}


def test_nothing_is_decided_where_nothing_is_annotated() -> None:
    ground = ground_of(Material(captions=["A dog."], labels=LABELS))
    assert {contradicted(claim, ground) for claim in extract("", "Two cats sit on the left.", ground.reader)} == {None}
