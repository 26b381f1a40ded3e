"""Many questions that begin alike, asked of a LLaVA in one pass: the picture once, each question as a branch.

Knows: the common beginning (system text and image) computed once; branches that see it and themselves, end to end in
one row, so that nothing is padded and no keys are copied; how sure the first token is; the likeliest of some answers.
Does not know: what the answers mean, which questions there are, or when one need not be asked.

The tokens are those of `Engine.reply`, greedily, but for ties closer than the rounding of the weights' number format:
the margin of every first token is told.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from workbench.conversation import Conversation
from workbench.errors import RenderError
from workbench.inference.decoding import Row, evaluating
from workbench.model.llava import Llava
from workbench.model.renderer import IGNORE_INDEX, Renderer

PREFIX = -1
"""The owner of columns that every branch sees."""
AT_ONCE = 384
"""Tokens of branches in one pass: more fill a machine no better, and each is compared with all the others' columns."""


@dataclass(frozen=True)
class Said:
    """One answer."""

    text: str
    margin: float
    """Log probability of the first token above that of the second likeliest, or of two candidates; in nats."""


def shareable(llava: Llava) -> bool:
    """Whether branches can be told from each other by a mask: not in a sliding window, nor by flash attention."""
    config = llava.model.get_decoder().config
    window = getattr(config, "sliding_window", None) and "sliding_attention" in (
        getattr(config, "layer_types", None) or ["sliding_attention"]
    )
    return not window and config._attn_implementation in ("sdpa", "eager", "trees")


class Branches:
    """Rows with one `prefix_key`, any of which may be asked at any time. All that they begin with is computed once.

    That is the image and what stands before it, and of rotated options the question too.
    """

    def __init__(self, llava: Llava, rows: Sequence[Row]) -> None:
        self.llava = llava
        self.device = llava.device
        self.language = llava.model.get_decoder()
        self.cache = DynamicCache(config=llava.model.config)
        renamed = "cache" in inspect.signature(self.language.forward).parameters
        self._holding = {"cache" if renamed else "past_key_values": self.cache}
        self._prefix = _common(rows, llava.image_token_id)
        self._owners = torch.full((self._prefix,), PREFIX, device=self.device)  # (columns,)
        if self._prefix:
            columns = torch.arange(self._prefix, device=self.device)[None]
            with torch.no_grad():
                self._forward(self._embed(rows[0], 0, self._prefix)[None], columns, None)

    def answer(self, rows: Sequence[Row], settled: Callable[[str], bool] = lambda text: False) -> list[Said]:
        """Greedy answers, each to its end, or until `settled` says that its text decides."""
        return [said for part in self._parts(rows) for said in self._answer(part, settled)]

    def likeliest(self, rows: Sequence[Row], candidates: Sequence[dict[str, int]]) -> list[Said]:
        """For each row the candidate whose first token is likeliest; `candidates` as `first_tokens` gives them."""
        logits = [one for part in self._parts(rows) for one in self._begin(part)]
        said = []
        for one, choices in zip(logits, candidates, strict=True):
            ranked = sorted(((float(one[id]), name) for name, id in choices.items()), reverse=True)
            said.append(Said(ranked[0][1], ranked[0][0] - ranked[1][0]))
        return said

    @torch.no_grad()
    def _answer(self, rows: Sequence[Row], settled: Callable[[str], bool]) -> list[Said]:
        logits = self._begin(rows)
        top = logits.topk(2).values
        margins = (top[:, 0] - top[:, 1]).tolist()
        texts = [""] * len(rows)
        going = list(range(len(rows)))
        while True:
            for number, token in zip(going, logits.argmax(dim=-1).tolist(), strict=True):
                row = rows[number]
                row.take(token)
                texts[number] += row.new_text()
                if row.finish_reason is None and settled(texts[number]):
                    row.finish("stop")
                    texts[number] += row.new_text()
            going = [number for number in going if rows[number].finish_reason is None]
            if not going:
                return [Said(text, margin) for text, margin in zip(texts, margins, strict=True)]
            tokens = torch.tensor([rows[number].written[-1] for number in going], device=self.device)
            places = [len(rows[number].ids) + len(rows[number].written) - 1 for number in going]
            embedded = self.llava.model.get_input_embeddings()(tokens)[None]
            owners = torch.tensor(going, device=self.device)
            logits = self._logits(self._forward(embedded, torch.tensor(places, device=self.device)[None], owners)[0])

    @torch.no_grad()
    def _begin(self, rows: Sequence[Row]) -> torch.Tensor:
        """The logits after each prompt, (rows, vocabulary); what other branches left behind is dropped."""
        left = len(self._owners) - self._prefix
        if left:
            self.cache.crop(-left)
            self._owners = self._owners[: self._prefix]
        lengths = torch.tensor([len(row.ids) - self._prefix for row in rows], device=self.device)
        embedded = torch.cat([self._embed(row, self._prefix, len(row.ids)) for row in rows])[None]
        places = torch.cat([torch.arange(self._prefix, len(row.ids)) for row in rows]).to(self.device)
        owners = torch.arange(len(rows), device=self.device).repeat_interleave(lengths)
        hidden = self._forward(embedded, places[None], owners)
        return self._logits(hidden[0, lengths.cumsum(0) - 1])

    def _parts(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows together while their branches have at most `AT_ONCE` tokens."""
        part: list[Row] = []
        for row in rows:
            if part and sum(len(one.ids) - self._prefix for one in (*part, row)) > AT_ONCE:
                yield part
                part = []
            part.append(row)
        if part:
            yield part

    def _forward(self, embedded: torch.Tensor, places: torch.Tensor, owners: torch.Tensor | None) -> torch.Tensor:
        """Hidden states (1, T, width) of T more columns; their keys and values stay in the cache."""
        mask = None if owners is None else self._mask(owners)
        with torch.no_grad(), evaluating(self.llava.model), self.llava.autocast():
            return self.language(
                inputs_embeds=embedded, attention_mask=mask, position_ids=places, use_cache=True, **self._holding
            ).last_hidden_state

    def _mask(self, owners: torch.Tensor) -> torch.Tensor:
        """(1, 1, T, columns): a column sees the prefix, and what came before it in its own branch."""
        before = len(self._owners)
        self._owners = torch.cat([self._owners, owners])
        seen = (self._owners == PREFIX) | (self._owners == owners[:, None])
        seen[:, before:] &= torch.ones_like(seen[:, before:]).tril()
        if self.language.config._attn_implementation == "eager":
            lowest = torch.finfo(self.llava.dtype).min
            return torch.zeros(seen.shape, dtype=self.llava.dtype, device=self.device).masked_fill(~seen, lowest)[
                None, None
            ]
        return seen[None, None]

    def _embed(self, row: Row, start: int, end: int) -> torch.Tensor:
        """Positions start to end of a row, image features in their slots: (end - start, width)."""
        ids = torch.tensor(row.ids[start:end], device=self.device)
        slots = ids == self.llava.image_token_id
        embedded = self.llava.model.get_input_embeddings()(ids.masked_fill(slots, 0))
        skipped = sum(token == self.llava.image_token_id for token in row.ids[:start])
        if row.features is not None:
            embedded[slots] = row.features[skipped : skipped + int(slots.sum())].to(embedded)
        return embedded

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with self.llava.autocast():
            return self.llava.model.get_output_embeddings()(hidden).float()


def _common(rows: Sequence[Row], image_token_id: int) -> int:
    """How many leading tokens all rows share, the last one of each left out: its logits begin the answer.

    No further than to a picture behind the prefix, for pictures have the same tokens whatever they show.
    """
    first, last = (of(rows, key=lambda row: list(row.ids)).ids for of in (min, max))
    shared = rows[0].prefix
    if not shared:
        return 0
    end = min(len(row.ids) for row in rows) - 1
    while shared < end and first[shared] == last[shared] != image_token_id:
        shared += 1
    return shared


def first_tokens(renderer: Renderer, asked: Conversation, answers: Sequence[str]) -> dict[str, int]:
    """The token each answer begins with after this question.

    Raises `RenderError` for fewer than two answers, or two that begin with the same token and so cannot be ranked.
    """
    firsts: dict[str, int] = {}
    for answer in answers:
        labels = renderer.render(asked.add("assistant", answer)).labels
        firsts[answer] = next(label for label in labels[_asked_tokens(renderer, asked) :] if label != IGNORE_INDEX)
    if len(firsts) < 2 or len(set(firsts.values())) < len(firsts):
        raise RenderError(
            asked.id, found=f"the answers {', '.join(answers) or 'none'}", expected="two or more that begin differently"
        )
    return firsts


def _asked_tokens(renderer: Renderer, asked: Conversation) -> int:
    return len(renderer.prompt(asked).ids)
