"""One pass over a whole rendering, answer included: how likely each of its tokens was, and what was expected instead.

Knows: that logits at one position are about the next, and how image slots are laid out in a pass.
Does not know: decoding, batches, how a conversation is rendered, or who looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workbench.conversation import Image
from workbench.data.video import Film
from workbench.inference.decoding import evaluating
from workbench.inference.pixels import open_media, shown_of
from workbench.model.film import film_size
from workbench.model.llava import Llava
from workbench.model.renderer import Rendered
from workbench.model.tiling import Size

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

ROWS = 256
"""Positions whose logits are looked at together: a vocabulary of numbers each."""


@dataclass(frozen=True)
class Layout:
    """A rendering as one row of the language model."""

    ids: torch.Tensor
    """(1, tokens), image slots written out."""
    places: tuple[int, ...]
    """Where each id of the rendering lies in the row; of an image its first slot."""
    features: torch.Tensor | None
    """(slots of all images in order, width of the language model); None without images."""
    sizes: tuple[Size, ...] = ()
    """(width, height) of each image."""


@dataclass(frozen=True)
class Likelihood:
    """How a model sees one token, given everything before it."""

    logprob: float
    """Natural logarithm of its probability; minus this is its loss."""
    expected: int
    """The likeliest id there."""
    expected_logprob: float


def lay_out(llava: Llava, rendered: Rendered, open_image: Callable[[Image], Picture]) -> Layout:
    """The row of a rendering. Raises `ImageError` for a picture that is not there."""
    shown = [shown_of(image, open_image, llava, rendered.pictures) for image in rendered.images]
    features = None
    if shown:
        with torch.no_grad(), evaluating(llava.model), llava.autocast():
            features = torch.cat(llava.look(shown))
    return _lay(llava, rendered, features, tuple(one.size for one in shown))


def lay_alike(llava: Llava, rendered: Rendered, other: Layout) -> Layout:
    """The row of another rendering of the same images."""
    return _lay(llava, rendered, other.features, other.sizes)


def _lay(llava: Llava, rendered: Rendered, features: torch.Tensor | None, sizes: tuple[Size, ...]) -> Layout:
    counts = [llava.tiling.tokens(size) for size in sizes]
    ids, _ = llava.renderer.expand(rendered, counts, llava.image_token_id)
    places, place, waiting = [], 0, iter(counts)
    for id in rendered.ids:
        places.append(place)
        place += next(waiting) if id < 0 else 1
    return Layout(torch.tensor([ids], device=llava.device), tuple(places), features, sizes)


def slots(llava: Llava, rendered: Rendered, open_image: Callable[[Image], Picture]) -> list[int]:
    """Tokens of each image. Raises `ImageError` for a picture that has to be opened for that and is not there."""
    tiling, images = llava.tiling, rendered.images
    if not tiling.varies:
        return [tiling.each] * len(images)
    opened = [open_media(image, open_image) for image in images]
    sizes = [
        film_size(one.count(tiling.frames)) if isinstance(one, Film) else tiling.seen(one.size, rendered.pictures)
        for one in opened
    ]
    return list(map(tiling.tokens, sizes))


@torch.no_grad()
def likelihoods(llava: Llava, rendered: Rendered, open_image: Callable[[Image], Picture]) -> list[Likelihood | None]:
    """One for each id of `rendered`; None for images and for the first id, which nothing predicts.

    Raises `ImageError` for a picture that cannot be opened.
    """
    layout = lay_out(llava, rendered, open_image)
    inputs = {} if layout.features is None else {"mm_encoder_outputs": llava.image_inputs([layout.features])}
    asked = [n for n, (id, place) in enumerate(zip(rendered.ids, layout.places, strict=True)) if id >= 0 and place]
    places = torch.tensor([layout.places[n] for n in asked], dtype=torch.long, device=llava.device)
    with evaluating(llava.model), llava.autocast():
        logits = llava.model(input_ids=layout.ids, **inputs).logits[0]
    found: list[Likelihood | None] = [None] * len(rendered.ids)
    for begin in range(0, len(asked), ROWS):
        some = places[begin : begin + ROWS]
        scores = logits[some - 1].float().log_softmax(-1)  # (rows, vocabulary)
        best, expected = scores.max(-1)
        own = scores.gather(1, layout.ids[0, some, None])[:, 0]
        for n, *told in zip(asked[begin:], own.tolist(), expected.tolist(), best.tolist(), strict=False):
            found[n] = Likelihood(*told)
    return found
