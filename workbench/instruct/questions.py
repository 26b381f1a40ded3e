"""A question and its answer: what a short answer says, and what a question takes for granted.

Knows: questions of yes and no, of what, where and how many, statements to be confirmed, options with letters.
Does not know: how sentences are read (`english.py`), or whether a claim is true (`claims.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from workbench.instruct.claims import Claim, claims_of, parts_of
from workbench.instruct.english import Reader, Reading
from workbench.instruct.phrases import Phrase

_OPTIONS = re.compile(r"\n\s*\(?A[.):] |\s*Choose from:|\n(?:Answer|Reply) ")
_OPTION = re.compile(r"^\s*\(?([A-H])[.):]\s+(.+?)\s*$", re.MULTILINE)
_YES = re.compile(r"\s*(yes|no|yeah|nope|correct)\b", re.IGNORECASE)
_THERE_IS = re.compile(
    r"(?:is|are|was|were) there(?: any)?|(?:can|could|do) (?:you|we) (?:see|spot|find|notice)(?: any)?"
    r"|(?:does|do) (?:the|this) \w+ (?:show|contain|have|include|feature)(?: any)?"
)
_DENIES = re.compile(r"\b(?:no|not|none|without|cannot)\b|n['’]t\b", re.IGNORECASE)
"""What a question takes for granted may be false where the answer says so."""
_IS = re.compile(r"(?:is|are|was|were|does|do)\b")
_WHAT = re.compile(
    r"(?:what|which)(?: (?:kind|type) of)?(?: (?:colou?r|shape|size|object|thing|item)s?)?(?: is| are| do you see)?\b"
    r"(?: the (?:colou?r|shape|size|position|location) of\b)?"
    r"|where(?: in the \w+)?(?: is| are)?\b|how (?:big|large|small)(?: is| are)?\b|how many(?: of the)?\b"
)
_THAT = re.compile(r"\s*it (?:true|correct|right) that ", re.IGNORECASE)
_COUNTS = re.compile(r"\b(?:how many|count|number of)\b")
_PLACED = re.compile(
    r"(?:directly |just |located |placed |lies |sits )*"
    r"(?:at|in|on|to|above|below|beneath|under\w*|left|right|next|near|over|further|farther)\b"
)
_NOT_SHOWN = re.compile(r"\b(?:remain|remains|without|removed?|are left|is left|if)\b|\bsame\b|\bdifferent\b")


@dataclass
class _Asked:
    """A question: what it is about, and what a plain yes means."""

    about: list[Phrase] = field(default_factory=list)
    taken: list[Claim] = field(default_factory=list)
    """What it takes for granted."""
    yes: list[Claim] = field(default_factory=list)
    number: bool = False
    which: bool = False


def extract(question: str, answer: str, reader: Reader) -> list[Claim]:
    """What an answer claims, a short one read with its question, and what the question takes for granted.

    `reader` knows the words that name things, as `Ground.reader` does. Spans are characters of `answer`, or of
    `question` for claims that are `of` it. A letter that picks an option claims what the option says.
    """
    asked = _ask(reader, question)
    chosen = {letter: text for letter, text in _OPTION.findall(question)}.get(answer.strip().rstrip(".)").lstrip("("))
    text = re.sub(r"\[[\d\s.,]*\]", lambda match: " " * len(match[0]), chosen or answer)
    said_yes = _YES.match(text)
    claims = [] if _DENIES.search(text) else [claim for claim in asked.taken if claim.kind != "count"]
    if said_yes:
        claims += _yes_or_no(asked.yes, said_yes)
        text = " " * said_yes.end() + text[said_yes.end() :]
    reading = reader.read(text, asked.about)
    for phrase in reading.first if asked.number else ():
        phrase.exact = phrase.exact or phrase.number is not None
    if asked.which:
        for phrase in reading.first:
            kinds = {part.kind for part in phrase.parts}
            if not phrase.repeats and not phrase.denied:
                phrase.parts[:0] = [part for part in asked.about[0].parts if part.kind not in kinds]
    made = claims_of(reading, text) + _loose(reading, asked, text)
    if chosen:
        made = [replace(claim, span=(0, len(answer)), text=chosen) for claim in made]
    return claims + made


def _ask(reader: Reader, question: str) -> _Asked:
    text = _OPTIONS.split(question)[0].strip()
    lower, nothing = text.lower(), _Asked()
    if _NOT_SHOWN.search(lower):
        return nothing
    exists, what, verb = _THERE_IS.match(lower), _WHAT.match(lower), _IS.match(lower)
    lead = question.index(text)
    if exists:
        first = reader.read(_blank(question, lead + exists.end())).phrases[:1]
        return _Asked(first, yes=claims_of(Reading(first), question))
    if what:
        return _ask_what(reader, question, lead + what.end(), what[0])
    if verb:
        return _ask_whether(reader, question, lead + verb.end())
    named = reader.read(text).phrases
    return _Asked(named, number=_COUNTS.search(lower) is not None) if len(named) == 1 else nothing


def _blank(text: str, end: int) -> str:
    return " " * end + text[end:]


def _taken(phrases: list[Phrase], question: str, cut: int = 0, added: int = 0) -> list[Claim]:
    """What naming these phrases takes for granted; `added` characters at `cut` are not in the question itself."""
    made = []
    for claim in claims_of(Reading(phrases), question):
        start, end = (at - added if at >= cut else at for at in claim.span)
        made.append(replace(claim, span=(start, end), text=question[start:end], of="question"))
    return made


def _ask_what(reader: Reader, question: str, end: int, words: str) -> _Asked:
    stem, lead = _OPTIONS.split(question)[0], ""
    rest = stem[end:].strip()
    reading = reader.read(stem[end:])
    if _PLACED.match(rest.lower()) or not reading.phrases:
        lead = "object is"
        reading = reader.read(lead + stem[end:])
    if not reading.phrases:
        return _Asked()
    about = reading.phrases[0]
    if " or " not in rest:
        about.parts += [said.part for said in reading.said if said.about == (about,)]
    counting = _COUNTS.search(stem.lower()) is not None
    taken = [one for one in reading.phrases if (one.definite or one is not about) and not (counting and one is about)]
    which = about.bare and words.startswith(("what", "which")) and not re.search("colou?r|size", words)
    return _Asked([about], _taken(taken, question, 0, len(lead) - end), number=counting, which=which)


def _ask_whether(reader: Reader, question: str, end: int) -> _Asked:
    """ "Is the red star left of the ring?": the last thing said is what is asked, the rest is taken for granted."""
    stem = _blank(_OPTIONS.split(question)[0], end)
    whole = _THAT.match(stem)
    cut = len(stem) if whole else reader.first_end(stem)
    reading = reader.read(_blank(stem, whole.end()) if whole else f"{stem[:cut]} is{stem[cut:]}")
    if not reading.phrases:
        return _Asked()
    about = reading.phrases[0]
    said = [one for one in reading.said if one.about == (about,)]
    others = [phrase for phrase in reading.phrases[1:] if phrase.definite]
    if " or " in stem or not said:
        exists = not said and re.search(r"\b(?:visible|present|in the \w+)\W*$", stem.lower())
        return (
            _Asked([about], [], claims_of(Reading([about]), question))
            if exists
            else _Asked([about], _taken([about, *others], question, cut, 3))
        )
    about.parts += [one.part for one in said[:-1]]
    return _Asked([about], _taken([about, *others], question, cut, 3), claims_of(Reading([], said[-1:]), question))


def _yes_or_no(yes: list[Claim], word: re.Match[str]) -> list[Claim]:
    """What a yes says, or a no: the last thing asked does not hold of what is known of it."""
    text, span = word[1], word.span(1)
    if text.lower() in ("yes", "yeah", "correct"):
        return [replace(claim, text=text, span=span) for claim in yes]
    whole = [claim for claim in yes if claim.part is not None]
    if not whole or any(claim.number for claim in yes):
        return []
    last = whole[-1]
    if len(yes) == 1 and last.kind != "object":
        return [replace(last, denied=True, text=text, span=span)]
    there = tuple((*about, last.part) for about in last.about if last.part is not None)
    return [Claim("object", text, span, there, denied=True)]


def _loose(reading: Reading, asked: _Asked, text: str) -> list[Claim]:
    """A short answer: "red", "top left", "3"."""
    made = []
    for part in reading.loose if asked.about else ():
        words, about = text[slice(*part.span)], (parts_of(asked.about[0]),)
        if part.kind == "number":
            if asked.number:
                made.append(Claim("count", words, part.span, about, number=part.value))
        else:
            made.append(Claim(part.kind, words, part.span, about, part))
    return made
