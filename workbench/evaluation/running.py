"""The questions of an evaluation asked of a model, and every row kept as it comes.

Knows: the order (by picture), going on after a stop, a question that is wrong in one rotation, rows that fail.
Does not know: how an image's cost is shared (`inference.next_token`), how answers are read (`reading`), files
(`results`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.chat_model import ChatModel
from workbench.conversation import Conversation, Video
from workbench.errors import WorkbenchError
from workbench.evaluation.asking import Given, Line, asker
from workbench.evaluation.results import NOT_ASKED, ResultFolder, Results, Row, table
from workbench.evaluation.scores import scores
from workbench.inference.attachments import frames_read, told_of_frames
from workbench.origin import versions
from workbench.progress import progress

if TYPE_CHECKING:
    from workbench.evaluation.task import Evaluation

FIXED = ("questions", "model", "asked", "scorer")
"""What must be the same when an evaluation goes on."""
IN_A_ROW = 25
"""So many failed rows one after another are no bad rows but a model that does not answer."""


@dataclass(frozen=True)
class Asking:
    """How the questions are asked."""

    reuse: bool = True
    likelihood: bool = False

    @property
    def path(self) -> str:
        return "likelihood" if self.likelihood else "shared" if self.reuse else "plain"


def run(
    evaluation: Evaluation, model: ChatModel, out: Path | str | None, asking: Asking, description: str = "asking"
) -> Results:
    """Ask, read, keep, count. Rows that failed are asked again when it goes on; all others never."""
    evaluation = replace(evaluation, notes=[*evaluation.notes, *_turns(evaluation), *_frames(evaluation, model)])
    ask = asker(model, evaluation, asking.reuse, asking.likelihood)
    settings = _settings(evaluation, model, asking)
    if out is not None:
        settings["versions"] = versions()
    folder = ResultFolder(out) if out is not None else None
    kept = {row["id"]: row for row in folder.begin(settings, FIXED)} if folder else {}
    done = {id: row for id, row in kept.items() if not row["error"]}
    lines = _lines(evaluation, done, stop=asking.reuse)
    rows = dict(done)
    waiting = sum(len(line.forms) for line in lines)
    total = len(evaluation.conversations)
    try:
        with progress(description, total=total, unit="question", before=total - waiting) as bar:
            for part in _rows(evaluation, ask, lines):
                rows |= {row["id"]: row for row in part}
                if folder:
                    folder.append(part)
                bar.advance(len(part))
                _check_answers(rows, part)
    finally:
        if folder:
            folder.close()
    ordered = [rows[asked.id] for asked in evaluation.conversations]
    if all(row["error"] for row in ordered):
        found = f"{len(ordered)} of {len(ordered)} rows that failed, the first: {ordered[0]['error']}"
        raise WorkbenchError(f"evaluate {evaluation.name}", found=found, fix="mend it and run it again")
    scored = scores(evaluation.rules, ordered, evaluation.around, evaluation.notes)
    if folder:
        counts = {"rows": len(ordered), "errors": scored["errors"], "unparsed": scored["unparsed"]}
        return folder.finish(scored, counts=counts, finished=_now())
    return Results(table(ordered), settings, scored)


def _turns(evaluation: Evaluation) -> list[str]:
    """A note where conversations have more questions than the one that is asked."""
    several = sum(sum(turn.role == "user" for turn in one.messages) > 1 for one in evaluation.conversations)
    if not several:
        return []
    which = "1 conversation of several turns is" if several == 1 else f"{several:,} conversations of several turns are"
    return [f"{which} asked the last question alone, with all before it as it stands there"]


def _frames(evaluation: Evaluation, model: ChatModel) -> list[str]:
    """A note where the model was shown frames in place of videos."""
    every = (part for asked in evaluation.conversations for part in asked.media if isinstance(part, Video))
    films = {part for part in every if evaluation.resolve or not part.root}  # the others were left to the model
    if not films or frames_read(model):
        return []
    return [f"{told_of_frames(len(films))}: the model reads pictures only"]


def _settings(evaluation: Evaluation, model: ChatModel, asking: Asking) -> dict[str, Any]:
    from workbench.evaluation.identity import identity

    options = {"max_tokens": evaluation.max_tokens, "temperature": 0.0, "path": asking.path, "seed": None}
    return {
        "name": evaluation.name,
        "scorer": evaluation.rules.name,
        "questions": {**evaluation.settings, "count": len(evaluation.conversations), "hash": _hash(evaluation)},
        "model": identity(model),
        "asked": options,
        "dataset": str(evaluation.dataset) if evaluation.dataset else None,
        "roots": {name: str(folder) for name, folder in evaluation.roots.items()},
        "around": dict(evaluation.around),
        "notes": list(evaluation.notes),
        "started": _now(),
    }


def _hash(evaluation: Evaluation) -> str:
    """What is asked, with what is right: ids, texts, pictures by name and content where that is known."""
    digest = hashlib.blake2b(digest_size=16)
    for asked in evaluation.conversations:
        parts = [(turn.role, [_named(part) for part in turn.content]) for turn in asked.messages]
        digest.update(json.dumps([asked.id, parts, str(asked.metadata.get("about"))]).encode())
    return digest.hexdigest()


def _named(part: Any) -> Any:
    return [part.root, part.path, getattr(part, "hash", None)] if not isinstance(part, str) else part


# --- order ----------------------------------------------------------------------------------------------------------


def _lines(evaluation: Evaluation, done: dict[str, Row], *, stop: bool) -> list[Line]:
    """The questions that wait, by picture; the forms of one question one after the other.

    stop: a question that is wrong in one form is not asked in the others.
    """
    items: dict[str, list[Conversation]] = {}
    for asked in evaluation.conversations:
        items.setdefault(item_of(asked), []).append(asked)
    lines = []
    for forms in items.values():
        waiting = tuple(asked for asked in forms if asked.id not in done)
        lost = stop and any((done[asked.id]["earned"] or 0) < 1 for asked in forms if asked.id in done)
        if waiting:
            several = stop and len(forms) > 1
            lines += [Line(waiting, lost)] if several else [Line((asked,), False) for asked in waiting]
    return sorted(lines, key=lambda line: (_pictures(line.forms[0]), line.forms[0].id))


def item_of(asked: Conversation) -> str:
    return str(asked.metadata.get("item") or asked.id)


def _pictures(asked: Conversation) -> tuple[tuple[str, str], ...]:
    return tuple((shown.root, shown.path) for shown in asked.media)


# --- rows -----------------------------------------------------------------------------------------------------------


def _rows(evaluation: Evaluation, ask: Any, lines: Sequence[Line]) -> Iterator[list[Row]]:
    """Rows in parts, as answers come."""
    lost = [line for line in lines if line.lost]
    if lost:
        yield [_skipped(evaluation, asked) for line in lost for asked in line.forms]
    for part in ask([line for line in lines if not line.lost]):
        yield [_row(evaluation, given) for given in part]


def _row(evaluation: Evaluation, given: Given) -> Row:
    row = _about(evaluation, given.asked) | {"prompt": given.prompt, "seconds": round(given.seconds, 4)}
    if given.error is not None:
        return row | {"error": given.error, "earned": 0.0}
    if given.text is None:
        return row | {"rule": NOT_ASKED, "earned": 0.0}
    answer = given.text.strip()
    read = evaluation.rules.read(answer, row)
    said = {"answer": answer, "said": read.said, "rule": given.rule or read.rule, "earned": read.earned}
    return row | said | {"margin": None if given.margin is None else round(given.margin, 5)}


def _skipped(evaluation: Evaluation, asked: Conversation) -> Row:
    return _row(evaluation, Given(asked, None))


def _about(evaluation: Evaluation, asked: Conversation) -> Row:
    image = asked.media[0] if asked.media else None
    empty = dict.fromkeys(("prompt", "answer", "said", "rule", "margin", "seconds", "error"))
    return {
        "id": asked.id,
        "item": item_of(asked),
        "type": str(asked.metadata.get("type") or asked.task or "question"),
        "image": image.path if image else "",
        "root": image.root if image else "",
        "question": asked.prompt.messages[-1].text,
        **empty,
        "reference": asked.reference,
        "earned": 0.0,
        "about": dict(asked.metadata.get("about") or {}),
    }


def _check_answers(rows: dict[str, Row], part: Sequence[Row]) -> None:
    """Raise where nothing is answered any more: all of what came last failed in one way."""
    last = list(rows.values())[-IN_A_ROW:]
    failed = {row["error"] for row in last}
    if len(last) == IN_A_ROW and None not in failed and len(failed) == 1:
        raise WorkbenchError(
            "evaluate", found=f"{IN_A_ROW} rows in a row that failed: {failed.pop()}", fix="mend it and run it again"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
