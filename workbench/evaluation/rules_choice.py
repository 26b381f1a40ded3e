"""Benchmarks answered with a letter: SEED-Bench, MMBench, ScienceQA, MMMU.

Knows: options in their many layouts, rotations, and the parts each benchmark reports.
Does not know: how a letter is read from an answer (`letters`), files, how rows were matched.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from workbench.errors import DataError
from workbench.evaluation import fields, letters, vqa_text
from workbench.evaluation.matching import Item
from workbench.evaluation.tally import Marked, Parts, Tally, as_dict, by_kind, part, tally, texts, told


def seedbench(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """Exact letters; parts by picture or video and by question type.

    A file in VLMEvalKit's layout, which brings the options in columns A to D, is read by VLMEvalKit's rule.
    """
    layout = all(_own_options(item) for item in items if item.here)
    marked, unparsed = _mark_letters(items, letters.matched if layout else letters.exact)
    names = {str(number): name for name, number in as_dict(about.get("question_type")).items()}

    def kind(item: Item) -> str | None:
        number = fields.plain(item.about.get("question_type_id"))
        if number is None:
            number, line, _ = (item.identity or "").partition("_")  # SEED-Bench-2 writes ids as type_number
            number = number if line and number.isdigit() else None
        return None if number is None else names.get(number, f"question type {number}")

    def medium(item: Item) -> str | None:
        known = fields.plain(item.about.get("data_type"))
        if known or layout:
            return known
        ids = item.identity or ""
        return "image" if ids.isdigit() else "video" if ids[:1] == "v" and ids[1:].isdigit() else None

    notes = ("letters read by VLMEvalKit's rule",) if layout else ()
    parts = by_kind(marked, medium) | by_kind(marked, kind)
    if layout:
        parts |= by_kind(marked, told("category"))
    return tally(marked, parts, unparsed, notes)


def mmbench(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """CircularEval: a question is right if every rotation of its options is; rotations share index mod 1,000,000.

    Source: MMBench, as VLMEvalKit vlmeval/dataset/utils/multiple_choice.py (`mcq_circular_eval`) with exact matching.
    """
    judged = [item for item in items if item.here and not fields.absent(item.about.get("hit"))]
    if len(judged) == len(items):
        marked = [(item, float(item.about["hit"])) for item in items]
        unparsed, notes = 0, ["right and wrong are the file's own column hit, not read anew"]
    else:
        marked, unparsed = _mark_letters(items, letters.matched)
        notes = []
    groups: dict[str, list[Marked]] = defaultdict(list)
    for item, earned in marked:
        groups[_group(item)].append((item, earned))
    whole = [(group[0][0], min(earned for _, earned in group)) for group in groups.values()]
    parts: Parts = {}
    if len(whole) < len(marked):
        first = [group[0] for group in groups.values()]
        parts = {"one pass": part(first), "every rotation": part(whole)}
        single = sum(len(group) == 1 for group in groups.values())
        notes += [f"{single} question(s) come in one rotation only and are scored on it"] if single else []
    for name in ("split", "l2_category", "category"):
        parts |= by_kind(whole, told(name))
    return tally(whole, parts, unparsed, tuple(notes))


def _group(item: Item) -> str:
    identity = item.identity or ""
    return str(int(identity) % 1_000_000) if identity.isdigit() else identity


def scienceqa(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """LLaVA's three forms of a letter; parts by subject, context and grade, as ScienceQA's own table."""
    marked, unparsed = _mark_letters(items, letters.science)

    def text(item: Item) -> bool:
        return bool(item.about.get("hint"))

    def picture(item: Item) -> bool:
        return bool(item.about.get("image") or item.about.get("has_image") or item.about.get("is_multimodal"))

    def subject(item: Item) -> str | None:
        return {"natural": "NAT", "social": "SOC", "language": "LAN"}.get(str(item.about.get("subject")).split()[0])

    def grade(item: Item) -> str | None:
        digits = str(item.about.get("grade") or "").removeprefix("grade")
        return None if not digits.isdigit() else "G1-6" if int(digits) <= 6 else "G7-12"

    parts = by_kind(marked, subject)
    if any("subject" in item.about for item in items):
        contexts = {
            "TXT": [pair for pair in marked if text(pair[0])],
            "IMG": [pair for pair in marked if picture(pair[0])],
            "NO": [pair for pair in marked if not text(pair[0]) and not picture(pair[0])],
        }
        parts |= {name: part(some) for name, some in contexts.items() if some}
    elif some := [pair for pair in marked if picture(pair[0])]:
        parts |= {"IMG": part(some)}
    found = tally(marked, parts | by_kind(marked, grade), unparsed)
    says = about.get("says")
    if isinstance(says, float) and abs(says - found.score) > 0.005:  # ScienceQA's first script guesses at random
        return replace(found, notes=(f"the file itself says {says:.2f}, which may hold guesses for unread answers",))
    return found


def mmmu(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """MMMU's letters, but what cannot be read is wrong where MMMU guesses. Open questions: equal after VQA's rules."""
    marked: list[Marked] = []
    unparsed = 0
    for item in items:
        if str(item.about.get("question_type")) == "open":
            known = [vqa_text.vqa(text) for text in texts(item.reference)]
            marked.append((item, float(item.answer is not None and vqa_text.vqa(item.answer) in known)))
            unparsed += item.here and not (item.answer or "").strip()
        else:
            [pair], unread = _mark_letters([item], letters.mmmu)
            marked.append(pair)
            unparsed += unread

    def subject(item: Item) -> str | None:
        words = (item.identity or "").split("_")
        return "_".join(words[1:-1]) or None if len(words) > 2 else fields.plain(item.about.get("category"))

    return tally(marked, by_kind(marked, subject), unparsed)


def _mark_letters(
    items: Sequence[Item], read: Callable[[str, Mapping[str, str]], str | None]
) -> tuple[list[Marked], int]:
    """Every question with 1 for the reference's letter, else 0, and how many answers gave no letter.

    Raises DataError where a reference names no option.
    """
    marked: list[Marked] = []
    unparsed = 0
    for item in items:
        options = _options(item)
        right = _letter(item, options)
        if right is None:
            raise DataError(
                f"reference {item.identity}", found=repr(item.reference), expected="the letter of an option"
            )
        said = read(item.answer, options) if item.answer is not None else None
        unparsed += item.here and said is None
        marked.append((item, float(said == right)))
    return marked, unparsed


def _letter(item: Item, options: Mapping[str, str]) -> str | None:
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


def _options(item: Item) -> dict[str, str]:
    """Letter to text, from columns A to Z, `choice_a` to `choice_d`, or a list of choices; empty where not told."""
    listed = fields.first(item.about, ("choices", "options"))
    if isinstance(listed, str) and listed.strip().startswith("["):
        try:
            listed = ast.literal_eval(listed)  # MMMU writes its options as Python would
        except (SyntaxError, ValueError):
            listed = None
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


def _own_options(item: Item) -> bool:
    return "a" in item.own and "b" in item.own
