"""A question and its answer: what a short answer says, and what a question takes for granted.

Knows: questions of yes and no, of what, where and how many, statements to be confirmed, options with letters.
Does not know: how sentences are read (`english.py`), or whether a claim is true (`claims.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from workbench.instruct.claims import Claim, claims_of, parts_of, plain
from workbench.instruct.confirm import LEAD, PLAIN, TAG, YES, told_in
from workbench.instruct.english import Reader, Reading
from workbench.instruct.phrases import Part, Phrase

_OPTIONS = re.compile(r"\n\s*\(?A[.):] |\s*Choose from:|\n(?:Answer|Reply) ")
_OPTION = re.compile(r"^\s*\(?([A-H])[.):]\s+(.+?)\s*$", re.MULTILINE)
_MODAL = re.compile(r"\b(?:should|would|could|can|might|may|do|does|did|if)\b", re.IGNORECASE)
_THERE_IS = re.compile(
    r"(?:is|are|was|were) there(?: any)?|any\b|(?:can|could|do) (?:you|we) (?:see|spot|find|notice)(?: any)?"
    r"|(?:does|do) (?:the|this) \w+ (?:show|contain|have|include|feature)(?: any)?"
)
_DENIES = re.compile(r"\b(?:no|not|none|without|cannot)\b|n['’]t\b", re.IGNORECASE)
"""What a question takes for granted may be false where the answer says so."""
_IS = re.compile(
    r"(?:(?:is|are|was|were|does|do|did|has|have)(?:n['’]t)?"
    r"|(?:can|could|would|will)(?! (?:you|i|we|someone|it be)\b))\b"
)
_WHAT = re.compile(
    r"(?:what|which)(?: (?:kind|type) of)?(?: (?:colou?r|shape|size|object|thing|item)s?)?(?: is| are| do you see)?\b"
    r"(?: the (?:colou?r|shape|size|position|location) of\b)?"
    r"|where(?: in the \w+)?(?: is| are)?\b|how (?:big|large|small)(?: is| are)?\b|how many(?: of the)?\b"
    r"|how (?:is|are)\b|what about\b|name (?:an?|the|one) (?:object|shape|thing|item|figure)\b"
)
_COUNTS = re.compile(r"\b(?:how many|count|number|total|quantity|tally)\b")
_COUNTED = re.compile(r"\b(?:there(?:'s|’s| are| is)|count|see|total of|make out|go with)\W*$")
_LABEL = re.compile(
    r"\s*(?:the )?(?P<what>[^:.,;\n]*\b(?:count|number|total|quantity|tally|shapes|objects|things|items|figures)\b"
    r"[^:.,;\n]*?)(?:\s*:|\s(?:is|comes to|equals|amounts to|stands at)\b)"
    r"(?=\s*(?:exactly |just |only )?(?:\w+|\d+)\s*(?:[.,;]|$))",
    re.IGNORECASE,
)
"""What it is that a number is given of, in an answer: "Object count: 3", "The number of shapes is 3."."""
_NO_CLAIM = re.compile(r"\[[\d\s.,]*\]|\bat (?:its|the|his|her) heart\b", re.IGNORECASE)
"""Boxes, and what only sounds like a thing."""
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
    many: bool = False
    """Whether there are such things, so that a number may follow."""
    which: bool = False
    others: list[Phrase] = field(default_factory=list)
    """What else the question names, which "it" may mean where something is said of `about`."""


def extract(question: str, answer: str, reader: Reader) -> list[Claim]:
    """What an answer claims, a short one read with its question, and what the question takes for granted.

    `reader` knows the words that name things, as `Ground.reader` does. Spans are characters of `answer`, or of
    `question` for claims that are `of` it. A letter that picks an option claims what the option says.
    """
    asked = _ask(reader, question)
    chosen = {letter: text for letter, text in _OPTION.findall(question)}.get(answer.strip().rstrip(".)").lstrip("("))
    text = _NO_CLAIM.sub(lambda match: " " * len(match[0]), chosen or answer)
    if label := _LABEL.match(text):
        asked = _Asked(reader.read(label["what"]).phrases[:1] or [Phrase((0, 0))], asked.taken, number=True)
        text = _blank(text, label.end())
    said_yes = YES.match(text) if asked.yes else PLAIN.match(text)
    claims = [] if _DENIES.search(text) else [claim for claim in asked.taken if claim.kind != "count"]
    if said_yes:
        claims += _yes_or_no(asked.yes, said_yes)
        text = _blank(text, said_yes.end())
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
    asked = _ask_last(reader, question)
    if asked.yes or (asked.about and not (asked.about[0].repeats or asked.about[0].bare)):
        return asked
    told = _OPTIONS.split(question)[0]
    named = [one for one in reader.read(_unmodal(told)).phrases if one.definite and not one.bare]
    if len(named) == 1 and not asked.which and not _NOT_SHOWN.search(told.lower()):  # "I look at the star. What is it?"
        asked.about = named
    return asked


def _ask_last(reader: Reader, question: str) -> _Asked:
    stem = _stem(question)
    lead = len(stem) - len(stem.lstrip())
    lower, nothing = stem.strip().lower(), _Asked()
    if _NOT_SHOWN.search(re.sub(r"\bif (?:you|we|i|that)\b", "", lower)):
        return nothing
    exists, what, verb = _THERE_IS.match(lower), _WHAT.match(lower), _IS.match(lower)
    if exists:
        return _ask_exists(reader, stem, lead + exists.end())
    if what:
        return _ask_what(reader, stem, lead + what.end(), what[0])
    if told := told_in(stem):
        reading = reader.read(_unmodal(_blank(stem[: told[1]], told[0])))
        return _Asked(reading.first, [], claims_of(reading, stem))
    if verb:
        return _ask_whether(reader, stem, lead + verb.end())
    reading = reader.read(_unmodal(stem))
    where = [part for part in reading.loose if part.kind == "relation"]
    if where:  # "If I look below the star, what is there?"
        return _Asked([Phrase((0, 0), where[:1])], which=True)
    named, counts = reading.phrases, _COUNTS.search(lower) is not None
    named = [one for one in named if not one.bare] or named  # not "anything about the ring"
    if counts and not named:
        return _Asked([Phrase((0, 0))], number=True)
    return _Asked(named[:1], number=counts, others=named[1:]) if len(named) == 1 or counts else nothing


def _stem(question: str) -> str:
    """The question itself, everything before it blank: options are cut off, and so is what is said first."""
    text = _OPTIONS.split(question)[0]
    sentences = [match.span() for match in re.finditer(r"[^.!?]+[.!?]*", text) if match[0].strip(" .!?\n")]
    asked = [span for span in sentences if text[slice(*span)].rstrip().endswith("?")]
    if asked and not TAG.fullmatch(text[slice(*asked[-1])]):
        text = _blank(text, asked[-1][0])
    lead = LEAD.match(text)
    return _blank(text, lead.end()) if lead else text


def _unmodal(text: str) -> str:
    """ "What should I look for" asks about what is there: in a question these words do not hedge."""
    return _MODAL.sub(lambda match: " " * len(match[0]), text)


def _ask_exists(reader: Reader, stem: str, end: int) -> _Asked:
    reading = reader.read(_blank(stem, end))
    first = reading.phrases[:1]
    for one in first:
        one.parts += [said.part for said in reading.said if said.about == (one,) and not said.denied]
    which = bool(first) and first[0].bare and not first[0].plural and first[0].number is None
    return _Asked(first, yes=[] if which else claims_of(Reading(first), stem), which=which, many=True)


def _blank(text: str, end: int) -> str:
    return " " * end + text[end:]


def _taken(phrases: list[Phrase], question: str, cut: int = 0, added: int = 0) -> list[Claim]:
    """What naming these phrases takes for granted; `added` characters at `cut` are not in the question itself."""
    made = []
    for claim in claims_of(Reading(phrases), question):
        start, end = (at - added if at >= cut + max(added, 0) else at for at in claim.span)
        made.append(replace(claim, span=(start, end), text=question[start:end], of="question"))
    return made


def _ask_what(reader: Reader, question: str, end: int, words: str) -> _Asked:
    stem, lead = question[:end] + _unmodal(question[end:]), ""
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
    which = about.bare and words.startswith(("what", "which", "name")) and not re.search("colou?r|size", words)
    others = [one for one in reading.phrases if one is not about and one.definite]
    return _Asked([about], _taken(taken, question, 0, len(lead) - end), number=counting, which=which, others=others)


def _ask_whether(reader: Reader, question: str, end: int) -> _Asked:
    """ "Is the red star left of the ring?": the last thing said is what is asked, the rest is taken for granted."""
    stem = _blank(question, end)
    cut = reader.first_end(stem)
    reading = reader.read(f"{stem[:cut]} is{stem[cut:]}")
    if not reading.phrases:
        return _Asked()
    about = reading.phrases[0]
    said = [one for one in reading.said if one.about == (about,)]
    others = [phrase for phrase in reading.phrases[1:] if phrase.definite]
    if " or " in stem or not said:
        exists = not said and re.search(
            r"\b(?:visible|present|drawn|seen|depicted|shown|included|there|somewhere|found|altogether|in the \w+)\W*$",
            stem.lower(),
        )
        return (
            _Asked([about], [], claims_of(Reading([about]), question))
            if exists
            else _Asked([about], _taken([about, *others], question, cut, 3))
        )
    about.parts += [one.part for one in said[:-1]]
    return _Asked([about], _taken([about, *others], question, cut, 3), claims_of(Reading([], said[-1:]), question))


def _yes_or_no(yes: list[Claim], word: re.Match[str]) -> list[Claim]:
    """What a yes says, or a no: the last thing asked does not hold of what is known of it."""
    says = "yes" if word["yes"] else "no"
    text, span = word[says], word.span(says)
    if word["yes"]:
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
        if part.kind == "relation":
            value, other = part.value
            known = asked.others[0] if other.repeats and len(asked.others) == 1 else other
            made.append(Claim("relation", words, part.span, about, plain(Part("relation", (value, known), part.span))))
        elif part.kind == "number":
            if asked.number or (asked.many and _COUNTED.search(text[: part.span[0]].lower())):
                made.append(Claim("count", words, part.span, about, number=part.value))
        else:
            made.append(Claim(part.kind, words, part.span, about, part))
    return made
