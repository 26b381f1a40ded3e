"""The token strip: one conversation as the model reads it, each token with its id, its label and how likely it was.

Knows: what is told of a token, and from what a rendering can be made.
Does not know: how ids and labels come about (`model/renderer.py`), how likely tokens are (`inference/whole_pass.py`),
how it looks (`tokens.js`, `tokens.css`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import traitlets

from workbench.chat_model import ChatModel
from workbench.conversation import Conversation, as_conversation
from workbench.data.dataset import Dataset
from workbench.data.images import thumbnail_uri
from workbench.data.video import still
from workbench.errors import DataError, ModelError
from workbench.inference.engine import Engine
from workbench.inference.opening import open_model
from workbench.inference.whole_pass import Likelihood, likelihoods, slots
from workbench.model.llava import Llava
from workbench.model.pieces import pieces
from workbench.model.renderer import Rendered, Renderer
from workbench.model.templates import Template
from workbench.model.tokenizers import load_tokenizer
from workbench.resources import tiny_folder
from workbench.widgets.base import View, front
from workbench.widgets.pictures import Opener, opener
from workbench.widgets.static import page

SIDE = 96
"""Pixels of the pictures in the strip."""


class TokensView(View):
    """The strip. `tokens` has one entry for each id of the rendering, an image being one.

    Each is {id, text, trained, place}, an image with {image: data URI or None, count}; with a model also
    {loss, probability, expected, chance}: nats, 0 to 1, and the text that was likeliest there with its probability.
    """

    _esm, _css = front("tokens")
    tokens: traitlets.List[Any] = traitlets.List().tag(sync=True)
    about = traitlets.Dict().tag(sync=True)
    """title, template, count (tokens with image slots written out), trained, loss (mean of the trained, or None)."""

    def __repr__(self) -> str:
        told = "" if self.about["loss"] is None else f", mean loss {self.about['loss']:.3f}"
        return f"tokens of {self.about['title']}: {self.about['count']:,}, {self.about['trained']:,} trained{told}"

    def html(self) -> str:
        return page("tokens", tokens=self.tokens, about=self.about)


def tokens(
    conversation: Conversation | Rendered,
    model: ChatModel | Llava | Renderer | str | Path | None = None,
    *,
    template: str | Template = "tiny",
    tokenizer: str | Path | None = None,
    dataset: Dataset | str | Path | None = None,
) -> TokensView:
    """Show the tokens of a conversation: the trained ones coloured, images folded, each told about on hover or focus.

    model: with one of ours (an `Engine`, `wb.load`, a run folder) each token's loss and probability are told too; a
    `Renderer` tells ids and labels. Without a model `template` and `tokenizer` (a folder; the shipped tiny model's by
    default) decide. dataset: where the pictures of the conversation lie; without one their paths are files.

    Raises `RenderError` for what cannot be rendered, `ModelError` for a model whose tokens are not known here,
    `ImageError` where a model needs a picture that cannot be opened.

    >>> wb.tokens(dataset.conversations("train")[0], dataset=dataset)
    tokens of ...: ... trained
    """
    if isinstance(model, (Conversation, Rendered)):
        found, expected = "a conversation in the place of the model", "the conversation first, the model after it"
        raise ModelError("tokens", found=found, expected=expected, fix="wb.tokens(conversation, model)")
    if not isinstance(conversation, Rendered):
        as_conversation(conversation)  # before a model is opened for it
    if isinstance(model, (str, Path)):
        model = open_model(model)
    renderer = _renderer(model, template, tokenizer)
    rendered = conversation if isinstance(conversation, Rendered) else _rendered(renderer, conversation)
    open_image = model.open_image if isinstance(model, Engine) and dataset is None else opener(dataset)
    seen: list[Likelihood | None] | None = None
    counts: list[int] | None = None
    if isinstance(model, Engine):
        with model.alone() as llava:
            seen, counts = likelihoods(llava, rendered, open_image), slots(llava, rendered, open_image)
    elif isinstance(model, Llava):
        seen, counts = likelihoods(model, rendered, open_image), slots(model, rendered, open_image)
    told = _told(renderer, rendered, open_image, seen, counts)
    losses = [one["loss"] for one in told if one["trained"] and one.get("loss") is not None]
    about = {
        "title": rendered.id,
        "template": renderer.template.name,
        "count": sum(one.get("count") or 1 for one in told),
        "trained": rendered.trained,
        "loss": sum(losses) / len(losses) if losses else None,
    }
    return TokensView(tokens=told, about=about)


def _renderer(model: Any, template: str | Template, tokenizer: str | Path | None) -> Renderer:
    if isinstance(model, Renderer):
        return model
    if isinstance(model, Engine):
        return model.llava.renderer
    if isinstance(model, Llava):
        return model.renderer
    if model is not None:
        name = getattr(model, "name", type(model).__name__)
        fix = "name its template= and tokenizer= instead: ids and labels need no model"
        raise ModelError(name, found="a model whose tokens are not known here", expected="a LLaVA of ours", fix=fix)
    return Renderer(load_tokenizer(tokenizer or tiny_folder() / "language"), template)


def _rendered(renderer: Renderer, conversation: Conversation) -> Rendered:
    """As it is trained on, or, where the answer is still open, as it is asked."""
    messages = as_conversation(conversation).messages
    last = messages[-1].role if messages else "user"
    return renderer.render(conversation) if last == "assistant" else renderer.prompt(conversation)


def _told(
    renderer: Renderer,
    rendered: Rendered,
    open_image: Opener,
    seen: list[Likelihood | None] | None,
    counts: list[int] | None,
) -> list[dict[str, Any]]:
    known: list[int | None] = [None] * len(rendered.images) if counts is None else [*counts]
    images, place = iter(zip(rendered.images, known, strict=True)), 0
    told: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces(renderer, rendered)):
        one: dict[str, Any] = {"id": piece.id, "text": piece.text, "trained": piece.trained, "place": place}
        if piece.is_image:
            image, count = next(images)
            one |= {"image": _small(image, open_image), "text": Path(image.path).name, "count": count}
        found = seen[number] if seen is not None else None
        if found is not None:
            expected = renderer.tokenizer.decode([found.expected], skip_special_tokens=False)
            chances = {"probability": math.exp(found.logprob), "chance": math.exp(found.expected_logprob)}
            one |= {"loss": -found.logprob, "expected": expected, **chances}
        told.append(one)
        place += one.get("count") or 1
    return told


def _small(image: Any, open_image: Opener) -> str | None:
    """None for a picture that is not there: the ids are told all the same."""
    try:
        return thumbnail_uri(still(open_image(image)), SIDE)
    except DataError:
        return None
