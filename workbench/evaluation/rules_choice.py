"""Benchmarks answered with a letter: SEED-Bench, MMBench, ScienceQA, MMMU.

Knows: rotations, and the parts each benchmark reports.
Does not know: how a letter is read from an answer (`letters`), where options stand (`options`), files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.evaluation import fields, letters, open_answers
from workbench.evaluation.matching import Item
from workbench.evaluation.options import mark_letters, options_of, reader
from workbench.evaluation.tally import Marked, Parts, Tally, as_dict, by_kind, part, tally, texts, told


def seedbench(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """Exact letters; parts by picture or video and by question type.

    A table of VLMEvalKit has categories instead.
    """
    read, notes = reader(items, letters.exact, letters.initial)
    table = read is letters.matched
    marked, unparsed = mark_letters(items, read)
    names = {str(number): name for name, number in as_dict(about.get("question_type")).items()}

    def kind(item: Item) -> str | None:
        number = fields.plain(item.about.get("question_type_id"))
        if number is None:
            number, line, _ = (item.identity or "").partition("_")  # SEED-Bench-2 writes ids as type_number
            number = number if line and number.isdigit() else None
        return None if number is None else names.get(number, f"question type {number}")

    def medium(item: Item) -> str | None:
        known = fields.plain(item.about.get("data_type"))
        if known or table:
            return known
        ids = item.identity or ""
        return "image" if ids.isdigit() else "video" if ids[:1] == "v" and ids[1:].isdigit() else None

    parts = by_kind(marked, medium) | by_kind(marked, kind)
    if table:
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
        marked, unparsed = mark_letters(items, letters.matched)
        notes = []
    groups: dict[str, list[Marked]] = defaultdict(list)
    for item, earned in marked:
        groups[group_of(item)].append((item, earned))
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


def group_of(item: Item) -> str:
    identity = item.identity or ""
    return str(int(identity) % 1_000_000) if identity.isdigit() else identity


def scienceqa(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """LLaVA's three forms of a letter; parts by subject, context and grade, as ScienceQA's own table."""
    read, notes = reader(items, letters.science, letters.dotted)
    marked, unparsed = mark_letters(items, read)

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
    says, score = about.get("says"), part(marked)["score"]
    if isinstance(says, float) and abs(says - score) > 0.005:  # ScienceQA's first script guesses at random
        notes = (*notes, f"the file itself says {says:.2f}, which may hold guesses for unread answers")
    return tally(marked, parts | by_kind(marked, grade), unparsed, notes)


def mmmu(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """MMMU's letters, but what cannot be read is wrong where MMMU guesses; open questions by MMMU's rule for these."""
    read, notes = reader(items, letters.mmmu, letters.mmmu)
    marked: list[Marked] = []
    unparsed = 0
    for item in items:
        if str(item.about.get("question_type")) == "open" or (read is letters.matched and not options_of(item)):
            answer = (item.answer or "").strip()
            marked.append((item, float(bool(answer) and open_answers.right(answer, texts(item.reference)))))
            unparsed += item.here and not answer
        else:
            [pair], unread = mark_letters([item], read)
            marked.append(pair)
            unparsed += unread

    def subject(item: Item) -> str | None:
        words = (item.identity or "").split("_")
        return "_".join(words[1:-1]) or None if len(words) > 2 else fields.plain(item.about.get("category"))

    return tally(marked, by_kind(marked, subject), unparsed, notes)
