"""How varied conversations are: tasks, first words, lengths, topics.

Knows: counting, a figure of it, and the section about it in a dataset card.
Does not know: whether any conversation is right (`checks.py`) or good (`judge.py`).
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.conversation import Conversation, as_conversation
from workbench.errors import ConversationError, kind_of
from workbench.instruct.checks import words
from workbench.instruct.parse import LETTER, WORD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 15
"""Rows of a table of frequencies."""
SHORT = 3
"""Words of an answer that is bound to occur elsewhere: yes, two, the red square."""
_COMMON = frozenset(
    "the and are was were with that this there what which who how many much does not from for has have had its his her "
    "their they them you your can could would should will into onto over under near image picture photo show shows "
    "shown where when why one two three four yes any all some other than then also being been question answer using "
    "single word phrase choose describe".split()
)
_COLOR, _OTHER_COLOR = "#4477aa", "#ddaa33"


@dataclass(frozen=True, repr=False)
class Diversity:
    """Frequencies over a set of conversations. Print it, `plot()` it; `card()` goes into a dataset card."""

    tasks: pl.DataFrame
    """Columns: task, conversations, share."""
    first_words: pl.DataFrame
    """The first two words of questions. Columns: words, count, share."""
    lengths: pl.DataFrame
    """One row a conversation. Columns: task, turns (questions), question_words, answer_words (of all together).

    LLaVA's "Answer the question using a single word or phrase." and its like do not count.
    """
    topics: pl.DataFrame
    """Words of answers that are not common English. Columns: word, conversations (that have it), share."""
    questions: int
    distinct_questions: int
    repeated_answers: float
    """Share of answers of more than three words that another conversation gives word by word."""

    def card(self) -> dict[str, Any]:
        """The section `conversations` of a dataset card: facts alone."""
        lengths = self.lengths
        return {
            "tasks": dict(self.tasks.select("task", "conversations").iter_rows()),
            "questions per conversation, median": lengths["turns"].median(),
            "words of all answers of a conversation, median": lengths["answer_words"].median(),
            "distinct questions": f"{self.distinct_questions:,} of {self.questions:,}",
            "answers that occur elsewhere word by word": f"{self.repeated_answers:.1%}",
            "most frequent beginnings": dict(self.first_words.select("words", "count").head(8).iter_rows()),
            "most frequent words": self.topics["word"].head(12).to_list(),
        }

    def __str__(self) -> str:
        return "\n".join(f"{name}: {_told(value)}" for name, value in self.card().items())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{name}</th><td>{html.escape(_told(value))}</td></tr>" for name, value in self.card().items())
        return f"<table>{''.join(rows)}</table>"

    def plot(self) -> Figure:
        """Four small plots: tasks, first words of questions, lengths, words of answers."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 7), layout="constrained")
        axes = figure.subplots(2, 2)
        _bars(axes[0][0], self.tasks, "conversations, by task")
        _bars(axes[0][1], self.first_words, "questions, by their first two words")
        _lengths(axes[1][0], self.lengths)
        _bars(axes[1][1], self.topics, "conversations, by words in their answers")
        return figure


def describe_conversations(conversations: Iterable[Conversation]) -> Diversity:
    """Count what conversations are like; they are read once, one by one.

    >>> wb.describe_conversations(dataset.iter_conversations()).questions > 100
    True
    """
    if not isinstance(conversations, Iterable):
        raise ConversationError("conversations", found=kind_of(conversations), expected="Conversations")
    tasks, starts, topics, asked, answers = (Counter[str]() for _ in range(5))
    lengths: list[tuple[str, int, int, int]] = []
    for one in map(as_conversation, conversations):
        questions = [_bare(message.text) for message in one.messages if message.role == "user"]
        said = [message.text for message in one.messages if message.role == "assistant"]
        spoken = [words(text) for text in said]
        tasks[one.task or "other"] += 1
        starts.update(" ".join(words(text)[:2]) for text in questions if words(text))
        asked.update(" ".join(text.lower().split()) for text in questions)
        answers.update({" ".join(text) for text in spoken if len(text) > SHORT})
        topics.update({word for text in spoken for word in text if _tells(word)})
        counts = len(questions), sum(len(words(text)) for text in questions), sum(map(len, spoken))
        lengths.append((one.task or "other", *counts))
    repeated = sum(count for count in answers.values() if count > 1)
    schema = {"task": pl.String, "turns": pl.Int64, "question_words": pl.Int64, "answer_words": pl.Int64}
    return Diversity(
        _table(tasks, "task", "conversations", most=None),
        _table(starts, "words", "count"),
        pl.DataFrame(lengths, schema=schema, orient="row"),
        _table(topics, "word", "conversations", of=len(lengths)),
        asked.total(),
        len(asked),
        repeated / max(1, answers.total()),
    )


def _bare(question: str) -> str:
    """A question without the line that says in which form to answer."""
    return "\n".join(line for line in question.splitlines() if line.strip() not in (WORD, LETTER))


def _tells(word: str) -> bool:
    """Whether a word says what a text is about; a Chinese or Japanese character is a word of its own."""
    return word not in _COMMON and not word.isdigit() and (len(word) > 2 or not word.isascii())


def _table(
    counts: Counter[str], name: str, amount: str, *, of: int | None = None, most: int | None = MOST
) -> pl.DataFrame:
    """The most frequent first; `share` is of all, or of `of`."""
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    frame = pl.DataFrame(rows, schema={name: pl.String, amount: pl.Int64}, orient="row")
    return frame.with_columns(share=pl.col(amount) / max(1, of or counts.total()))


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {count:,}" for key, count in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "none" if value is None else f"{value:,g}" if isinstance(value, float) else str(value)


def _lengths(axes: Any, lengths: pl.DataFrame) -> None:
    if lengths.height:
        both = [lengths[column].to_list() for column in ("question_words", "answer_words")]
        colors = [_OTHER_COLOR, _COLOR]
        axes.hist(both, bins=30, histtype="stepfilled", alpha=0.7, color=colors, label=["questions", "answers"])
        axes.legend(fontsize=8)
    axes.set_title("conversations, by the words of all their questions and answers", fontsize=10)
    axes.tick_params(labelsize=8)


def _bars(axes: Any, table: pl.DataFrame, title: str) -> None:
    """A bar for each row, the first on top, with its share behind it."""
    names, values, shares = (table.to_series(column).to_list()[::-1] for column in range(3))
    bars = axes.barh(names, values, color=_COLOR)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares], fontsize=7, padding=2)
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.12)
