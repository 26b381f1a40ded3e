"""Held-out conversations with references, asked of any chat model, and the table of what came back.

Knows: which conversations are scored, blind baselines (another image, a grey one), accuracy per question type.
Does not know: how the model answers; it takes any `ChatModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from workbench.chat_model import ChatModel, SamplingOptions
from workbench.conversation import Conversation, Image, Message
from workbench.errors import DataError
from workbench.evaluation.scorers import SCORERS
from workbench.progress import progress
from workbench.resources import write_atomic

BATCH = 64
"""Conversations handed to the model at once."""


@dataclass(frozen=True)
class Results:
    """One row per question: `id`, `type`, `image`, `root`, `question`, `reference`, `answer`, `right`."""

    rows: pl.DataFrame
    model: str
    scorer: str

    @property
    def accuracy(self) -> float:
        """Share of right answers, every question alike."""
        return float(self.rows["right"].mean() or 0.0)  # type: ignore[arg-type]

    @property
    def by_type(self) -> dict[str, float]:
        table = self.rows.group_by("type").agg(pl.col("right").mean()).sort("type")
        return {row["type"]: round(row["right"], 4) for row in table.iter_rows(named=True)}

    def summary(self) -> dict[str, Any]:
        """What `--json` prints: accuracy from 0 to 1, per type, and the number of questions."""
        fields = {"model": self.model, "scorer": self.scorer, "questions": len(self.rows)}
        return fields | {"accuracy": round(self.accuracy, 4), "by_type": self.by_type}

    def save(self, path: Path | str) -> Path:
        """Every row as one JSON line."""
        write_atomic(Path(path), self.rows.write_ndjson())
        return Path(path)

    def __str__(self) -> str:
        lines = [f"{self.model}: {self.accuracy:.3f} of {len(self.rows):,} questions right"]
        return "\n".join(lines + [f"  {kind:<10} {value:.3f}" for kind, value in self.by_type.items()])


def evaluate(
    model: ChatModel,
    conversations: Sequence[Conversation],
    *,
    scorer: str = "normalised",
    max_tokens: int = 24,
    description: str = "asking",
) -> Results:
    """Ask the last question of each conversation greedily and compare with its reference.

    The type of a row is `metadata["type"]`, else the task. Raises DataError where there is nothing to ask, a
    conversation has no reference, or the scorer is unknown.
    """
    if scorer not in SCORERS:
        raise DataError("evaluate", found=f"scorer {scorer!r}", expected=f"one of {', '.join(SCORERS)}")
    if not conversations:
        raise DataError("evaluate", found="no conversation", expected="held-out questions", fix="run generate first")
    missing = [conversation.id for conversation in conversations if conversation.reference is None]
    if missing:
        where = f"conversation {missing[0]}"
        raise DataError(where, found="no answer at its end", expected="a reference to compare with")
    options = SamplingOptions(max_tokens=max_tokens)
    # Questions about one image stand together, so that the model computes the image once.
    ordered = sorted(conversations, key=lambda asked: (asked.images[0].path if asked.images else "", asked.id))
    rows = []
    with progress(description, total=len(ordered), unit="question") as bar:
        for start in range(0, len(ordered), BATCH):
            part = ordered[start : start + BATCH]
            answers = model.reply_batch([asked.prompt for asked in part], options)
            rows += [_row(asked, answer.text, scorer) for asked, answer in zip(part, answers, strict=True)]
            bar.advance(len(part))
    return Results(pl.DataFrame(rows), model.name, scorer)


def _row(asked: Conversation, answer: str, scorer: str) -> dict[str, Any]:
    reference = asked.reference or ""
    return {
        "id": asked.id,
        "type": str(asked.metadata.get("type") or asked.task or "question"),
        "image": asked.images[0].path if asked.images else "",
        "root": asked.images[0].root if asked.images else "",
        "question": asked.prompt.messages[-1].text,
        "reference": reference,
        "answer": answer.strip(),
        "right": SCORERS[scorer](answer, reference),
    }


def derange(conversations: Sequence[Conversation], *, seed: int) -> list[Conversation]:
    """The same questions, each shown the image of another: a seeded derangement of the images, none in its place.

    Raises DataError with fewer than two images.
    """
    images = sorted({image for asked in conversations for image in asked.images[:1]}, key=lambda image: image.path)
    if len(images) < 2:
        raise DataError("blind baseline", found=f"{len(images)} image", expected="at least two held-out images")
    order = [int(index) for index in np.random.default_rng(seed).permutation(len(images))]
    # One cycle through a random order: every image goes to its successor, so none stays.
    other = {images[a]: images[b] for a, b in zip(order, [*order[1:], order[0]], strict=True)}
    return [_with_images(asked, other) for asked in conversations]


def _with_images(asked: Conversation, other: dict[Image, Image]) -> Conversation:
    messages = tuple(
        Message(turn.role, tuple(other.get(part, part) if isinstance(part, Image) else part for part in turn.content))
        for turn in asked.messages
    )
    return replace(asked, messages=messages)
