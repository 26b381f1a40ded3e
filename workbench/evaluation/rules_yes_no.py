"""Benchmarks answered with yes or no: POPE and MME.

Knows: splits, pairs of questions about one picture, points.
Does not know: how yes or no is read from an answer (`yes_no`), files, how rows were matched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import DataError
from workbench.evaluation import fields, yes_no
from workbench.evaluation.matching import Item
from workbench.evaluation.tally import Parts, Tally, mean
from workbench.evaluation.yes_no import percent


def pope(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """The mean F1 of the splits (random, popular, adversarial); every measure per split and over all questions.

    Only questions with an answer count: POPE's and LLaVA's scripts walk through the answers.
    """
    splits: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    unparsed = 0
    for item in items:
        if not item.here:
            continue
        right = _is_yes(item)
        answer = (item.answer or "").strip()
        said, read = yes_no.pope(answer) if answer else (not right, False)
        unparsed += not read
        for split in (fields.category(item.about) or "all").split(","):  # VLMEvalKit asks a shared question once
            splits[split.strip()].append((said, right))
    parts = {name: _yes_no(pairs) for name, pairs in splits.items()}
    scores = [part["f1"] for part in parts.values()]
    if len(parts) > 1:
        parts["all"] = _yes_no([pair for pairs in splits.values() for pair in pairs])
    notes = ("POPE counts an answer without a no as yes; an empty one is wrong",) if unparsed else ()
    return Tally(mean(scores), sum(item.here for item in items), parts, unparsed, notes)


def _is_yes(item: Item) -> bool:
    known = str(fields.plain(item.reference)).strip().lower().rstrip(".")
    if known not in ("yes", "no"):
        raise DataError(f"reference {item.identity}", found=repr(item.reference), expected="yes or no")
    return known == "yes"


def _yes_no(pairs: list[tuple[bool, bool]]) -> dict[str, Any]:
    measures = yes_no.counted(pairs)
    return {"score": measures["f1"], "n": len(pairs), **measures}


MME_TASKS = {
    "perception": "existence count position color posters celebrity scene landmark artwork OCR".split(),
    "cognition": "commonsense_reasoning numerical_calculation text_translation code_reasoning".split(),
}


def mme(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """A task earns accuracy plus both-right: 200 points, perception 2,000, cognition 800.

    The score is the percent of the points of the tasks there are. Both-right is the share of pictures whose two
    questions are right. Source: MME eval_tool/calculation.py.
    """
    tasks: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    unparsed = 0
    for item in items:
        said = yes_no.mme(item.answer or "")
        unparsed += item.here and said is None
        right = said == ("yes" if _is_yes(item) else "no")
        tasks[fields.category(item.about) or "all"][fields.image(item.about) or ""].append(float(right))
    parts: Parts = {}
    odd = 0
    for task, pictures in tasks.items():
        answers = [right for picture in pictures.values() for right in picture]
        pairs = [picture[at : at + 2] for picture in pictures.values() for at in range(0, len(picture), 2)]
        odd += sum(len(pair) < 2 for pair in pairs)
        both = percent(sum(pair == [1.0, 1.0] for pair in pairs), len(pairs))
        accuracy = percent(sum(answers), len(answers))
        measures = {"accuracy": accuracy, "both_right": both, "points": accuracy + both}
        parts[task] = {"score": (accuracy + both) / 2, "n": len(answers), **measures}
    notes = [f"{odd} picture(s) have a question without its pair, which cannot be both-right"] if odd else []
    notes += _missing_tasks(parts)
    sums = _points(parts)
    every = {**sums, **parts}
    measure = f"points, as percent of {200 * len(parts):,}"
    return Tally(mean(part["score"] for part in parts.values()), len(items), every, unparsed, tuple(notes), measure)


def _missing_tasks(parts: Parts) -> list[str]:
    found = {task.lower() for task in parts}
    every = [task for members in MME_TASKS.values() for task in members]
    missing = [task for task in every if task.lower() not in found]
    told = f"{len(missing)} of {len(every)} subtasks are missing and do not count: {', '.join(missing)}"
    return [told] if missing else []


def _points(parts: Parts) -> Parts:
    sums: Parts = {}
    for name, members in MME_TASKS.items():
        known = {task.lower() for task in members}
        found = [part for task, part in parts.items() if task.lower() in known]
        if found:
            points = sum(part["points"] for part in found)
            fields_of = {"n": sum(part["n"] for part in found), "points": points, "of": 200 * len(found)}
            sums[name] = {"score": 100 * points / (200 * len(found)), **fields_of}
    return sums
