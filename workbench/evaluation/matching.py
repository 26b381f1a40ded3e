"""Which reference belongs to which prediction.

Knows: rows that carry their reference, question files beside references, what must be told of rows that stand alone.
Does not know: by which key rows pair (`pairing`) and how a pair is scored (`tally`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import DataError
from workbench.evaluation import fields
from workbench.evaluation.fields import Row
from workbench.evaluation.pairing import PARTS, Side, agree, best, described
from workbench.evaluation.score_files import Table


@dataclass(frozen=True)
class Item:
    """One question: what was said (None: nothing), what is right, and all that is told of it.

    `here` says whether there is a row for it at all; `about` holds both rows' fields, the reference's first; `own` is
    the row of the prediction alone.
    """

    answer: str | None
    reference: Any
    about: Row
    own: Row
    here: bool = True

    @property
    def identity(self) -> str | None:
        return fields.identity(self.about)


@dataclass
class Matched:
    """The questions to be scored, and how many rows stood alone or more than once."""

    items: list[Item]
    unknown: int = 0
    """Predictions that no reference belongs to."""
    duplicates: int = 0
    """Predictions that came again for the same question."""
    notes: list[str] = field(default_factory=list)

    @property
    def missing(self) -> int:
        return sum(not item.here for item in self.items)


def carried(predictions: Table, names: Sequence[str]) -> Matched:
    """Rows that bring their reference along. Every row counts, one that came twice too, as in the official loops.

    Raises DataError where no row has an answer, or no row has a reference.
    """
    said = _said(predictions)
    items = [_item(row, said, fields.reference(row, names, said), {}) for row in predictions.rows]
    if all(item.reference is None for item in items):
        held = ", ".join(sorted(predictions.rows[0]))
        raise DataError("predictions", found=f"no reference in their fields ({held})", fix="give --references FILE")
    known = [item for item in items if item.reference is not None]
    matched = Matched(known, unknown=len(items) - len(known), notes=list(predictions.notes))
    keys = Counter(_whole_key(row, said) for row in predictions.rows)
    matched.duplicates = sum(count - 1 for key, count in keys.items() if key is not None)
    if matched.duplicates:
        matched.notes.append(f"{matched.duplicates} row(s) came again for the same question; each counts")
    if matched.unknown:
        matched.notes.append(f"{matched.unknown} row(s) without a reference are not scored")
    return matched


def join(predictions: Table, references: Table, names: Sequence[str]) -> Matched:
    """Every reference with its prediction; of several for one question the last counts, as in LLaVA's scripts.

    Reference files may be of two kinds: those that say what is right, and question files that say what an id stands
    for. Raises DataError where nothing says what is right, or nothing belongs together.
    """
    said = _said(predictions)
    right = [row for row in references.rows if fields.reference(row, names) is not None]
    asked = [row for row in references.rows if fields.reference(row, names) is None]
    if not right:
        held = ", ".join(sorted(references.rows[0]))
        raise DataError("--references", found=f"the fields {held}", expected=f"a reference, such as {names[0]}")
    notes = [*predictions.notes, *references.notes]
    known = Side.of(_once(right, names, notes), None)
    given = Side.of(_explained(predictions.rows, asked, said), said)
    how, pairs, unknown = best(given, known, names)
    if not pairs:
        raise DataError(
            "--references",
            found=f"no pair among {described(given)} and {described(known)}",
            expected="ids, or pictures and questions, that they share and that stand for the same questions",
            fix="give the question file too, if there is one",
        )
    if how != "id":
        notes.append(f"matched by {how}")
    kept = _touched_splits(known, pairs, notes)
    items = [
        _item(given.rows[pairs[place]], said, fields.reference(known.rows[place], names), known.rows[place])
        if place in pairs
        else Item(None, fields.reference(known.rows[place], names), known.rows[place], {}, here=False)
        for place in kept
    ]
    again = max(0, len(given.rows) - unknown - len(set(pairs.values())))
    matched = Matched(items, unknown, again, notes)
    _tell(matched, given, known, pairs)
    return matched


def _tell(matched: Matched, given: Side, known: Side, pairs: dict[int, int]) -> None:
    """Nothing is left out in silence."""
    other = sum(not agree(given.questions[number], known.questions[place]) for place, number in pairs.items())
    shared = sum(count > 1 for count in Counter(pairs.values()).values())
    told = {
        "prediction(s) count for several references each, which ask the same about the same picture": shared,
        "prediction(s) belong to no reference and are not scored": matched.unknown,
        "prediction(s) came again for the same question; the last counts": matched.duplicates,
        "prediction(s) show another question than the reference they were matched with": other,
    }
    matched.notes += [f"{count:,} {what}" for what, count in told.items() if count]


def _said(predictions: Table) -> str:
    said = fields.answer_field(predictions.rows)
    if said is None:
        held = ", ".join(sorted(predictions.rows[0]))
        raise DataError("predictions", found=f"the fields {held}", expected="an answer, such as prediction or text")
    return said


def _item(row: Row, said: str, reference: Any, about: Row) -> Item:
    told = {name: value for name, value in about.items() if not fields.absent(value)}
    return Item(fields.plain(row.get(said)), reference, {**row, **told}, row)


def _whole_key(row: Row, said: str) -> Hashable | None:
    parts = (fields.identity(row), fields.category(row), fields.question(row, said))
    return parts if parts[0] is not None else None


def _once(right: list[Row], names: Sequence[str], notes: list[str]) -> list[Row]:
    """References without those that say the same of the same question again."""
    kept: dict[Hashable, Row] = {}
    for number, row in enumerate(right):
        parts = [read(row) for read in PARTS.values()] + [fields.question(row)]
        alone = parts[0] is None and parts[3] is None
        kept.setdefault((*parts, str(fields.reference(row, names)), number if alone else None), row)
    if len(kept) < len(right):
        notes.append(f"{len(right) - len(kept):,} reference(s) came twice and count once")
    return list(kept.values())


def _explained(rows: list[Row], asked: list[Row], said: str) -> list[Row]:
    """The predictions with picture, category and question from a question file, where one was given.

    What a prediction tells itself goes before.
    """
    by_id = {fields.identity(row): row for row in asked}
    if not by_id:
        return rows
    merged = []
    for row in rows:
        found = by_id.get(fields.identity(row), {})
        told = {name: value for name, value in found.items() if name != said and not fields.absent(value)}
        own = {name: value for name, value in row.items() if not fields.absent(value)}
        asks = {} if fields.question(row, said) else {"question": fields.question(found)}  # its `text` is the answer
        merged.append({**told, **asks, **own})
    return merged


def _touched_splits(known: Side, pairs: dict[int, int], notes: list[str]) -> list[int]:
    """The places of the references that count: a file of train, val and test is asked only for what was answered."""
    splits = [fields.plain(row.get("split")) for row in known.rows]
    touched = {splits[place] for place in pairs}
    left = sorted({split for split in splits if split not in touched and split is not None})
    if left:
        notes.append(f"no prediction for the split(s) {', '.join(left)}, which do not count")
    return [place for place, split in enumerate(splits) if split is None or split in touched]
