"""What every caption tells without a model: length, script, and the shares by which web captions are filtered.

Knows: the measures as data-juicer defines them (its `alphanumeric`, `special_characters`, `character_repetition` and
`word_repetition` filters), and which texts are said about an image.
Does not know: thresholds, or a model's opinion (`caption_judges.py`).

One difference: beyond ASCII, data-juicer lists its special characters one by one; here Unicode's categories decide.
Nothing is kept in `measures/`: measuring a caption anew takes less time than reading it back.
"""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from functools import lru_cache

import polars as pl

from workbench.data.dataset import Dataset

_CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC")
_SPECIAL_ASCII = frozenset(string.punctuation + string.digits + string.whitespace)


def texts_of(dataset: Dataset, images: pl.DataFrame) -> pl.DataFrame:
    """What is said about these images, a row per text. Columns: id (of the image), text.

    That is an image's captions or, where it has none, what the assistant says in the conversations about it that are
    ok. Blank texts are left out.
    """
    captions = images.select("id", text="captions").explode("text").filter(_told)
    silent = images.join(captions, on="id", how="anti", maintain_order="left").select("id", "root", "path")
    parts = (
        dataset.conversation_rows.lazy()
        .filter(pl.col("status") == "ok")
        .select("messages", conversation="id")
        .explode("messages")
        .unnest("messages")
        .explode("content")
        .unnest("content")
    )
    media = parts.filter(pl.col("type").is_in(["image", "video"]))
    about = media.select("conversation", "root", "path").unique(maintain_order=True)
    answers = parts.filter(pl.col("role") == "assistant", pl.col("type") == "text", _told).select(
        "conversation", "text"
    )
    said = (
        silent.lazy()
        .join(about, on=["root", "path"], maintain_order="left")
        .join(answers, on="conversation", maintain_order="left")
        .select("id", "text")
    )
    return pl.concat([captions, said.collect()])


_told = pl.col("text").str.strip_chars() != ""


def alphanumeric(text: str) -> float:
    """Share of the characters that are letters or digits of any script; 0 for an empty text."""
    return sum(map(str.isalnum, text)) / len(text) if text else 0.0


def special_characters(text: str) -> float:
    """Share of the characters that are white space, digits, punctuation or symbols; 0 for an empty text."""
    return sum(map(_is_special, text)) / len(text) if text else 0.0


def character_repetition(text: str, length: int = 10) -> float:
    """How much of the text its most repeated character n-grams make up, 0 to 1.

    Of D different n-grams the most frequent are taken, at most the square root of D, as far as they occur twice.
    """
    counts = sorted(Counter(text[at : at + length] for at in range(len(text) - length + 1)).values(), reverse=True)
    most = min(int(len(counts) ** 0.5), sum(count > 1 for count in counts))
    return sum(counts[:most]) / sum(counts) if counts else 0.0


def word_repetition(text: str, length: int = 10) -> float:
    """Share of the word n-grams that occur more than once, 0 to 1. Words are lower case, without special characters."""
    words = [word for part in text.replace("\n", " ").replace("\t", " ").split(" ") if (word := _bare(part.lower()))]
    counts = Counter(tuple(words[at : at + length]) for at in range(len(words) - length + 1)).values()
    return sum(count for count in counts if count > 1) / sum(counts) if counts else 0.0


def script(text: str) -> str | None:
    """The script of most of its letters, such as Latin, Cyrillic, Arabic or CJK; None without letters."""
    counts = Counter(name for name in map(_script_of, text) if name)
    return counts.most_common(1)[0][0] if counts else None


def text_measures(texts: pl.DataFrame) -> pl.DataFrame:
    """`texts` (with a column text) and beside it, by their names, the measures of this module, characters and words."""
    column = texts["text"]
    shares = (alphanumeric, special_characters, character_repetition, word_repetition)
    return texts.with_columns(
        characters=column.str.len_chars(),
        words=column.str.split(" ").list.eval(pl.element().filter(pl.element() != "")).list.len(),
        script=pl.Series([script(text) for text in column], dtype=pl.String),
        **{share.__name__: pl.Series([share(text) for text in column], dtype=pl.Float64) for share in shares},
    )


@lru_cache(maxsize=100_000)
def _is_special(character: str) -> bool:
    if character.isascii():
        return character in _SPECIAL_ASCII
    return unicodedata.category(character)[0] in "PSZC" or unicodedata.category(character) == "No"


def _bare(word: str) -> str:
    """The word without special characters at either end."""
    first, last = 0, len(word)
    while first < last and _is_special(word[first]):
        first += 1
    while last > first and _is_special(word[last - 1]):
        last -= 1
    return word[first:last]


@lru_cache(maxsize=100_000)
def _script_of(character: str) -> str | None:
    if not character.isalpha():
        return None
    first = unicodedata.name(character, "unknown").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split()[0]
    return "CJK" if first in _CJK else first.capitalize()
