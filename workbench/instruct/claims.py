"""What an answer claims about a picture, and whether the annotations contradict it.

Knows: claims about objects, counts, colors, sizes, places and relations, with the characters that make them.
Does not know: how sentences are read (`english.py`), questions and their short answers (`questions.py`), what is
annotated (`facts.py`), or what is done about a contradiction (`checks.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.instruct.english import Reading
from workbench.instruct.facts import Ground, all_fit, fit
from workbench.instruct.phrases import Part, Phrase
from workbench.instruct.words import Span

KINDS = ("object", "count", "color", "size", "place", "relation")


@dataclass(frozen=True)
class Claim:
    """One thing an answer says: of what `about` names, `part` holds (or, `denied`, does not)."""

    kind: str
    """One of `KINDS`."""
    text: str
    """The words that say it."""
    span: Span
    """Their characters, from and to, in the answer (or the question)."""
    about: tuple[tuple[Part, ...], ...]
    """What is known of the things meant; where it is not clear which are meant, each possibility."""
    part: Part | None = None
    """None: that there are such things, `number` of them where it is given."""
    number: int | None = None
    exact: bool = True
    """Not more than `number` either."""
    denied: bool = False
    every: bool = False
    of: str = "answer"
    """question: what it takes for granted."""


def claims_of(reading: Reading, text: str) -> list[Claim]:
    """What sentences claim."""
    made: list[Claim] = []
    for phrase in reading.phrases:
        made += _of_phrase(phrase, text)
    for said in reading.said:
        if said.part.kind == "relation" and said.part.value[0] == "near":
            continue
        part = plain(said.part)
        about = tuple(parts_of(phrase) for phrase in said.about)
        first = said.about[0]
        counted = first.number if said.each and first.number and not said.denied else None
        exact = first.partial and first.exact
        made.append(
            Claim(part.kind, text[slice(*part.span)], part.span, about, part, counted, exact, said.denied, first.every)
        )
    return made


def _of_phrase(phrase: Phrase, text: str) -> list[Claim]:
    if phrase.repeats:
        return []
    parts = parts_of(phrase)
    if phrase.denied:
        span = min(phrase.denied_span[0], phrase.span[0]), phrase.span[1]
        return [Claim("object", text[slice(*span)], span, (parts,), denied=True)] if parts or not phrase.bare else []
    made = [
        Claim(part.kind, text[slice(*part.span)], part.span, (parts[:index],), part)
        for index, part in enumerate(parts)
        if part.kind != "unknown" and not (part.kind == "relation" and part.value[0] == "near")
    ]
    if phrase.number is not None and phrase.exact and not phrase.partial:
        span = phrase.number_span
        made.append(Claim("count", text[slice(*span)], span, (parts,), number=phrase.number))
    return made


def parts_of(phrase: Phrase) -> tuple[Part, ...]:
    """What is said in a phrase."""
    return tuple(plain(part) for part in phrase.parts)


def plain(part: Part) -> Part:
    """A relation with the parts of the other thing in place of its phrase."""
    if part.kind != "relation" or not isinstance(part.value[1], Phrase):
        return part
    value, other = part.value
    return Part("relation", (value, tuple(one for one in other.parts if one.kind != "relation")), part.span)


# --- what contradicts it --------------------------------------------------------------------------------------


def contradicted(claim: Claim, ground: Ground) -> bool | None:
    """Whether the annotations say otherwise: True or False; None where they do not decide it.

    Where it is not clear what a claim is about, all possibilities must be contradicted.
    """
    if not ground.facts:
        return None
    verdicts = [_against(claim, about, ground) for about in claim.about]
    return True if all(verdict is True for verdict in verdicts) else False if False in verdicts else None


def _against(claim: Claim, about: tuple[Part, ...], ground: Ground) -> bool | None:
    known = [(fact, all_fit(fact, about, ground)) for fact in ground.facts]
    candidates = [(fact, fits) for fact, fits in known if fits is not False]
    if claim.part is None:
        return _counted(claim, [fits for _, fits in candidates], any(fact.crowd for fact, _ in candidates))
    if not candidates:
        return None
    fits = [fit(fact, claim.part, ground) for fact, _ in candidates]
    if claim.denied:
        return True if all(one is True for one in fits) else False if all(one is False for one in fits) else None
    if claim.every:
        return True if False in fits else None if None in fits else False
    if claim.number is not None:
        both = [
            None if None in pair else True
            for (_, whole), one in zip(candidates, fits, strict=True)
            for pair in [(whole, one)]
            if one is not False
        ]
        return _counted(claim, both, any(fact.crowd for fact, _ in candidates))
    return True if all(one is False for one in fits) else False if True in fits else None


def _counted(claim: Claim, fits: Sequence[bool | None], crowd: bool) -> bool | None:
    """Surely at least the True ones, at most all of them."""
    sure, most = sum(one is True for one in fits), len(fits)
    if claim.denied or claim.number == 0:
        return True if sure else False if not most else None
    number = claim.number or 1
    if crowd and number > sure:
        return None
    if number > most or (claim.exact and claim.number is not None and number < sure):
        return True
    return False if number <= sure else None
