"""Conversations: written, judged, and shown as a model reads them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from workbench.commands.common import AddVerb, add_json, positive, show
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.instruct.limits import Budget
    from workbench.instruct.loop import Outcome


def _generate(given: argparse.Namespace) -> int:
    from workbench.data.dataset import Dataset
    from workbench.instruct.generator import estimate, generate
    from workbench.instruct.material import WHAT

    tasks = _counted(given.tasks) if given.tasks else None
    wanted = {"teacher": given.teacher, "tasks": tasks, "question": given.question or WHAT, "limit": given.limit}
    asked = {**wanted, "prices": given.prices, "again": given.again}
    dataset = Dataset.open(given.dataset)
    if given.estimate:
        told = estimate(dataset, **asked)
        show(given, told, told.summary())
        return 0
    made = generate(dataset, **asked, seed=given.seed, budget=_budget(given), script=given.script)
    show(given, made, made.summary())
    return _ended(made.outcome)


def _budget(given: argparse.Namespace) -> Budget:
    from workbench.instruct.limits import Budget

    return Budget(money=given.max_money, tokens=given.max_tokens, calls=given.max_calls, seconds=given.max_seconds)


def _ended(outcome: Outcome | None) -> int:
    if outcome is None or outcome.stopped is None:
        return 0
    return 130 if outcome.stopped == "interrupted" else 0 if outcome.asked or outcome.stored else 1


def _judge(given: argparse.Namespace) -> int:
    from workbench.data.dataset import Dataset
    from workbench.instruct.judging import judge_dataset

    judged = judge_dataset(
        Dataset.open(given.dataset),
        given.judge,
        rubric=given.rubric,
        accept_from=given.accept_from,
        limit=given.limit,
        reject=given.reject,
        prices=given.prices,
        budget=_budget(given),
    )
    if given.out:
        judged.table.write_csv(given.out)
    show(given, judged, judged.summary())
    return _ended(judged.outcome)


def _counted(tasks: Sequence[str]) -> dict[str, int]:
    """`conversation=3` is three for each image, `detail` one."""
    counts = {}
    for text in tasks:
        name, _, count = text.partition("=")
        if count and not count.isdecimal():
            raise DataError(f"task {text!r}", found=f"{count!r}", expected="a whole number, as in conversation=3")
        counts[name] = int(count or 1)
    return counts


def _render(given: argparse.Namespace) -> int:
    from workbench.model.render_file import render_file

    return render_file(given.file, given.template, given.tokenizer, show=given.show)


def _add_budget(add: Callable[..., Any]) -> None:
    add("--max-money", type=float, metavar="USD", help="stop before more is spent")
    add("--max-tokens", type=positive, metavar="N", help="stop before more tokens are used")
    add("--max-calls", type=positive, metavar="N", help="stop after so many calls")
    add("--max-seconds", type=float, metavar="S", help="ask nothing new after so many seconds")


def add_verbs(verb: AddVerb) -> None:
    """The verbs of this module."""
    add = verb(
        "generate",
        _generate,
        "Write conversations about a dataset's images: by rules from what is known about them, or by any teacher.",
        "generate data/holiday",
        "generate data/holiday --teacher gpt-4o-mini@https://api.openai.com/v1 --tasks conversation=2 --estimate",
        "generate data/holiday --teacher teacher.yaml --tasks reasoning --max-money 5",
        "generate data/holiday --teacher local:models/qwen-vl --tasks own.jinja --limit 20",
    ).add_argument
    add("dataset", metavar="DATASET", help="dataset folder")
    teachers = "rules (no network), MODEL@URL, local:MODEL or a YAML file (default: %(default)s)"
    add("--teacher", default="rules", help=teachers)
    names = (
        "caption, conversation, detail, reasoning, short_answer, multiple_choice, grounding, refusal, or a .jinja file"
    )
    add("--tasks", nargs="+", metavar="TASK", help=f"{names}; TASK=N for N of each image (default: what fits)")
    add("--question", metavar="TEXT", help="how the class of a picture is asked for (default: What is this?)")
    add("--seed", type=int, default=0, help="another seed words other conversations (default: %(default)s)")
    add("--limit", type=positive, metavar="N", help="the first N images only")
    add("--estimate", action="store_true", help="say calls, tokens, cost and three prompts, and ask nothing")
    add("--again", action="store_true", help="ask once more for what a check rejected")
    add("--script", default="latin", help="what answers are to be written in: latin, cjk, cyrillic, ... (%(default)s)")
    add("--prices", metavar="FILE", help="prices of teachers, laid over the shipped ones")
    _add_budget(add)
    add_json(add)

    add = verb(
        "judge",
        _judge,
        "Have a model score a dataset's conversations from 1 to 10, and compare it with people's verdicts.",
        "judge data/holiday --judge gpt-4o@https://api.openai.com/v1 --limit 100 --max-money 1",
        "judge data/holiday --judge judge.yaml --rubric mine.jinja --reject --out scores.csv",
    ).add_argument
    add("dataset", metavar="DATASET", help="dataset folder")
    add("--judge", required=True, metavar="MODEL", help="MODEL@URL, local:MODEL or a YAML file, as a teacher is named")
    add("--rubric", metavar="FILE", help="a prompt of your own, with {{ conversation }} in it")
    add("--accept-from", type=positive, default=7, metavar="N", help="score that is good enough (default: %(default)s)")
    add("--reject", action="store_true", help="reject what scores lower; what a person accepted or edited stays")
    add("--limit", type=positive, metavar="N", help="the first N conversations only")
    add("--out", metavar="CSV", help="write id, score, verdict and reason of each there")
    add("--prices", metavar="FILE", help="prices of models, laid over the shipped ones")
    _add_budget(add)
    add_json(add)

    add = verb(
        "render",
        _render,
        "Print the ids and labels of conversations, one JSON object each; a bad one gives its id and error.",
        "render conversations.json --template v1 --tokenizer vicuna/tokenizer.model",
        "render conversations.jsonl --template plain --tokenizer models/vicuna --show",
    ).add_argument
    add("file", metavar="FILE", help="LLaVA .json or .jsonl")
    names = "plain, v1, llava_v1, llama_2, llama_3, mistral, gemma, phi, chatml, qwen, tiny, or a YAML file"
    add("--template", required=True, help=names)
    add("--tokenizer", required=True, metavar="DIR", help="tokenizer folder, or a sentencepiece tokenizer.model")
    add("--show", action="store_true", help="show the text on stderr too, the trained tokens in colour")
