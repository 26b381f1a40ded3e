"""The decode loop's two passes over one model: prompts in, and one more token of every row.

Knows: rows and their slots, embeddings with image features in their places, masks and positions, a prefix that several
rows share, and that answers are computed in evaluation mode whatever mode a model is in.
Does not know: conversations, image files, templates, who is waiting, or which token is chosen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.chat_model import GREEDY, Ending, SamplingOptions, TokenLogprob, Usage
from workbench.inference.slots import Slots
from workbench.inference.text import TextStream
from workbench.model.llava import Llava

PADDING = -1


@dataclass
class Row:
    """One prompt, and the answer that is being written to it."""

    ids: Sequence[int]
    """The prompt's tokens, image slots expanded."""
    features: torch.Tensor | None
    """What goes into the slots, in order: (slots, width of the language model)."""
    prefix: int
    """How many leading tokens other rows may share; fewer than `ids`."""
    prefix_key: Hashable
    """Equal for rows whose first `prefix` positions are computed alike."""
    limit: int
    """Tokens to write at most."""
    end_ids: Collection[int]
    text: TextStream
    options: SamplingOptions = GREEDY
    generator: torch.Generator | None = None
    grammar: Any = None
    """What may be written next (`grammar.Grammar`); None: anything."""
    written: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    pieces: list[str] = field(default_factory=list)
    """Text nobody has taken yet."""
    computed: int = 0
    """Tokens whose keys and values lie in the row's slot."""
    cached: int = 0
    """Those of them that were not computed for this row."""
    image_tokens: int = 0
    """Those of the prompt that stand for pictures."""
    keeps_logits: bool = False
    logits: torch.Tensor | None = None
    """With `keeps_logits`: those after the prompt, (vocabulary,)."""
    fault: Exception | None = None
    """Why this row, and no other, cannot go on."""

    def guarded(self, function: Callable[..., Any], *given: Any) -> Any:
        """What `function` gives; where it fails, None, and that is this row's fault."""
        try:
            return function(*given)
        except Exception as problem:  # a neighbour in the batch goes on whatever it is
            self.fault = problem
            return None

    def take(self, token: int) -> None:
        """Add the token that was chosen, and end the row if it says so."""
        self.written.append(token)
        if token in self.end_ids:
            return self.finish("stop")
        self.pieces.append(self.text.push(token))
        if self.text.stopped or (self.grammar is not None and self.grammar.complete):
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
        usage = Usage(len(self.ids), len(self.written), self.cached, self.image_tokens)
        return Ending(self.finish_reason or "stop", usage, tuple(self.written), tuple(self.logprobs))


class Decoding:
    """Rows in slots. The first `ready` of `rows` have their prompt behind them, the others are on the way."""

    def __init__(self, llava: Llava) -> None:
        self.llava = llava
        self.device = llava.device
        self.language = llava.model.get_decoder()
        self.embedding = llava.model.get_input_embeddings()
        self.head = llava.model.get_output_embeddings()
        self.rows: list[Row] = []
        self.ready = 0
        text = llava.model.config.get_text_config()
        self.slots = Slots(text.num_hidden_layers)
        # transformers renamed it; the older name is a warning at every step, and an error from 5.40 on
        renamed = "cache" in inspect.signature(self.language.forward).parameters
        self.holding = {"cache" if renamed else "past_key_values": self.slots}
        self.windows = _windows(text)

    # --- rows come and go ---------------------------------------------------------------------------------------

    def add(self, row: Row, blocks: Sequence[torch.Tensor] = (), there: int = 0) -> None:
        """Give a row the next slot, which holds the keys and values of its first tokens if so many are `there`.
        `blocks`: those of the tokens after them, as `Slots.block` gives them."""
        self.slots.reserve(len(self.rows) + 1, len(row.ids) + 1)
        self.slots.load(len(self.rows), blocks, there)
        row.computed = row.cached = there + sum(block.shape[3] for block in blocks)
        self.rows.append(row)

    def remove(self, index: int) -> None:
        """Take a row out. The last ready row moves into its slot, and the last of all into that one's."""
        if index < self.ready:
            self.ready -= 1
            index = self._fill(index, self.ready)
        self._fill(index, len(self.rows) - 1)
        self.rows.pop()

    def _fill(self, index: int, source: int) -> int:
        """Move a row into a place that is free; the place that is free then."""
        row = self.rows[index] = self.rows[source]
        self.slots.move(source, index, row.computed)
        return source

    # --- passes -------------------------------------------------------------------------------------------------

    def prefill(self, rows: Sequence[Row]) -> torch.Tensor:
        """The logits after each prompt: (rows, vocabulary). A prefix that rows share is computed once."""
        firsts: dict[Hashable, Row] = {}
        for row in rows:
            firsts.setdefault(row.prefix_key, row)
        leading = [row for row in firsts.values() if row.prefix] if len(firsts) < len(rows) else []
        others = [row for row in rows if all(row is not one for one in leading)]
        self.slots.reserve(len(rows), max(len(row.ids) for row in rows) + 1)
        for row in leading:
            self.add(row)
        self.advance([row.prefix for row in leading])
        for row in others:
            self.add(row)
            if leading and row.prefix:
                index = next(place for place, one in enumerate(self.rows) if one is firsts[row.prefix_key])
                self.slots.move(index, len(self.rows) - 1, row.prefix)
                row.computed = row.cached = row.prefix
        logits = self.advance([len(row.ids) for row in self.rows])
        places = {id(row): place for place, row in enumerate(self.rows)}
        self.ready = len(self.rows)
        return logits[[places[id(row)] for row in rows]]

    @torch.no_grad()
    def advance(self, ends: Sequence[int]) -> torch.Tensor:
        """Compute the rows on the way up to these tokens of their prompts.

        Gives the logits after the last of each: (rows on the way, vocabulary).
        """
        rows = self.rows[self.ready :]
        if not rows:
            return torch.empty(0)
        starts = [row.computed for row in rows]
        counts = [end - start for end, start in zip(ends, starts, strict=True)]
        hidden = self._forward(self._embed(rows, starts, counts), self.ready, starts)
        last = hidden[torch.arange(len(rows)), torch.tensor(counts) - 1]
        for row, end in zip(rows, ends, strict=True):
            row.computed = end
        return self._logits(last)

    @torch.no_grad()
    def step(self) -> torch.Tensor:
        """The logits after the last written token of each ready row: (ready, vocabulary)."""
        rows = self.rows[: self.ready]
        ids = torch.tensor([row.written[-1] for row in rows], device=self.device)
        hidden = self._forward(self.embedding(ids[:, None]), 0, [row.computed for row in rows])
        for row in rows:
            row.computed += 1
        return self._logits(hidden[:, -1])

    def _forward(self, embedded: torch.Tensor, first: int, starts: Sequence[int]) -> torch.Tensor:
        """embedded: (rows, tokens, width) of the slots from `first` on, each from its own position on."""
        tokens = embedded.shape[1]
        columns = max(starts) + tokens
        self.slots.reserve(first + len(starts), columns)
        alike = starts[0] if min(starts) == max(starts) else None
        begin = torch.tensor(starts, device=self.device)
        positions = begin[:, None] + torch.arange(tokens, device=self.device)
        self.slots.aim(first, positions, columns, alike)
        with evaluating(self.llava.model), self.llava.autocast():
            return self.language(
                inputs_embeds=embedded,
                attention_mask=self._mask(positions, columns, alike),
                position_ids=positions,
                use_cache=True,
                **self.holding,
            ).last_hidden_state

    def _mask(self, positions: torch.Tensor, columns: int, alike: int | None) -> Any:
        """Which columns each token sees: (rows, 1, tokens, columns), by kind of layer where a model has several."""
        plain = alike is not None and (positions.shape[1] == 1 or alike == 0)
        made: dict[str, torch.Tensor | None] = {}
        for kind, window in self.windows.items():
            if plain and (window is None or columns <= window):
                made[kind] = None  # what torch does of itself, and faster
                continue
            place = torch.arange(columns, device=self.device)
            seen = place <= positions[:, :, None]
            if window is not None:
                seen &= place > positions[:, :, None] - window
            made[kind] = self._as_wanted(seen[:, None])
        return made.get("", made)

    def _as_wanted(self, seen: torch.Tensor) -> torch.Tensor:
        """Torch's own attention takes booleans; what transformers computes step by step adds numbers."""
        if self.language.config._attn_implementation == "sdpa":
            return seen
        lowest = torch.finfo(self.llava.dtype).min
        return torch.zeros(seen.shape, dtype=self.llava.dtype, device=seen.device).masked_fill(~seen, lowest)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with self.llava.autocast():
            return self.head(hidden).float()

    def _embed(self, rows: Sequence[Row], starts: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
        """So many tokens of every row from its start on, features in the slots, padded on the right."""
        most, image = max(counts), self.llava.image_token_id
        taken = [list(row.ids[start : start + count]) for row, start, count in zip(rows, starts, counts, strict=True)]
        ids = torch.tensor([[*one, *[PADDING] * (most - len(one))] for one in taken], device=self.device)
        slots = ids == image
        # An image token need not be in the vocabulary, and padding is not: any embedding will do for both.
        embedded = self.embedding(ids.masked_fill(slots | (ids == PADDING), 0))
        features = []
        for row, start, one in zip(rows, starts, taken, strict=True):
            if count := one.count(image):
                assert row.features is not None
                skipped = list(row.ids[:start]).count(image)
                features.append(row.features[skipped : skipped + count])
        if features:
            embedded[slots] = torch.cat(features).to(embedded)
        return embedded


def _windows(text: Any) -> dict[str, int | None]:
    """Kind of layer -> how many tokens back it sees; one kind named "" where a model takes one mask for all."""
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    if not kinds:
        return {"": window}
    return {kind: window if kind == "sliding_attention" else None for kind in dict.fromkeys(["full_attention", *kinds])}


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
