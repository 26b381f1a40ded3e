"""What a run is about to do, in a few lines, before its first step.

Knows: counts of conversations, images and tokens, and what sharing saves. Does not know: how long it will take.
"""

from __future__ import annotations

from collections.abc import Sequence

from workbench.recipe import TrainSpec
from workbench.training.example import Example
from workbench.training.examples import entries
from workbench.training.packing import group, trees


def describe(
    examples: Sequence[Example],
    val: Sequence[Example],
    train: TrainSpec,
    *,
    image_tokens: int,
    steps: int,
    left_out: int = 0,
) -> str:
    """Conversations, images, tokens of an epoch with and without sharing, and steps. `image_tokens`: of one image.

    `left_out`: conversations that the data has but that are not used because of their or their image's status.
    """
    groups = group(entries(examples), share=train.share)
    cut = trees(groups, max_share=train.max_share, max_tokens=train.pack_tokens)
    apart, shared = sum(example.tokens for example in examples), sum(tree.tokens for tree in cut)
    of_images = image_tokens * sum(tree.images for tree in cut)
    supervised = sum(example.supervised for example in examples)
    images = {key for example in examples for key in example.images}
    longest = max(examples, key=lambda example: example.tokens)
    epochs = steps * train.batch_size / len(examples)
    lost = f"{left_out:,} conversations left out: they, or an image of theirs, are not ok\n" if left_out else ""
    return (
        f"{len(examples):,} conversations about {len(images):,} images to train on, {len(val):,} to validate on\n{lost}"
        f"{shared:,} tokens per epoch, {of_images:,} of them of images; {apart / shared:.2f}x as many without sharing\n"
        f"{supervised:,} supervised tokens per epoch; longest conversation: {longest.tokens:,} tokens ({longest.id})\n"
        f"{steps:,} steps of {train.batch_size} conversations: {epochs:.2f} epochs"
    )
