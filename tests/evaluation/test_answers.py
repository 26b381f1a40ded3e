"""Every rule that reads an answer, against the cases its benchmark's own script or paper defines."""

from __future__ import annotations

import doctest

import pytest

from workbench.evaluation import fields, lenient_json, letters, near, open_answers, scorers, vqa_text, yes_no

PETS = {"A": "a dog", "B": "the red cat", "C": "Paris", "D": "12"}


@pytest.mark.parametrize(
    "module", [fields, lenient_json, letters, near, open_answers, scorers, vqa_text, yes_no], ids=lambda m: m.__name__
)
def test_the_examples_in_the_documentation_hold(module: object) -> None:
    failed, tried = doctest.testmod(module)  # type: ignore[arg-type]
    assert failed == 0 and tried > 0


# --- letters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("A", "A"), (" B \n", "B"), ("E", None), ("a", None), ("A.", None), ("A. a dog", None), ("AB", None), ("", None)],
)
def test_seed_bench_takes_the_exact_letter(answer: str, letter: str | None) -> None:
    assert letters.exact(answer, PETS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B. the red cat", "B"),
        ("B.the red cat", None),
        ("Because it purrs. The answer is B.", "B"),
        ("The answer is A. No. The answer is B.", None),  # two answers are none
        ("E", None),  # there are four choices
        ("the red cat", None),
        ("FAILED", None),
    ],
)
def test_scienceqa_takes_llavas_three_forms(answer: str, letter: str | None) -> None:
    assert letters.science(answer, PETS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B: the red cat", "B"),
        ("I see the red cat.", "B"),
        ("B or C", None),
        ("B is what this long answer starts with", None),  # the letter is not among the last four words
        ("The correct answer is **B** because of its colour, as one can see here", "B"),
        ("Cannot determine the answer", None),
        ("a dog and the red cat", None),
    ],
)
def test_mmbench_is_read_as_vlmevalkit_reads_without_a_judge(answer: str, letter: str | None) -> None:
    assert letters.matched(answer, PETS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(A) or rather (B)", "B"),  # the last one named
        ("B A C", "C"),
        ("(A) or (B)? It is (A)", "A"),
        ("It must be the red cat I think", "B"),
        ("the red cat", None),  # five words or fewer need a letter
        ("?", None),
    ],
)
def test_mmmu_takes_the_last_of_the_options_named(answer: str, letter: str | None) -> None:
    assert letters.mmmu(answer, PETS) == letter


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("7", "7.0", True),
        ("The area is 1,200 m", "1200", True),
        ("x = 3.14159", "3.14", True),  # two decimals
        ("It is the red cat.", "Red cat", True),
        ("red", "red cat", False),  # the reference stands in the answer, not the answer in it
        ("It is 7\nSo the result is 8", "7", True),  # each line that holds a key phrase may hold the answer
        ("cat", "a", False),  # one letter needs a space beside it
        ("about 70", "7", False),
    ],
)
def test_mmmus_open_questions(answer: str, reference: str, right: bool) -> None:
    assert open_answers.right(answer, [reference]) is right


# --- yes and no -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "says_yes", "is_read"),
    [
        ("Yes, there is.", True, True),
        ("No", False, True),
        ("no, there is not", False, True),
        ("NO", True, False),  # the script knows "No" and "no"
        ("There is a dog. It is not brown.", True, False),  # only the first sentence
        ("I cannot see one", True, False),
        ("nothing", True, False),
    ],
)
def test_pope_is_no_where_the_first_sentence_says_no_or_not(answer: str, says_yes: bool, is_read: bool) -> None:
    assert yes_no.pope(answer) == (says_yes, is_read)


@pytest.mark.parametrize(
    ("answer", "word"),
    [("Yes", "yes"), ("yes, it is", "yes"), ("NO.", "no"), ("not", "no"), ("It is no dog", None), ("", None)],
)
def test_mme_looks_at_four_characters(answer: str, word: str | None) -> None:
    assert yes_no.mme(answer) == word


def test_the_measures_of_yes_and_no() -> None:
    # 3 true yes, 1 false yes, 2 true no, 2 missed: precision 3/4, recall 3/5, F1 = 2 * 3 / (4 + 5)
    pairs = [(True, True)] * 3 + [(True, False)] + [(False, False)] * 2 + [(False, True)] * 2
    measures = yes_no.counted(pairs)
    assert measures["accuracy"] == pytest.approx(62.5) and measures["yes_ratio"] == pytest.approx(50)
    assert measures["precision"] == pytest.approx(75) and measures["recall"] == pytest.approx(60)
    assert measures["f1"] == pytest.approx(100 * 6 / 9)
    assert yes_no.counted([(False, False)])["f1"] == 0


# --- words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "vqa", "textvqa"),
    [  # what LLaVA's m4c_evaluator.py and VQA's vqaEval.py gave for these texts
        ("The Cat.", "cat", "cat"),
        ("two-door", "2 door", "2 door"),
        ("co- op", "co op", "co op"),
        ("1,000", "1000", "1000"),
        ("red, white", "red white", "red white"),
        ("3.5", "3.5", "3.5"),
        ("p.m.", "pm", "pm"),
        ("dont", "don't", "don't"),
        ("couldn'tve", "couldn't've", "couldn't've"),
        ("none", "0", "0"),
        ("Men's", "men's", "men 's"),
        ("really?no", "really no", "reallyno"),
        (" A \n dog\t", "dog", "dog"),
    ],
)
def test_words_are_normalised_as_the_official_scripts_do(text: str, vqa: str, textvqa: str) -> None:
    assert vqa_text.vqa(text) == vqa
    assert vqa_text.textvqa(text) == textvqa


@pytest.mark.parametrize(("same", "earned"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_accuracy_leaves_each_person_out_once(same: int, earned: float) -> None:
    """By hand for 3 of 10: seven sets of nine hold all three, 1 each; three hold two, 2/3 each: (7 + 2) / 10."""
    people = ["yes"] * same + [f"other {number}" for number in range(10 - same)]
    assert vqa_text.soft("Yes.", people) == pytest.approx(earned)


# --- nearly ---------------------------------------------------------------------------------------------------


def test_anls_is_zero_under_one_half() -> None:
    assert near.anls("abcd", ["abxy"]) == 0.5  # two of four
    assert near.anls("abcd", ["axyz"]) == 0.0
    assert near.anls(" Hello  World", ["hello world", "x"]) == 1.0
    assert near.anls("", ["x"]) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("95%", "0.95", True),
        ("-9.6", "-10", True),
        ("0", "0", True),
        ("0.01", "0", False),  # a reference of 0 is compared as text
        ("blue", "Blue", True),
        ("1,000", "1000", False),  # no number for Python's float, so text
    ],
)
def test_charts_allow_five_percent(answer: str, reference: str, right: bool) -> None:
    assert near.relaxed(answer, reference) is right


def test_boxes() -> None:
    assert near.box("[0.1,0.2, 0.3,1]") == (0.1, 0.2, 0.3, 1.0)
    assert near.box("(1, 2, 3, 4)") == (1, 2, 3, 4)
    assert near.box("0.1, 0.2, 0.3, 0.4") is None
    assert near.overlap((0, 0, 1, 1), (0, 0, 1, 1)) == 1
    assert near.overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert near.overlap((1, 1, 0, 0), (1, 1, 0, 0)) == 0  # turned inside out


@pytest.mark.parametrize(
    ("name", "answer", "reference", "right"),
    [
        ("choice", "B", "B", True),
        ("choice", "(b)", "B", False),
        ("choice", "", "B", False),
        ("choice", "nothing", "no letter", False),  # two that name nothing are not alike
        ("numeric", "-3", "3", False),
        ("numeric", "3.50", "3.5", True),
        ("numeric", "ten", "10.0", True),
        ("numeric", "none", "none", False),
        ("iou", "[0, 0, 1, 1]", "here", False),
        ("iou", "[0.1, 0.1, 0.5, 0.5]", "[0.1, 0.1, 0.5, 0.5]", True),
        ("relaxed", "104", "100", True),
    ],
)
def test_scorers_of_a_persons_own_questions(name: str, answer: str, reference: str, right: bool) -> None:
    assert scorers.SCORERS[name](answer, reference) is right


# --- almost JSON ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '[{"id": 1, "p": "A"}, {"id": 2, "p": null}]',
        '{"id": 1, "p": "A"}\n{"id": 2, "p": null}\n',
        '{"id": 1, "p": "A"},\n{"id": 2, "p": null}',  # SEED-Bench publishes GPT-4V's answers so
        '{"id": 1, "p": "A"},\n{"id": 2, "p": null},\n',
        '[{"id": 1, "p": "A"}, {"id": 2, "p": null},]',
        '[{"id": 1, "p": "A",}, {"id": 2, "p": null,},]',
        "[{'id': 1, 'p': 'A'}, {'id': 2, 'p': None}]",
        '{"id": 1, "p": "A"}{"id": 2, "p": null}',
        '[{"id": 1, "p": "A"}\n{"id": 2, "p": null}',
        '// answers\n[{"id": 1, /* sure */ "p": "A"}, {"id": 2, "p": undefined}]',
    ],
)
def test_what_is_almost_json_is_read(text: str) -> None:
    values, lost = lenient_json.parse(text)
    rows = values[0] if isinstance(values[0], list) else values
    assert rows == [{"id": 1, "p": "A"}, {"id": 2, "p": None}] and lost == []


def test_what_stands_inside_a_text_is_not_mended() -> None:
    values, _ = lenient_json.parse("[{'p': 'True, None,]', 'q': \"it's // 'so',}\"},]")
    assert values == [{"p": "True, None,]", "q": "it's // 'so',}"}]


def test_a_text_cut_off_loses_its_last_row_only() -> None:
    values, lost = lenient_json.parse('{"id": 1}\n{"id": 2}\n{"id": 3, "p": "he')
    assert values == [{"id": 1}, {"id": 2}] and lost == [3]


def test_prose_is_no_json() -> None:
    assert lenient_json.parse("Dear reader,\nno answers here.\n") == ([], [1])


# --- fields ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"question_id": 1, "prompt": "Is it?", "text": "Yes", "answer_id": "x"}, "text"),  # LLaVA
        ({"question": "is there a bird?", "answer": "yes"}, "answer"),  # POPE's own
        ({"question_id": 1, "text": "Is there a bird?", "answer": "yes", "label": "no"}, "answer"),
        ({"index": 1, "question": "Who?", "answer": "A", "prediction": "B"}, "prediction"),  # VLMEvalKit
        ({"doc_id": 1, "target": "A", "filtered_resps": ["B"]}, "filtered_resps"),  # lmms-eval
        ({"question_id": 1, "text": "A", "answer": "B"}, "text"),
        ({"prompt": "Who?", "predict": "A", "label": "B"}, "predict"),  # LLaMA-Factory
        ({"question_id": 1, "answer": "A", "gt_answers": ["B"]}, "answer"),  # InternVL
        ({"question_id": 1, "label": "A"}, None),
    ],
)
def test_the_field_that_holds_the_answer(row: dict[str, object], name: str | None) -> None:
    assert fields.answer_field([row]) == name
