"""A benchmark's published files as an evaluation: each row a conversation with its reference.

Knows: which rows ask and which say what is right, ids that are unique, the part and the item a row belongs to.
Does not know: how a prompt is written (`prompting`), where pictures lie (`pictures`), how answers are scored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.conversation import Conversation, Message, new_id
from workbench.errors import DataError
from workbench.evaluation import fields, score_files
from workbench.evaluation.benchmarks import BENCHMARKS, Benchmark
from workbench.evaluation.matching import Item
from workbench.evaluation.options import letter, options_of
from workbench.evaluation.pictures import Pictures
from workbench.evaluation.prompting import CHOICE, PROMPTS, YES_NO, candidates, expressions, prompt
from workbench.evaluation.reading import rules
from workbench.evaluation.rules_choice import group_of
from workbench.evaluation.rules_free import reference_box
from workbench.evaluation.tally import as_dict, texts
from workbench.evaluation.task import Evaluation

Row = dict[str, Any]
LONGEST = 128
"""Tokens of an answer at most: what LLaVA's loader allows; an answer of a trained model ends after a few."""
_CHINESE = re.compile(r"(^|[_.-])cn([_.-]|$)", re.IGNORECASE)
_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}


def read_benchmark(
    name: str,
    data: Sequence[Path | str] | Path | str,
    images: Path | str | None = None,
    *,
    prompts: str = "llava",
    frames: int | None = None,
) -> Evaluation:
    """A benchmark as an evaluation, from its published files and the folder of its pictures.

    Raises `DataError` for files that are missing or hold no question with its reference, and where no picture is found.
    """
    chosen = BENCHMARKS[name]
    if prompts not in PROMPTS:
        raise DataError("--prompts", found=repr(prompts), expected=" or ".join(PROMPTS))
    paths = [Path(data)] if isinstance(data, Path | str) else [Path(one) for one in data]
    if not paths:
        fix = f"give --data FILE...: {chosen.files} ({chosen.source})"
        raise DataError(f"benchmark {name}", found="no data", expected="its published files", fix=fix)
    missing = [path for path in paths if not path.exists()]
    if missing:
        fix = f"{chosen.title} needs {chosen.files} ({chosen.source})"
        raise DataError(str(missing[0]), found="no such file", expected="a file or a folder", fix=fix)
    if images is None:
        images = paths[0] if paths[0].is_dir() else paths[0].parent
    pictures = Pictures(images, frames=frames)
    read = score_files.read(paths, pictures.keep)
    rows = _explained(_complete(read.rows, chosen), chosen)
    chinese = name == "mmbench" and any(_CHINESE.search(path.name) for path in paths)
    asked = _conversations(chosen, rows, read.about, pictures, prompts, chinese)
    _check_pictures(asked, pictures, images)
    settings = {"benchmark": name, "prompts": prompts, "frames": frames, "files": _hashes(paths)}
    around = {key: value for key, value in read.about.items() if isinstance(value, dict)}
    notes = [*read.notes, *_doubled(rows)]
    return Evaluation(
        name, asked, rules(name), LONGEST, pictures.resolve, settings, pictures.roots, around, notes=notes
    )


# --- rows -----------------------------------------------------------------------------------------------------------


def _complete(rows: Sequence[Row], chosen: Benchmark) -> list[Row]:
    """Rows that say what is right, with what question files say of the same id (VQA keeps them apart)."""
    right = [row for row in rows if fields.reference(row, chosen.fields) is not None]
    if not right:
        held = ", ".join(sorted(rows[0]))
        fix = f"{chosen.title} needs {chosen.files} ({chosen.source})"
        expected = "what is right under " + " or ".join(dict.fromkeys((*chosen.fields, "answer")))
        found = f"no reference in the fields {held}"
        raise DataError(f"benchmark {chosen.name}", found=found, expected=expected, fix=fix)
    asking = {fields.identity(row): row for row in rows if fields.reference(row, chosen.fields) is None}
    merged = [{**asking.get(fields.identity(row), {}), **row} for row in right] if asking else right
    if chosen.name == "scienceqa" and any(row.get("split") == "test" for row in merged):
        merged = [row for row in merged if row.get("split") == "test"]
    return merged


def _explained(rows: list[Row], chosen: Benchmark) -> list[Row]:
    """One row for each question: of RefCOCO each sentence; and MMBench's pictures that stand for those of a row."""
    if chosen.name == "refcoco":
        rows = [{**row, "expression": one, "question": None} for row in rows for one in expressions(row)]
    held = {fields.identity(row): row["media"] for row in rows if row.get("media")}
    for row in rows:
        named = fields.plain(row.get("image"))
        if not row.get("media") and named in held:
            row["media"] = held[named]
    return rows


def _conversations(
    chosen: Benchmark, rows: list[Row], around: Mapping[str, Any], pictures: Pictures, prompts: str, chinese: bool
) -> list[Conversation]:
    asked = []
    for row, id in zip(rows, _ids(rows), strict=True):
        item = Item(None, fields.reference(row, chosen.fields), row, {})
        options = options_of(item) if chosen.name in CHOICE else {}
        text = prompt(chosen, row, options, prompts, chinese)
        if not text.strip():
            held = ", ".join(sorted(row))
            raise DataError(f"row {id}", found=f"no question in the fields {held}", fix="give the question file too")
        about = {key: value for key, value in row.items() if key not in ("media", "bytes")}
        metadata = {
            "item": group_of(item) if chosen.name == "mmbench" else id,
            "type": _type(chosen.name, row, around) or chosen.title,
            "about": about,
            "candidates": candidates(chosen.name, options),
        }
        turns = (
            Message("user", (*pictures.of(row), text)),
            Message("assistant", (_reference(chosen, item, options),)),
        )
        asked.append(Conversation(id, turns, task=chosen.name, metadata=metadata))
    return asked


def _ids(rows: Sequence[Row]) -> list[str]:
    """The published ids; with the category where that tells them apart, and numbered where nothing does."""
    plain = [fields.identity(row) or new_id(fields.image(row), fields.question(row)) for row in rows]
    if len(set(plain)) < len(plain):
        categories = [fields.category(row) for row in rows]
        plain = [f"{category}/{id}" if category and not id.startswith(f"{category}/") else id
                 for category, id in zip(categories, plain, strict=True)]  # fmt: skip
    seen: Counter[str] = Counter()
    ids = []
    for id in plain:
        seen[id] += 1
        ids.append(id if seen[id] == 1 else f"{id}#{seen[id]}")
    return ids


def _doubled(rows: Sequence[Row]) -> list[str]:
    """A note where a published number stands for several questions."""
    known = [(row["question_id"], fields.category(row)) for row in rows if row.get("question_id") is not None]
    again = len(known) - len(set(map(str, known)))
    return [f"{again} row(s) have the question_id of another; each is a question of its own"] if again else []


def _type(name: str, row: Row, around: Mapping[str, Any]) -> str | None:
    """The part of the benchmark that a row counts in."""
    if name == "seedbench" and (number := fields.plain(row.get("question_type_id"))) is not None:
        names = {str(key): title for title, key in as_dict(around.get("question_type")).items()}
        return names.get(number, f"question type {number}")
    if name == "scienceqa":
        return _SUBJECTS.get(str(row.get("subject")))
    if name == "gqa":
        return fields.plain(as_dict(row.get("types")).get("structural"))
    if name == "vqa":
        return fields.plain(row.get("answer_type"))
    if name == "mmmu" and len(words := (fields.identity(row) or "").split("_")) > 2:
        return "_".join(words[1:-1])
    return fields.category(row)


def _reference(chosen: Benchmark, item: Item, options: Mapping[str, str]) -> str:
    """What is right, as a person reads it; the rules take it from the row. Raises `DataError` for what cannot be."""
    if chosen.name == "refcoco":
        return "[" + ", ".join(f"{edge:.2f}" for edge in reference_box(item)) + "]"
    known = Counter(texts(item.reference)).most_common(1)
    told = known[0][0].strip() if known else ""
    expected = "an answer"
    if chosen.name in CHOICE and str(item.about.get("question_type")) != "open" and (options or chosen.name != "mmmu"):
        told, expected = letter(item, options) or "", "the letter of an option"
        if options and told not in options:
            told, expected = "", f"one of {', '.join(options)}"
    elif chosen.name in YES_NO:
        told, expected = told if told.lower().rstrip(".") in ("yes", "no") else "", "yes or no"
    if not told:
        where = f"{chosen.name}, row {item.identity}"
        raise DataError(
            where, found=f"the reference {item.reference!r}", expected=expected, fix=f"it needs {chosen.files}"
        )
    return told


# --- files ----------------------------------------------------------------------------------------------------------


def _check_pictures(asked: Sequence[Conversation], pictures: Pictures, images: Path | str) -> None:
    """Raise where not a single picture is there; a few that are missing are rows that say so."""
    named = [image for one in asked for image in one.images]
    if named and not any(Path(str(pictures.resolve(image)).partition("#")[0]).is_file() for image in named):
        raise DataError(
            str(images),
            found=f"no picture {named[0].path}",
            expected="the benchmark's pictures",
            fix="give --images FOLDER",
        )


def _hashes(paths: Sequence[Path]) -> dict[str, str]:
    """Name to SHA-256; of a folder that of the names and hashes in it."""
    import hashlib

    def one(path: Path) -> str:
        if path.is_file():
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        inside = [f"{file.relative_to(path)} {one(file)}" for file in score_files.files_of(path)]
        return hashlib.sha256("\n".join(inside).encode()).hexdigest()

    return {path.name: one(path) for path in paths}
