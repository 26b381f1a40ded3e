"""How an answer is compared with its reference.

Knows: normalisation of short answers, letters, numbers and boxes, each as right or wrong.
Does not know: models, datasets or how answers were made; the rules of published benchmarks are in `benchmarks`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from workbench.evaluation import letters, near

Scorer = Callable[[str, str], bool]
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_OUTSIDE = re.compile(r"(?!-\d|(?<=[\w+])[+#])[^\w\s]", re.UNICODE)
"""Punctuation; the sign of a number and what makes C++ or C# of C are none."""
_COMMA = re.compile(r"(?<=\d),(?=\d{3}\b)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
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


def choice(answer: str, reference: str) -> bool:
    """The same option letter, A to H, alone or in a few words.

    >>> choice("The answer is (B).", "B"), choice("B or C", "B")
    (True, False)
    """
    options = dict.fromkeys("ABCDEFGH", "")
    said = letters.matched(answer, options)
    return said is not None and said == letters.matched(reference, options)


def numeric(answer: str, reference: str) -> bool:
    """The one number in the answer is the reference's, also in words; a comma parts thousands.

    >>> numeric("There are three.", "3"), numeric("1,200.5 m", "1200.50"), numeric("2 or 3", "3")
    (True, True, False)
    """
    said, known = _numbers(answer), _numbers(reference)
    return len(said) == 1 and said == known


def _numbers(text: str) -> list[float]:
    words = [_NUMBERS.get(word.strip(".,!?"), word) for word in text.lower().split()]
    return [float(found) for found in _NUMBER.findall(_COMMA.sub("", " ".join(words)))]


def iou(answer: str, reference: str) -> bool:
    """Boxes `[left, top, right, bottom]` whose intersection is at least half their union.

    >>> iou("[0, 0, 2, 2]", "[0, 0, 2, 3]"), iou("[0, 0, 1, 1]", "[0, 0, 2, 2]")
    (True, False)
    """
    said, known = near.box(answer), near.box(reference)
    return said is not None and known is not None and near.overlap(said, known) >= 0.5


SCORERS: dict[str, Scorer] = {
    "exact": exact,
    "normalised": normalised,
    "choice": choice,
    "numeric": numeric,
    "relaxed": near.relaxed,
    "iou": iou,
}
