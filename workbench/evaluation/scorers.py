"""How an answer is compared with its reference.

Knows: normalisation of short answers. Does not know: models, datasets or how answers were made.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Scorer = Callable[[str, str], bool]
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_OUTSIDE = re.compile(r"(?!-\d|(?<=[\w+])[+#])[^\w\s]", re.UNICODE)
"""Punctuation; the sign of a number and what makes C++ or C# of C are none."""
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_WORDS)}


def normalise(text: str) -> str:
    """Lower case, no punctuation or articles, number words as digits, single spaces.

    >>> normalise(" The Red  star. ")
    'red star'
    """
    bare = _ARTICLES.sub(" ", _OUTSIDE.sub(" ", text.lower()))
    return " ".join(_NUMBERS.get(word, word) for word in bare.split()) or text.strip().lower()


def exact(answer: str, reference: str) -> bool:
    """Equal to the letter, but for spaces at the ends."""
    return answer.strip() == reference.strip()


def normalised(answer: str, reference: str) -> bool:
    """Equal after `normalise`. A class named "a" or "the" is compared as written."""
    return normalise(answer) == normalise(reference)


SCORERS: dict[str, Scorer] = {"exact": exact, "normalised": normalised}
