"""The English words that speak of things in a picture, and a text as a list of them.

Knows: which words are colors, sizes, places, numbers, relations, negation, and the nouns it is given; plurals.
Does not know: which words belong together (`phrases.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Span = tuple[int, int]

_COLOR_WORDS = "red orange yellow green blue purple white black pink brown gray cyan magenta beige maroon teal violet"
_SAME_COLOR = {"violet": "purple", "grey": "gray", "crimson": "red", "scarlet": "red"}
_COLORS = {word: word for word in _COLOR_WORDS.split()} | _SAME_COLOR
_SIZES = dict.fromkeys("small little tiny".split(), "small") | dict.fromkeys("large big huge".split(), "large")
_NUMBERS = {
    word: n for n, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
}
_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "foot": "feet", "mouse": "mice",
    "knife": "knives", "leaf": "leaves", "shelf": "shelves", "sheep": "sheep", "fish": "fish", "deer": "deer",
    "scissors": "scissors", "skis": "skis",
}  # fmt: skip
_ROWS = {"top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom"}
_FRAME = (
    "image picture photo photograph scene frame canvas view screen drawing background composition illustration artwork"
    " print sheet page layout".split()
)
_KINDS: dict[str, str] = {
    **dict.fromkeys("is are was were be been being isn aren wasn weren".split(), "be"),
    **dict.fromkeys(
        "appears appear looks look seems seem sits sit lies lie stands stand rests rest remains".split(), "be"
    ),
    **dict.fromkeys(
        "located positioned placed situated found shown seen occupies occupy colored coloured".split(), "be"
    ),
    **dict.fromkeys(
        "comes turns reads proves feels stays counts measures considered".split()
        + "rendered drawn painted filled shaded tinted".split(),
        "be",
    ),
    **dict.fromkeys("not n't never without cannot neither nor".split(), "not"),
    **dict.fromkeys("a an the this that these those another any some each every all both no either its".split(), "det"),
    **dict.fromkeys("it they".split(), "pronoun"),
    **dict.fromkeys("corner side half part edge area region section portion quadrant third row column".split(), "area"),
    **dict.fromkeys("middle center centre central centered centred".split(), "mid"),
    **dict.fromkeys("object objects shape shapes thing things item items figure figures form forms".split(), "generic"),
    **dict.fromkeys("anything something everything".split(), "generic"),
    **dict.fromkeys(_FRAME, "frame"),
    **dict.fromkeys("might may could would perhaps possibly probably likely if imagine should".split(), "hedge"),
    **dict.fromkeys(
        "same different than or largest smallest biggest larger smaller bigger leftmost rightmost".split(), "vague"
    ),
    **dict.fromkeys("which who".split(), "which"),
    "and": "and",
}
_FUNCTION = frozenset(
    (
        "in on at to of from by with for as into onto near toward towards along there here i you we he she"
        " can do does did has have had contains contain shows show includes include features feature holds"
        " hold sees see depicts depict also too directly just only while but so because then next beside"
        " between around behind front across yes yeah what where how many much whose when why other one's"
        " ones remain remains visible present pictured together respectively another"
    ).split()
)
BREAKS = frozenset("while whereas but so because since although though".split())
_VERBS = frozenset(
    "runs walks plays eats holds wears rides jumps watches waits stares flies drinks sleeps carries".split()
)

_IMAGE = rf"(?:the|this|that) (?:{'|'.join(_FRAME)})"
_TO = r"(?:(?:located |positioned |placed )?(?:on|to|at|towards?) )?(?:(?:the|its) )?(?:far |immediate )?"
_OF = rf"(?:-hand| hand)?(?: side)? (?:of|from)\b(?! {_IMAGE}| (?:the )?cent)"
_RELATIONS = (
    ("left", rf"{_TO}\bleft{_OF}|(?:farther|further|more) (?:to the )?left than"),
    ("right", rf"{_TO}\bright{_OF}|(?:farther|further|more) (?:to the )?right than"),
    ("left:it", r"(?:to|on) (?:its|their) left(?: side)?"),
    ("right:it", r"(?:to|on) (?:its|their) right(?: side)?"),
    ("above", rf"\babove\b(?! {_IMAGE}| cent)|\bhigher (?:up )?(?:in {_IMAGE} )?than|\bover\b(?= (?:the|a|an|it)\b)"),
    ("below", rf"\b(?:below|beneath|underneath|under)\b(?! {_IMAGE})|\blower (?:down )?(?:in {_IMAGE} )?than"),
    (
        "near",
        r"\b(?:next to|close to|adjacent to|on top of|in front of|beside|alongside|between|around|behind|besides)\b",
    ),
    ("near", r"\b(?:together |along )?with\b"),
)
_RELATION = re.compile("|".join(f"(?P<r{n}>{pattern})" for n, (_, pattern) in enumerate(_RELATIONS)))
_TOKEN = re.compile(r"[^\W\d_]+(?=n['’]t\b)|n['’]t\b|['’]s\b|[^\W\d_]+|\d+(?:\.\d+)?%?|[.,;:!?\n—–()\[\]]")


@dataclass
class Token:
    text: str
    span: Span
    kind: str
    value: Any = None
    plural: bool = False


class Lexicon:
    """The words, and the nouns it was given: `nouns` maps a word or several (singular) to what it stands for.

    `compounds`: an unknown word after a noun may make another thing of it ("train tracks"), which is then no noun here.
    """

    def __init__(self, nouns: Mapping[str, Any], *, compounds: bool = True) -> None:
        self._compounds = compounds
        self._nouns: dict[tuple[str, ...], tuple[Any, bool]] = {}
        for noun, value in nouns.items():
            words = tuple(noun.lower().replace("-", " ").split())
            if words:
                self._nouns[(*words[:-1], plural_of(words[-1]))] = (value, True)
                self._nouns.setdefault(words, (value, False))
        self._longest = max((len(words) for words in self._nouns), default=0)

    def tokens(self, text: str) -> list[Token]:
        """A text as words of known kinds; relations and nouns of several words are one."""
        lower = text.lower().replace("-", " ")
        found = [(match.group(), match.span()) for match in _TOKEN.finditer(lower)]
        relations = {match.start(): match for match in _RELATION.finditer(lower)}
        tokens: list[Token] = []
        index, skip_to = 0, 0
        while index < len(found):
            word, span = found[index]
            match = relations.get(span[0])
            if match is not None and match.end() > span[0]:
                names = [number for number in range(len(_RELATIONS)) if match.group(f"r{number}") is not None]
                tokens.append(Token(match.group(), match.span(), "relation", _RELATIONS[names[0]][0]))
                skip_to = match.end()
                while index < len(found) and found[index][1][0] < skip_to:
                    index += 1
                continue
            length = self._noun_at(found, index)
            if length:
                value, plural = self._nouns[tuple(word for word, _ in found[index : index + length])]
                whole = (span[0], found[index + length - 1][1][1])
                tokens.append(Token(lower[whole[0] : whole[1]], whole, "noun", value, plural))
                index += length
                continue
            tokens.append(_word(word, span, tokens))
            index += 1
        return tokens

    def _noun_at(self, found: list[tuple[str, Span]], index: int) -> int:
        """How many words from here are a noun; 0 for none, or where it only describes another ("train tracks")."""
        for length in range(min(self._longest, len(found) - index), 0, -1):
            words = tuple(word for word, _ in found[index : index + length])
            if words not in self._nouns or (length == 1 and words[0] in _COLORS):
                continue
            after = found[index + length][0] if index + length < len(found) else "."
            return length if not self._compounds or self._nouns[words][1] or _ends_phrase(after) else 0
        return 0


def _ends_phrase(word: str) -> bool:
    """Whether a word after a noun leaves it a noun of its own; an unknown one may make it part of another's name."""
    known = _KINDS.get(word, "") or word in _FUNCTION or word in _VERBS or word in BREAKS or word in _ROWS
    known = known or word in _COLORS or word in _SIZES or word in ("left", "right", "shaped", "above", "below", "under")
    return (
        bool(known)
        or not word.isalpha()
        or word.endswith(("ing", "ed", "ly"))
        or word in ("beneath", "underneath", "over")
    )


def plural_of(word: str) -> str:
    """The plural of one English noun."""
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


def _word(word: str, span: Span, before: list[Token]) -> Token:
    if word in _COLORS:
        return Token(word, span, "color", _COLORS[word])
    if word in _SIZES:
        return Token(word, span, "size", _SIZES[word])
    if word in _NUMBERS or word.isdigit():
        return Token(word, span, "number", _NUMBERS[word] if word in _NUMBERS else int(word))
    if word in _ROWS:
        return Token(word, span, "row", _ROWS[word])
    if word in ("left", "right"):
        return Token(word, span, "column", word)
    if word in ("'s", "’s"):
        pronoun = bool(before) and (
            before[-1].kind == "pronoun" or before[-1].text in ("there", "that", "what", "here")
        )
        return Token(word, span, "be" if pronoun else "word")
    if word in ("n’t", "n't"):
        return Token(word, span, "not")
    kind = _KINDS.get(word) or ("function" if word in _FUNCTION else "," if word == "," else "word")
    return Token(word, span, kind, plural=kind == "generic" and word.endswith("s"))
