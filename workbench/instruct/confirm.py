"""Statements that ask for a yes, and what counts as one.

Knows: "So the star is red, correct?", "Would you say that it is small?", "Exactly", "Not quite".
Does not know: what the statement says (`questions.py`).
"""

from __future__ import annotations

import re

_END = r"(?=\s*(?:[.,;!?]|$|indeed\b|too\b|with you\b))"
"""What ends "it is" as an answer; "it is red" says more."""
_YES_WORDS = (
    r"yes|yeah|yep|yup|indeed|exactly|precisely|absolutely|certainly|definitely|affirmative|of course|sure"
    r"|i agree|agreed|spot on|i['’]d say (?:so|the same)|honestly,? yes|that['’]s (?:precisely|exactly|just) "
    r"|(?:that|you)(?:['’]re| are|['’]s| is)? (?:correct|right|true|accurate)"
    rf"|(?:correct|right|true){_END}|(?:it|they|there|that|you|i) (?:is|are|does|do|did|am|has|have|can|could){_END}"
)
_NO_WORDS = (
    r"no|nope|incorrect|false|i disagree|(?:certainly|definitely|absolutely|of course|exactly) not"
    r"|not (?:quite|exactly|really)|(?:it|they|there) (?:is|are|does|do)"
    rf"(?: not|n['’]t){_END}"
)
_POLITE = r"(?! (?:problem|worries|doubt)\b)"
YES = re.compile(rf"\s*(?:(?P<yes>{_YES_WORDS})\b(?! not\b)|(?P<no>{_NO_WORDS})\b){_POLITE}", re.IGNORECASE)
PLAIN = re.compile(rf"\s*(?:(?P<yes>yes|yeah|correct)|(?P<no>no|nope))\b{_POLITE}", re.IGNORECASE)
LEAD = re.compile(
    r"\s*(?:(?:now|so|and|then|ok|okay|well|great|thanks|hi|hey|hello|please|also|alright|hmm|hang on|sorry|be honest"
    r"|honestly|before we go on)\b[,!.]?\s*)+",
    re.IGNORECASE,
)
_ASKS = (
    r"just (?:checking|to be sure|to confirm|making sure)|let me check|to confirm|is (?:it|that) (?:true|correct|right)"
    r"|am i (?:right|correct)(?: (?:that|in (?:saying|thinking)))?|true or false|could it be|my guess is"
    r"|did (?:i|you) (?:say|mean|understand)(?: correctly| right)?|you (?:said|say|mentioned)"
    r"|i['’]d (?:say|have said|guess)|(?:would|do|could) you (?:say|agree|think|confirm)"
    r"|(?:would|is) it (?:be )?(?:accurate|right|correct|fair|true) to say"
    r"|(?:can|could) you (?:please )?(?:tell|confirm|see|say|verify|check)(?: me| for me)?(?= (?:whether|if|that)\b)"
    r"|do you know(?= (?:whether|if)\b)|(?:my|a) \w+ (?:says|said|thinks|claims|believes)"
    r"|i (?:think|believe|see|counted|count|was told|heard|guess|noticed)"
)
_SURE = r"(?:right|correct|true|accurate|so)"
_TAGS = (
    r"(?:is|are|does|do|did|was)(?:n['’]t| not)? (?:it|they|there|he|she|you)(?: not)?"
    rf"|(?:is|are) (?:that|this|i|we) {_SURE}|(?:is|are)n['’]t (?:that|it) {_SURE}|right|correct|yes|true|true or false"
    r"|(?:do|would) you agree|am i (?:right|correct|close)|is that your final answer|can you confirm(?: that| this)?"
)
_TOLD = re.compile(
    rf"\s*(?:(?:{_ASKS})\b[,:]?(?: (?:that|whether|if)\b)?)?(?P<said>.+?)(?P<tag>\s*[,.;]\s*(?:{_TAGS}))?\s*[?.]?\s*$",
    re.IGNORECASE | re.DOTALL,
)
"""A statement to be confirmed: "So the star is red, correct?", "Would you say it is small?"."""
TAG = re.compile(rf"\s*(?:{_TAGS})\s*\?\s*", re.IGNORECASE)
_STATES = re.compile(r"\s*(?:the|there|it|this|that|these|those|an?)\b.*\?\s*$", re.IGNORECASE | re.DOTALL)


def told_in(stem: str) -> tuple[int, int] | None:
    """From where to where a statement stands that is to be confirmed."""
    match = _TOLD.match(stem)
    if match is None:
        return None
    plain = match.start("said") == len(stem) - len(stem.lstrip()) and match["tag"] is None
    if plain and not _STATES.match(stem):
        return None
    return match.span("said")
