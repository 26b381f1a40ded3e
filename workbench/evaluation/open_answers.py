"""Open questions of MMMU: the reference is looked for in the parts of an answer that may hold it.

Knows: MMMU's key phrases and its way with numbers (two decimals, commas, powers of ten).
Does not know: options and files. Source: MMMU eval/eval_utils.py (`parse_open_response`, `eval_open`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def right(answer: str, references: Sequence[str]) -> bool:
    """A number that equals one of the references, or a text that one of them stands in.

    >>> right("So x = 3 and the result is 1,200.", ["1200"]), right("It is a red cat.", ["Red cat"])
    (True, True)
    >>> right("about 7", ["8"])
    False
    """
    known = {form for reference in references for form in _forms(reference)}
    texts = [form for form in known if isinstance(form, str)]
    for said in _candidates(answer):
        if said in known if isinstance(said, float) else any(text in said for text in texts):
            return True
    return False


def _candidates(answer: str) -> list[str | float]:
    """What may be the answer: the ends of its key lines, and the numbers in these."""
    keys = _keys(answer)
    found = [*keys, *(number for key in keys for form in _NUMBERS for number in form.findall(key))]
    return [form for text in found for form in _forms(text)]


def _keys(answer: str) -> list[str]:
    """From each line what follows a key phrase, the shortest; the whole answer where no phrase stands.

    MMMU means sentences, but looks for their capitals after it has made all small.
    """
    whole = answer.strip().strip(".").lower()
    lines = whole.split("\n")
    keys = []
    for number, line in enumerate(lines):
        phrases = (*_INDICATORS, "=") if number == len(lines) - 1 else _INDICATORS
        shortest = ""
        for end in (line.rsplit(phrase, 1)[-1].strip() for phrase in phrases if phrase in line):
            if not shortest or len(end) < len(shortest):
                shortest = end
        if shortest and shortest not in tuple(":,.!?;'"):
            keys.append(shortest)
    return keys or [whole]


def _forms(text: str) -> list[str | float]:
    """A number to two decimals; else the text in lower case, one letter only where a space stands beside it."""
    bare = text.strip()
    try:
        return [round(float(bare.replace(",", "")), 2)]
    except ValueError:
        lower = bare.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]
