"""LLaVA-Bench-in-the-wild: a judge scores each answer beside the reference answer of a text-only GPT-4.

Knows: how LLaVA's `eval_gpt_review_bench.py` asks and reads and `summarize_gpt_review.py` counts. The judge's rule is
read from the published `rule.json`.
Does not know: who answered the questions, or how a judge is asked (`judges.py`).

Each pair is shown in both orders; the score is that of the published one, with the reference first. What the judge
fails at is in no average; the published script counts it as -1.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Message
from workbench.errors import DataError, WorkbenchError
from workbench.evaluation.judged_files import (
    Asking,
    Row,
    answers_of,
    asked_item,
    check_answered,
    mean,
    published,
    question_id,
)
from workbench.evaluation.score_files import read
from workbench.evaluation.tally import Parts, Tally

_NAME = "LLaVA-Bench-in-the-wild (Hub dataset liuhaotian/llava-bench-in-the-wild; the rule is LLaVA's)"
_SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
_OPTIONS = SamplingOptions(temperature=0.2, max_tokens=1024)
ORDERS = {"published": ("reference", "answer"), "swapped": ("answer", "reference")}
"""Whose text the judge is shown as the first assistant's and whose as the second's."""
Pair = tuple[float, float]
"""The judge's scores of the reference and of the answer."""


def questions(paths: Sequence[Path]) -> list[Row]:
    """The published questions, each with `question` and its GPT-4 answer as `reference`."""
    rows = read([published(paths, "questions.jsonl", f"the questions of {_NAME}")]).rows
    given = answers_of(published(paths, "answers_gpt4.jsonl", f"the reference answers of {_NAME}"))
    return [{**row, "question": row["text"], "reference": given.get(question_id(row))} for row in rows]


def score(paths: Sequence[Path], answers: Mapping[str, str], asking: Asking, only: Container[str] | None) -> Tally:
    """The answers' mean as percent of the references', in all and by category, as `summarize_gpt_review.py` has it."""
    rows = [row for row in questions(paths) if only is None or question_id(row) in only]
    notes: list[str] = []
    check_answered(rows, answers, notes)
    replies = asking(_asked(paths, rows, answers), _OPTIONS)
    pairs: dict[str, dict[str, Pair]] = {order: {} for order in ORDERS}
    why = ""
    for name, reply in replies.items():
        order, _, question = name.partition(" ")
        found = None if isinstance(reply, WorkbenchError) else read_pair(reply)
        if found is None:
            why = why or f"; the first: {' '.join(str(reply).split())[:100]!r}"
        else:
            pairs[order][question] = found if order == "published" else (found[1], found[0])
    lost = {order: len(rows) - len(held) for order, held in pairs.items()}
    if any(lost.values()):
        told = f"the judge failed at {lost['published']} question(s) as published and {lost['swapped']} swapped"
        notes.append(f"{told}; they are in no average of that order{why}")
    categories = {question_id(row): str(row["category"]) for row in rows}
    parts = _parts(pairs, categories)
    if "all" not in parts:
        raise DataError("judge", found=f"no pair of scores in any reply{why}", expected="two numbers in the first line")
    moved = parts["all, swapped"]["score"] - parts["all"]["score"] if "all, swapped" in parts else None
    notes.append("the reference stands first, as published" + ("" if moved is None else f"; swapped: {moved:+.1f}"))
    whole = parts["all"]
    marked = [(asked_item(row, answers), pairs["published"][question_id(row)][1] / 10) for row in rows
              if question_id(row) in pairs["published"]]  # fmt: skip
    return Tally(whole["score"], whole["n"], parts, lost["published"], tuple(notes), marked=marked)


def _asked(paths: Sequence[Path], rows: Sequence[Row], answers: Mapping[str, str]) -> dict[str, Conversation]:
    contexts = {row["image"]: row for row in read([published(paths, "context.jsonl", f"the contexts of {_NAME}")]).rows}
    file = published(paths, "rule.json", "llava/eval/table/rule.json of GitHub haotian-liu/LLaVA")
    rules = json.loads(file.read_text(encoding="utf-8"))
    asked = {}
    for row in rows:
        question = question_id(row)
        known = {"rule": rules.get(f"llava_bench_{row['category']}"), "context": contexts.get(row["image"])}
        for what, value in {**known, "reference answer": row["reference"]}.items():
            if value is None:
                where = f"question {question}"
                raise DataError(where, found=f"no {what} for it", expected="one in the published files")
        texts = {"reference": row["reference"], "answer": answers.get(question, "")}
        for order, shown in ORDERS.items():
            text = _text(known["context"]["caption"], row["text"], [texts[one] for one in shown], known["rule"])
            name = f"{order} {question}"
            asked[name] = Conversation(name, (Message("system", (_SYSTEM,)), Message("user", (text,))))
    return asked


def _text(caption: str | list[str], question: str, shown: Sequence[str], rule: Row) -> str:
    """As `eval_gpt_review_bench.py` writes it, to the last line break."""
    context = caption if isinstance(caption, str) else "\n".join(caption)
    role = rule["role"]
    said = [f"[{role} {n}]\n{text}\n\n[End of {role} {n}]\n\n" for n, text in enumerate(shown, 1)]
    return f"[Context]\n{context}\n\n[Question]\n{question}\n\n{''.join(said)}[System]\n{rule['prompt']}\n\n"


def read_pair(review: str) -> Pair | None:
    """The two scores in a review's first line; None where it does not hold exactly two from 0 to 10.

    Reads what the published `parse_score` reads, and pairs parted by a comma and a space, which that takes for errors.

    >>> read_pair("8 7.5\\nBoth are good."), read_pair("Assistant 1 is better.")
    ((8.0, 7.5), None)
    """
    words = review.strip().partition("\n")[0].replace(",", " ").split()
    try:
        found = [float(word) for word in words]
    except ValueError:
        return None
    return (found[0], found[1]) if len(found) == 2 and all(0 <= one <= 10 for one in found) else None


def _parts(pairs: Mapping[str, Mapping[str, Pair]], categories: Mapping[str, str]) -> Parts:
    """Score, and the means of both in percent, of all questions and each category, in each order and in both."""
    both = {
        question: (mean([one[0], other[0]]), mean([one[1], other[1]]))
        for question, one in pairs["published"].items()
        if (other := pairs["swapped"].get(question)) is not None
    }
    parts: Parts = {}
    for ending, held in {"": pairs["published"], ", swapped": pairs["swapped"], ", both orders": both}.items():
        groups: dict[str, list[Pair]] = defaultdict(list)
        for question, pair in held.items():
            groups["all"].append(pair)
            groups[categories[question]].append(pair)
        for name in ("all", *sorted(set(groups) - {"all"})):
            reference, answer = (mean([pair[place] for pair in groups[name]]) for place in (0, 1))
            if reference > 0:
                means = {"reference": 10 * reference, "answer": 10 * answer}
                parts[name + ending] = {"score": 100 * answer / reference, "n": len(groups[name]), **means}
    return parts
