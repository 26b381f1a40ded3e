"""What a run is about to see, counted: conversations, images, tokens, and what sharing saves.

Knows: counts. Does not know: memory, time (`plan.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.recipe import TrainSpec
from workbench.training.lengths import Lengths
from workbench.training.packing import Plan
from workbench.training.rows import Rows


@dataclass(frozen=True)
class Counts:
    """The work of one epoch, and how many steps there will be."""

    conversations: int
    images: int
    """Different images of the training part."""
    videos: int
    """Different videos of it."""
    validation: int
    """Conversations to validate on."""
    left_out: int
    """Conversations that the data has but that are not used because of their or their image's status."""
    tokens: int
    """Tokens an epoch computes; a shared prefix counts once, and there is no padding."""
    image_tokens: int
    """How many of them are of images."""
    supervised_tokens: int
    sharing: float
    """How many times as many tokens there would be without sharing."""
    longest: tuple[str, int]
    """The longest conversation: its id and its tokens."""
    steps: int
    batch_size: int
    useless: int = 0
    """Conversations that teach nothing: without an image, where the language model is frozen."""

    @property
    def epochs(self) -> float:
        """Passes over the conversations; the last step of each may hold fewer than `batch_size`."""
        return self.steps / -(-self.conversations // self.batch_size)

    def __str__(self) -> str:
        lost = f"{self.left_out:,} conversations left out: they, or an image of theirs, are not ok\n"
        text = f"{self.useless:,} conversations without an image teach nothing: the language model is frozen\n"
        shown = counted(self.images, "image") + (f" and {counted(self.videos, 'video')}" if self.videos else "")
        return (
            f"{counted(self.conversations, 'conversation')} about {shown} to train on, "
            f"{self.validation:,} to validate on\n{lost if self.left_out else ''}{text if self.useless else ''}"
            f"{self.tokens:,} tokens per epoch, {self.image_tokens:,} of them of images; "
            f"{self.sharing:.2f}x as many without sharing\n"
            f"{self.supervised_tokens:,} supervised tokens per epoch; longest conversation: {self.longest[1]:,} tokens "
            f"({self.longest[0]})\n"
            f"{counted(self.steps, 'step')} of {self._batch()}: {self.epochs:.2f} epochs"
        )

    def _batch(self) -> str:
        """The conversations of a step: no more than there are in an epoch."""
        if self.batch_size <= self.conversations:
            return counted(self.batch_size, "conversation")
        return f"{counted(self.conversations, 'conversation')}, all there are (train.batch_size: {self.batch_size:,})"


def counted(number: int, noun: str) -> str:
    """`1 image`, `1,200 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def describe(
    lengths: Lengths,
    val: Lengths,
    train: TrainSpec,
    order: Plan,
    *,
    shown: Rows,
    left_out: int = 0,
) -> Counts:
    """Count conversations, the images and videos of `shown`, and the tokens of the first epoch of `order`, with and
    without sharing."""
    laid = list(order.epoch())
    tokens = lengths.frame["tokens"]
    shared = sum(tree.tokens for tree in laid)
    longest, videos = int(tokens.arg_max() or 0), len(shown.videos)
    return Counts(
        conversations=len(lengths),
        images=shown.keys.height - videos,
        videos=videos,
        validation=len(val),
        left_out=left_out,
        tokens=shared,
        image_tokens=sum(tree.image_tokens for tree in laid),
        supervised_tokens=int(lengths.frame["supervised"].sum()),
        sharing=float(tokens.sum()) / shared,
        longest=(lengths.ids[longest], tokens[longest]),
        steps=order.steps(train),
        batch_size=train.batch_size,
        useless=int((lengths.frame["images"] == 0).sum()) if train.language == "frozen" else 0,
    )
