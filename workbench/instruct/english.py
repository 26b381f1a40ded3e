"""What English sentences about things in a picture say, and of which of them they say it.

Knows: what a color, a place, a number or a relation is said of, what is denied, what a pronoun stands for. A shallow
reader: what it does not understand it leaves out.
Does not know: what is in the picture, or whether what is said is true (`claims.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.instruct.phrases import ONLY, Item, Part, Phrase, items_of
from workbench.instruct.words import BREAKS, Lexicon, Span, Token


@dataclass(frozen=True)
class Said:
    """A part said of one of several phrases (which one is not clear where there is more than one)."""

    about: tuple[Phrase, ...]
    part: Part
    denied: bool = False
    each: bool = True
    """Said of all that the phrase counts; else of one at least."""


@dataclass
class Reading:
    phrases: list[Phrase] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    loose: list[Part] = field(default_factory=list)
    """Colors, sizes, places, numbers said of nothing that was named."""
    first: list[Phrase] = field(default_factory=list)
    """What the first clause is about."""


class Reader:
    """Reads with the nouns it was given, as `Lexicon` takes them."""

    def __init__(self, nouns: Mapping[str, Any], *, compounds: bool = True) -> None:
        self._lexicon = Lexicon(nouns, compounds=compounds)

    def read(self, text: str, about: Sequence[Phrase] = ()) -> Reading:
        """What `text` says. `about`: what its first pronoun stands for."""
        reading = Reading()
        before = list(about)
        for clause in self._clauses(text):
            around = zip([None, *clause[:-1]], clause, [*clause[1:], None], strict=True)
            guess = any(_hedges(*tokens) for tokens in around)
            into = Reading() if guess else reading  # a guess says nothing, but what comes next may be about the same
            known = len(into.phrases)
            walk = _Clause(into, before)
            walk.run(items_of(clause))
            if not reading.first and not guess:
                reading.first = walk.subjects
            before = [phrase for phrase in into.phrases[known:] if not phrase.repeats] or walk.subjects or before
        return reading

    def first_end(self, text: str) -> int:
        """Where the first noun phrase of `text` ends, with a second that is joined to it by "and"."""
        items = [item for clause in self._clauses(text) for item in items_of(clause)]
        ends = [index for index, item in enumerate(items) if item.kind == "phrase"]
        if not ends:
            return 0
        first = ends[0]
        joined = first + 2 in ends and items[first + 1].kind == "and"
        return items[first + 2 if joined else first].span[1]

    def _clauses(self, text: str) -> Iterator[list[Token]]:
        clause: list[Token] = []
        for token in self._lexicon.tokens(text):
            if token.text == ":" and _names_an_aspect(clause):
                clause.append(Token(":", token.span, "be"))
            elif token.text == ":" and _says_where(clause):
                continue
            elif token.text in ".;:!?\n—–" or token.text in BREAKS:
                if clause:
                    yield clause
                clause = []
            else:
                clause.append(token)
        if clause:
            yield clause


def _hedges(before: Token | None, token: Token, after: Token | None) -> bool:
    """ "might be", but not "I would say", "if you look" or "that would be"."""
    if token.text == "would" and after is not None and after.text == "be":
        return before is None or before.text not in ("that", "it", "this")
    return token.kind == "hedge" and (after is None or after.text not in _PLAIN)


def _says_where(clause: Sequence[Token]) -> bool:
    """ "Top left: a star", "Look right of the ring: a star"."""
    first = [token for token in clause if token.text not in ("look", "at", "in", "to", "the")][:1]
    return any(token.kind in ("row", "column", "mid", "relation") for token in first)


def _names_an_aspect(clause: Sequence[Token]) -> bool:
    """ "Color of the ring: red" says what it is."""
    words = [token.text for token in clause]
    return any(word in (*_ASPECTS, *_SPOTS) for word in words[:2]) and any(token.kind == "noun" for token in clause)


_PAINTED = ("in", "with", "painted", "filled", "rendered", "drawn", "shaded")
_ASPECTS = tuple(
    (
        "color colour hue shade tone tint coloring colouring wash"
        " size scale dimensions proportions stature footprint answer"
    ).split()
)
_SPOTS = ("location", "position", "place", "spot")
_WHOLE = ("surface", "body", "face", "fill", "interior")
"""What has the color of the thing itself."""
_PLAIN = tuple("say call describe hesitate you we notice see find spot observe recognize look that".split())
"""After "would" or "if" these do not make a guess of it."""
_SEEN_AS = ("describe", "described", "call", "see", "label", "characterize", "classify")
_THERE = ("visible", "present", "shown", "seen", "found", "here", "there", "pictured", "depicted")


_DRAWN = ("displayed", "drawn", "presented", "rendered")


class _Clause:
    """One pass over the items of a clause, remembering what it is about."""

    def __init__(self, reading: Reading, before: list[Phrase]) -> None:
        self.reading, self.before = reading, before
        self.subjects: list[Phrase] = []
        self.owner: list[Phrase] = []
        self.last: Phrase | None = None
        self.be = self.denies = self.joined = self.after_object = self.lost = False
        self.denied_span: Span = (0, 0)
        self.waiting: list[Part] = []
        self.relations: list[tuple[str, Span, list[Phrase], bool]] = []
        self.front: list[tuple[str, Span, Phrase | None]] = []

    def run(self, items: list[Item]) -> None:
        vague = any(item.kind == "vague" for item in items)
        for index, item in enumerate(items):
            self.items, self.index = items, index
            if item.kind == "phrase":
                self._phrase(item.value, vague)
            elif item.kind == "place":
                self._place(Part("place", item.value, item.span), vague)
            elif item.kind in ("color", "size") and not vague:
                self._bare(Part(item.kind, item.value, item.span))
            elif item.kind == "relation":
                self._relation(item)
            elif item.kind == "be":
                self._be()
            elif item.kind == "det":
                self._unknown_noun()
            elif item.kind == "not":
                self.denies, self.denied_span = True, item.span
            elif item.kind == "number" and (self.last is None or self.last.repeats):
                self.reading.loose.append(Part("number", item.value, item.span))
            elif item.kind == ",":
                self.denies = False
            elif item.kind == "frame":  # "compared with the canvas" relates to nothing that is annotated
                self.front, self.relations = [entry for entry in self.front if entry[2] is not None], []
            if self.denies and self.be and self.subjects and (item.text in _THERE or item.kind == "frame"):
                for phrase in self.subjects:
                    phrase.denied, phrase.denied_span = True, self.denied_span
        if self.last is None and not self.lost:
            self.reading.loose += self.waiting
        if not self.subjects and not self.denies:  # "Above the ring." says where something is that was spoken of
            self.reading.loose += [Part("relation", (value, other), span) for value, span, other in self.front if other]

    def _unknown_noun(self) -> None:
        """ "and its outline is black": what follows is said of something that has no annotation."""
        before, after = self._around(-1), self._around(1)
        if after is not None and after.text in (*_ASPECTS, *_WHOLE, *_SPOTS):
            return
        if before is not None and before.text in ("has", "have"):
            following = [item.text for item in self.items[self.index + 1 : self.index + 5]]
            if not any(text in (*_ASPECTS, *_SPOTS) for text in following):
                self.owner = self.subjects
                self.subjects, self.last, self.be, self.lost = [], None, False, True
        first = before is None and after is not None and after.kind in ("frame", "word")
        if first or (before is not None and before.kind in ("and", ",")):
            self.subjects, self.last, self.be, self.lost = [], None, False, True

    def _bare(self, part: Part) -> None:
        """A color or size without a noun: "is red", "has a red hue", "painted red", "in red", "call it red"."""
        before, after = self._around(-1), self._around(1)
        owned = before is not None and before.text in ("its", "whose")
        known = (*_ASPECTS, *_WHOLE) if owned else _ASPECTS
        aspect = (after is not None and after.text in known) or self._of_an_aspect()
        of_pronoun = before is not None and before.kind == "phrase" and before.value.repeats
        seen_as = (
            before is not None
            and before.text == "as"
            and any(item.text in _SEEN_AS for item in self.items[: self.index])
        )
        if (self.be or aspect or of_pronoun or seen_as) and self.subjects:
            self.be = True
            self._predicate(part)
        elif (aspect or self.be) and self.last is None and self._comes("phrase"):  # "With its red tone, the star"
            self.waiting.append(part)
        elif aspect and owned and self.last is not None:
            self.reading.said.append(Said((self.last,), part, self.denies))
        elif aspect and owned and len(self.before) == 1:
            self.reading.said.append(Said((self.before[0],), part, self.denies))
        elif self.last is not None and self._apposed(part):
            self.reading.said.append(Said((self.last,), part))
        elif self.last is None:
            if self.lost:
                return
            opens = before is None and after is not None and after.kind == "be"  # "Red is the color of the star"
            if opens or (before is not None and before.text == "how"):  # "how red the star is"
                self.waiting.append(part)
                return
            opens = before is not None and before.text in _PAINTED and after is not None and after.kind == ","
            (self.waiting if opens else self.reading.loose).append(part)
        elif part.kind == "color" and before is not None and before.text in _PAINTED:
            self.reading.said.append(Said((self.last,), part, self.denies))

    def _of_an_aspect(self) -> bool:
        """ "a rich shade of purple"."""
        of, aspect = self._around(-1), self._around(-2)
        return of is not None and of.text == "of" and aspect is not None and aspect.text in _ASPECTS

    def _apposed(self, part: Part) -> bool:
        """ "Red square, large in size." and "A star, small": nothing follows that it could belong to."""
        before, phrase, after = self._around(-1), self._around(-2), self._around(1)
        ends = after is None or after.kind == "," or after.text in ("in", "all")
        return before is not None and before.kind == "," and phrase is not None and phrase.kind == "phrase" and ends

    def _around(self, step: int) -> Item | None:
        index = self.index + step
        return self.items[index] if 0 <= index < len(self.items) else None

    def _be(self) -> None:
        before = self._around(-1)
        if before is not None and (before.kind == "which" or before.text == "that") and self.last is not None:
            self.subjects = [self.last]
        elif before is not None and before.kind == "and" and self.owner and not self.subjects:  # "has a rim and is red"
            self.subjects, self.last, self.lost = self.owner, self.owner[-1], False
        self.be = True

    def _phrase(self, phrase: Phrase, vague: bool) -> None:
        before = self._around(-1)
        joined = before is not None and not self.relations and (self._anded(before) or self._in_list(before))
        phrase.denied = phrase.denied or (self.denies and not phrase.definite and not (self.be and self.subjects))
        if phrase.denied and phrase.denied_span == (0, 0):
            phrase.denied_span = self.denied_span
        if before is not None and before.text in ("or", "nor") and self.last is not None and self.last.denied:
            phrase.denied, phrase.denied_span = True, self.last.denied_span
        only = before is not None and before.text in ONLY
        alone = self.index == 0 and phrase.bare and self._nothing_more()
        called = before is not None and before.kind == "be"
        new = (self.last is None and self.index > 0) or (self.last is not None and self.last.repeats and not called)
        if phrase.number == 1 and not phrase.partial and (only or alone or new):
            phrase.exact = True  # "there is one star", "one shape on a plain ground", not "one star is red"
        if phrase.denied and not self._whole_image():
            phrase.parts.append(Part("unknown", None, phrase.span))
        named = self._resolve(phrase)
        self.reading.phrases.append(phrase)
        if self.relations:
            self._close_relations(phrase, named)
            return
        waiting = [entry for entry in self.front if entry[2] is None]
        if waiting and not self.subjects:  # "Below the ring" has no subject yet: it follows
            self.front = [(value, span, other or phrase) for value, span, other in self.front]
            self.last = phrase
            return
        names = before is not None and (before.kind == "be" or (before.text.endswith("ly") and not only))
        if self.be and self.subjects and names and not self.denies:
            self._identify(phrase)
        phrase.parts += [
            Part("relation", (value, other), span) for value, span, other in self.front if other is not phrase
        ]
        self.front = []
        if phrase.repeats:  # its parts were said elsewhere: these are said of it here
            self.reading.said += [Said((phrase,), part) for part in self.waiting]
        else:
            phrase.parts += self.waiting
        self.waiting = []
        self.subjects = [*self.subjects, *named] if joined and self.joined and not self.be else named
        self.joined, self.be, self.after_object, self.last = True, False, False, named[-1]

    def _nothing_more(self) -> bool:
        """Whether all that is said of a phrase is that it is there: "one shape is shown on a plain ground"."""
        rest = self.items[self.index + 1 :]
        told = any(item.kind in ("phrase", "color", "size", "place", "relation", "and") for item in rest)
        first = next((number for number, item in enumerate(rest) if item.kind == "be"), None)
        shown = first is None or any(item.text in (*_THERE, *_DRAWN) for item in rest[first : first + 2])
        return not told and shown

    def _anded(self, before: Item) -> bool:
        """ "A and B are large", not "A has an edge, and B is large"."""
        known = [item for item in self.items[: self.index - 1] if item.kind != ","]
        return before.kind == "and" and bool(known) and (known[-1].kind == "phrase" or known[-1].value is not None)

    def _in_list(self, before: Item) -> bool:
        """ "A, B and C are large", not "Next to A, B is large"."""
        after = self._around(1)
        return before.kind == "," and after is not None and after.kind in ("and", ",")

    def _whole_image(self) -> bool:
        """Whether something is denied of the whole image, not only of a thing in it, of an action or of a place."""
        before, after = self.items[: self.index], self.items[self.index + 1 :]
        opens = not before or any(item.kind == "frame" or item.text in ("there", "i", "we", "you") for item in before)
        return opens and not any(item.kind == "word" for item in after)

    def _resolve(self, phrase: Phrase) -> list[Phrase]:
        """A pronoun repeats what it stands for; where that is not clear, nothing is known of it."""
        if not phrase.repeats:
            return [phrase]
        near = [self.last] if self.last is not None else self.before
        busy = [one for _, _, about, _ in self.relations for one in about]
        known = [one for one in self.reading.phrases if one not in busy][-1:] or self.before if busy else near
        if phrase.plural:
            return list(known) or [phrase]
        if len(known) == 1:
            phrase.parts = [part for part in known[0].parts]
            return [phrase]
        phrase.parts = [Part("unknown", None, phrase.span)]
        return [phrase]

    def _identify(self, phrase: Phrase) -> None:
        """ "The object at the top left is a star": what was said of the object is said of the star."""
        one = len(self.subjects) == 1 and not self.subjects[0].plural
        if one and (self.subjects[0].bare or (phrase.bare and not phrase.repeats)):
            first = self.subjects[0]
            inherited = [part for part in first.parts if part.kind not in {own.kind for own in phrase.parts}]
            said = [said.part for said in self.reading.said if said.about == (first,) and not said.denied]
            phrase.parts = [*inherited, *said, *phrase.parts]

    def _place(self, part: Part, vague: bool) -> None:
        following = self._around(1)
        if vague or (following is not None and following.kind == "vague"):
            return
        target = self.subjects if self.be and self.subjects else [self.last] if self.last is not None else []
        placed = [own for phrase in target for own in self._places(phrase)]
        if not target or any(_conflict(own.value, part.value) for own in placed):
            if self._comes("phrase"):
                self.waiting.append(part)
            elif target and target[0].plural:
                self.reading.said.append(Said(tuple(target[:1]), part, self.denies, each=False))
            elif not target:
                self.waiting.append(part)
            return
        if self.be:
            self._predicate(part, each=not self._several_places())
        elif self.after_object and self.subjects and self.last is not None:
            self.reading.said.append(Said((self.last, *self.subjects), part))
        elif self._several_places():
            self.reading.said.append(Said((target[0],), part, each=False))
        else:
            target[0].parts.append(part)

    def _places(self, phrase: Phrase) -> list[Part]:
        said = [said.part for said in self.reading.said if phrase in said.about and said.part.kind == "place"]
        return [part for part in phrase.parts if part.kind == "place"] + said

    def _several_places(self) -> bool:
        return any(item.kind == "place" for item in self.items[self.index + 1 : self.index + 4]) and not self._comes(
            "phrase"
        )

    def _comes_before_comma(self, kind: str) -> bool:
        rest = [item.kind for item in self.items[self.index + 1 :]]
        return kind in (rest[: rest.index(",")] if "," in rest else rest)

    def _comes(self, kind: str) -> bool:
        return any(item.kind == kind for item in self.items[self.index + 1 :])

    def _predicate(self, part: Part, *, each: bool = True) -> None:
        if self.subjects and self.subjects[0].denied:
            self.subjects[0].parts.append(part)
        elif self.be and self.subjects:
            _count_with(self.subjects)
            self.reading.said += [Said((phrase,), part, self.denies, each) for phrase in self.subjects]

    def _relation(self, item: Item) -> None:
        value, _, it = item.value.partition(":")
        empty = not self.subjects and self.last is None
        if value == "near" and (empty or not self._comes_before_comma("phrase")):  # "with its red tone, the star ..."
            return
        about = self.subjects if self.be and self.subjects else [self.last] if self.last is not None else []
        if not it:
            if about:
                self.relations.append((value, item.span, about, self.be))
            else:
                self.front.append((value, item.span, None))
            return
        others = [phrase for phrase in self.reading.phrases if phrase not in about] or self.before
        if not about or self._comes("phrase") and self.be:
            self.front.append((value, item.span, next(iter(self.subjects or self.before), None)))
        elif others:
            self.reading.said += [Said((phrase,), Part("relation", (value, others[-1]), item.span)) for phrase in about]

    def _close_relations(self, phrase: Phrase, named: list[Phrase]) -> None:
        for value, span, about, predicate in self.relations:
            part = Part("relation", (value, named[-1]), span)
            denied = predicate and self.denies
            if about[0].denied:
                about[0].parts.append(part)
                continue
            if predicate:
                _count_with(about)
            self.reading.said += [Said((one,), part, denied) for one in about]
        self.relations = []
        self.last, self.be, self.after_object = phrase, False, True


def _count_with(subjects: Sequence[Phrase]) -> None:
    """ "Two objects are in the top row" counts those in the top row, not all."""
    for phrase in subjects:
        phrase.partial = phrase.partial or (phrase.number is not None and not phrase.definite)


def _conflict(one: tuple[str | None, str | None], other: tuple[str | None, str | None]) -> bool:
    return any(a is not None and b is not None for a, b in zip(one, other, strict=True))
