"""MM-Vet: a judge says how far each answer is the ground truth, from 0 to 1.

Knows: how MM-Vet's `mm-vet_evaluator.py` asks, asks again, reads and counts. The prompt is read from that file.
Does not know: who answered the questions, or how a judge is asked (`judges.py`).

What the judge fails at after five tries is in no average; the published script counts it as 0.
"""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Message
from workbench.errors import DataError
from workbench.evaluation.judged_files import Asking, Row, asked_item, check_answered, mean, published, question_id
from workbench.evaluation.judges import Reply
from workbench.evaluation.tally import Parts, Tally

_NAME = "MM-Vet (GitHub yuweihao/MM-Vet, mm-vet.zip)"
_AGAIN = "\nPredict the correctness of the answer (digit): "
_TRIES = ((0.0, ""), (0.0, _AGAIN), (0.5, _AGAIN), (1.0, _AGAIN), (1.5, _AGAIN))
"""Temperature, and what is added to the prompt, of each try until a score is read."""


def questions(paths: Sequence[Path]) -> list[Row]:
    """The published questions, each with `image`, its ground truth as `reference`, and its capabilities together."""
    held = json.loads(published(paths, "mm-vet.json", f"the questions of {_NAME}").read_text(encoding="utf-8"))
    return [
        {**row, "question_id": name, "image": row["imagename"], "reference": row["answer"]}
        | {"category": "+".join(sorted(row["capability"]))}
        for name, row in held.items()
    ]


def score(paths: Sequence[Path], answers: Mapping[str, str], asking: Asking, only: Container[str] | None) -> Tally:
    """The mean correctness in percent, in all, by capability and by each mix of capabilities."""
    rows = [row for row in questions(paths) if only is None or question_id(row) in only]
    notes: list[str] = []
    check_answered(rows, answers, notes)
    prompt = published_prompt(published(paths, "mm-vet_evaluator.py", f"the evaluator with its prompt, of {_NAME}"))
    found: dict[str, float] = {}
    last: dict[str, Reply] = {}
    for number, (temperature, more) in enumerate(_TRIES):
        asked = {}
        for row in rows:
            if (name := question_id(row)) not in found:
                message = Message("user", (_text(prompt, row, answers) + more,))
                asked[f"{name} {number}"] = Conversation(name, (message,))
        if asked:
            replies = asking(asked, SamplingOptions(temperature=temperature, max_tokens=3))
            last = {name.split(" ")[0]: reply for name, reply in replies.items()}
            read_now = {name: read_correctness(reply) for name, reply in last.items() if isinstance(reply, str)}
            found |= {name: value for name, value in read_now.items() if value is not None}
    unread = [question_id(row) for row in rows if question_id(row) not in found]
    if unread:
        told = " ".join(str(last[unread[0]]).split())[:100]
        notes.append(f"the judge failed at {len(unread)} question(s); they are in no average; the first: {told!r}")
    if not found:
        raise DataError("judge", found="a score in no reply", expected="a number from 0 to 1", fix=notes[-1])
    parts = _parts(rows, found)
    marked = [(asked_item(row, answers), found[question_id(row)]) for row in rows if question_id(row) in found]
    return Tally(100 * mean(list(found.values())), len(found), parts, len(unread), tuple(notes), marked=marked)


def published_prompt(evaluator: Path) -> str:
    """The text that the published evaluator calls `prompt`; the file is read, not run. Raises `DataError`."""
    try:
        tree = ast.parse(evaluator.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise DataError(str(evaluator), found=f"no Python ({error})", expected="MM-Vet's evaluator") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(one, ast.Name) and one.id == "prompt" for one in node.targets
        ):
            value = ast.literal_eval(node.value) if isinstance(node.value, ast.Constant) else None
            if isinstance(value, str):
                return value
    raise DataError(str(evaluator), found="no text named prompt", expected="MM-Vet's mm-vet_evaluator.py")


def _text(prompt: str, row: Row, answers: Mapping[str, str]) -> str:
    truth = row["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return prompt + "\n" + " | ".join([row["question"], truth, answers.get(question_id(row), ""), ""])


def read_correctness(reply: str) -> float | None:
    """The number from 0 to 1 that a reply begins with, else None.

    >>> read_correctness("0.4 |"), read_correctness("1.5"), read_correctness("The")
    (0.4, None, None)
    """
    try:
        value = float(reply.split(" ")[0].strip())
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def _parts(rows: Sequence[Row], found: Mapping[str, float]) -> Parts:
    """Each capability, the commonest first, then each mix of several."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if question_id(row) in found:
            capabilities = sorted(set(row["capability"]))
            for name in {*capabilities, "+".join(capabilities)}:
                groups[name].append(found[question_id(row)])
    order = sorted(groups, key=lambda name: ("+" in name, -len(groups[name]), name))
    return {name: {"score": 100 * mean(groups[name]), "n": len(groups[name])} for name in order}
