"""Checks find what they are named for, and let legitimate conversations pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from workbench.conversation import Conversation, Image, Message
from workbench.data.scenes import Scene, SceneObject, sample_scene
from workbench.errors import DataError
from workbench.instruct import rules
from workbench.instruct.checks import CHECKS, Check, Context, add_check, check, contradictions, pairs
from workbench.instruct.material import Material, Thing

SCENE = Scene((SceneObject("star", "red", "small", "top left", (5, 5, 23, 23)),))
CAPTION = "A man walks his brown dog past a bicycle."
MATERIAL = Material(
    captions=[CAPTION],
    things=(Thing("dog", (10, 10, 50, 50)), Thing("person", (60, 10, 90, 90))),
    labels=["dog", "person", "bicycle", "umbrella"],
    image=Image("a.jpg", width=100, height=100),
)


def talk(*texts: str, task: str = "conversation", id: str = "one") -> Conversation:
    roles = ("user", "assistant")
    return Conversation(id, tuple(Message(roles[n % 2], text) for n, text in enumerate(texts)), task=task)


WHAT = "What is the man doing?"
BAD = [
    ("format", (WHAT, "He walks.", "And then?")),
    ("format", (WHAT, "He walks.\n===\nQuestion: And then?")),
    ("format", (WHAT, "Answer: He walks.")),
    ("format", (WHAT, '{"answer": "He walks."}')),
    ("format", ("```\nWhat is he doing?", "He walks.")),
    ("empty", (WHAT, "...")),
    ("empty", (WHAT, "  ")),
    ("empty", (WHAT, "N/A")),
    ("refusal", (WHAT, "I'm sorry, but I can't help with that.")),
    ("refusal", (WHAT, "As a language model, I have no eyes.")),
    ("refusal", (WHAT, "I am unable to see images.")),
    ("refusal", (WHAT, "Please provide the image so that I can answer.")),
    ("length", (WHAT, "walk " * 200)),
    ("repeats", (WHAT, CAPTION)),
    ("repeats", (WHAT, "What is the man doing")),
    ("repeats", (WHAT, "He walks.", WHAT, "He strolls along.")),
    ("mentions", (WHAT, "According to the caption, he walks.")),
    ("mentions", (WHAT, "He is inside the second bounding box.")),
    ("mentions", ("What is stated in the description?", "He walks.")),
    ("mentions", (WHAT, "The caption says that he walks.")),
    ("mentions", (WHAT, "Based on the provided captions, he walks.")),
    ("roles", (WHAT, "He walks. USER: And then? ASSISTANT: He stops.")),
    ("roles", (WHAT, "He walks.\nHuman: And then?")),
    ("roles", ("What does he do? He walks.", "He walks.")),
    ("roles", ("He walks.", "What is the man doing?")),
    ("control", (WHAT, "He walks.</s>")),
    ("control", ("<image>\n" + WHAT, "He walks.")),
    ("control", (WHAT, "He walks. [INST] more")),
    ("control", (WHAT, "He walks.<|im_end|>")),
    ("language", (WHAT, "他在散步。")),
    ("language", (WHAT, "Он гуляет с собакой.")),
    ("hallucination", (WHAT, "He holds an umbrella over his head.")),
    ("hallucination", ("How many dogs are there?", "Two")),
    ("hallucination", ("What color is the umbrella?", "It is red.")),
]
GOOD = [
    (WHAT, "He walks his dog.", "Where is the dog?", "On the left side of the picture."),
    ("Is there an umbrella?", "I'm sorry, but there is no umbrella in the image."),
    ("What color is the umbrella?", "I cannot see an umbrella in this picture."),
    ("Describe the image briefly.", CAPTION),
    ("Which caption fits? Choose from: A cat.; " + CAPTION, CAPTION),
    ("Is there a dog?\nAnswer the question using a single word or phrase.", "Yes"),
    ("What is this? Choose from: dog, person.", "dog"),
    ("What does the sign say?", "The sign reads STOP, and below it 停."),
    ("What time is it?", "3"),
    ("Can you guess his mood?", "He seems at ease. Would you agree?"),
]


@pytest.mark.parametrize(("name", "texts"), BAD, ids=lambda value: value if isinstance(value, str) else value[-1][:30])
def test_what_is_wrong_is_found_under_its_name(name: str, texts: tuple[str, ...]) -> None:
    found = check(talk(*texts), MATERIAL)
    assert name in [rejection.name for rejection in found], found
    assert all(rejection.found and len(rejection.found) < 300 for rejection in found)


@pytest.mark.parametrize("texts", GOOD, ids=lambda texts: texts[-1][:30])
def test_a_legitimate_conversation_passes(texts: tuple[str, ...]) -> None:
    assert check(talk(*texts), MATERIAL) == []


def test_a_grounding_question_may_speak_of_boxes_and_its_answer_be_one() -> None:
    asked = "Please provide the bounding box coordinate of the region this sentence describes: the dog."
    assert check(talk(asked, "[0.10, 0.10, 0.50, 0.50]", task="grounding"), MATERIAL) == []


def test_length_depends_on_the_task() -> None:
    short, words = talk("Describe it in detail.", "A dog.", task="detail"), "message 1: 2 words, not 10 to 400"
    assert [(one.name, one.found) for one in check(short, MATERIAL)] == [("length", words)]
    assert check(talk("What is it?", "Dog", task="short_answer"), MATERIAL) == []
    assert check(talk("What is it?", "Dog", task="a task of my own"), MATERIAL) == []


def test_another_script_can_be_wanted() -> None:
    context = Context(script="cjk")
    assert check(talk("彼は何をしていますか。", "犬と散歩をしています。"), MATERIAL, context) == []
    assert [one.name for one in check(talk(WHAT, "He walks."), MATERIAL, context)] == ["language"]
    with pytest.raises(DataError, match="script 'klingon'.*latin"):
        Context(script="klingon")


def test_near_duplicates_are_of_the_same_image_and_not_of_itself() -> None:
    said = (WHAT, "He walks his brown dog along the street and looks ahead.")
    first = talk(*said, id="first")
    again = talk(WHAT, "He walks his brown dog along the street and looks ahead!", id="again")
    other = talk("Where is the dog?", "It trots at the man's side.", id="other")
    context = Context(others=[first])
    assert [one.name for one in check(again, MATERIAL, context)] == ["near_duplicate"]
    assert "first" in check(again, MATERIAL, context)[0].found
    assert check(other, MATERIAL, context) == [] == check(first, MATERIAL, context)
    yes, no = (talk("Is there a dog?", answer, id=answer) for answer in ("Yes", "It is on the left."))
    assert check(no, MATERIAL, Context(others=[yes])) == []


def test_contradictions_carry_the_characters_that_are_wrong() -> None:
    conversation = talk("What is there?", "A star.", "Tell me more.", "The star is small and blue.")
    (found,) = contradictions(conversation, Material(SCENE))
    assert found.message == 3 and found.claim.kind == "color"
    assert conversation.messages[3].text[slice(*found.claim.span)] == "blue"
    assert check(conversation, Material(SCENE))[0].found == "message 3: color 'blue'"


def test_what_the_question_takes_for_granted_is_marked_in_the_question() -> None:
    conversation = talk("What color is the heart?", "It is red.")
    found = [one for one in contradictions(conversation, Material(SCENE)) if one.claim.of == "question"]
    assert [conversation.messages[one.message].text[slice(*one.claim.span)] for one in found] == ["heart"]


def test_everything_the_rules_write_passes() -> None:
    rng = np.random.default_rng(2)
    writers = {"caption": rules.write_caption, "conversation": rules.write_conversation}
    writers |= {"detail": rules.write_detail, "reasoning": rules.write_reasoning}
    for _ in range(100):
        material = Material(sample_scene(rng))
        for task, write in writers.items():
            texts = [text for turn in write(material, rng) for text in turn]
            assert check(talk(*texts, task=task), material) == []


@pytest.fixture
def own() -> Iterator[None]:
    before = dict(CHECKS)
    yield
    CHECKS.clear()
    CHECKS.update(before)


def test_people_add_their_own(own: None) -> None:
    @add_check("answers must not shout")
    def shouting(conversation: Conversation, material: Material, context: Context) -> str | None:
        return next((answer for _, _, answer in pairs(conversation) if answer.isupper()), None)

    assert [(one.name, one.found) for one in check(talk(WHAT, "HE WALKS"), MATERIAL)] == [("shouting", "HE WALKS")]
    polite = Check("polite", "says please", lambda conversation, material, context: "no please")
    assert [one.name for one in check(talk(WHAT, "HE WALKS"), MATERIAL, checks=[polite, "empty"])] == ["polite"]


def test_unknown_checks_and_missing_reasons_are_named() -> None:
    with pytest.raises(DataError, match="check 'smell'.*format, empty"):
        check(talk(WHAT, "He walks."), MATERIAL, checks=["smell"])
    with pytest.raises(DataError, match="no reason"):

        @add_check  # type: ignore[arg-type]
        def forgot(conversation: Conversation, material: Material, context: Context) -> str | None:
            return None


def test_every_check_has_a_reason_and_they_run_in_order() -> None:
    assert list(CHECKS) == [
        "format", "empty", "refusal", "length", "repeats", "mentions", "roles", "control", "language", "near_duplicate",
        "hallucination",
    ]  # fmt: skip
    assert all(one.reason and "\n" not in one.reason for one in CHECKS.values())
