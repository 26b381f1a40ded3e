"""Several models answer the same questions: answers side by side, what differs marked, and a person's votes kept.

Knows: between which answers a person can vote, and that a failure is none.
Does not know: how models answer, which words differ (`differing.py`), the file of votes (`vote_file.py`), or how it
looks (`votes.js`, `votes.css`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import traitlets

from workbench.chat_model import GREEDY, ChatModel, SamplingOptions
from workbench.conversation import Conversation, Image, Message, new_id, placed
from workbench.data.dataset import Dataset
from workbench.data.images import thumbnail_uri
from workbench.data.video import still
from workbench.errors import DataError, WorkbenchError, kind_of
from workbench.inference.attachments import Attached, attached_for, open_file, seen_by
from workbench.inference.opening import open_model
from workbench.widgets.base import View, front
from workbench.widgets.differing import marked, said
from workbench.widgets.pictures import Opener, opener
from workbench.widgets.static import page
from workbench.widgets.vote_file import VoteFile

SIDE = 200
"""Pixels of the pictures at most."""
EQUAL = "equal"
"""A vote that none is better."""
Question = str | Conversation


class AnswersView(View):
    """The widget. `rows` are {id, earlier, question, reference, picture, answers, failures, vote}.

    earlier: what was said before the question, {role, text} each. answers: [[text, differs]] of each model, or null;
    failures: why there is no answer, or null; both null while a model is asked.
    A vote is the name of a model, or `equal`; the last one of a question counts. `tally` counts them.
    """

    _esm, _css = front("votes")
    ACTIONS = ("vote",)
    names: traitlets.List[Any] = traitlets.List().tag(sync=True)
    rows: traitlets.List[Any] = traitlets.List().tag(sync=True)
    blind = traitlets.Bool().tag(sync=True)
    """Whether names are hidden until a question has a vote."""

    def __init__(self, models: Mapping[str, ChatModel], questions: Sequence[Conversation], **given: Any) -> None:
        self._models, self._questions = dict(models), list(questions)
        self._open_image: Opener = given.pop("open_image")
        self._options: SamplingOptions = given.pop("options")
        self._resolve: Callable[[Image], Path] | None = given.pop("resolve")
        self._votes: VoteFile | None = given.pop("votes")
        before = self._votes.last() if self._votes else {}
        rows = [self._row(one, before.get(one.id)) for one in self._questions]
        super().__init__(names=list(self._models), rows=rows, **given)
        self._thread = threading.Thread(target=self._ask_all, name="answers", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {count}" for name, count in self.tally.items())
        return f"{len(self.rows)} questions to {', '.join(self.names)}; votes: {told or 'none yet'}"

    @property
    def tally(self) -> dict[str, int]:
        """Votes by model name, and `equal`."""
        cast = [row["vote"] for row in self.rows if row["vote"]]
        return {name: cast.count(name) for name in (*self.names, EQUAL) if name in cast}

    def wait(self) -> AnswersView:
        """Until every model has answered."""
        self._thread.join()
        return self

    def html(self) -> str:
        return page("votes", names=self.names, rows=self.rows, tally=self.tally)

    def act(self, action: str, given: dict[str, Any]) -> None:
        self.vote(int(given.get("number", -1)), str(given.get("name")))

    def vote(self, number: int, name: str) -> None:
        """Say which model answered question `number` best. Raises `DataError` for a question or name that is not there,
        and for a model that did not answer."""
        if not 0 <= number < len(self.rows) or name not in (*self.names, EQUAL):
            raise DataError(
                f"vote on question {number}", found=repr(name), expected=f"{', '.join(self.names)} or equal"
            )
        row = self.rows[number]
        answers = {key: said(one) for key, one in zip(self.names, row["answers"], strict=True) if one is not None}
        if name != EQUAL and name not in answers or name == EQUAL and len(answers) < 2:
            found = f"no answer of {name}" if name != EQUAL else f"{len(answers)} of {len(self.names)} answers"
            raise DataError(f"vote on question {number}", found=found, expected="a vote between answers")
        if self._votes is not None:
            self._votes.add(row["id"], name, row["question"], answers)
        self._put(number, vote=name)

    def _row(self, asked: Conversation, before: str | None) -> dict[str, Any]:
        picture = None
        with suppress(DataError):  # the models say themselves what is wrong with a picture
            picture = thumbnail_uri(still(self._open_image(asked.media[0])), SIDE) if asked.media else None
        vote = before if before in (*self._models, EQUAL) else None
        *before_it, last = asked.prompt.messages
        earlier = [{"role": one.role, "text": _told(one)} for one in before_it]
        row = {"id": asked.id, "earlier": earlier, "question": last.text, "reference": asked.reference}
        empty = [None] * len(self._models)
        return {**row, "picture": picture, "answers": empty, "failures": empty, "vote": vote}

    def _put(self, number: int, **changed: Any) -> None:
        rows = list(self.rows)
        rows[number] = {**rows[number], **changed}
        self.rows = rows

    def _ask_all(self) -> None:
        for number, asked in enumerate(self._questions):
            tried = [self._ask(model, asked.prompt) for model in self._models.values()]
            pieces = iter(marked([text for text, failure in tried if failure is None]))
            answers = [next(pieces) if failure is None else None for _, failure in tried]
            self._put(number, answers=answers, failures=[failure for _, failure in tried])

    def _ask(self, model: ChatModel, prompt: Conversation) -> tuple[str, str | None]:
        """(answer, None), or (nothing, why there is none)."""
        try:
            return model.reply(self._sent(model, prompt), self._options).text.strip(), None
        except WorkbenchError as error:
            return "", str(error)
        except Exception as error:  # of a model that is not ours: shown, or the others would never be asked
            return "", f"{type(error).__name__}: {error}"

    def _sent(self, model: ChatModel, prompt: Conversation) -> Conversation:
        """A model that opens files is told where they lie; one with an opener of its own knows better. One that reads
        pictures only is shown frames of a video."""
        files = getattr(model, "open_image", None) is open_file
        return seen_by(model, placed(prompt, self._resolve) if files and self._resolve is not None else prompt)


def compare_answers(
    models: Mapping[str, ChatModel | str | Path] | Sequence[ChatModel | str | Path],
    questions: Dataset | Sequence[Question] | str,
    *,
    image: Attached | None = None,
    dataset: Dataset | str | Path | None = None,
    votes: str | Path | None = "votes.jsonl",
    blind: bool = False,
    limit: int = 20,
    options: SamplingOptions = GREEDY,
) -> AnswersView:
    """Ask several models the same questions and vote for the best answers.

    models: models, or what `wb.open_model` opens (runs, folders, `MODEL@URL`), as a list or by the names to show.
    questions: texts, all about `image` if there is one; conversations, whose last question is asked and last answer is
    the reference; or a dataset, the first `limit` of its held-out ones. dataset: where pictures of conversations lie.
    votes: the file that keeps votes, a line each; None keeps none. blind: names are hidden until a vote is cast.

    Raises `DataError` for fewer than two models, no question, or a `votes` file that holds anything else, and what
    opening a model raises.

    >>> models = [wb.ScriptedModel(["A cat."], name="one"), wb.ScriptedModel(["A dog."], name="two")]
    >>> wb.compare_answers(models, ["What is it?"], votes=None).wait()
    1 questions to one, two; votes: none yet
    """
    if isinstance(models, str) or not isinstance(models, (Mapping, Sequence)):
        raise DataError("compare_answers", found=kind_of(models), expected="a list of models, or models by name")
    named = models if isinstance(models, Mapping) else _named(models)
    if len(named) < 2:
        raise DataError("compare_answers", found=f"{len(named)} model", expected="at least two")
    if not isinstance(questions, (Dataset, Sequence)):
        raise DataError("compare_answers", found=kind_of(questions), expected="questions, conversations or a dataset")
    if isinstance(questions, Dataset):
        dataset, asked = questions, questions.conversations("test")[:limit]
    else:
        asked = _asked([questions] if isinstance(questions, str) else questions, image)
    if not asked:
        raise DataError("compare_answers", found="no question", expected="at least one")
    kept = None if votes is None else VoteFile(votes)
    open_image, resolve = opener(dataset), None if dataset is None else Dataset.open(dataset).resolver()
    opened = {name: open_model(one) for name, one in named.items()}  # of files: `AnswersView` says where they lie
    told = {"open_image": open_image, "resolve": resolve, "options": options, "votes": kept, "blind": blind}
    return AnswersView(opened, asked, **told)


def _named(models: Sequence[ChatModel | str | Path]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for one in models:
        name = shown = Path(one).name if isinstance(one, (str, Path)) else one.name
        while shown in named:
            shown = f"{name} {len(named) + 1}"
        named[shown] = one
    return named


def _asked(questions: Sequence[Question], image: Attached | None) -> list[Conversation]:
    media = attached_for(image) if image is not None else []  # a video is one, whatever each model makes of it
    named = str(image) if image is None or isinstance(image, (str, Path)) else media[0].path
    return [
        Conversation(new_id("question", one, named), (Message("user", (*media, one)),)) if isinstance(one, str) else one
        for one in questions
    ]


def _told(message: Message) -> str:
    """Its text, or the names of its pictures where it has no other."""
    return message.text.strip() or ", ".join(Path(media.path).name for media in message.media)
