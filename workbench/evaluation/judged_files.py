"""What judged benchmarks have in common: the published files, and who said what.

Knows: published files by name, answers by the id of their question, what is told where some are missing.
Does not know: the prompts and rules (`llava_bench.py`, `mm_vet.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation
from workbench.errors import DataError
from workbench.evaluation import fields
from workbench.evaluation.judges import Reply
from workbench.evaluation.matching import Item
from workbench.evaluation.score_files import read
from workbench.result_rows import ROWS

Row = Mapping[str, Any]
Asking = Callable[[Mapping[str, Conversation], SamplingOptions], dict[str, Reply]]
"""Questions to the judge, by name -> its replies, or why there is none."""


def answers_of(file: Path) -> dict[str, str]:
    """What was said, by the id of the question; a folder of results is one such file."""
    rows = read([file / ROWS if file.is_dir() else file]).rows
    said = fields.answer_field(rows) or ("text" if "text" in rows[0] else None)
    if said is None:
        raise DataError(str(file), found=f"the fields {', '.join(sorted(rows[0]))}", expected="an answer, such as text")
    return {question_id(row): fields.plain(row.get(said)) or "" for row in rows}


def question_id(row: Row) -> str:
    """MM-Vet's `v1_7` and LLaVA's 7 are one."""
    return (fields.identity(row) or "").removeprefix("v1_")


def asked_item(row: Row, answers: Mapping[str, str]) -> Item:
    """A question as tallies take it."""
    return Item(answers.get(question_id(row), ""), row["reference"], dict(row), {})


def published(paths: Sequence[Path], name: str, what: str) -> Path:
    """The published file of that name, given itself or with its folder."""
    for path in paths:
        if path.name == name and path.is_file():
            return path
        for found in sorted(path.rglob(name)) if path.is_dir() else ():
            return found
    where = ", ".join(map(str, paths)) or "--references"
    raise DataError(where, found=f"no {name}", expected=what, fix="name the file, or the folder it is in")


def check_answered(rows: Sequence[Row], answers: Mapping[str, str], notes: list[str]) -> None:
    """Raises `DataError` where no question has an answer; says how many have none."""
    missing = [row for row in rows if question_id(row) not in answers]
    if len(missing) == len(rows):
        raise DataError("predictions", found="an answer to none of the questions", expected="their ids")
    if missing:
        notes.append(f"{len(missing)} question(s) have no answer and are judged as empty answers")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
