"""Which image patches a token of an answer drew on: attention, gradient-weighted relevance, occlusion.

Knows: the passes over the model and the arithmetic. A map is (images, rows, columns) over the patches of the square
that the tower sees, not negative, its sum 1 (or 0 where nothing was drawn on). What a LLaVA-NeXT draws on in tiles is
added to the patches of the whole picture where it lies.
Does not know: where a patch lies in the picture as it was, colours, notebooks.

relevance: in every layer attention times its gradient with respect to the log probability of the token, negative parts
left out, mean over heads, carried through the layers by R <- R + A R (Chefer, Gur and Wolf 2021, Generic
Attention-model Explainability, equations 5 and 6).
attention: what the position that predicts the token looks at, mean over heads and layers.
occlusion: how much less likely the token is where the features of a patch are replaced by their mean over the image.

Attention has hot spots that are there whatever is asked. `relative` takes away what the same answer draws on after a
neutral question about the same images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from workbench.conversation import Conversation, Image, Message
from workbench.errors import ModelError
from workbench.inference.decoding import evaluating
from workbench.inference.whole_pass import Layout, lay_alike, lay_out
from workbench.model.llava import Llava
from workbench.model.renderer import IGNORE_INDEX, Rendered

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

METHODS = ("relevance", "attention", "occlusion")
NEUTRAL = "What is there?"
BLOCKS = 12
"""Patches are occluded in blocks, so many each way at most: each costs a pass over the prompt."""
ROWS = 16
"""Occluded rows that are computed together."""
ROUNDING = 1e-4
"""Nats: where a token gets less likely by less, the map says nothing."""


class Relevance:
    """The last answer of one conversation, looked into.

    `tokens` are the numbers, among the ids of `rendered`, of the tokens the answer is made of. Raises `ModelError` for
    a conversation without an image or with a video, `RenderError` for one without an answer, `ImageError` for a picture
    that is gone.
    """

    def __init__(self, llava: Llava, conversation: Conversation, open_image: Callable[[Image], Picture]) -> None:
        if len(conversation.media) > len(conversation.images):
            fix = "show frames of it as images"
            raise ModelError(conversation.id, found="a video", expected="a picture: a map lies over one", fix=fix)
        if not conversation.images:
            raise ModelError(conversation.id, found="no image", expected="a conversation about at least one")
        self.llava = llava
        self.rendered = llava.renderer.render(conversation)
        self.layout = lay_out(llava, self.rendered, open_image)
        self.tokens = _answer_tokens(self.rendered)
        plain = Message("user", (*conversation.images, NEUTRAL)), conversation.messages[-1]
        self._neutral = llava.renderer.render(Conversation(f"{conversation.id} (neutral)", plain))
        self._neutral_layout = lay_alike(llava, self._neutral, self.layout)
        self._neutral_tokens = _answer_tokens(self._neutral)
        self._side = math.isqrt(llava.tiling.each)
        if self._side**2 != llava.tiling.each:
            raise ModelError(conversation.id, found=f"{llava.tiling.each} tokens an image", expected="a square grid")
        self._patches = [llava.tiling.patches(size) for size in self.layout.sizes]
        """Of each image: the patch of the square where each of its slots lies, or -1."""

    def map(self, token: int, method: str = "relevance", *, relative: bool = True) -> torch.Tensor:
        """The map of `tokens[token]`, on the CPU. Occlusion compares with the untouched image and is never relative.

        Raises `ModelError` for a token or method that is not there.
        """
        if method not in METHODS:
            raise ModelError("heatmap", found=f"method {method!r}", expected=", ".join(METHODS))
        if not 0 <= token < len(self.tokens):
            raise ModelError("heatmap", found=f"token {token}", expected=f"one of {len(self.tokens)}")
        place = self.layout.places[self.tokens[token]]
        with evaluating(self.llava.model), self.llava.autocast():
            if method == "occlusion":
                return _share(self._grid(self._occluded(place)))
            found = _share(self._grid(self._drawn_on(self.layout, place, method)))
            if relative and len(self._neutral_tokens) == len(self.tokens):
                other = self._neutral_layout.places[self._neutral_tokens[token]]
                usual = _share(self._grid(self._drawn_on(self._neutral_layout, other, method)))
                found = _share((found - usual).clamp(min=0))
        return found

    def _grid(self, slots: torch.Tensor) -> torch.Tensor:
        grids = torch.zeros(len(self._patches), self._side**2)
        parts = slots.detach().float().cpu().split([len(patches) for patches in self._patches])
        for grid, patches, part in zip(grids, self._patches, parts, strict=True):
            grid.index_add_(0, patches[patches >= 0], part[patches >= 0])
        return grids.reshape(-1, self._side, self._side)

    def _drawn_on(self, layout: Layout, place: int, method: str) -> torch.Tensor:
        """(slots,) of what the token at `place` drew on: one pass forward, and for relevance one back."""
        embedded, slots = _embedded(self.llava, layout)
        ids = layout.ids[0, place]
        with _eager(self.llava), torch.set_grad_enabled(method == "relevance"):
            embedded.requires_grad_(method == "relevance")
            out = self.llava.model.get_decoder()(inputs_embeds=embedded, output_attentions=True, use_cache=False)
            if method == "attention":
                return torch.stack([layer[0, :, place - 1].mean(0) for layer in out.attentions]).mean(0)[slots]
            logits = self.llava.model.get_output_embeddings()(out.last_hidden_state[:, place - 1])
            slopes = torch.autograd.grad(logits.float().log_softmax(-1)[0, ids], out.attentions)
        carried = torch.eye(embedded.shape[1], device=embedded.device)
        for layer, slope in zip(out.attentions, slopes, strict=True):
            carried = carried + (layer * slope).detach().float().clamp(min=0)[0].mean(0) @ carried
        return carried[place - 1][slots]

    @torch.no_grad()
    def _occluded(self, place: int) -> torch.Tensor:
        """(slots,) of how much the log probability of the token at `place` falls."""
        embedded, slots = _embedded(self.llava, self.layout)
        embedded, places = embedded[:, :place], slots.nonzero()[:, 0]  # what is behind changes nothing
        features = self.layout.features
        assert features is not None
        falls = torch.zeros(len(places), device=embedded.device)
        whole = self._logprobs([embedded], place)[0]
        means = [part.mean(0) for part in features.split([len(patches) for patches in self._patches])]
        blocks = list(self._blocks())
        for begin in range(0, len(blocks), ROWS):
            some = blocks[begin : begin + ROWS]
            rows = []
            for image, block in some:
                row = embedded.clone()
                row[0, places[block]] = means[image].to(row)
                rows.append(row)
            for (_, block), found in zip(some, self._logprobs(rows, place), strict=True):
                fall = float(whole - found)
                falls[block] = fall / len(block) if fall > ROUNDING else 0.0
        return falls

    def _logprobs(self, rows: Sequence[torch.Tensor], place: int) -> torch.Tensor:
        hidden = self.llava.model.get_decoder()(inputs_embeds=torch.cat(list(rows)), use_cache=False).last_hidden_state
        logits = self.llava.model.get_output_embeddings()(hidden[:, place - 1])
        return logits.float().log_softmax(-1)[:, self.layout.ids[0, place]]

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(image, numbers of its slots among all) of each block of patches."""
        size, first = math.ceil(self._side / BLOCKS), 0
        for image, patches in enumerate(self._patches):
            rows, columns = patches // self._side // size, patches % self._side // size
            for row, column in itertools.product(range(math.ceil(self._side / size)), repeat=2):
                inside = (patches >= 0) & (rows == row) & (columns == column)
                yield image, first + inside.nonzero()[:, 0]
            first += len(patches)


def _answer_tokens(rendered: Rendered) -> list[int]:
    """The numbers of the last run of trained ids."""
    found = [number for number, label in enumerate(rendered.labels) if label != IGNORE_INDEX]
    last = [found.pop()]
    while found and found[-1] == last[0] - 1:
        last.insert(0, found.pop())
    return last


def _embedded(llava: Llava, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, tokens, width) with the features in their slots, and which of the tokens are slots."""
    slots = layout.ids == llava.image_token_id
    assert layout.features is not None
    embedded = llava.model.get_input_embeddings()(layout.ids.masked_fill(slots, 0)).detach().clone()
    embedded[slots] = layout.features.detach().to(embedded)
    return embedded, slots[0]


def _share(grid: torch.Tensor) -> torch.Tensor:
    total = grid.sum()
    return grid / total if total > 0 else torch.zeros_like(grid)


@contextmanager
def _eager(llava: Llava) -> Iterator[None]:
    """Attention computed step by step inside: only then are its weights given back."""
    config: Any = llava.model.get_decoder().config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
