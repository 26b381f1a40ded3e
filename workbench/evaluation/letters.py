"""Which option an answer names, by the rule of each benchmark's own scorer.

Knows: the exact letter (SEED-Bench), ScienceQA's three forms, VLMEvalKit's matching (MMBench), MMMU's.
Does not know: files and scores. Every function gives a letter, or None for an answer it cannot read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SCIENCE = re.compile(r"The answer is ([A-Z]).")
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_VERBOSE = re.compile(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**")
_REFUSALS = (
    "Sorry, I can't help with images of people yet.", "I can't process this file.",
    "I'm sorry, but without the image provided", "Cannot determine the answer", "Failed to obtain answer via API",
)  # fmt: skip


def exact(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter and nothing else but spaces.

    Source: LLaVA scripts/convert_seed_for_submission.py, which compares the whole text with the letter.
    """
    bare = answer.strip()
    return bare if bare in (options or "ABCD") and len(bare) == 1 else None


def initial(answer: str, options: Mapping[str, str]) -> str | None:
    """The first character, in either case.

    Source: lmms-eval tasks/seedbench/utils.py (`seed_process_result`).

    >>> initial("b) the cat", {}), initial("", {})
    ('B', None)
    """
    found = answer.strip()[:1].upper()
    return found if found and found in (options or "ABCD") else None


def dotted(answer: str, options: Mapping[str, str]) -> str | None:
    """A letter in either case, or a capital and a full stop at the start.

    Source: lmms-eval tasks/scienceqa/utils.py (`sqa_process_results`).

    >>> dotted("b", {}), dotted("B. the cat", {}), dotted("b. the cat", {})
    ('B', 'B', None)
    """
    bare = answer.strip()
    found = bare.upper() if len(bare) == 1 else bare[0] if bare[:1].isupper() and bare[1:2] == "." else ""
    return found if found and found in (options or "ABCDE") else None


def science(answer: str, options: Mapping[str, str]) -> str | None:
    """A letter; a letter followed by ". "; or one "The answer is X." in the text.

    Source: LLaVA llava/eval/eval_science_qa.py, which counts all else, and a letter beyond the choices, as wrong.

    >>> options = dict.fromkeys("ABC", "")
    >>> science("B. because", options), science("So. The answer is C.", options), science("E", options)
    ('B', 'C', None)
    """
    if answer in tuple("ABCDE"):
        found = answer
    elif answer[:1] in tuple("ABCDE") and answer[1:3] == ". ":
        found = answer[0]
    else:
        named = _SCIENCE.findall(answer)
        found = named[0] if len(named) == 1 else ""
    return found if found and found in (options or "ABCDE") else None


def matched(answer: str, options: Mapping[str, str]) -> str | None:
    """The only option letter that stands alone near the end of the answer, or the only option whose text is in it.

    Source: VLMEvalKit vlmeval/utils/matching_util.py (`can_infer`) with exact matching, that is without a judge.

    >>> matched("The answer is B, the cat", {"A": "dog", "B": "cat"}), matched("a cat", {"A": "dog", "B": "cat"})
    ('B', 'B')
    """
    if any(refusal in answer for refusal in _REFUSALS):
        return None
    words = answer.translate(_PUNCTUATION).split()
    named = [letter for letter in (options or "ABCD") if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and "Z" in words:
        return None  # what a judge says for "none of them"
    verbose = _VERBOSE.search(answer)
    if verbose and verbose.group(1).upper() in (options or "ABCD"):
        return verbose.group(1).upper()
    lower = answer.lower()
    if len(lower) > 2 * sum(map(len, options.values())):
        return None
    inside = [letter for letter, text in options.items() if text.lower() in lower]
    return inside[0] if len(inside) == 1 else None


def mmmu(answer: str, options: Mapping[str, str]) -> str | None:
    """`(X)`, else `X `, else `X.`, else an option's text in an answer of more than five words; of several the last.

    Source: MMMU eval/eval_utils.py (`parse_multi_choice_response`). Where that guesses at random, this gives None.

    >>> mmmu("(A) looks right, but it is (B)", {"A": "one", "B": "two"})
    'B'
    """
    bare = answer
    for mark in ",.!?;:'":
        bare = bare.strip(mark)
    bare = f" {bare} "
    choices = options or dict.fromkeys("ABCD", "")
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in choices if form.format(letter) in bare]
        if found:
            return max(found, key=lambda letter: (bare.rfind(place.format(letter)), -LETTERS.index(letter)))
    if len(bare.split()) > 5:
        lower = bare.lower()
        inside = [letter for letter, text in options.items() if text and text.lower() in lower]
        if inside:
            return max(inside, key=lambda letter: lower.rfind(options[letter].lower()))
    return None
