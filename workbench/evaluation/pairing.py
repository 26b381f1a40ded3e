"""By which key the rows of two files belong together.

Knows: ids, categories, pictures and questions as keys, splits with the same ids, files that agree in their order.
Does not know: which field is the reference and how a pair is scored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from workbench.evaluation import fields
from workbench.evaluation.fields import Row


@dataclass(frozen=True)
class Side:
    """Rows of one file with what keys are made of, read once: a question takes a while to strip."""

    rows: list[Row]
    said: str | None
    questions: list[str | None]

    @classmethod
    def of(cls, rows: list[Row], said: str | None) -> Side:
        return cls(rows, said, [fields.question(row, said) for row in rows])

    def keys(self, parts: Sequence[str]) -> list[Hashable | None]:
        """One key for each row; None where it lacks a part."""
        columns = {"question": self.questions}
        for part, read in PARTS.items():
            if part in parts:
                columns[part] = [read(row) for row in self.rows]
        lined = zip(*(columns[part] for part in parts), strict=True)
        return [None if any(part is None for part in key) else key for key in lined]


PARTS: dict[str, Callable[[Row], str | None]] = {
    "id": fields.identity,
    "category": fields.category,
    "picture": fields.image,
}
KEYS = (
    ("id",),
    ("category", "id"),
    ("category", "picture", "question"),
    ("picture", "question"),
    ("category", "question"),
    ("picture",),
    ("question",),
)
"""Tried in this order; the first by which most predictions find their reference is used."""


def best(given: Side, known: Side, names: Sequence[str]) -> tuple[str, dict[int, int], int]:
    """How most predictions find their reference, the prediction of each reference, and how many found none."""
    found: tuple[str, dict[int, int], int] = ("", {}, len(given.rows))
    most = 0.0
    for parts in _keys(given, known):
        pairs, unknown = _paired(given, known, parts, names)
        worth = _worth(given, known, parts, pairs)
        if worth > most:
            found, most = (", ".join(parts), pairs, unknown), worth
        if most >= len(given.rows):
            return found
    ordered = {
        place: number for place, number in _in_order(given, known).items() if _tells(given, known, number, place)
    }
    alone = len(given.rows) - len(set(ordered.values()))
    return ("their order", ordered, alone) if _worth(given, known, (), ordered) > most else found


def _keys(given: Side, known: Side) -> list[tuple[str, ...]]:
    """KEYS; where both files name the same categories, only those that do not mix these up.

    VLMEvalKit asks a question once for several splits and names them all: there the category is no key.
    """
    mine, theirs = ({fields.category(row) for row in side.rows} - {None} for side in (given, known))
    same = mine and theirs and (mine <= theirs or theirs <= mine) and not any("," in str(name) for name in mine)
    return [parts for parts in KEYS if not same or {"id", "category"} & set(parts)]


def _worth(given: Side, known: Side, parts: Sequence[str], pairs: dict[int, int]) -> float:
    """How many predictions are paired with their question; 0 where only some are, as with ids of another split.

    A prediction counts once, however many references it answers: else a key without the category, by which one answer
    serves several splits, would beat the key that tells the splits apart. Where no question is the same, questions are
    told in another language or form, and the key is better than nothing. Without an id more than half of the shorter
    side must find its pair: a few questions that happen to be alike are no match. Category, picture and question
    together are alike by no chance; and where others ask, predictions that tell no question are left out of that half.
    """
    telling = sum(asked is not None for asked in given.questions) or len(given.rows)
    agreeing = [number for place, number in pairs.items() if agree(given.questions[number], known.questions[place])]
    loose = "id" not in parts and parts != ("category", "picture", "question")
    if loose and 2 * len(pairs) <= min(telling, len(known.rows)):
        return 0.0
    if len(agreeing) <= 0.005 * len(pairs):
        return 0.5 if pairs else 0.0
    return len(set(agreeing)) if len(agreeing) >= 0.8 * len(pairs) else 0.0


def _paired(given: Side, known: Side, parts: Sequence[str], names: Sequence[str]) -> tuple[dict[int, int], int]:
    """For each reference the prediction with its key, and how many predictions have a key that no reference has.

    Several references of one key: as many predictions belong to them in their order (POPE asks one question in three
    splits); a single one answers all of them where picture and question are known and they say the same. Where there
    are several, yet fewer than references, nothing says which are missing, and none of them is paired.
    """
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(known.keys(parts)):
        if key is not None:
            places[key].append(place)
    numbers: dict[Hashable, list[int]] = defaultdict(list)
    unknown = 0
    for number, key in enumerate(given.keys(parts)):
        if key in places:
            numbers[key].append(number)
        else:
            unknown += 1
    pairs: dict[int, int] = {}
    for key, found in numbers.items():
        wanted = places[key]
        content = {"picture", "question"} <= set(parts)
        if (
            len(wanted) == 1 == len(found)
            or (len(wanted) == 1 and parts != ("question",))
            or (content and len(found) >= len(wanted))
        ):
            pairs |= dict(zip(wanted, found[-len(wanted) :], strict=True))
        elif (
            content
            and len(found) == 1
            and len({str(fields.reference(known.rows[place], names)) for place in wanted}) == 1
        ):
            pairs |= dict.fromkeys(wanted, found[0])
        else:
            unknown += len(found)
    return pairs, unknown


def agree(asked: str | None, wanted: str | None) -> bool:
    return asked is None or wanted is None or wanted in asked or asked in wanted


def _in_order(given: Side, known: Side) -> dict[int, int]:
    """Files that agree in their order: category by category, or each category as one run of the predictions.

    LLaVA's POPE answers are such: three splits, one after the other, under ids of its own. Only rows that ask the same
    question or have the same id are in step; predictions with neither must be as many as the references. A stretch that
    fits two categories belongs to neither for sure: then there is no order.
    """
    mine, theirs = _by_category(given), _by_category(known)
    if mine.keys() == theirs.keys() and all(len(mine[name]) == len(theirs[name]) for name in mine):
        numbers = [number for name in mine for number in mine[name]]
        places = [place for name in mine for place in theirs[name]]
        if _in_step(given, known, numbers, places):
            return dict(zip(places, numbers, strict=True))
    whole = range(len(known.rows))
    if len(given.rows) == len(known.rows) and _in_step(given, known, whole, whole):
        return {place: place for place in whole}
    pairs: dict[int, int] = {}
    for places in theirs.values():
        pairs |= dict(zip(places, _run(given, known, places), strict=False))
    return pairs if len(set(pairs.values())) == len(pairs) else {}


def _run(given: Side, known: Side, places: Sequence[int]) -> range:
    """The stretch of the predictions that asks what these references ask, in the same order; empty where none does."""
    for start in range(len(given.rows) - len(places) + 1):
        run = range(start, start + len(places))
        asked, wanted = given.questions[start], known.questions[places[0]]
        if asked is not None and wanted is not None and agree(asked, wanted) and _in_step(given, known, run, places):
            return run
    return range(0)


def _in_step(given: Side, known: Side, numbers: Sequence[int], places: Sequence[int]) -> bool:
    """Whether at least 95 of 100 pairs look right: a spelling that was mended since must not undo the order."""
    wrong = 0
    for number, place in zip(numbers, places, strict=True):
        asked, wanted = given.questions[number], known.questions[place]
        ids = fields.identity(given.rows[number]), fields.identity(known.rows[place])
        told = asked is not None and wanted is not None
        wrong += not (agree(asked, wanted) if told else ids[0] is None or ids[0] == ids[1])
        if wrong * 20 > len(places):
            return False
    return True


def _tells(given: Side, known: Side, number: int, place: int) -> bool:
    """Whether more than the order says so: the row asks something, or has no id that says otherwise."""
    ids = fields.identity(given.rows[number]), fields.identity(known.rows[place])
    return given.questions[number] is not None or ids[0] is None or ids[0] == ids[1]


def _by_category(side: Side) -> dict[str | None, list[int]]:
    found: dict[str | None, list[int]] = defaultdict(list)
    for place, row in enumerate(side.rows):
        found[fields.category(row)].append(place)
    return found


def described(side: Side) -> str:
    return f"{len(side.rows):,} rows whose first id is {fields.identity(side.rows[0])}"
