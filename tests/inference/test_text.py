"""Streamed text: split characters, words whose spaces are not in the tokens, stop texts, white space."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from workbench.inference.text import TextStream


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    words = ["▁a", "▁red", "▁cube", "s", "."]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


BYTES = byte_level()


def streamed(ids: list[int], tokenizer: Tokenizer = BYTES, stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(tokenizer.decode, stop)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text
    return pieces


@given(st.text(max_size=40))
def test_pieces_joined_are_the_decoded_text(text: str) -> None:
    pieces = streamed(BYTES.encode(text).ids)
    assert "".join(pieces) == text.strip()


@given(st.text(alphabet="aé你😀 ", max_size=20))
def test_no_piece_holds_a_broken_character(text: str) -> None:
    assert not any("\ufffd" in piece for piece in streamed(BYTES.encode(text).ids))


def test_a_character_appears_with_its_last_byte() -> None:
    assert streamed(BYTES.encode("é😀").ids) == ["", "é", "", "", "", "😀", ""]


def test_bytes_that_never_become_a_character_are_shown_at_the_end() -> None:
    ids = BYTES.encode("ok 你").ids[:-1]
    assert "".join(streamed(ids)) == BYTES.decode(ids)


@pytest.mark.parametrize(
    ("ids", "pieces"),
    [
        ([256, 257, 258, 259, 260], ["a", " red", " cube", "s", ".", ""]),
        ([256, 0xE4, 0xBD, 0xA0, 257], ["a", "", "", "你", " red", ""]),
    ],
)
def test_spaces_between_words_survive_tokenizers_that_strip_the_first(ids: list[int], pieces: list[str]) -> None:
    assert streamed(ids, sentencepiece_like()) == pieces


@given(st.text(alphabet="ab\n ", max_size=30), st.lists(st.text(alphabet="ab\n ", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_stop_text_that_is_complete_first(text: str, stop: list[str]) -> None:
    seen = text.lstrip()
    ends = [(seen.find(one) + len(one), seen.find(one)) for one in stop if one in seen]
    expected = seen[: min(ends)[1]] if ends else seen
    assert "".join(streamed(BYTES.encode(text).ids, stop=tuple(stop))) == expected.strip()


@pytest.mark.parametrize("stop", [" ", "\n", " is"])
def test_white_space_before_an_answer_is_no_stop_text_because_nobody_sees_it(stop: str) -> None:
    assert streamed(BYTES.encode(" \n There is one.").ids, stop=(stop,))[:3] == ["", "", ""]
    text = "".join(streamed(BYTES.encode(" \n There is one.").ids, stop=(stop,)))
    assert text == ("There is one." if stop == "\n" else "There")


def test_the_beginning_of_a_stop_text_is_held_back_until_it_is_clear() -> None:
    ids = BYTES.encode("a USER b USER: c").ids
    assert "".join(streamed(ids, stop=("USER:",))) == "a USER b"
    assert streamed(BYTES.encode("x \nUS").ids, stop=("USER:",)) == ["x", "", "", "", "", " \nUS"]
