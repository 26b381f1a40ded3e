"""What a run is about to do, in a few lines, before its first step.

Knows: counts of conversations, images and tokens, and what sharing saves. Does not know: how long it will take.
"""

from __future__ import annotations

from workbench.recipe import TrainSpec
from workbench.training.lengths import Lengths
from workbench.training.packing import group, trees


def describe(
    lengths: Lengths,
    val: Lengths,
    train: TrainSpec,
    *,
    images: int,
    image_tokens: int,
    steps: int,
    left_out: int = 0,
) -> str:
    """Conversations, images, tokens of an epoch with and without sharing, and steps. `image_tokens`: of one image.

    `left_out`: conversations that the data has but that are not used because of their or their image's status.
    """
    cut = trees(group(lengths.entries(), share=train.share), max_share=train.max_share, max_tokens=train.pack_tokens)
    tokens = lengths.frame["tokens"]
    apart, shared = tokens.sum(), sum(tree.tokens for tree in cut)
    of_images = image_tokens * sum(tree.images for tree in cut)
    supervised = lengths.frame["supervised"].sum()
    longest = int(tokens.arg_max() or 0)
    epochs = steps * train.batch_size / len(lengths)
    lost = f"{left_out:,} conversations left out: they, or an image of theirs, are not ok\n" if left_out else ""
    text = (lengths.frame["images"] == 0).sum() if train.language == "frozen" else 0
    lost += f"{text:,} conversations without an image teach nothing: the language model is frozen\n" if text else ""
    return (
        f"{len(lengths):,} conversations about {images:,} images to train on, {len(val):,} to validate on\n{lost}"
        f"{shared:,} tokens per epoch, {of_images:,} of them of images; {apart / shared:.2f}x as many without sharing\n"
        f"{supervised:,} supervised tokens per epoch; longest conversation: {tokens[longest]:,} tokens "
        f"({lengths.ids[longest]})\n"
        f"{steps:,} steps of {train.batch_size} conversations: {epochs:.2f} epochs"
    )
