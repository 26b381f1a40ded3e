"""Which option of a question is right, and which an answer names.

Knows: options in columns A to Z, in `choice_a` to `choice_d`, in lists; references as letter, number or text.
Does not know: how a letter is read from an answer (`letters`), and what the benchmarks count (`rules_choice`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from workbench.errors import DataError
from workbench.evaluation import fields, letters
from workbench.evaluation.matching import Item
from workbench.evaluation.tally import Marked

Reader = Callable[[str, Mapping[str, str]], str | None]
"""Takes an answer and its options; gives a letter, or None for an answer it cannot read."""


def reader(items: Sequence[Item], usual: Reader, samples: Reader) -> tuple[Reader, tuple[str, ...]]:
    """The rule by which whoever made a file scored it: LLaVA's and the benchmark's own as `usual`.

    `samples` is lmms-eval's rule for its sample files; options in columns A to D mean a table of VLMEvalKit, which has
    one rule for all. Notes say which was taken, if it is not the usual one.
    """
    here = [item for item in items if item.here]
    if here and all("a" in item.own and "b" in item.own for item in here):
        return letters.matched, ("letters read by VLMEvalKit's rule",)
    if here and samples is not usual and all("filtered_resps" in item.own for item in here):
        return samples, ("letters read by lmms-eval's rule",)
    return usual, ()


def mark_letters(items: Sequence[Item], read: Reader) -> tuple[list[Marked], int]:
    """Every question with 1 for the reference's letter, else 0, and how many answers gave no letter.

    Raises DataError where a reference names no option.
    """
    marked: list[Marked] = []
    unparsed = 0
    for item in items:
        options = options_of(item)
        right = letter(item, options)
        if right is None:
            raise DataError(
                f"reference {item.identity}", found=repr(item.reference), expected="the letter of an option"
            )
        said = read(item.answer, options) if item.answer is not None else None
        unparsed += item.here and said is None
        marked.append((item, float(said == right)))
    return marked, unparsed


def letter(item: Item, options: Mapping[str, str]) -> str | None:
    """The reference as a letter: a letter, a place among the choices, "The answer is X.", or an option's text."""
    given = item.reference
    if isinstance(given, int) and not isinstance(given, bool):
        return letters.LETTERS[given] if 0 <= given < 26 else None
    text = (fields.plain(given) or "").strip()
    if len(text) == 1 and text.upper() in letters.LETTERS:
        return text.upper()
    if text.isdigit() and int(text) < 26:
        return letters.LETTERS[int(text)]
    by_text = {option.strip().lower(): letter for letter, option in options.items()}
    return by_text.get(text.lower()) or letters.science(text, {})


def options_of(item: Item) -> dict[str, str]:
    """Letter to text, from columns A to Z, `choice_a` to `choice_d`, or a list of choices; empty where not told."""
    listed = fields.listed(fields.first(item.about, ("choices", "options")))  # MMMU writes them as Python would
    if isinstance(listed, dict):  # the Hub's {"text": [...], "label": [...]}
        listed = listed.get("text")
    if isinstance(listed, list):
        return dict(zip(letters.LETTERS, map(str, listed), strict=False))
    found = {}
    for letter in letters.LETTERS:
        text = fields.plain(fields.first(item.about, (letter.lower(), f"choice_{letter.lower()}")))
        if text is None or text.strip().lower() in ("", "nan"):
            break
        found[letter] = text
    return found
