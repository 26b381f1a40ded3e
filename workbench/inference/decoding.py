"""The decode loop: rows of prompts in, one token per row and step out, on transformers' own cache.

Knows: embeddings with image features in their slots, a prefix that several rows share, padding with masks and
positions, dropping rows that have ended, and that answers are computed in evaluation mode whatever mode a model is in.
Does not know: conversations, image files, templates, or who is waiting.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from workbench.chat_model import Ending, SamplingOptions, Usage
from workbench.inference.sampling import choose
from workbench.inference.text import TextStream
from workbench.model.llava import Llava

PADDING = -1


@dataclass
class Row:
    """One prompt, and the answer that is being written to it."""

    ids: Sequence[int]
    """The prompt's tokens, image slots expanded."""
    features: torch.Tensor
    """What goes into the slots, in order: (slots, width of the language model)."""
    prefix: int
    """How many leading tokens other rows may share; fewer than `ids`."""
    prefix_key: Hashable
    """Equal for rows whose first `prefix` positions are computed alike."""
    limit: int
    """Tokens to write at most."""
    end_ids: Collection[int]
    text: TextStream
    generator: torch.Generator | None = None
    written: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    pieces: list[str] = field(default_factory=list)
    """Text nobody has taken yet."""

    def take(self, token: int) -> None:
        """Add the token that was chosen, and end the row if it says so."""
        self.written.append(token)
        if token in self.end_ids:
            return self.finish("stop")
        self.pieces.append(self.text.push(token))
        if self.text.stopped:
            self.finish("stop")
        elif len(self.written) >= self.limit:
            self.finish("length")

    def finish(self, reason: str) -> None:
        if self.finish_reason is None:
            self.finish_reason = reason
            self.pieces.append(self.text.finish())

    def new_text(self) -> str:
        """The text since the last call."""
        text = "".join(self.pieces)
        self.pieces.clear()
        return text

    @property
    def ending(self) -> Ending:
        return Ending(self.finish_reason or "stop", Usage(len(self.ids), len(self.written)), tuple(self.written))


def write(llava: Llava, rows: Sequence[Row], options: SamplingOptions) -> Iterator[None]:
    """Write the answers of `rows`, all with the same `prefix` length; yields after every token of the rows still open.

    Between two steps a caller may end a row with `finish`; no further token is computed for it.
    """
    decoding = Decoding(llava)
    live = list(rows)
    logits = decoding.prefill(live)
    while True:
        tokens = choose(logits, options, [row.generator for row in live]).tolist()
        for row, token in zip(live, tokens, strict=True):
            row.take(token)
        yield
        going = [index for index, row in enumerate(live) if row.finish_reason is None]
        if not going:
            return
        if len(going) < len(live):
            live = [live[index] for index in going]
            decoding.keep(going)
        logits = decoding.step([row.written[-1] for row in live])


class Decoding:
    """The state of one loop: the cache, which of its columns each row may see, and each row's next position."""

    def __init__(self, llava: Llava) -> None:
        self.llava = llava
        self.device = llava.device
        self.language = llava.model.get_decoder()
        self.embedding = llava.model.get_input_embeddings()
        self.head = llava.model.get_output_embeddings()
        self.cache = DynamicCache(config=llava.model.config)
        # transformers renamed it; the older name is a warning at every step, and an error from 5.40 on
        renamed = "cache" in inspect.signature(self.language.forward).parameters
        self.holding = {"cache" if renamed else "past_key_values": self.cache}
        self.mask: torch.Tensor | None = None  # (rows, columns) bool; None: every row sees every column
        self.positions = torch.empty(0, dtype=torch.long)  # (rows,)

    @torch.no_grad()
    def prefill(self, rows: Sequence[Row]) -> torch.Tensor:
        """The logits after each prompt: (rows, vocabulary). A prefix that rows share is computed once."""
        unique: dict[Hashable, int] = {}
        index = [unique.setdefault(row.prefix_key, len(unique)) for row in rows]
        shared = rows[0].prefix if len(unique) < len(rows) else 0
        if shared:
            firsts = [rows[index.index(number)] for number in range(len(unique))]
            self._forward(self._embed(firsts, 0, shared), torch.arange(shared, device=self.device)[None])
            self.cache.batch_select_indices(torch.tensor(index, device=self.device))
        lengths = torch.tensor([len(row.ids) for row in rows], device=self.device)
        embedded = self._embed(rows, shared, int(lengths.max()))  # (rows, columns - shared, width), padded on the right
        columns = torch.arange(int(lengths.max()), device=self.device)
        if bool((lengths < lengths.max()).any()):
            self.mask = columns < lengths[:, None]
        self.positions = lengths
        hidden = self._forward(embedded, columns[None, shared:])
        last = hidden[torch.arange(len(rows), device=self.device), lengths - shared - 1]
        return self._logits(last)

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """The logits after one more token per row: (rows, vocabulary)."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        embedded = self.embedding(torch.tensor(tokens, device=self.device)[:, None])
        hidden = self._forward(embedded, self.positions[:, None])
        self.positions = self.positions + 1
        return self._logits(hidden[:, -1])

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with these rows only."""
        index = torch.tensor(indices, device=self.device)
        self.cache.batch_select_indices(index)
        self.positions = self.positions[index]
        self.mask = None if self.mask is None else self.mask[index]

    def _forward(self, embedded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        with evaluating(self.llava.model), self.llava.autocast():
            return self.language(
                inputs_embeds=embedded,
                attention_mask=self.mask,
                position_ids=positions,
                use_cache=True,
                **self.holding,
            ).last_hidden_state

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with self.llava.autocast():
            return self.head(hidden).float()

    def _embed(self, rows: Sequence[Row], start: int, end: int) -> torch.Tensor:
        """Positions start to end of every row, features in the slots: (rows, end - start, width)."""
        padded = [[*row.ids[start:end], *[PADDING] * (end - max(start, len(row.ids)))] for row in rows]
        ids = torch.tensor(padded, device=self.device)
        slots = ids == self.llava.image_token_id
        # An image token need not be in the vocabulary, and padding is not: any embedding will do for both.
        embedded = self.embedding(ids.masked_fill(slots | (ids == PADDING), 0))
        features = []
        for row, count in zip(rows, slots.sum(dim=1).tolist(), strict=True):
            skipped = sum(token == self.llava.image_token_id for token in row.ids[:start])
            features.append(row.features[skipped : skipped + count])
        embedded[slots] = torch.cat(features).to(embedded)
        return embedded


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No dropout inside; afterwards exactly the modules that were training train again."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
