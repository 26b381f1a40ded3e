"""An evaluation: conversations with references, how their answers are read and counted, and where their pictures lie.

Knows: the one shape that a person's held-out questions and every benchmark have, and baselines (another image).
Does not know: how a model answers (`running`), how a benchmark's files become conversations (`questions`), rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.chat_model import ChatModel
from workbench.conversation import Conversation, Media, Message, as_conversation
from workbench.data.dataset import Dataset
from workbench.errors import DataError, kind_of
from workbench.evaluation.benchmarks import BENCHMARKS, JUDGED
from workbench.evaluation.pictures import for_model
from workbench.evaluation.reading import JudgeRules, Rules, rules
from workbench.evaluation.results import Results
from workbench.evaluation.running import Asking, run
from workbench.evaluation.scorers import SCORERS

if TYPE_CHECKING:
    from workbench.evaluation.judges import Judge


@dataclass(frozen=True)
class Evaluation:
    """Questions with references, asked greedily.

    A conversation's `metadata` may say: `type`, the part it counts in; `item`, the question it is one form of;
    `about`, the published row; `candidates`, the answers there are to choose from.
    """

    name: str
    conversations: Sequence[Conversation]
    """Each ends with its reference."""
    rules: Rules
    max_tokens: int
    """Tokens of an answer at most."""
    resolve: Callable[[Media], Path] | None = None
    """Where a picture lies; None where the model is to open it its own way."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else decides the questions: files with their hashes, split, prompts."""
    roots: Mapping[str, Path] = field(default_factory=dict)
    """Where pictures lie, so that results can show them."""
    around: Mapping[str, Any] = field(default_factory=dict)
    """What a benchmark's files tell around their rows."""
    dataset: Path | None = None
    """The folder of the dataset that the questions are of."""
    notes: Sequence[str] = ()
    """What a person should know of how the questions were read."""

    def __post_init__(self) -> None:
        if not self.conversations:
            raise DataError(
                "evaluate", found="no conversation", expected="held-out questions", fix="run generate first"
            )
        seen: set[str] = set()
        for asked in self.conversations:
            where = f"conversation {asked.id}"
            if asked.reference is None:
                raise DataError(where, found="no answer at its end", expected="a reference to compare with")
            if asked.id in seen:
                raise DataError(where, found="its id a second time", expected="one id for each question")
            seen.add(asked.id)


def evaluate(
    model: ChatModel | Path | str,
    questions: Evaluation | Sequence[Conversation] | Dataset | Path | str,
    *,
    data: Sequence[Path | str] | Path | str = (),
    images: Path | str | None = None,
    split: str | None = "test",
    tasks: Sequence[str] | None = ("question",),
    scorer: str = "normalised",
    prompts: str = "llava",
    frames: int | None = None,
    limit: int | None = None,
    max_tokens: int | None = None,
    out: Path | str | None = None,
    reuse: bool = True,
    likelihood: bool = False,
    slices: Sequence[str] = (),
    judge: Judge | None = None,
    rubric: Path | str | None = None,
    description: str = "asking",
) -> Results:
    """Ask a model the questions and score its answers.

    model: a `ChatModel`, or what `open_model` opens. questions: conversations (the model opens their pictures its own
    way), a dataset folder (its held-out `split`, of these `tasks`; None is all, and a conversation without a task is a
    question), or a benchmark's name with its published files in `data` and pictures below `images`. Of a conversation
    of several turns the last question is asked, with all before it as it stands there.
    prompts: `llava`, worded as LLaVA's evaluation does, or `question`. frames: of a benchmark's videos, as pictures; by
    default whole videos for a model that reads them, and their middle frame for another.
    scorer: how answers to a person's own questions are compared; a benchmark has its own rule.
    out: a folder that keeps everything and goes on where it was stopped. reuse: share what an image costs among its
    questions and stop a question at its first wrong rotation; False is one row after the other. likelihood: take the
    likeliest of the answers there are to choose from, where these are known, and write nothing.
    slices: scores of these kinds of pictures and questions too, as for `wb.slices`. judge: a model that scores the
    answers against their references (scorer `judge`), by the shipped rubric or your own.

    Raises DataError where there is nothing to ask, a file is missing, a conversation has no reference, or the scorer is
    unknown; a row that fails is a row with its error.

    >>> results = wb.evaluate(wb.ScriptedModel(lambda asked: "yes", name="yes"), "data")
    >>> results.model, 0 < results.accuracy < 1
    ('yes', True)
    """
    scorer = "judge" if judge is not None else scorer
    asked = questions_of(
        questions,
        data=data,
        images=images,
        split=split,
        tasks=tasks,
        scorer=scorer,
        prompts=prompts,
        frames=frames,
        limit=limit,
    )
    if isinstance(asked.rules, JudgeRules) != (judge is not None):
        found = "a judge beside the benchmark's own rule" if judge is not None else "no judge"
        fix = "leave out the judge" if judge is not None else "name the model that judges: --judge MODEL@URL, judge="
        raise DataError(f"evaluate {asked.name}", found=found, fix=fix)
    if judge is not None and out is None and asked.dataset is None:
        raise DataError("evaluate", found="a judge, and no place for its replies", fix="give out=FOLDER, or --out")
    if max_tokens is not None:
        asked = replace(asked, max_tokens=max_tokens)
    slices = [slices] if isinstance(slices, str) else slices
    if slices:  # a mistake in them is told before anything is asked
        from workbench.evaluation.slices import check_slices

        check_slices(asked.dataset, slices)
    if isinstance(model, Path | str):
        from workbench.inference.opening import open_model

        model = open_model(model)
    results = run(for_model(asked, model), model, out, Asking(reuse, likelihood), description)
    if judge is None and not slices:
        return results
    from workbench.evaluation.private import finished

    return finished(results, judge, slices, rubric=rubric)


def questions_of(
    questions: Evaluation | Sequence[Conversation] | Dataset | Path | str,
    *,
    data: Sequence[Path | str] | Path | str = (),
    images: Path | str | None = None,
    split: str | None = "test",
    tasks: Sequence[str] | None = ("question",),
    scorer: str = "normalised",
    prompts: str = "llava",
    frames: int | None = None,
    limit: int | None = None,
) -> Evaluation:
    """What `evaluate` asks, before any model is there. Raises as it does."""
    if scorer not in (*SCORERS, JudgeRules.name):
        raise DataError("evaluate", found=f"scorer {scorer!r}", expected=f"one of {', '.join(SCORERS)}, judge")
    if isinstance(questions, Evaluation):
        found = questions
    elif isinstance(questions, str) and questions in BENCHMARKS:
        from workbench.evaluation.questions import read_benchmark

        found = read_benchmark(questions, data, images, prompts=prompts, frames=frames)
    elif isinstance(questions, str) and questions in JUDGED:
        from workbench.evaluation.judged import read_judged

        found = read_judged(questions, data, images)
    elif isinstance(questions, str) and not Path(questions).exists():
        near = get_close_matches(questions, [*BENCHMARKS, *JUDGED], 1)
        fix = f"did you mean {near[0]}?" if near else "`workbench benchmarks` lists the benchmarks"
        raise DataError(questions, found="no such folder", expected="a dataset folder, or a benchmark", fix=fix)
    elif isinstance(questions, Dataset | Path | str):
        found = held_out(questions, split, tasks, scorer)
    elif not isinstance(questions, Sequence):
        expected = "conversations, a dataset or its folder, or the name of a benchmark"
        raise DataError("evaluate", found=kind_of(questions), expected=expected)
    else:
        asked = [as_conversation(one) for one in questions]  # type: ignore[arg-type]
        found = Evaluation("conversations", asked, rules(scorer), _longest(scorer))
    return found if limit is None else replace(found, conversations=found.conversations[:limit])


def _longest(scorer: str) -> int:
    """Tokens of an answer at most: one that is judged may be long."""
    return 256 if scorer == JudgeRules.name else 24


def held_out(dataset: Dataset | Path | str, split: str | None, tasks: Sequence[str] | None, scorer: str) -> Evaluation:
    """The held-out conversations of a dataset as an evaluation; None is every split, or every task.

    A conversation without a task is a question. Raises `DataError` where there are none.
    """
    data = Dataset.open(dataset)
    there = list(data.iter_conversations(split))
    asked = [one for one in there if tasks is None or (one.task or "question") in tasks]
    if not asked:
        raise _nothing_held_out(data, split, tasks, sorted({one.task or "question" for one in there}))
    chosen = {"split": split, "tasks": None if tasks is None else list(tasks)}
    where = data.path.absolute()
    return Evaluation(
        data.name, asked, rules(scorer), _longest(scorer), data.resolver(), chosen, data.roots, dataset=where
    )


def _nothing_held_out(data: Dataset, split: str | None, tasks: Sequence[str] | None, there: Sequence[str]) -> DataError:
    found = f"no {' or '.join(tasks or ('conversation',))}" + (f" in split {split}" if split else "")
    if there:
        expected, fix = f"tasks of that split: {', '.join(there)}", "--tasks and --split choose"
        return DataError(str(data.path), found=found, expected=expected, fix=fix)
    others = Counter(one.split or "none" for one in data.iter_conversations()) if split else {}
    if others:
        told = ", ".join(f"{name} ({count:,})" for name, count in sorted(others.items()))
        fix = "--split all (split=None) asks all of them; `workbench split` (wb.split) keeps some apart before training"
        return DataError(str(data.path), found=found, expected=f"one of its splits: {told}", fix=fix)
    return DataError(str(data.path), found=found, fix="`workbench generate` writes some; --split chooses")


def derange(conversations: Sequence[Conversation], *, seed: int) -> list[Conversation]:
    """The same questions, each shown the image or video of another: a seeded derangement, none in its place.

    Raises DataError with fewer than two of them.
    """
    images = sorted({shown for asked in conversations for shown in asked.media[:1]}, key=lambda shown: shown.path)
    if len(images) < 2:
        raise DataError("blind baseline", found=f"{len(images)} image", expected="at least two held-out images")
    order = [int(index) for index in np.random.default_rng(seed).permutation(len(images))]
    # One cycle through a random order: every image goes to its successor, so none stays.
    other = {images[a]: images[b] for a, b in zip(order, [*order[1:], order[0]], strict=True)}
    return [_with_images(asked, other) for asked in conversations]


def _with_images(asked: Conversation, other: Mapping[Any, Media]) -> Conversation:
    messages = tuple(
        Message(turn.role, tuple(part if isinstance(part, str) else other.get(part, part) for part in turn.content))
        for turn in asked.messages
    )
    return replace(asked, messages=messages)
