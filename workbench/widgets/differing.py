"""Which words of an answer another one lacks.

Knows: words, compared without case and the marks around them. Does not know: models, widgets or votes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any


def marked(texts: Sequence[str]) -> list[list[list[Any]]]:
    """Each text as [piece, differs]: what the text before it (the first: the second) does not say is marked."""
    split = [re.findall(r"\s*\S+", text) for text in texts]
    made = []
    for number, words in enumerate(split):
        other = split[1 if number == 0 else 0] if len(split) > 1 else words
        pieces: list[list[Any]] = []
        matcher = difflib.SequenceMatcher(a=[_plain(word) for word in other], b=[_plain(word) for word in words])
        for kind, _, _, begin, end in matcher.get_opcodes():
            if begin < end:
                pieces.append(["".join(words[begin:end]), kind != "equal"])
        made.append(pieces)
    return made


def said(answer: Sequence[Sequence[Any]] | None) -> str:
    """The text of a marked answer."""
    return "".join(piece for piece, _ in answer or ())


def _plain(word: str) -> str:
    return word.strip().strip(".,;:!?").lower()
