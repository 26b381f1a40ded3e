"""Yes or no in an answer, and the measures counted from it.

Knows: the rules of POPE and MME, accuracy, precision, recall, F1 and the share of yes.
Does not know: files, splits and tasks.
"""

from __future__ import annotations

from collections.abc import Sequence


def pope(answer: str) -> tuple[bool, bool]:
    """Whether POPE reads yes, and whether the answer says yes or no at all.

    No, where the first sentence has the word "No", "no" or "not"; else yes, whatever it says.
    Source: AoiDragon/POPE evaluate.py and LLaVA llava/eval/eval_pope.py.

    >>> pope("There is not, I think. Yes."), pope("Yes, there is."), pope("A dog")
    ((False, True), (True, True), (True, False))
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    if {"No", "not", "no"} & set(words):
        return False, True
    return True, "yes" in answer.lower()


def mme(answer: str) -> str | None:
    """`yes` or `no` where the answer is that or has it in its first four characters, else None (never right).

    Source: MME eval_tool/calculation.py (`parse_pred_ans`), after lower case.

    >>> mme("Yes, it is"), mme("No"), mme("It is not")
    ('yes', 'no', None)
    """
    start = answer.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def counted(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Measures in percent from pairs (said yes, is yes); what cannot be divided is 0."""
    both = sum(said and right for said, right in pairs)
    said_yes, is_yes = sum(said for said, _ in pairs), sum(right for _, right in pairs)
    correct = sum(said == right for said, right in pairs)
    return {
        "accuracy": percent(correct, len(pairs)),
        "precision": percent(both, said_yes),
        "recall": percent(both, is_yes),
        "f1": percent(2 * both, said_yes + is_yes),
        "yes_ratio": percent(said_yes, len(pairs)),
    }


def percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0
