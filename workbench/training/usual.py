"""Conversations as LLaVA's own mixes have them, for plans that are made before there is any data.

Knows: how long such a conversation is, the pack that is as full as data can make it, where every picture is as large as
a picture can be, and the arithmetic of a conversation about a usual one.
Does not know: a person's data, whose own worst pack `plan` finds.
"""

from __future__ import annotations

from workbench.model.llava import Llava
from workbench.model.tiling import Tiling
from workbench.recipe import TrainSpec
from workbench.training.flops import step_cost
from workbench.training.packing import Entry, Pack, Tree

PREFIX, BRANCH, SUPERVISED = 40, 150, 100
"""Tokens of system text, of question and answer, and of the answer, about as in LLaVA's 665K mix."""
CAPTION = 25
"""Tokens of a caption, about as in LLaVA's 558K captions."""
PICTURE = (640, 480)
"""Pixels of a usual picture, as COCO has them: what counts where time is told and a picture's size matters."""


def full_pack(tokens: int, tiling: Tiling) -> Pack:
    """A pack of so many tokens, each of its conversations about the largest picture there is, one of its own."""
    image = tiling.longest
    prefix = image + PREFIX
    count = max(1, tokens // (prefix + BRANCH))
    rest = max(0, tokens - count * (prefix + BRANCH))
    branches = [BRANCH + (rest if number == 0 else 0) for number in range(count)]
    seen = (tiling.most, tiling.most, image, image, tiling.most_squares, tiling.most_squares)
    return [Tree((Entry(number, prefix + branch, prefix, SUPERVISED, 1, 1, number, *seen),))
            for number, branch in enumerate(branches)]  # fmt: skip


def context(tiling: Tiling, least: int) -> int:
    """Tokens that a conversation about the largest picture needs: `least`, doubled until it fits."""
    tokens = least
    while tokens < tiling.longest + PREFIX + BRANCH:
        tokens *= 2
    return tokens


def operations(llava: Llava, train: TrainSpec, per_token: float) -> float:
    """Operations that training a prepared model on one conversation about a usual picture takes.

    per_token: those of a step, with what is computed again and masked pairs of tokens; a frozen tower's come on top.
    """
    tiling = llava.tiling
    text = CAPTION if train.stage == "align" else PREFIX + BRANCH
    tokens = text + tiling.tokens(PICTURE)
    tower = 0.0 if llava.vision_trains else step_cost(llava, encodes=True).square
    return per_token * tokens + tower * tiling.squares(PICTURE)
