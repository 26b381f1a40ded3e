"""Prediction files in the layouts in which people publish them; every expected score is worked out beside its rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from openpyxl import Workbook

from workbench import cli
from workbench.errors import DataError
from workbench.evaluation.benchmarks import BENCHMARKS, table
from workbench.evaluation.judged import JUDGED
from workbench.evaluation.rules_yes_no import MME_TASKS
from workbench.evaluation.score import Score, score

Row = dict[str, Any]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows as their file name's ending says, or a text as it is."""

    def written(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        elif name.endswith(".xlsx"):
            book = Workbook()
            book.active.append(list(content[0]))
            for row in content:
                book.active.append(list(row.values()))
            book.save(path)
        elif name.endswith(".tsv"):
            pl.DataFrame(content).write_csv(path, separator="\t")
        elif name.endswith(".parquet"):
            pl.DataFrame(content).write_parquet(path)
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return written


def scores(scored: Score) -> dict[str, float]:
    return {name: round(part["score"], 2) for name, part in scored.parts.items()}


# --- SEED-Bench -----------------------------------------------------------------------------------------------

SEED = {
    "questions": [
        {"question_id": "101", "answer": "A", "question_type_id": 1, "data_type": "image", "question": "What?"},
        {"question_id": "102", "answer": "B", "question_type_id": 5, "data_type": "image", "question": "Who?"},
        {"question_id": "v7", "answer": "C", "question_type_id": 10, "data_type": "video", "question": "When?"},
        {"question_id": "v8", "answer": "D", "question_type_id": 10, "data_type": "video", "question": "Why?"},
    ],
    "question_type": {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10},
}


def test_seed_bench_as_published_without_brackets(write: Write) -> None:
    """The layout of AILab-CVC/SEED-Bench evaluate_result/SEED-Bench-1/GPT-4V.json: right, wrong, right, no answer."""
    lines = [
        '{"question_id": "101", "prediction": "A", "gt_answer": "A"}',
        '{"question_id": "102", "prediction": "C", "gt_answer": "B "}',
        '{"question_id": "v7", "prediction": "C", "gt_answer": "C"}',
        '{"question_id": "v8", "prediction": NaN, "gt_answer": "D"}',
    ]
    scored = score("seedbench", write("GPT-4V.json", ",\n".join(lines)))
    assert (scored.score, scored.n, scored.unparsed) == (50.0, 4, 1)
    assert scores(scored) == {"image": 50.0, "video": 50.0}


def test_seed_bench_with_its_question_file(write: Write) -> None:
    """Ids as numbers, one twice (the last counts), one unknown, one never answered, which is wrong."""
    answers = [
        {"question_id": 101, "prompt": "What? A. x", "text": "B"},
        {"question_id": 101, "prompt": "What? A. x", "text": "A"},
        {"question_id": 102, "prompt": "Who?", "text": "B. dog"},
        {"question_id": "v7", "prompt": "When?", "text": "C"},
        {"question_id": "v99", "prompt": "Else?", "text": "C"},
    ]
    scored = score("seedbench", write("merge.jsonl", answers), [write("SEED-Bench.json", SEED)])
    assert (scored.score, scored.n) == (50.0, 4)
    assert (scored.unparsed, scored.missing, scored.unknown, scored.duplicates) == (1, 1, 1, 1)
    assert scores(scored) == {
        "image": 50.0, "video": 50.0,
        "Action Recognition": 50.0, "Instances Counting": 0.0, "Scene Understanding": 100.0,
    }  # fmt: skip
    assert len(scored.notes) == 3


def test_seed_bench_samples_of_lmms_eval(write: Write) -> None:
    def sample(number: int, said: str, right: str, kind: str) -> Row:
        metric = {"pred": said[0], "answer": right, "question_id": str(number)}
        common = {"doc_id": number - 100, "target": right, "filtered_resps": [said], "doc_hash": "x"}
        return {**common, f"seed_{kind}": metric, "seed_all": metric}

    rows = [sample(101, "A", "A", "image"), sample(102, "B", "C", "image"), sample(103, "c. cat", "C", "image")]
    scored = score("seedbench", write("samples_seedbench.jsonl", rows))
    assert (round(scored.score, 2), scored.n, scored.unparsed) == (66.67, 3, 0)
    assert scored.notes == ["letters read by lmms-eval's rule"]


def test_seed_bench_in_vlmevalkits_layout_is_read_by_its_rule(write: Write) -> None:
    options = {"A": "one", "B": "two", "C": "three", "D": "four"}
    rows = [
        {"index": 1, "question": "?", **options, "answer": "B", "category": "Counting", "prediction": "B. two"},
        {"index": 2, "question": "?", **options, "answer": "C", "category": "Counting", "prediction": "It is three"},
        {"index": 3, "question": "?", **options, "answer": "C", "category": "Scene", "prediction": "D"},
    ]
    scored = score("seedbench", write("model_SEEDBench_IMG.xlsx", rows))
    assert round(scored.score, 2) == 66.67 and scores(scored) == {"Counting": 100.0, "Scene": 0.0}
    assert any("VLMEvalKit" in note for note in scored.notes)


# --- POPE -----------------------------------------------------------------------------------------------------


def pope_split(questions: Sequence[tuple[str, str]]) -> list[Row]:
    common = {"image": "COCO_val2014_1.jpg"}
    return [
        {"question_id": number, **common, "text": f"Is there a {thing} in the image?", "label": label}
        for number, (thing, label) in enumerate(questions, start=1)
    ]


RANDOM = pope_split([("dog", "yes"), ("cup", "no")])
POPULAR = pope_split([("dog", "yes"), ("car", "no")])


@pytest.fixture
def coco(write: Write) -> Path:
    write("coco/coco_pope_random.json", "".join(json.dumps(row) + "\n" for row in RANDOM))
    write("coco/coco_co_occur.json", {"dog": ["cat", "car"]})  # lies there too, and is no question
    return write("coco/coco_pope_popular.json", "".join(json.dumps(row) + "\n" for row in POPULAR)).parent


POPE_SAID = [("dog", "Yes"), ("cup", "No"), ("dog", "Yes, there is."), ("car", "Yes")]
POPE_F1 = {"random": 100.0, "popular": 66.67, "all": 80.0}
"""Popular: one true yes, one false: precision 1/2, recall 1. All: two true, one false: 4 / (3 + 2)."""


def llava_pope(number: int, thing: str, said: str) -> Row:
    prompt = f"Is there a {thing} in the image?\nAnswer the question using a single word or phrase."
    return {
        "question_id": number,
        "prompt": prompt,
        "text": said,
        "answer_id": "x",
        "model_id": "llava",
        "metadata": {},
    }


def test_pope_answers_of_llava_with_their_question_file(write: Write, coco: Path) -> None:
    """LLaVA numbers the three splits through; its question file says which picture and split an id stands for."""
    numbers = [1001, 1002, 2001, 2002]
    said = [llava_pope(number, *pair) for number, pair in zip(numbers, POPE_SAID, strict=True)]
    asked = [
        {"question_id": number, "image": "COCO_val2014_1.jpg", "text": row["prompt"], "category": split}
        for number, row, split in zip(numbers, said, ["random", "random", "popular", "popular"], strict=True)
    ]
    scored = score("pope", write("answers.jsonl", said), [coco, write("llava_pope_test.jsonl", asked)])
    assert scores(scored) == POPE_F1 and round(scored.score, 2) == 83.33 and scored.n == 4
    assert scored.parts["popular"]["accuracy"] == 50 and scored.parts["popular"]["yes_ratio"] == 100


@pytest.mark.parametrize("turned", [False, True])
def test_pope_answers_in_the_order_of_the_splits(write: Write, coco: Path, turned: bool) -> None:
    """Without the question file the one order of the splits is found in which every question agrees."""
    said = [llava_pope(number, *pair) for number, pair in enumerate(POPE_SAID, start=5001)]
    said = said[2:] + said[:2] if turned else said
    scored = score("pope", write("answers.jsonl", said), [coco])
    assert scores(scored) == POPE_F1 and "matched by their order" in scored.notes


@pytest.mark.parametrize("twice", [False, True])
def test_a_question_that_two_splits_share(write: Write, coco: Path, twice: bool) -> None:
    """Without a split picture and question tell: one answer counts in both splits, two in the order of the splits."""
    said = [("cup", "No"), ("dog", "Yes"), ("car", "No"), *([("dog", "No")] if twice else [])]
    rows = [
        {"image": "COCO_val2014_1.jpg", "question": f"Is there a {thing} in the image?", "response": text}
        for thing, text in said
    ]
    scored = score("pope", write("answers.jsonl", rows), coco)
    assert scored.n == 4 and scored.missing == scored.unknown == scored.duplicates == 0
    # The files are read by name, popular before random; a missed yes makes F1 0.
    assert scores(scored) == (
        {"popular": 100.0, "random": 0.0, "all": 66.67} if twice else dict.fromkeys(("popular", "random", "all"), 100.0)
    )


@pytest.mark.parametrize(("name", "f1"), [("random", 100.0), ("popular", 66.67)])
def test_one_split_is_found_among_the_answers_to_all(write: Write, coco: Path, name: str, f1: float) -> None:
    said = [llava_pope(number, *pair) for number, pair in enumerate(POPE_SAID, start=5001)]
    scored = score("pope", write("answers.jsonl", said), coco / f"coco_pope_{name}.json")
    assert scores(scored) == {name: f1} and (scored.n, scored.unknown, scored.missing) == (2, 2, 0)


SPLITS = {"random": RANDOM, "popular": POPULAR}
ASKED = [
    {
        "question_id": number,
        "image": row["image"],
        "text": f"{row['text']}\n{BENCHMARKS['pope'].suffix}",
        "category": name,
    }
    for number, (name, row) in enumerate((name, row) for name, rows in SPLITS.items() for row in rows)
]
"""LLaVA's question file: ids run through the splits from 0, where POPE's begin with 1 in each."""
SAID = [
    llava_pope(number, thing, text)
    for number, (thing, text) in enumerate([("dog", "Yes"), ("cup", "No"), ("dog", "No"), ("car", "Yes")])
]
"""Random all right, popular all wrong: F1 100 and 0."""


@pytest.mark.parametrize("stray", [{"question_id": 99, "text": "Yes"}, {**SAID[0], "question_id": 99}])
@pytest.mark.parametrize("names", [("random", "popular"), ("random",), ("popular",)])
def test_a_prediction_of_unknown_id_never_changes_the_others(
    write: Write, coco: Path, stray: Row, names: Sequence[str]
) -> None:
    """Both splits ask about the dog, popular without an answer: the one in random must not be taken for it."""
    references = [write("q.jsonl", ASKED), *(coco / f"coco_pope_{name}.json" for name in names)]
    said = [*SAID[:2], SAID[3]]
    plain = score("pope", write("a.jsonl", said), references)
    more = score("pope", write("b.jsonl", [*said, stray]), references)
    found = {"random": 100.0, "popular": 0.0}
    assert {name: part for name, part in scores(plain).items() if name != "all"} == {
        name: found[name] for name in names
    }
    assert (more.parts, more.n, more.missing) == (plain.parts, plain.n, plain.missing)
    assert more.unknown == plain.unknown + 1 and more.duplicates == 0


@pytest.mark.parametrize("number", [3, 4])
def test_answers_without_a_prompt_are_paired_by_the_text_of_the_question_file(
    write: Write, coco: Path, number: int
) -> None:
    said = [{"question_id": row["question_id"], "text": row["text"]} for row in SAID[:number]]
    scored = score("pope", write("a.jsonl", said), [coco, write("q.jsonl", ASKED)])
    assert scores(scored) == {"random": 100.0, "popular": 0.0, "all": {3: 66.67, 4: 50.0}[number]}
    assert (scored.n, scored.unknown, scored.missing) == (number, 0, 4 - number)


@pytest.mark.parametrize("number", [2, 3, 5, 6])
def test_answers_that_fit_several_splits_are_refused(write: Write, number: int) -> None:
    """Three splits that ask the same: nothing but the question file says which of them an answer is for."""
    text = "".join(json.dumps(row) + "\n" for row in RANDOM)
    files = [write(f"coco/coco_pope_{name}.json", text) for name in ("adversarial", "popular", "random")]
    said = [
        *([llava_pope(0, "dog", "Yes"), llava_pope(1, "cup", "No")] * 3)[:number],
        {"question_id": 99, "text": "No"},
    ]
    with pytest.raises(DataError, match="give the question file too"):
        score("pope", write("a.jsonl", said), files[0].parent)


def test_an_answer_that_serves_two_splits_is_told(write: Write, coco: Path) -> None:
    """Asked once, it counts in both; asked twice of three times, nothing says which is missing and none counts."""
    once = [{"image": row["image"], "question": row["text"], "response": "Yes"} for row in (*RANDOM, POPULAR[1])]
    scored = score("pope", write("a.jsonl", once), coco)
    assert scored.n == 4 and any(
        note.startswith("1 prediction(s) count for several references") for note in scored.notes
    )
    third = pope_split([("dog", "yes"), ("bus", "no"), ("bed", "no")])
    write("coco/coco_pope_adversarial.json", "".join(json.dumps(row) + "\n" for row in third))
    more = [{"image": row["image"], "question": row["text"], "response": "No"} for row in third]
    scored = score("pope", write("b.jsonl", [*once, *reversed(more)]), coco)
    assert (scored.n, scored.missing, scored.unknown) == (4, 3, 2)


def test_a_row_without_a_question_is_not_paired_by_the_order_of_the_others(write: Write, coco: Path) -> None:
    """Twenty questions, so that one row that does not fit is within what the order forgives."""
    things = [(f"thing{number}", "no") for number in range(20)]
    file = write("coco_pope_random.json", "".join(json.dumps(row) + "\n" for row in pope_split(things)))
    said = [llava_pope(number, thing, "No") for number, (thing, _) in enumerate(things[:19], start=700)]
    scored = score("pope", write("a.jsonl", [*said, {"question_id": 999, "text": "Yes"}]), file)
    assert (scored.n, scored.unknown, scored.missing) == (19, 1, 1)


def test_popes_own_answers_have_no_ids(write: Write) -> None:
    said = [{"question": row["text"], "answer": text} for row, text in zip(RANDOM, ["yes", "I see none"], strict=True)]
    references = write("coco_pope_random.json", "".join(json.dumps(row) + "\n" for row in RANDOM))
    scored = score("pope", write("answers.json", "".join(json.dumps(row) + "\n" for row in said)), [references])
    assert scores(scored) == {"random": 66.67}  # "I see none" has no word for no, so it is yes
    assert scored.unparsed == 1


def test_ids_of_another_split_are_no_match(write: Write) -> None:
    """The splits of POPE number their questions alike and share every second: that half agrees proves nothing."""
    references = write("coco_pope_random.json", "".join(json.dumps(row) + "\n" for row in RANDOM))
    said = [llava_pope(number, *pair) for number, pair in enumerate([("dog", "Yes"), ("car", "No")], start=1)]
    with pytest.raises(DataError, match="no pair"):
        score("pope", write("answers.jsonl", said), references)


def test_a_question_told_in_another_language_is_matched_by_its_id(write: Write) -> None:
    said = write("answers.jsonl", [{"question_id": "101", "prompt": "Was ist das?", "text": "A"}])
    scored = score("seedbench", said, write("SEED-Bench.json", SEED["questions"][:1]))
    assert scored.score == 100.0 and any("another question" in note for note in scored.notes)


def test_files_of_equal_length_are_not_simply_laid_side_by_side(write: Write) -> None:
    """Ids that differ and no question to compare: nothing says that row 1 answers row 1."""
    references = write("coco_pope_random.json", "".join(json.dumps(row) + "\n" for row in RANDOM))
    said = write("answers.jsonl", [{"question_id": 901, "text": "Yes"}, {"question_id": 902, "text": "No"}])
    with pytest.raises(DataError, match="no pair"):
        score("pope", said, [references])
    said = write("other.jsonl", [{"text": "Yes"}, {"text": "No"}])
    assert score("pope", said, references).score == 100.0


def test_pope_leaves_out_what_was_not_answered_and_says_so(write: Write) -> None:
    references = write("coco_pope_popular.json", "".join(json.dumps(row) + "\n" for row in POPULAR))
    scored = score("pope", write("answers.jsonl", [{"question_id": 1, "text": "Yes"}]), [references])
    assert (scored.score, scored.n, scored.missing) == (100.0, 1, 1)
    assert any("left out" in note for note in scored.notes)


def test_pope_in_one_file_with_labels(write: Write) -> None:
    """VLMEvalKit asks a question that three splits share once and counts it in each."""
    rows = [
        {"index": 0, "question": "?", "answer": "Yes", "category": "random,popular", "prediction": "Yes"},
        {"index": 1, "question": "?", "answer": "No", "category": "random", "prediction": "Yes."},
    ]
    scored = score("pope", write("model_POPE.xlsx", rows))
    assert scores(scored) == {"random": 66.67, "popular": 100.0, "all": 80.0} and scored.n == 2


def test_pope_refuses_references_that_are_neither_yes_nor_no(write: Write) -> None:
    with pytest.raises(DataError, match="expected yes or no"):
        score("pope", write("a.jsonl", [{"question_id": 1, "prediction": "Yes", "answer": "A"}]))


# --- MMBench --------------------------------------------------------------------------------------------------


def rotations(index: int, right: str, said: Sequence[str]) -> list[Row]:
    """The rows of one question whose options turn: rotation k has index + k * 1,000,000 and its answer k further."""
    options = ["red", "blue", "green"]
    rows = []
    for turn, text in enumerate(said):
        turned = options[-turn:] + options[:-turn] if turn else options
        answer = "ABC"[turned.index(right)]
        named = dict(zip("ABC", turned, strict=True))
        row = {"index": index + turn * 1_000_000, "question": "Colour?", **named, "D": None, "prediction": text}
        rows.append({**row, "answer": answer, "category": "colour" if index < 10 else "other", "split": "dev"})
    return rows


MMB = [
    *rotations(1, "red", ["A", "B. red", "red"]),
    *rotations(2, "blue", ["B", "C", "C"]),
    *rotations(12, "red", ["B"] * 3),
]
"""Question 1 right in all three rotations, 2 in the first two, 12 in the second only."""


def test_mmbench_needs_every_rotation(write: Write) -> None:
    scored = score("mmbench", write("upload.xlsx", MMB))
    assert round(scored.score, 2) == 33.33 and scored.n == 3
    assert scores(scored) == {
        "one pass": 66.67, "every rotation": 33.33, "dev": 33.33, "colour": 50.0, "other": 0.0,
    }  # fmt: skip


def test_mmbench_answers_of_llava_with_the_tsv(write: Write) -> None:
    """The TSV holds the picture in base64, the category, and rows of a split that was not asked."""
    told = [{name: value for name, value in row.items() if name != "prediction"} for row in MMB]
    test = {**told[0], "index": 77, "answer": "A", "split": "test"}
    tsv = write("mmbench_dev_20230712.tsv", [{**row, "image": "x" * 300_000} for row in [*told, test]])
    common = {"round_id": 0, "prompt": "Colour?\nA. red"}
    said = [{"question_id": row["index"], **common, "text": row["prediction"]} for row in MMB]
    scored = score("mmbench", write("llava.jsonl", said), [tsv])
    assert round(scored.score, 2) == 33.33 and scored.parts["colour"] == {"score": 50.0, "n": 2}
    assert any("split(s) test" in note for note in scored.notes)


def test_mmbench_without_rotations_is_plain_accuracy(write: Write) -> None:
    scored = score("mmbench", write("one.tsv", [row for row in MMB if row["index"] < 1_000_000]))
    assert round(scored.score, 2) == 66.67 and "one pass" not in scored.parts


def test_verdicts_of_a_judge_are_taken_as_they_stand(write: Write) -> None:
    rows = [
        {"index": 1, "answer": "A", "prediction": "?", "hit": 1},
        {"index": 2, "answer": "A", "prediction": "A", "hit": 0},
    ]
    scored = score("mmbench", write("model_MMBench_openai_result.xlsx", rows))
    assert scored.score == 50.0 and any("hit" in note for note in scored.notes)


# --- MME ------------------------------------------------------------------------------------------------------

MME = {
    "color": [("1.jpg", "Red?", "Yes", "Yes"), ("1.jpg", "Blue?", "No", "No, red"),
              ("2.jpg", "Red?", "Yes", "Perhaps"), ("2.jpg", "Blue?", "No", "No")],
    "code_reasoning": [("9.png", "Python?", "Yes", "No"), ("9.png", "Java?", "No", "No")],
}  # fmt: skip
MME_POINTS = {"perception": 125.0, "cognition": 50.0, "color": 125.0, "code_reasoning": 50.0}
"""color: 3 of 4 right and 1 of 2 pictures wholly: 75 + 50; code_reasoning: 1 of 2 and 0 of 1: 50 + 0."""


def points(scored: Score) -> dict[str, float]:
    return {name: part["points"] for name, part in scored.parts.items()}


def test_mme_result_folder(write: Write) -> None:
    for task, rows in MME.items():
        file = write(f"results/{task}.txt", "".join("\t".join(row) + "\n" for row in rows))
    scored = score("mme", file.parent)
    assert points(scored) == MME_POINTS and scored.unparsed == 1
    assert scored.score == (125 + 50) / 2 / 2 and scored.n == 6  # percent of the points of the tasks there are
    assert str(scored).startswith("mme: 43.75 (points, as percent of 400) of 6 questions")
    missing = "existence, count, position, posters, celebrity, scene, landmark, artwork, OCR, "
    missing += "commonsense_reasoning, numerical_calculation, text_translation"
    assert scored.notes == [f"12 of 14 subtasks are missing and do not count: {missing}"]


def test_mme_with_every_task_is_of_2800(write: Write) -> None:
    for task in (task for members in MME_TASKS.values() for task in members):
        file = write(f"results/{task}.txt", "1.jpg\tRed?\tYes\tYes\n1.jpg\tBlue?\tNo\tNo\n")
    scored = score("mme", file.parent)
    assert (scored.score, scored.measure, scored.notes) == (100.0, "points, as percent of 2,800", [])


def test_mme_answers_of_llava_with_the_released_folder(write: Write) -> None:
    """One task keeps its texts beside the pictures, the other in questions_answers_YN."""
    said = []
    for task, rows in MME.items():
        for image, question, right, text in rows:
            name = f"release/{task}/{'questions_answers_YN/' if task == 'color' else ''}{Path(image).stem}.txt"
            file = write(name, "")
            both = [row for row in rows if row[0] == image]
            file.write_text("".join(f"{row[1]} Please answer yes or no.\t{row[2]}\n" for row in both))
            prompt = f"{question}\nAnswer the question using a single word or phrase."
            said.append({"question_id": f"{task}/{image}", "prompt": prompt, "text": text})
            assert right in ("Yes", "No")
    release = next(parent for parent in file.parents if parent.name == "release")
    scored = score("mme", write("llava.jsonl", said), [release])
    assert points(scored) == MME_POINTS and scored.missing == scored.unknown == 0


# --- ScienceQA ------------------------------------------------------------------------------------------------

PROBLEMS = {
    "1": {"question": "Why?", "choices": ["a", "b"], "answer": 0, "hint": "", "image": None, "grade": "grade2",
          "subject": "natural science", "split": "test"},
    "2": {"question": "How?", "choices": ["a", "b"], "answer": 1, "hint": "See.", "image": "image.png",
          "grade": "grade8", "subject": "social science", "split": "test"},
    "3": {"question": "Who?", "choices": ["a", "b"], "answer": 1, "hint": "So.", "image": None, "grade": "grade12",
          "subject": "language science", "split": "test"},
    "9": {"question": "No?", "choices": ["a", "b"], "answer": 1, "hint": "", "image": None, "grade": "grade1",
          "subject": "language science", "split": "train"},
}  # fmt: skip


@pytest.mark.parametrize("given", ["folder", "files"])
def test_scienceqa_with_problems_and_splits(write: Write, given: str) -> None:
    said = [
        {"question_id": "1", "prompt": "Why?\nA. a\nB. b", "text": "A"},
        {"question_id": "2", "prompt": "Context: See.\nHow?", "text": "B. b"},
        {"question_id": "3", "prompt": "Who?", "text": "C"},  # there are two choices: unread, and wrong
    ]
    splits = write("scienceqa/pid_splits.json", {"test": ["1", "2", "3"], "train": ["9"]})
    problems = write("scienceqa/problems.json", PROBLEMS)
    references = [problems, splits] if given == "files" else [problems.parent]
    scored = score("scienceqa", write("answers.jsonl", said), references)
    assert round(scored.score, 2) == 66.67 and (scored.n, scored.unparsed) == (3, 1)
    assert scores(scored) == {
        "NAT": 100.0, "SOC": 100.0, "LAN": 0.0, "TXT": 50.0, "IMG": 100.0, "NO": 100.0, "G1-6": 100.0, "G7-12": 50.0,
    }  # fmt: skip


def test_scienceqa_result_file_with_llavas_test_file(write: Write) -> None:
    result = {"acc": 50.0, "correct": 1, "count": 2, "results": {"4": 1, "5": 0}, "outputs": {"4": "B", "5": "A. x"}}
    asked = [
        {"id": "4", "conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "B"}]},
        {"id": "5", "image": "5/image.png", "conversations": [
            {"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "The answer is C."}]},
    ]  # fmt: skip
    scored = score("scienceqa", write("result.json", result), [write("llava_test_CQM-A.json", asked)])
    assert scored.score == 50.0 and scores(scored) == {"IMG": 0.0} and scored.notes == []


def test_scienceqa_output_file_brings_its_references(write: Write) -> None:
    row = {
        "question_id": "4",
        "parsed_ans": "B",
        "ground_truth": "B",
        "question": "Q",
        "pred": "B",
        "is_multimodal": True,
    }
    output = {"correct": [row], "incorrect": [{**row, "question_id": "5", "ground_truth": "A"}]}
    assert score("scienceqa", write("output.jsonl", json.dumps(output, indent=1))).score == 50.0


# --- VQA, TextVQA, GQA ----------------------------------------------------------------------------------------


def people(*answers: str) -> list[Row]:
    return [{"answer": text, "answer_id": number, "answer_confidence": "yes"} for number, text in enumerate(answers, 1)]


def test_vqa_result_list_with_the_official_annotations(write: Write) -> None:
    """The first is said by 3 of 10: 0.9; the second by all: 1; the third by none."""
    annotations = [
        {
            "question_id": 10,
            "answers": people(*["2"] * 3, *["3"] * 7),
            "answer_type": "number",
            "question_type": "how many",
        },
        {"question_id": 11, "answers": people(*["yes"] * 10), "answer_type": "yes/no", "question_type": "is"},
        {"question_id": 12, "answers": people(*["red"] * 10), "answer_type": "other", "question_type": "what"},
    ]
    file = write("v2_mscoco_val2014_annotations.json", {"info": {"year": 2014}, "annotations": annotations})
    said = [
        {"question_id": 10, "answer": "Two."},
        {"question_id": 11, "answer": "Yes"},
        {"question_id": 12, "answer": ""},
    ]
    scored = score("vqa", write("results.json", said), [file])
    assert round(scored.score, 2) == 63.33 and scored.unparsed == 1
    assert scores(scored) == {"number": 90.0, "other": 0.0, "yes/no": 100.0}


def test_textvqa_answers_of_llava_are_matched_by_picture_and_question(write: Write) -> None:
    """LLaVA's id is the picture's, which two questions share; OCR tokens stand between question and suffix."""
    data = [
        {"image_id": "a1", "question_id": 1, "question": "What is the Brand?", "answers": ["nokia"] * 10},
        {"image_id": "a1", "question_id": 2, "question": "what time?", "answers": ["10:10"] * 2 + ["10.10"] * 8},
    ]

    def said(question: str, text: str) -> Row:
        tokens = "\nReference OCR token: NOKIA, 10:10\nAnswer the question using a single word or phrase."
        return {"question_id": "a1", "prompt": question + tokens, "text": text}

    rows = [said("What is the brand?", "Nokia"), said("What time?", "10:10")]
    scored = score("textvqa", write("llava.jsonl", rows), [write("TextVQA_0.5.1_val.json", {"data": data})])
    assert scored.score == pytest.approx(100 * (1 + 0.6) / 2) and scored.n == 2 and scored.missing == 0


def test_textvqa_table_of_vlmevalkit(write: Write) -> None:
    rows = [{"index": 1, "question": "?", "answer": str(["nokia"] * 10), "prediction": "nokia"}]
    assert score("textvqa", write("model_TextVQA_VAL.xlsx", rows)).score == 100.0


def test_vizwiz_upload_is_matched_by_picture(write: Write) -> None:
    annotations = [
        {"image": "VizWiz_val_1.jpg", "question": "?", "answers": people(*["can"] * 10), "answer_type": "other"}
    ]
    said = [{"image": "VizWiz_val_1.jpg", "answer": "a can"}]
    assert score("vizwiz", write("upload.json", said), [write("val.json", annotations)]).score == 100.0


@pytest.mark.parametrize("fields", [("question_id", "text"), ("questionId", "prediction")])
def test_gqa_from_both_of_llavas_files(write: Write, fields: tuple[str, str]) -> None:
    questions = {
        "201": {"question": "Is it red?", "answer": "yes", "types": {"structural": "verify", "semantic": "attr"}},
        "202": {
            "question": "What is it?",
            "answer": "traffic light",
            "types": {"structural": "query", "semantic": "cat"},
        },
    }
    said = [dict(zip(fields, pair, strict=True)) for pair in (("201", "No"), ("202", "Traffic Light."))]
    scored = score("gqa", write("said.json", said), [write("testdev_balanced_questions.json", questions)])
    assert scored.score == 50.0
    assert scores(scored) == {
        "binary": 0.0, "open": 100.0, "query": 100.0, "verify": 0.0, "attr": 0.0, "cat": 100.0,
    }  # fmt: skip


# --- documents, charts, boxes, MMMU ---------------------------------------------------------------------------


def test_docvqa_and_chartqa(write: Write) -> None:
    data = {
        "data": [
            {"questionId": 5, "question": "Date?", "answers": ["May 1", "1 May"]},
            {"questionId": 6, "answers": ["x"]},
        ]
    }
    said = [{"questionId": 5, "answer": "May 2"}, {"questionId": 6, "answer": "X"}]
    scored = score("docvqa", write("said.json", said), [write("val_v1.0.json", data)])
    assert scored.score == pytest.approx(100 * (0.8 + 1) / 2)  # one of five characters is off
    charts = [
        {"imgname": "1.png", "query": "How many?", "label": "100"},
        {"imgname": "1.png", "query": "Which?", "label": "A"},
    ]
    said = [
        {"imgname": "1.png", "query": "Which?", "answer": "a"},
        {"imgname": "1.png", "query": "How many?", "answer": "106"},
    ]
    assert score("chartqa", write("said2.json", said), [write("test_human.json", charts)]).score == 50.0


def test_refcoco_boxes_are_of_the_padded_square(write: Write) -> None:
    """100 x 50 pixels: the square adds 25 above and below, so the lower half is 0.5 to 0.75 of it."""
    references = [{"question_id": 1, "bbox": [0, 25, 100, 25], "width": 100, "height": 50}]
    right = score(
        "refcoco", write("a.jsonl", [{"question_id": 1, "text": "[0, 0.5, 1, 0.75]"}]), [write("r.json", references)]
    )
    assert right.score == 100.0 and right.parts["mean IoU"]["score"] == 100.0
    flat = score(
        "refcoco", write("b.jsonl", [{"question_id": 1, "text": "[0, 0.5, 1, 1]"}]), [write("r.json", references)]
    )
    assert flat.score == 100.0 and flat.parts["mean IoU"]["score"] == 50.0
    none = score("refcoco", write("c.jsonl", [{"question_id": 1, "text": "there"}]), [write("r.json", references)])
    assert none.score == 0.0 and none.unparsed == 1


def test_mmmu_dict_of_id_to_answer(write: Write) -> None:
    references = {
        "validation_Art_1": {"question_type": "multiple-choice", "ground_truth": "B"},
        "validation_Math_Two_1": {"question_type": "open", "ground_truth": ["7", "seven"]},
    }
    said = {"validation_Art_1": "The answer is (A)", "validation_Math_Two_1": "Seven"}
    scored = score("mmmu", write("said.json", said), [write("answer_dict_val.json", references)])
    assert scored.score == 50.0 and scores(scored) == {"Art": 0.0, "Math_Two": 100.0}


def test_mmmu_table_of_vlmevalkit(write: Write) -> None:
    """An open question has no options there; its answer is looked for in what was said."""
    rows = [
        {
            "index": 1,
            "question": "?",
            "A": "cat",
            "B": "dog",
            "answer": "B",
            "category": "Art",
            "prediction": "the dog",
        },
        {"index": 2, "question": "?", "A": "1", "B": "2", "answer": "A", "category": "Art", "prediction": "Answer: B"},
        {"index": 3, "question": "?", "A": None, "B": None, "answer": "12", "category": "Math", "prediction": "x = 12"},
    ]
    assert scores(score("mmmu", write("model_MMMU_DEV_VAL.xlsx", rows))) == {"Art": 50.0, "Math": 100.0}


# --- files and errors -----------------------------------------------------------------------------------------


def test_parquet_references_from_the_hub(write: Write) -> None:
    rows = [{"question_id": "1", "answer": "yes", "question": "Q?", "image": {"bytes": b"\x89PNG", "path": "1.png"}}]
    said = [{"question_id": 1, "prediction": "Yes"}]
    assert score("pope", write("said.jsonl", said), [write("pope.parquet", rows)]).score == 100.0


def test_a_table_with_semicolons(write: Write) -> None:
    assert score("seedbench", write("said.csv", "question_id;prediction;answer\n1;A;A\n2;;B\n")).score == 50.0


@pytest.mark.parametrize("content", [{"predictions": {"101": "A", "102": "A"}}, {"101": "A", "102": "A"}])
def test_a_dict_of_id_to_answer(write: Write, content: Any) -> None:
    assert score("seedbench", write("said.json", content), write("SEED.json", SEED["questions"][:2])).score == 50.0


def test_one_broken_row_never_loses_the_rest(write: Write) -> None:
    text = '{"question_id": "1", "prediction": "A", "gt_answer": "A"}\n{"question_id": "2", "predi\n'
    scored = score("seedbench", write("cut.jsonl", text))
    assert scored.n == 1 and scored.score == 100.0 and "line 2" in scored.notes[0]
    scored = score("seedbench", write("mixed.jsonl", '{"question_id": "1", "prediction": "A", "gt_answer": "A"}\n5\n'))
    assert scored.n == 1 and "no rows" in scored.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("none.jsonl", "", "no row"),
        ("prose.json", "These are the answers.", "prose.json:1: found text that is no JSON"),
        ("fields.jsonl", [{"question_id": 1, "colour": "red"}], "expected an answer"),
        ("alone.jsonl", [{"question_id": 1, "text": "A"}], "give --references FILE; SEED-Bench needs SEED-Bench.json"),
        ("book.xlsx", "PK", "no workbook"),
        ("table.parquet", "PAR", "no Parquet"),
        ("city.jsonl", [{"question_id": 1, "prediction": "A", "answer": "Paris"}], "expected the letter of an option"),
    ],
)
def test_a_file_that_cannot_be_scored_is_one_clear_line(write: Write, name: str, content: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        score("seedbench", write(name, content))


def test_files_that_do_not_belong_together(write: Write) -> None:
    said = write("said.jsonl", [{"question_id": "x1", "text": "A"}])
    with pytest.raises(DataError, match="no pair among 1 rows whose first id is x1 and 4 rows whose first id is 101"):
        score("seedbench", said, [write("SEED-Bench.json", SEED)])
    with pytest.raises(DataError, match="no such file"):
        score("seedbench", said, [said.parent / "gone.json"])
    with pytest.raises(DataError, match="found benchmark 'sedbench'; expected one of seedbench, pope"):
        score("sedbench", said)


def test_the_command(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    file = write("said.jsonl", [{"question_id": "1", "prediction": "A", "gt_answer": "A"}])
    assert cli.main(["score", "seedbench", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: told[name] for name in ("benchmark", "score", "n", "unparsed")} == {
        "benchmark": "seedbench", "score": 100.0, "n": 1, "unparsed": 0,
    }  # fmt: skip
    assert told["parts"] == {"image": {"score": 100.0, "n": 1}}
    assert cli.main(["score", "seedbench", str(file)]) == 0
    assert capsys.readouterr().out.startswith("seedbench: 100.00 (accuracy) of 1 questions")
    assert cli.main(["score", "seedbench", "gone.json"]) == 1
    assert capsys.readouterr().err.startswith("error: gone.json: found no such file")


def test_every_benchmark_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"seedbench", "pope", "mmbench", "mme", "scienceqa", "vqa", "gqa", "textvqa"} <= set(BENCHMARKS)
    assert cli.main(["benchmarks"]) == 0
    assert capsys.readouterr().out.strip() == table()
    assert all(one.files in table() and one.source in table() for one in BENCHMARKS.values())
    assert cli.main(["benchmarks", "--json"]) == 0
    told = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert told == [*BENCHMARKS, *JUDGED]
