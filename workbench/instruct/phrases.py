"""Noun phrases and places: which words of a clause belong together.

Knows: "the two large red stars" as one phrase with its parts, "middle of the right side" as one place.
Does not know: what is said of a phrase (`english.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workbench.instruct.words import Span, Token


@dataclass(frozen=True)
class Part:
    """One thing said. `kind` and value: object (a noun), color, size, place (row, column), relation (what, of which),
    or unknown where it was not understood."""

    kind: str
    value: Any
    span: Span


@dataclass(eq=False)
class Phrase:
    """A noun phrase: what is said of the things it names, and how many there are."""

    span: Span
    parts: list[Part] = field(default_factory=list)
    number: int | None = None
    number_span: Span = (0, 0)
    exact: bool = False
    """Exactly this many; otherwise a lone "one" names one of maybe more."""
    partial: bool = False
    """ "two of the stars": the number is of those that the predicate holds for."""
    plural: bool = False
    definite: bool = False
    every: bool = False
    denied: bool = False
    denied_span: Span = (0, 0)
    repeats: bool = False
    """A pronoun: its parts were said elsewhere."""

    @property
    def bare(self) -> bool:
        """No noun of its own: "object", "it", "one"."""
        return all(part.kind != "object" for part in self.parts)


_ADJECTIVES = ("color", "size", "word")
ONLY = ("only", "just", "exactly", "precisely", "single")


@dataclass
class Item:
    kind: str
    span: Span
    value: Any = None
    text: str = ""


def items_of(tokens: list[Token]) -> list[Item]:
    items: list[Item] = []
    index = 0
    while index < len(tokens):
        end, phrase = _phrase_from(tokens, index)
        if phrase is not None:
            items.append(Item("phrase", phrase.span, phrase))
            index = end
            continue
        end, place = _place_from(tokens, index)
        if place is not None:
            items.append(Item("place", (tokens[index].span[0], tokens[end - 1].span[1]), place))
            index = end
            continue
        token = tokens[index]
        items.append(Item(token.kind, token.span, token.value, token.text))
        index += 1
    return items


def _phrase_from(tokens: list[Token], start: int) -> tuple[int, Phrase | None]:
    """A noun phrase that begins at `start`: determiners and numbers, adjectives, then a noun."""
    index = start
    phrase = Phrase(tokens[start].span)
    while index < len(tokens) and (
        tokens[index].kind in ("det", "number") or tokens[index].text in (*ONLY, "of", "other")
    ):
        if tokens[index].text in ("of", *ONLY) and index == start:
            return start, None
        _determine(phrase, tokens, index)
        index += 1
    opened = index > start
    if index < len(tokens) and opened and tokens[index].text in ("one", "other", "them"):
        index += 1
    head = index
    while head < len(tokens) and _describes(tokens, head, opened):
        head += 1
    if head < len(tokens) and tokens[head].kind in ("noun", "generic"):
        return _headed(phrase, tokens, index, head)
    return _headless(phrase, tokens, start, index)


def _determine(phrase: Phrase, tokens: list[Token], index: int) -> None:
    token = tokens[index]
    if token.kind == "number":
        phrase.number, phrase.number_span = token.value, token.span
        phrase.exact = phrase.exact or token.value > 1
        if token.value == 0:
            phrase.denied, phrase.denied_span = True, token.span
    elif token.text == "no":
        phrase.denied, phrase.denied_span = True, token.span
    elif token.text == "of":
        phrase.partial = phrase.number is not None
    elif token.text in ONLY:
        phrase.exact = True
        if token.text in ("only", "single") and phrase.number is None:
            phrase.number, phrase.number_span = 1, token.span
    if token.text in ("other", "another"):
        phrase.parts.insert(0, Part("unknown", None, token.span))  # than those spoken of
    phrase.every = phrase.every or token.text in ("all", "every", "each")
    if token.text == "both":
        phrase.number, phrase.number_span = 2, token.span
    phrase.definite = phrase.definite or token.text in ("the", "this", "these", "those", "both")


def _describes(tokens: list[Token], index: int, opened: bool) -> bool:
    token = tokens[index]
    if token.kind in ("color", "size") or token.text in ("shaped", "colored", "coloured"):
        return True
    if token.kind in ("word", "row", "column", "mid") or token.text == "different":
        return opened
    after = tokens[index + 1].kind if index + 1 < len(tokens) else ""
    before = tokens[index - 1].kind if index else ""
    return (token.kind in ("and", ",") or token.text == "or") and before in _ADJECTIVES and after in _ADJECTIVES


def _headed(phrase: Phrase, tokens: list[Token], first: int, head: int) -> tuple[int, Phrase]:
    noun = tokens[head]
    end = head + 1
    while end < len(tokens) and (
        tokens[end].text == "shaped" or (noun.kind == "noun" and tokens[end].kind == "generic")
    ):
        end += 1
    between = tokens[first:head]
    if noun.kind == "noun":
        phrase.parts.append(Part("object", noun.value, noun.span))
    phrase.parts += [Part(token.kind, token.value, token.span) for token in between if token.kind in ("color", "size")]
    places = [token for token in between if token.kind in ("row", "column", "mid")]
    if len(places) > 1:  # "the top left star" is there; "the left star" is only further left than another
        spot = _spot([(token.kind, token.value) for token in places])
        phrase.parts.append(Part("place", spot, (places[0].span[0], places[-1].span[1])))
    if any(token.text == "or" for token in between):
        phrase.parts = _alternatives(phrase.parts)
    phrase.plural = noun.plural or tokens[end - 1].plural
    if not phrase.plural and (phrase.number or 0) > 1:
        phrase.number = None  # "both the ring and the star"
    phrase.span = (phrase.span[0], tokens[end - 1].span[1])
    return end, phrase


def _alternatives(parts: list[Part]) -> list[Part]:
    """ "green or yellow shapes": one color of several."""
    colors = [part for part in parts if part.kind == "color"]
    if len(colors) < 2:
        return parts
    span = colors[0].span[0], colors[-1].span[1]
    return [part for part in parts if part.kind != "color"] + [Part("color", tuple(one.value for one in colors), span)]


def _headless(phrase: Phrase, tokens: list[Token], start: int, index: int) -> tuple[int, Phrase | None]:
    """ "one is red", "two of them are large", "the other is blue", "it is small"."""
    if tokens[start].kind == "pronoun":
        phrase.repeats, phrase.plural = True, tokens[start].text == "they"
        return start + 1, phrase
    follows = index < len(tokens) and tokens[index].kind in ("be",)
    said = phrase.number or phrase.every or tokens[index - 1].text in ("other", "them", "one")
    if index > start and follows and said and tokens[start].text not in ("this", "that", "no"):
        phrase.partial = phrase.number is not None
        phrase.span = (phrase.span[0], tokens[index - 1].span[1])
        return index, phrase
    return start, None


_LINKS = ("of", "in", "on", "at", "to", ",", "the", "hand", "very", "far", "towards", "toward", "along")


def _place_from(tokens: list[Token], start: int) -> tuple[int, tuple[str | None, str | None] | None]:
    """A place that begins at `start`, over "of the", "in the image" and commas: "top left", "middle of the side"."""
    if tokens[start].kind not in ("row", "column", "mid") or not _is_place(tokens, start):
        return start, None
    words: list[tuple[str, str]] = []
    end = index = start
    while index < len(tokens):
        token = tokens[index]
        if token.kind in ("row", "column", "mid"):
            if any(kind == token.kind for kind, _ in words) and token.kind != "mid":
                break
            if token.kind == "mid" and index + 1 < len(tokens) and tokens[index + 1].text in ("row", "column"):
                words.append((tokens[index + 1].text, "middle" if tokens[index + 1].text == "row" else "center"))
            else:
                turn = _turned(tokens, index)
                words.append(
                    (turn or "mid", {"row": "middle", "column": "center"}[turn]) if turn else (token.kind, token.value)
                )
            end = index + 1
        elif token.kind == "area":
            end = index + 1
        elif token.kind not in ("frame", "mid") and token.text not in _LINKS:
            break
        index += 1
    return end, _spot(words)


def _turned(tokens: list[Token], index: int) -> str:
    before = tokens[index - 1].text if index else ""
    return {"vertically": "row", "horizontally": "column"}.get(before, "") if tokens[index].kind == "mid" else ""


def _is_place(tokens: list[Token], start: int) -> bool:
    """ "right" may also be correct, "left" what remains, "top" a garment."""
    before = tokens[start - 1].text if start else ""
    after = tokens[start + 1] if start + 1 < len(tokens) else None
    if tokens[start].text in ("centered", "centred") or before in ("horizontally", "vertically"):
        return True
    if after is not None and after.text in ("of", "from") and before == "slightly":
        return False
    near = after is not None and (after.kind in ("row", "column", "mid", "area") or after.text == "hand")
    return near or before in ("the", "far", "very", "at", "its") or len(tokens) == 1 or (start == 0 and near)


def _spot(words: list[tuple[str, str]]) -> tuple[str | None, str | None]:
    """Row and column of a place, None where it says nothing; a middle fills what is left, or both."""
    row = next((value for kind, value in words if kind == "row"), None)
    column = next((value for kind, value in words if kind == "column"), None)
    if any(kind == "mid" for kind, _ in words):
        if row is None and column is None:
            return "middle", "center"
        return row or "middle", column or "center"
    return row, column
