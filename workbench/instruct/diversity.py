"""How varied conversations are: tasks, first words, lengths, topics.

Knows: counting, a figure of it, and the section about it in a dataset card.
Does not know: whether any conversation is right (`checks.py`) or good (`judge.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.conversation import Conversation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 15
"""Rows of a table of frequencies."""
_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMON = frozenset(
    "the and are was were with that this there what which who how many much does not from for has have had its his her "
    "their they them you your can could would should will into onto over under near image picture photo show shows "
    "shown where when why one two three four yes any all some other than then also being been question answer using single "
    "word phrase choose describe".split()
)


@dataclass(frozen=True)
class Diversity:
    """Frequencies over a set of conversations."""

    tasks: pl.DataFrame
    """Columns: task, conversations, share."""
    first_words: pl.DataFrame
    """The first two words of questions. Columns: words, count, share."""
    lengths: pl.DataFrame
    """One row a conversation. Columns: task, turns, question_words, answer_words (of all its questions and answers)."""
    topics: pl.DataFrame
    """Words of answers that are not common English, by the conversations they are in. Columns: word, conversations."""
    questions: int
    distinct_questions: int
    repeated_answers: float
    """Share of answers of four words or more that another conversation gives word by word."""

    def card(self) -> dict[str, Any]:
        """The section `conversations` of a dataset card: facts alone."""
        lengths = self.lengths
        return {
            "tasks": dict(self.tasks.select("task", "conversations").iter_rows()),
            "turns per conversation, median": lengths["turns"].median(),
            "words of all answers of a conversation, median": lengths["answer_words"].median(),
            "distinct questions": f"{self.distinct_questions:,} of {self.questions:,}",
            "answers that occur elsewhere word by word": f"{self.repeated_answers:.1%}",
            "most frequent beginnings": dict(self.first_words.select("words", "count").head(8).iter_rows()),
            "most frequent words": self.topics["word"].head(12).to_list(),
        }

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.card().items())

    def plot(self) -> Figure:
        """Four small plots: tasks, first words, length of answers, topics."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 7), layout="constrained")
        axes = figure.subplots(2, 2)
        _bars(axes[0][0], self.tasks["task"], self.tasks["conversations"], "conversations by task")
        _bars(axes[0][1], self.first_words["words"], self.first_words["count"], "first words of questions")
        axes[1][0].hist(self.lengths["answer_words"].to_list(), bins=30, color="#4477aa")
        axes[1][0].set_title("words in the answers of a conversation", fontsize=10)
        _bars(axes[1][1], self.topics["word"], self.topics["conversations"], "words, by conversations they are in")
        return figure


def describe_conversations(conversations: Iterable[Conversation]) -> Diversity:
    """Count what conversations are like: `print` it, `.plot()` it, `.card()` goes into a dataset card."""
    tasks: Counter[str] = Counter()
    starts: Counter[str] = Counter()
    topics: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    lengths: list[tuple[str, int, int, int]] = []
    for one in conversations:
        task = one.task or "other"
        questions = [message.text for message in one.messages if message.role == "user"]
        said = [message.text for message in one.messages if message.role == "assistant"]
        tasks[task] += 1
        starts.update(" ".join(text.split()[:2]).lower() for text in questions if text.strip())
        asked.update(text.strip().lower() for text in questions)
        answers.update(text.strip().lower() for text in said if len(text.split()) > 3)
        topics.update({word for text in said for word in _WORD.findall(text.lower())} - _COMMON)
        lengths.append((task, len(questions), _words(questions), _words(said)))
    repeated = sum(count for count in answers.values() if count > 1)
    return Diversity(
        _table(tasks, ("task", "conversations"), share=True, most=None),
        _table(starts, ("words", "count"), share=True),
        pl.DataFrame(lengths, schema=["task", "turns", "question_words", "answer_words"], orient="row"),
        _table(topics, ("word", "conversations")),
        asked.total(),
        len(asked),
        repeated / max(1, answers.total()),
    )


def _table(
    counts: Counter[str], names: tuple[str, str], *, share: bool = False, most: int | None = MOST
) -> pl.DataFrame:
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    schema: dict[str, Any] = {names[0]: pl.String, names[1]: pl.Int64}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return frame.with_columns(share=pl.col(names[1]) / max(1, counts.total())) if share else frame


def _words(texts: Iterable[str]) -> int:
    return sum(len(text.split()) for text in texts)


def _bars(axes: Any, names: pl.Series, values: pl.Series, title: str) -> None:
    axes.barh(names.to_list()[::-1], values.to_list()[::-1], color="#4477aa")
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
