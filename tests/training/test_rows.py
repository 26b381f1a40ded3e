"""Conversations kept compressed are those that came in, in whatever order and mixture they are asked for."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.conversation import Conversation, Image, Message, Video
from workbench.data import tables
from workbench.training.conditions import conditions, long_lived
from workbench.training.rows import BLOCK, Rows, joined

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
MEDIA = st.one_of(
    st.builds(Image, TEXT, TEXT, st.integers(1, 9), st.integers(1, 9), st.none() | TEXT), st.builds(Video, TEXT, TEXT)
)
TURN = st.tuples(st.lists(MEDIA, max_size=2), TEXT, TEXT)


def conversation(name: str, turns: list[tuple[list[Image | Video], str, str]], task: str | None = None) -> Conversation:
    pairs = [(Message("user", (*media, said)), Message("assistant", answer)) for media, said, answer in turns]
    return Conversation(name, tuple(message for pair in pairs for message in pair), task=task)


def rows_of(conversations: list[Conversation]) -> Rows:
    return Rows(tables.conversations_to_frame(conversations))


@given(st.lists(st.lists(TURN, min_size=1, max_size=3), min_size=1, max_size=5), st.integers(0, 5))
def test_what_is_kept_is_what_came_in(talks: list[list[tuple[list[Image | Video], str, str]]], seed: int) -> None:
    made = [conversation(str(number), turns, "caption") for number, turns in enumerate(talks)]
    rows = rows_of(made)
    assert list(rows) == made and rows[-1] == made[-1] and list(rows[1:]) == made[1:]
    order = np.random.default_rng(seed).permutation(len(made))
    assert list(rows.take(order)) == [made[number] for number in order]
    shown = [(talk.id, part.path, part.root) for talk in made for part in talk.media]
    assert list(rows.media.select("id", "path", "root").iter_rows()) == shown
    assert rows.videos == {
        f"{part.root}/{part.path}" for talk in made for part in talk.media if isinstance(part, Video)
    }


def test_conversations_of_many_blocks_are_found_by_their_number() -> None:
    made = [conversation(str(number), [([], f"{number}?", f"{number}!")]) for number in range(3 * BLOCK + 7)]
    rows = rows_of(made)
    assert [rows[number] for number in (0, BLOCK - 1, BLOCK, 3 * BLOCK + 6)] == [
        made[number] for number in (0, BLOCK - 1, BLOCK, 3 * BLOCK + 6)
    ]
    assert list(rows.take(np.array([2 * BLOCK, 1, 2 * BLOCK + 1]))) == [made[2 * BLOCK], made[1], made[2 * BLOCK + 1]]


def test_datasets_that_are_joined_keep_their_own_words_and_files() -> None:
    first = rows_of([conversation("a", [([Image("x.png"), Video("x.mp4")], "One?", "1")])])
    second = rows_of([conversation("a", [([Image("x.png"), Video("x.mp4")], "Two?", "2")])])
    both = joined([first, second.apart("other:")])
    assert [talk.id for talk in both] == ["a", "other:a"]
    assert [talk.messages[1].text for talk in both] == ["1", "2"]
    roots = [[part.root for part in talk.media] for talk in both]
    assert roots == [["images", "videos"], ["other:images", "other:videos"]]
    assert both.frame["keys"].to_list() == [[f"{part.root}/{part.path}" for part in talk.media] for talk in both]
    assert joined([second.apart("other:"), first])[1] == first[0]


def test_equal_words_about_another_datasets_image_are_others() -> None:
    rows = rows_of([conversation("a", [([Image("x.png")], "One?", "1")])])
    one, other = joined([rows, rows.apart("other:")]).frame.select("stamp", "stamp2").rows()
    assert one[0] != other[0] and one[1] != other[1], "or the length index gives one the image of the other"


def test_equal_words_have_equal_stamps_and_others_not() -> None:
    told = [conversation(name, [([], said, "!")]) for name, said in (("a", "x"), ("b", "x"), ("c", "y"))]
    one, same, other = rows_of(told).frame.select("stamp", "stamp2").rows()
    assert one == same != other and one[0] != one[1]


def test_what_is_made_to_stay_is_not_walked_and_garbage_is_found_again_afterwards() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(ValueError, match="broken"), conditions(None), long_lived():
        assert not gc.isenabled()
        raise ValueError("broken")
    assert gc.isenabled() and gc.get_freeze_count() == before
    with conditions(None):
        with long_lived():
            held = [[number] for number in range(1000)]
        assert gc.isenabled() and gc.get_freeze_count() > len(held)
    assert gc.get_freeze_count() == before
