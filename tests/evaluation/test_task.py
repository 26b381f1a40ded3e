"""Scores: right answers are counted, blind baselines really are blind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.chat_model import ScriptedModel
from workbench.conversation import Conversation, Image, Message
from workbench.data.dataset import Dataset
from workbench.errors import DataError, WorkbenchError
from workbench.evaluation.scorers import exact, normalised
from workbench.evaluation.task import derange, evaluate


def question(number: int, answer: str, kind: str = "color", image: str | None = None) -> Conversation:
    messages = (Message("user", (Image(image or f"{number}.png"), f"Question {number}?")), Message("assistant", answer))
    return Conversation(f"q{number}", messages, metadata={"type": kind})


def test_accuracy_is_counted_per_type() -> None:
    asked = [question(0, "red"), question(1, "blue"), question(2, "3", "count"), question(3, "4", "count")]
    replies = {"Question 0?": "Red.", "Question 1?": "green", "Question 2?": "three", "Question 3?": "4"}
    model = ScriptedModel(lambda conversation: replies[conversation.messages[-1].text])
    results = evaluate(model, asked)
    assert results.accuracy == 0.75
    assert results.by_type == {"color": 0.5, "count": 1.0}
    wrong = results.rows.filter(~results.rows["right"]).to_dicts()
    assert [(row["reference"], row["answer"]) for row in wrong] == [("blue", "green")]


def test_the_model_never_sees_the_reference() -> None:
    model = ScriptedModel(["x"])
    evaluate(model, [question(0, "secret")])
    assert all("secret" not in message.text for message in model.asked[0].messages)


def test_results_are_saved_one_line_per_question(tmp_path: Path) -> None:
    results = evaluate(ScriptedModel(["red", "red"]), [question(0, "red"), question(1, "blue")])
    lines = results.save(tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 2 and '"right":true' in lines[0]


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=30).filter(lambda drawn: len(set(drawn)) > 1), st.integers(0, 99)
)
def test_a_derangement_shows_every_question_another_image(drawn: list[int], seed: int) -> None:
    asked = [question(index, "red", image=f"{image}.png") for index, image in enumerate(drawn)]
    blind = derange(asked, seed=seed)
    assert [one.id for one in blind] == [one.id for one in asked]
    for before, after in zip(asked, blind, strict=True):
        assert before.images[0] != after.images[0]
        assert before.messages[-1] == after.messages[-1] and before.prompt.messages[0].text == after.messages[0].text
    assert {one.images[0] for one in blind} == {one.images[0] for one in asked}


def test_imported_conversations_are_questions_whatever_their_split(tmp_path: Path) -> None:
    """What comes from a file of a person's own has neither task nor split."""
    told = [question(0, "red"), question(1, "blue")]
    dataset = Dataset.create(tmp_path / "mine", name="mine", conversations=[replace(one, metadata={}) for one in told])
    model = ScriptedModel(lambda asked: "red")
    assert evaluate(model, dataset, split=None).accuracy == evaluate(model, dataset, split=None, tasks=None).accuracy
    assert evaluate(model, dataset, split=None).accuracy == 0.5
    expected = r"no question in split test; expected one of its splits: none \(2\); --split all .*`workbench split`"
    with pytest.raises(DataError, match=expected):
        evaluate(model, dataset)
    with pytest.raises(DataError, match="no caption; expected tasks of that split: question"):
        evaluate(model, dataset, split=None, tasks=["caption"])


def test_rows_that_all_failed_are_no_score(tmp_path: Path) -> None:
    def broken(asked: Conversation) -> str:
        raise DataError("the endpoint", found="nobody there")

    with pytest.raises(WorkbenchError, match="2 of 2 rows that failed, the first: .*nobody there"):
        evaluate(ScriptedModel(broken), [question(0, "red"), question(1, "blue")], out=tmp_path / "results")
    held = evaluate(
        ScriptedModel(lambda asked: "red"), [question(0, "red"), question(1, "blue")], out=tmp_path / "results"
    )
    assert held.accuracy == 0.5  # they are asked again


def test_a_type_that_no_judge_scored_has_no_mean() -> None:
    results = evaluate(ScriptedModel(lambda asked: "red"), [question(0, "red"), question(1, "3", "count")])
    unscored = replace(
        results, rows=results.rows.with_columns(earned=pl.when(pl.col("type") == "color").then("earned"))
    )
    assert unscored.by_type == {"color": 1.0}


def test_a_blind_baseline_needs_two_images() -> None:
    with pytest.raises(DataError, match="at least two"):
        derange([question(0, "red")], seed=0)


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("Top left.", "top left", True),
        ("the red star", "red star", True),
        ("two", "2", True),
        ("top", "top left", False),
        ("", "red", False),
        ("a", "A", True),
        ("the", "a", False),
        ("C", "C++", False),
        ("C#.", "c#", True),
        ("-5", "5", False),
        ("- red", "red", True),
    ],
)
def test_normalised_forgives_form_not_content(answer: str, reference: str, same: bool) -> None:
    assert normalised(answer, reference) is same
    assert not exact(answer, reference)


@pytest.mark.parametrize("scorer", ["nearly"])
def test_an_unknown_scorer_names_the_known_ones(scorer: str) -> None:
    with pytest.raises(DataError, match="exact, normalised"):
        evaluate(ScriptedModel(["x"]), [question(0, "red")], scorer=scorer)


def test_a_question_without_an_answer_is_named() -> None:
    lonely = Conversation("lonely", (Message("user", "Why?"),))
    with pytest.raises(DataError, match="lonely"):
        evaluate(ScriptedModel(["x"]), [lonely])
