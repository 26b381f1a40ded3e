from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from workbench.conversation import Conversation, Image, Message
from workbench.curation.text_measures import (
    alphanumeric,
    character_repetition,
    script,
    special_characters,
    text_measures,
    texts_of,
    word_repetition,
)
from workbench.data.dataset import Dataset


def test_shares_are_those_that_data_juicer_defines() -> None:
    assert alphanumeric("a1 ,") == 0.5 and alphanumeric("é文") == 1.0 and alphanumeric("") == 0.0
    assert special_characters("a1 ,") == 0.75 and special_characters("“é” ½") == pytest.approx(0.8)
    assert special_characters("") == 0.0


def test_character_repetition_takes_the_most_frequent_pieces() -> None:
    # abcab in pieces of 2: ab, bc, ca, ab -> of 3 different ones at most 1 counts, and ab makes up 2 of 4
    assert character_repetition("abcab", 2) == 0.5
    # abcabc: ab 2, bc 2, ca 1 -> the square root of 3 allows one of the two that are repeated
    assert character_repetition("abcabc", 2) == 0.4
    assert character_repetition("aaaaaaaaaaaa") == 1.0
    assert character_repetition("a dog on the beach") == 0.0 and character_repetition("short") == 0.0


def test_word_repetition_counts_every_occurrence_and_no_punctuation() -> None:
    assert word_repetition("The dog, the  DOG", 2) == pytest.approx(2 / 3)  # the dog, dog the, the dog
    assert word_repetition("- a - b", 2) == 0.0 and word_repetition("one", 2) == 0.0
    assert word_repetition("buy now " * 20) == 1.0


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a dog", "Latin"),
        ("собака ok", "Cyrillic"),
        ("犬がいる", "CJK"),
        ("강아지", "CJK"),
        ("كلب", "Arabic"),
        ("ＤＯＧ", "Latin"),
        ("12 !", None),
        ("", None),
    ],
)
def test_the_script_is_that_of_most_letters(text: str, name: str | None) -> None:
    assert script(text) == name


def test_all_measures_stand_beside_the_text() -> None:
    found = text_measures(pl.DataFrame({"id": ["a", "b"], "text": ["two  dogs", ""]}))
    assert found["characters"].to_list() == [9, 0] and found["words"].to_list() == [2, 0]
    assert found["script"].to_list() == ["Latin", None]
    assert {"alphanumeric", "special_characters", "character_repetition", "word_repetition"} <= set(found.columns)


def test_an_image_without_caption_is_told_by_the_answers_about_it(shapes: Dataset) -> None:
    images = shapes.images.with_columns(
        captions=pl.Series([["a caption", " "], [], [], [], [], [], []], dtype=pl.List(pl.String))
    )
    told = texts_of(shapes, images)
    assert told.rows() == [("shape-0", "a caption"), ("shape-1", "A red star."), ("shape-1", "A red star.")]


def test_answers_of_removed_conversations_are_not_told(tmp_path: Path) -> None:
    images = pl.DataFrame({"id": ["a"], "path": ["a.png"]})
    talks = [
        Conversation(name, (Message("user", (Image("a.png"), "What?")), Message("assistant", f"answer {name}")))
        for name in ("one", "two")
    ]
    dataset = Dataset.create(tmp_path, name="talks", images=images, conversations=talks)
    dataset.edit({"table": "conversations", "id": "two", "set": {"status": "removed"}})
    assert texts_of(dataset, dataset.images).rows() == [("a", "answer one")]
