"""Where a row of somebody's file keeps its id, answer, reference, question and picture.

Knows: the field names that LLaVA, lmms-eval, VLMEvalKit and the benchmarks' own files use.
Does not know: file formats (`score_files`) and which row belongs to which (`matching`).
"""

from __future__ import annotations

import ast
import math
import os.path
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

Row = dict[str, Any]

ID = ("question_id", "questionid", "index", "qid", "pid", "id", "sample_id", "uid", "doc_id")
ANSWERS = (
    "filtered_resps", "resps", "prediction", "pred_answer", "predicted_answer", "model_answer", "model_prediction",
    "model_output", "model_response", "response", "pred_ans", "pred", "predict", "predicted", "output",
    "generated_text", "generation",
)  # fmt: skip
"""Names that only ever hold what a model said; `text` and `answer` depend on the rest of the row."""
REFERENCES = (
    "gt_answers", "gt_answer", "ground_truth", "groundtruth", "gt_ans", "gt", "label", "labels", "correct_answer",
    "gold", "reference", "references", "annotation", "target",
)  # fmt: skip
QUESTION = ("question", "query", "prompt", "text")
IMAGE = ("image", "image_id", "imageid", "image_path", "image_source", "imgname", "img", "file_name", "filename")
CATEGORY = ("category", "split", "task")

_SUFFIXES = re.compile(
    r"answer the question using a single word or phrase\.?|please answer (the question with )?yes or no\.?"
    r"|answer with the option's letter from the given choices directly\.?|reference ocr token:[^\n]*"
    r"|when the provided information is insufficient, respond with 'unanswerable'\.?|<image>",
    re.IGNORECASE,
)


def first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The value of the first name that the row holds and that is not empty, else None."""
    return next((row[name] for name in names if not absent(row.get(name))), None)


def absent(value: Any) -> bool:
    """None and NaN: what tables hold where nothing was written."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def plain(value: Any) -> str | None:
    """What a model said as text; the first of a list; None where nothing was said.

    >>> plain(["B"]), plain(2.0), plain(float("nan")), plain({"answer": "red"})
    ('B', '2', None, 'red')
    """
    if isinstance(value, list | tuple):
        return plain(value[0]) if value else None
    if isinstance(value, dict):
        return plain(first(value, ("answer", "text", "content", "prediction")))
    if absent(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def listed(value: Any) -> Any:
    """A list that a table holds as Python would write it, as a list; anything else as it is.

    >>> listed("['red', 'blue']"), listed("[red")
    (['red', 'blue'], '[red')
    """
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        with suppress(SyntaxError, ValueError):
            return ast.literal_eval(value)
    return value


def identity(row: Mapping[str, Any]) -> str | None:
    """The id as text, so that 101669, 101669.0 and "101669" are one."""
    found = plain(first(row, ID))
    return None if found is None else found.strip()


def image(row: Mapping[str, Any]) -> str | None:
    """The picture's name without folder and ending; in the files of MME and TextVQA the id is the picture."""
    found = plain(first(row, (*IMAGE, "question_id")))
    return None if found is None else os.path.splitext(os.path.basename(found.strip()))[0]


def category(row: Mapping[str, Any]) -> str | None:
    """`category` and what stands for it; in LLaVA's MME files it is the first part of the id."""
    found = plain(first(row, CATEGORY))
    if found in (None, "default"):
        folder, slash, _ = str(row.get("question_id") or "").partition("/")
        return folder if slash else None
    return found


def question(row: Mapping[str, Any], answer_field: str | None = None) -> str | None:
    """The question in lower case, without picture mark and prompt suffix; None where the row does not tell it."""
    found = plain(first(row, (name for name in QUESTION if name != answer_field)))
    if found is None:
        return None
    return " ".join(_SUFFIXES.sub(" ", found.replace("\\n", "\n")).lower().split())


def answer_field(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The field that holds what the model said, for all rows of a file alike; None where there is none.

    `text` is the answer in LLaVA's files and the question in POPE's: it is the question where most of it asks one.
    `answer` is what the model said only where nothing else is (POPE's and VQA's result files).
    """
    held = {name for row in rows for name, value in row.items() if not absent(value)}
    named = next((name for name in ANSWERS if name in held), None)
    if named:
        return named
    if "text" in held and not _asks(rows):
        return "text"
    return "answer" if "answer" in held else None


def _asks(rows: Sequence[Mapping[str, Any]]) -> bool:
    texts = [str(row["text"]) for row in rows[:500] if not absent(row.get("text"))]
    return sum("?" in text or text.lower().startswith(("is ", "are ")) for text in texts) * 2 > len(texts)


def reference(row: Mapping[str, Any], names: Sequence[str], taken: str | None = None) -> Any:
    """The reference a row carries: `names` first, which are the benchmark's own, then the usual ones."""
    return first(row, (name for name in (*names, *REFERENCES, "answer", "answers") if name != taken))
