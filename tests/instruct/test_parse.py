"""Replies as turns: every shape that models answer in, and the ones that hold no answer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.conversation import Image
from workbench.instruct import parse
from workbench.instruct.material import Material, Thing
from workbench.instruct.parse import ReplyError

NOTHING = Material()
PAIRS = [("What is it?", "A dog."), ("Where is it?", "On a sofa.")]
CHAT, GPT = ("user", "assistant"), ("human", "gpt")
JSON = json.dumps({"turns": [{"question": q, "answer": a} for q, a in PAIRS]})
SEED = """Question:
What is it?
===
Answer:
A dog.
===
Question:
Where is it?
===
Answer:
On a sofa.
==="""


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    "text",
    [
        JSON,
        f"```json\n{JSON}\n```",
        f"Sure! Here is the conversation:\n\n{JSON}\n\nI hope this helps.",
        json.dumps([{"question": q, "answer": a} for q, a in PAIRS]),
        json.dumps([{"Q": q, "A": a} for q, a in PAIRS]),
        json.dumps([{"role": who, "content": said} for pair in PAIRS for who, said in zip(CHAT, pair, strict=True)]),
        json.dumps({"talk": [{"from": w, "value": t} for pair in PAIRS for w, t in zip(GPT, pair, strict=True)]}),
        SEED,
        SEED.replace("===", "====="),
        SEED.replace("\n===", ""),
        "Q: What is it?\nA: A dog.\n\nQ: Where is it?\nA: On a sofa.",
        "**Question 1:** What is it?\n**Answer 1:** A dog.\n\n**Question 2:** Where is it?\n**Answer 2:** On a sofa.",
        "USER: What is it?\nASSISTANT: A dog.\nUSER: Where is it?\nASSISTANT: On a sofa.",
    ],
    ids="json fence chatter list letters chat llava seed long-bars no-bars q-and-a bold roles".split(),
)  # fmt: skip
def test_questions_and_answers_are_found_in_whatever_shape_they_come(text: str) -> None:
    assert parse.turns(text, NOTHING, rng()) == PAIRS


def test_an_answer_of_several_lines_stays_whole() -> None:
    text = "Question:\nWhy?\n===\nAnswer:\nFor two reasons.\n\n1. The first: it rains.\n2. The second.\n==="
    assert parse.turns(text, NOTHING, rng()) == [
        ("Why?", "For two reasons.\n\n1. The first: it rains.\n2. The second.")
    ]


@pytest.mark.parametrize(
    "text",
    ["", "   ", "I'm sorry, I can't help with that.", JSON[:40], "{}", "[]", "Question:\nWhat is it?\n===",
     "Answer:\nA dog.\n===", '{"turns": [{"question": "What?"}]}', "Question: a\nQuestion: b\nAnswer: c", "null", "42"],
)  # fmt: skip
def test_a_reply_without_an_answer_says_so(text: str) -> None:
    with pytest.raises(ReplyError, match="expected"):
        parse.turns(text, NOTHING, rng())


@given(st.text(max_size=300))
def test_no_text_breaks_a_parser(text: str) -> None:
    material = Material(things=[Thing("dog", (0, 0, 5, 5))], image=Image("a.png", width=10, height=10))
    for read in (parse.turns, parse.statement("What?"), parse.short_answer, parse.multiple_choice, parse.grounding):
        try:
            turns = read(text, material, rng())
        except ReplyError:
            continue
        assert all(isinstance(part, str) for turn in turns for part in turn)


@pytest.mark.parametrize(
    "text",
    ["A dog on a sofa.", '"A dog on a sofa."', '{"text": "A dog on a sofa."}', '{"caption": "A dog on a sofa."}'],
)
def test_a_statement_answers_one_of_the_questions(text: str) -> None:
    asked = [parse.statement("One?", "Two?")(text, NOTHING, np.random.default_rng(seed))[0] for seed in range(20)]
    assert {question for question, _ in asked} == {"One?", "Two?"}
    assert {answer for _, answer in asked} == {"A dog on a sofa."}


def test_short_answers_carry_the_words_that_ask_for_them_once() -> None:
    made = parse.short_answer("Question: What color is it?\nAnswer: Red.", NOTHING, rng())
    assert made == [(f"What color is it?\n{parse.WORD}", "Red")]
    again = parse.short_answer(json.dumps([{"question": made[0][0], "answer": "Red"}]), NOTHING, rng())
    assert again == made


LETTERED = "Question: What is it?\nA. a dog\nB. a cat\nC. a cow\nD. a hen\nAnswer: {answer}"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"question": "What is it?", "options": ["a dog", "a cat", "a cow", "a hen"], "answer": "a cat"}),
        json.dumps(
            {"question": "What is it?", "options": ["A. a dog", "B. a cat", "C. a cow", "D. a hen"], "answer": "B"}
        ),
        LETTERED.format(answer="B"),
        LETTERED.format(answer="B. a cat"),
        LETTERED.format(answer="(B)"),
    ],
)
def test_the_right_option_stays_right_wherever_it_is_moved(text: str) -> None:
    letters = set()
    for seed in range(40):
        [(question, letter)] = parse.multiple_choice(text, NOTHING, np.random.default_rng(seed))
        lines = question.splitlines()
        assert lines[0] == "What is it?" and lines[-1] == parse.LETTER and len(lines) == 6
        assert lines["ABCD".index(letter) + 1] == f"{letter}. a cat"
        letters.add(letter)
    assert letters == set("ABCD")


@pytest.mark.parametrize("answer", ["E", "a horse", ""])
def test_a_choice_whose_right_option_is_not_there_is_refused(answer: str) -> None:
    with pytest.raises(ReplyError):
        parse.multiple_choice(LETTERED.format(answer=answer), NOTHING, rng())


def test_regions_take_their_boxes_from_the_annotations_in_the_padded_square() -> None:
    image = Image("a.png", width=200, height=100)  # padded by 50 above and below
    material = Material(things=[Thing("dog", (0, 0, 100, 50)), Thing("cat", (100, 50, 200, 100))], image=image)
    told = {"phrases": [{"number": 1, "phrase": "the dog"}, {"number": 2, "phrase": "the cat."}]}
    boxes = {"the dog": "[0.00, 0.25, 0.50, 0.50]", "the cat": "[0.50, 0.50, 1.00, 0.75]"}
    ways = set()
    for seed in range(20):
        for text in (json.dumps(told), "1. the dog\n2. the cat"):
            for question, answer in parse.grounding(text, material, np.random.default_rng(seed)):
                phrase = next(name for name in boxes if name in question + answer)
                assert (boxes[phrase] in question) != (boxes[phrase] == answer)
                ways.add("description" in question)
    assert len(ways) == 2
    over = Material(things=[Thing("dog", (-20, 0, 100, 260))], image=image)
    said = parse.grounding("1. the dog", over, rng())[0]
    assert "[0.00, 0.25, 0.50, 0.75]" in "".join(said), "what reaches over the edge of the image is cut there"
    with pytest.raises(ReplyError, match="box number 3"):
        parse.grounding('{"phrases": [{"number": 3, "phrase": "the cow"}]}', material, rng())
