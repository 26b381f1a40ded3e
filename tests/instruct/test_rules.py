"""The rules teacher against an evaluator that shares no code with it, and on material like COCO's."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from workbench.conversation import Image
from workbench.data.scenes import Scene, SceneObject, sample_scene
from workbench.instruct import rules
from workbench.instruct.material import Material, Thing, Turns, things_of

WRITERS = {
    "caption": rules.write_caption,
    "conversation": rules.write_conversation,
    "detail": rules.write_detail,
    "reasoning": rules.write_reasoning,
    "short_answer": rules.write_short_answer,
    "multiple_choice": rules.write_multiple_choice,
    "grounding": rules.write_grounding,
    "refusal": rules.write_refusal,
}
SCENES = 625  # times eight tasks are 5,000 conversations


def _load_evaluator() -> ModuleType:
    """The module beside this one; tests are no package, so that it cannot be imported by name."""
    spec = importlib.util.spec_from_file_location("evaluator", Path(__file__).with_name("evaluator.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluator"] = module
    spec.loader.exec_module(module)
    return module


evaluator = _load_evaluator()


def drawn(seed: int) -> Material:
    scene = sample_scene(np.random.default_rng(seed))
    return Material(scene, things=things_of(scene.to_json()), image=Image("scene.png", width=96, height=96))


def written(task: str, count: int = SCENES) -> list[tuple[Material, Turns]]:
    """Conversations of a task about scenes drawn with seeds 0, 1, 2, ..."""
    made = []
    for seed in range(count):
        material = drawn(seed)
        made.append((material, WRITERS[task](material, np.random.default_rng([seed, 1]))))
    return made


@pytest.mark.parametrize("task", WRITERS)
def test_every_answer_about_a_scene_is_the_only_right_one(task: str) -> None:
    wrong = []
    for material, turns in written(task):
        assert turns and material.scene
        annotation = material.scene.to_json()
        for question, answer in turns:
            truth = evaluator.answer(task, question, annotation)
            if truth != answer:
                wrong.append((question, answer, truth, annotation))
    assert not wrong, f"{len(wrong)} wrong, for example {wrong[0]}"


def test_every_kind_of_question_that_the_evaluator_knows_is_asked() -> None:
    asked: Counter[str] = Counter()
    for task in WRITERS:
        forms = evaluator.REFUSALS if task == "refusal" else evaluator.QUESTIONS
        for _, turns in written(task, 150):
            lines = [question.split("\n")[0] for question, _ in turns]
            asked += Counter((task == "refusal", form) for line in lines for form in forms if re.fullmatch(form, line))
    known = {(False, form) for form in evaluator.QUESTIONS} | {(True, form) for form in evaluator.REFUSALS}
    assert {kind for kind, count in asked.items() if count >= 20} == known


TWO_STARS = Scene(
    (
        SceneObject("star", "red", "small", "top left", (6, 6, 26, 26)),
        SceneObject("star", "blue", "large", "middle left", (4, 34, 36, 66)),
        SceneObject("ring", "blue", "small", "bottom right", (72, 72, 92, 92)),
    )
).to_json()


@pytest.mark.parametrize(
    ("task", "question", "expected"),
    [
        ("conversation", "What color is the star?", evaluator.ILL_POSED),
        ("conversation", "What shape is the blue object?", evaluator.ILL_POSED),
        ("conversation", "What shape is at the top right?", evaluator.ILL_POSED),
        ("conversation", "Where is the green star?", evaluator.ILL_POSED),
        ("conversation", "Is there an red star?", evaluator.ILL_POSED),
        ("conversation", "Is the red star left of the blue star?", evaluator.ILL_POSED),
        ("conversation", "Is the red star above the blue star?", "yes"),
        ("conversation", "Is the blue ring left of the blue star?", "no"),
        ("refusal", "What color is the star?", evaluator.ILL_POSED),
        ("refusal", "What color is the heart?", "There is no heart in the image."),
        ("refusal", "Where is the blue star?", "The blue star is at the middle left."),
        ("multiple_choice", f"What color is the ring?\nA. blue\nB. red{evaluator.CHOOSE}", "A"),
        ("multiple_choice", f"What color is the ring?\nA. blue\nB. blue{evaluator.CHOOSE}", evaluator.ILL_POSED),
        ("multiple_choice", f"What color is the ring?\nA. green\nB. red{evaluator.CHOOSE}", evaluator.ILL_POSED),
    ],
)
def test_the_evaluator_tells_what_is_ill_posed_from_what_is_answered(task: str, question: str, expected: str) -> None:
    assert evaluator.answer(task, question, TWO_STARS) == expected


# --- what must hold over many conversations ---------------------------------------------------------------------


def test_the_right_letter_is_at_every_position_equally_often() -> None:
    letters = Counter(turns[0][1] for _, turns in written("multiple_choice", 2000) if turns[0][0].count("\n") == 5)
    total = letters.total()
    assert total > 1400 and set(letters) == set("ABCD")
    assert all(abs(count - total / 4) < 4 * (total * 3 / 16) ** 0.5 for count in letters.values())


def test_one_of_two_absent_things_is_a_near_miss_and_two_of_four_questions_are_about_what_is_there() -> None:
    compared = 0
    for material, turns in written("refusal", 300):
        absent = [re.search(r"here is no (.+) in the image", answer) for _, answer in turns]
        names = [found[1] for found in absent if found]
        assert len(turns) == 4 and len(names) == 2
        if all(" " in name for name in names):  # else one is "What color is the ring?", with half a name
            words = {word for thing in material.things for word in thing.label.split()}
            assert sum(bool(words & set(name.split())) for name in names) == 1
            compared += 1
    assert compared > 150


@pytest.mark.parametrize("task", WRITERS)
def test_the_same_generator_gives_the_same_words(task: str) -> None:
    assert written(task, 20) == written(task, 20)


# --- material like COCO's: captions, and labels with boxes ------------------------------------------------------

LABELS = ("person", "dog", "cat", "bear", "teddy bear", "skis", "broccoli", "wine_glass", "knife", "bus", "umbrella")
STREET = Material(
    captions=("A dog waits for a bus.\n",),
    all_captions=("A dog waits for a bus.\n", "Two cats.", "a  dog waits for a BUS.", "Snow on a hill.", "A cup."),
    things=(
        Thing("dog", (50, 300, 150, 420)),
        Thing("person", (300, 100, 340, 200)),
        Thing("person", (400, 100, 440, 200)),
        Thing("teddy bear", (500, 30, 600, 130)),
    ),
    labels=LABELS,
    image=Image("street.jpg", width=640, height=480),
)


def many(task: str, material: Material, count: int = 300) -> dict[str, set[str]]:
    """Every question asked in `count` conversations, with the answers it got."""
    asked: dict[str, set[str]] = {}
    for seed in range(count):
        for question, answer in WRITERS[task](material, np.random.default_rng(seed)):
            asked.setdefault(question.removesuffix(evaluator.SHORT), set()).add(answer)
    return asked


def test_short_answers_about_things_are_all_that_is_certain_and_no_more() -> None:
    """Not the bus, which a caption mentions; nor the bear, which the teddy bear may be; nor uncounted nouns."""
    assert many("short_answer", STREET) == {
        "Is there a dog in the image?": {"Yes"},
        "Is there a person in the image?": {"Yes"},
        "Is there a teddy bear in the image?": {"Yes"},
        "Is there a cat in the image?": {"No"},
        "Are there skis in the image?": {"No"},
        "Is there broccoli in the image?": {"No"},
        "Is there a wine glass in the image?": {"No"},
        "Is there a knife in the image?": {"No"},
        "Is there an umbrella in the image?": {"No"},
        "How many dogs are in the image?": {"1"},
        "How many people are in the image?": {"2"},
        "How many teddy bears are in the image?": {"1"},
    }


def test_labels_that_english_does_not_count_are_asked_for_without_a_number() -> None:
    asked = many("short_answer", Material(things=(Thing("skis"), Thing("broccoli"))), 20)
    assert asked == {"Are there skis in the image?": {"Yes"}, "Is there broccoli in the image?": {"Yes"}}


def test_what_captions_mention_in_the_plural_is_not_said_to_be_absent() -> None:
    material = Material(captions=("Knives!",), things=(Thing("dog"),), labels=("knife", "cat"))
    assert "Is there a cat in the image?" in many("short_answer", material, 20)
    assert "Is there a knife in the image?" not in many("short_answer", material, 20)


def test_one_box_around_many_is_not_counted() -> None:
    crowd = Thing("person", (0, 0, 640, 90), {"iscrowd": 1})
    asked = many("short_answer", Material(things=(*STREET.things, crowd), labels=LABELS))
    assert "How many people are in the image?" not in asked and "How many dogs are in the image?" in asked


def test_refusals_about_things() -> None:
    asked = many("refusal", STREET)
    assert asked["Are there skis in the image?"] == {"No, there are no skis in the image."}
    assert asked["What color is the cat?"] == {"There is no cat in the image."}
    assert asked["Where are the skis?"] == {"There are no skis in the image."}
    assert asked["Is there a person in the image?"] == {"Yes, there is a person in the image."}
    assert asked["Where is the dog?"] == {"The dog is at the bottom left."}
    assert asked["Where is the teddy bear?"] == {"The teddy bear is at the top right."}
    assert "Where is the person?" not in asked and not any(" bear" in q and "teddy" not in q for q in asked)
    assert not any("bus" in question for question in asked)


def test_a_place_is_asked_for_only_where_it_is_certain() -> None:
    def places(box: tuple[float, float, float, float]) -> set[str]:
        image = Image("a", width=300, height=300)
        return many("refusal", Material(things=(Thing("dog", box),), labels=("cat",), image=image), 30).get(
            "Where is the dog?", set()
        )

    assert places((110, 110, 190, 190)) == {"The dog is at the middle center."}
    assert places((100, 110, 120, 190)) == set()  # its centre is near the border between left and center
    assert places((60, 110, 240, 190)) == set()  # longer than half the image


def test_grounding_says_boxes_in_the_square_that_the_picture_is_padded_to() -> None:
    """640 x 480 becomes 640 x 640 with 80 pixels above: the dog's 50, 300, 150, 420 is 50, 380, 150, 500 there."""
    dog = "[0.08, 0.59, 0.23, 0.78]"
    assert many("grounding", STREET) == {
        f"Please provide a short description for this region: {dog}.": {"the dog"},
        "Please provide a short description for this region: [0.78, 0.17, 0.94, 0.33].": {"the teddy bear"},
        "Please provide the bounding box coordinate of the region this sentence describes: the dog.": {dog},
        "Please provide the bounding box coordinate of the region this sentence describes: the teddy bear.": {
            "[0.78, 0.17, 0.94, 0.33]"
        },
    }


def test_grounding_leaves_out_what_two_decimals_cannot_tell_apart() -> None:
    image = Image("a", width=1000, height=1000)
    same = (Thing("dog", (100, 100, 200, 200)), Thing("cat", (101, 101, 201, 201)))
    thin = Thing("knife", (500, 500, 501, 700))
    kinds = (Thing("bear", (300, 300, 400, 400)), Thing("teddy bear", (600, 600, 700, 700)))
    assert many("grounding", Material(things=(*same, thin, *kinds), image=image), 30) == {}


def test_options_of_a_multiple_choice_are_lines_and_the_others_are_wrong() -> None:
    asked = many("multiple_choice", STREET)
    captions = [question for question in asked if question.startswith(rules.WHICH)]
    things = [question for question in asked if question.startswith(rules.WHICH_THING)]
    assert captions and things and len(captions) + len(things) == len(asked)
    for question in asked:
        (letter,) = asked[question]
        options = dict(re.findall(r"^([A-D])\. (.+)$", question, re.MULTILINE))
        right = {"A dog waits for a bus."} if question in captions else {"dog", "person", "teddy bear"}
        assert len(set(options.values())) == 4 and [key for key, text in options.items() if text in right] == [letter]
        assert "a dog waits for a BUS." not in options.values() and "bus" not in options.values()


def test_a_class_is_asked_for_in_a_word_and_among_other_classes() -> None:
    material = Material(label="seven", classes=("one", "six", "seven"), question="Which digit is it?")
    assert many("short_answer", material, 5) == {"Which digit is it?": {"seven"}}
    for question, letters in many("multiple_choice", material, 30).items():
        (letter,) = letters
        assert question.startswith("Which digit is it?\nA. ") and f"\n{letter}. seven\n" in question
        assert sorted(re.findall(r"\. (.+)$", question, re.MULTILINE)) == ["one", "seven", "six"]


@pytest.mark.parametrize("task", ["short_answer", "multiple_choice", "grounding", "refusal"])
def test_nothing_is_made_of_nothing(task: str) -> None:
    assert many(task, Material(), 3) == many(task, Material(things=things_of("[]"), labels=LABELS), 3) == {}
    if task != "short_answer":
        assert many(task, Material(label="cat", classes=("cat",)), 3) == {}


def test_nothing_is_said_of_things_without_a_label_nor_that_a_picture_with_them_lacks_something() -> None:
    boxes = Thing("dog", (10, 10, 60, 60)), Thing("object", (70, 70, 90, 90)), Thing("", (100, 100, 200, 200))
    material = Material(things=boxes, labels=("dog", "cat", "object"), image=Image("a", width=300, height=300))
    assert set(many("short_answer", material, 20)) == {
        "Is there a dog in the image?",
        "How many dogs are in the image?",
    }
    assert many("refusal", material, 20) == many("multiple_choice", material, 20) == {}
    assert all("dog" in question or answers == {"the dog"} for question, answers in many("grounding", material).items())


def test_a_box_that_reaches_over_the_edge_is_cut_there() -> None:
    material = Material(things=(Thing("dog", (-3, 5, 2000, 90)),), image=Image("a", width=100, height=100))
    assert {"[0.00, 0.05, 1.00, 0.90]"} in many("grounding", material, 20).values()


def test_an_empty_caption_is_no_option() -> None:
    for captions in (("", "A dog."), ("A dog.",)):
        asked = many("multiple_choice", Material(captions=captions, all_captions=("", "A dog.", "A cat.")), 30)
        assert {question.split("\n")[1][3:] for question in asked} == {"A dog.", "A cat."}


def test_things_without_boxes_sizes_or_other_labels_give_what_is_left() -> None:
    bare = Material(things=(Thing("dog"),), labels=("dog",))
    ask = partial(many, material=bare, count=20)
    assert ask("short_answer") == {"Is there a dog in the image?": {"Yes"}, "How many dogs are in the image?": {"1"}}
    assert ask("multiple_choice") == ask("grounding") == ask("refusal") == {}


def test_plurals() -> None:
    words = {"dog": "dogs", "bus": "buses", "knife": "knives", "person": "people", "couch": "couches", "baby": "babies"}
    words |= {"toy": "toys", "sheep": "sheep", "wine glass": "wine glasses", "toothbrush": "toothbrushes"}
    assert {word: rules.plural(word) for word in words} == words
