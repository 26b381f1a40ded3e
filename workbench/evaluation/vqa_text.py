"""Short free answers: VQA's normalisation and soft accuracy, and the exact match of GQA.

Knows: VQA's rules for punctuation, numbers, articles and contractions, TextVQA's additions to them.
Does not know: files; a question's ten human answers come as a list of texts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

_FORMS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_CONTRACTIONS = {
    form[:place] + form[place + 1 :]: form for form in _FORMS for place, mark in enumerate(form) if mark == "'"
} | {"somebody'd": "somebodyd"}
"""Each form with one of its apostrophes left out; the last entry is upside down in the official table too."""
_NUMBERS = {
    word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_NUMBERS["none"] = "0"
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,+\d")
_PERIOD = re.compile(r"\.(?!\d)")


@lru_cache(maxsize=200_000)
def vqa(text: str) -> str:
    """VQA's normalisation: lower case; punctuation goes; number words are digits; no articles; contractions in full.

    Source: GT-Vision-Lab/VQA vqaEval.py (`processPunctuation`, `processDigitArticle`). A mark next to a space, or any
    mark where digits are joined by a comma, is removed; any other becomes a space. Ours normalises always, where the
    official loop leaves a question alone if its ten answers are the same.

    >>> vqa("The Two-door car."), vqa("1,000"), vqa("dont know")
    ('2 door car', '1000', "don't know")
    """
    flat = text.replace("\n", " ").replace("\t", " ").strip()
    joined = _THOUSANDS.search(flat) is not None
    bare = flat
    for mark in _MARKS:
        beside = joined or f"{mark} " in flat or f" {mark}" in flat
        bare = bare.replace(mark, "" if beside else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", bare).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


@lru_cache(maxsize=200_000)
def textvqa(text: str) -> str:
    """`vqa` after commas and question marks went and `'s` became a word.

    Source: LLaVA llava/eval/m4c_evaluator.py (`EvalAIAnswerProcessor`), which LLaVA uses for TextVQA and VizWiz.

    >>> textvqa("Dave's, bar?")
    "dave 's bar"
    """
    return vqa(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def soft(answer: str, references: Sequence[str], normalise: Callable[[str], str] = vqa) -> float:
    """From 0 to 1: min(1, n/3) for the n other people who said the same, averaged over leaving each person out once.

    A single reference is right or wrong.

    >>> soft("red", ["red"] * 3 + ["blue"] * 7), soft("red", ["red"])
    (0.9, 1.0)
    """
    said, people = normalise(answer), Counter(map(normalise, references))
    same, total = people[said], len(references)
    if total == 1:
        return float(same)
    left_out = same * min(1.0, (same - 1) / 3) + (total - same) * min(1.0, same / 3)
    return left_out / total if total else 0.0


def gqa(answer: str) -> str:
    """Lower case without full stops at the end, as LLaVA scripts/convert_gqa_for_eval.py hands it to GQA's eval.py."""
    return answer.strip().rstrip(".").lower()
