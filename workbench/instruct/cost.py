"""What a generation will cost, before it starts: calls, tokens and money.

Knows: a table of prices that a person can edit, how many tokens texts and pictures count as, roughly.
Does not know: what is asked (`plan.py`), or what was really paid, which the endpoint reports with every reply.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from pydantic import Field, ValidationError

from workbench.conversation import Conversation, Image
from workbench.recipe import Section
from workbench.recipe_yaml import explain, read_yaml
from workbench.resources import state_folder

PRICES = Path(__file__).parent / "prices.yaml"
REPLY_SHARE = 0.35
"""Tokens of a reply that are expected, as a share of what it may have."""
SHOWN_PROMPTS = 3
MESSAGE_TOKENS = 4
"""Of a message beside its words: role and separators."""
NonNegative = Annotated[float, Field(ge=0)]


class ImageRule(Section):
    """How many tokens a picture counts as; one of the three."""

    tiles: tuple[float, float] | None = Field(default=None, strict=False)
    patches: float | None = None
    tokens: float | None = None

    def count(self, width: int | None, height: int | None) -> int:
        """Tokens of a picture of so many pixels; of 1024 x 1024 where its size is not known.

        OpenAI's rules for high detail, as its page "Images and vision" gives them: 1024 x 1024 is 765 tokens of gpt-4o,
        2048 x 4096 is 1105; of patch models 1024 x 1024 is 1024 patches, 1800 x 2400 is 1452.
        """
        width, height = width or 1024, height or 1024
        if self.tiles is not None:
            scale = min(1.0, 2048 / max(width, height))
            scale = min(scale, 768 / min(width, height))
            tiles = math.ceil(width * scale / 512) * math.ceil(height * scale / 512)
            return round(self.tiles[0] + self.tiles[1] * tiles)
        if self.patches is not None:
            return math.ceil(_patches(width, height) * self.patches)
        return round(self.tokens or 0)


def _patches(width: int, height: int, most: int = 1536, side: int = 32) -> int:
    """Patches of 32 pixels; a larger picture is shrunk until at most 1536 whole ones cover it."""
    if math.ceil(width / side) * math.ceil(height / side) <= most:
        return math.ceil(width / side) * math.ceil(height / side)
    shrink = math.sqrt(side**2 * most / (width * height))
    across, down = width * shrink / side, height * shrink / side
    shrink *= min(math.floor(across) / across, math.floor(down) / down)
    return math.ceil(round(width * shrink / side, 6)) * math.ceil(round(height * shrink / side, 6))


class Price(Section):
    """US dollars per million tokens."""

    input: NonNegative
    output: NonNegative
    image: ImageRule = ImageRule(tokens=576)

    @staticmethod
    def free() -> Price:
        return Price(input=0.0, output=0.0)

    def money(self, prompt_tokens: float, completion_tokens: float) -> float:
        """US dollars."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


class PriceTable(Section):
    models: dict[str, Price]
    as_of: str | None = Field(default=None, coerce_numbers_to_str=True)
    source: str | None = None


def load_prices(path: str | Path | None = None) -> dict[str, Price]:
    """The shipped prices, the person's own (`prices.yaml` in the state folder) and those in `path`, later over earlier.

    Raises `RecipeError` naming file and key.
    """
    found: dict[str, Price] = {}
    own = state_folder() / "prices.yaml"
    for file in (PRICES, own if own.is_file() else None, path):
        if file is not None:
            try:
                found |= PriceTable.model_validate(read_yaml(file)).models
            except ValidationError as error:
                raise explain(error, PriceTable, Path(file).name, set()) from None
    return found


def price_of(model: str, prices: Mapping[str, Price]) -> Price | None:
    """By the model's own name, then by the longest name that it begins with; None where there is none."""
    names = [name for name in prices if model == name or model.startswith(f"{name}-")]
    return prices[max(names, key=len)] if names else None


def text_tokens(text: str) -> int:
    """About how many tokens a text is, without a tokenizer: one for four letters, one for each CJK character."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return math.ceil((len(text) - wide) / 4) + wide


def prompt_tokens(conversation: Conversation, rule: ImageRule | None = None) -> int:
    """About how many tokens a prompt is, its pictures included."""
    rule = rule or ImageRule(tokens=576)
    total = 0
    for message in conversation.messages:
        total += MESSAGE_TOKENS + text_tokens(message.text)
        total += sum(rule.count(part.width, part.height) for part in message.media if isinstance(part, Image))
    return total


@dataclass
class Estimate:
    """What a generation will ask for. Tokens are estimates, money follows from them."""

    tasks: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per task: calls, prompt_tokens, image_tokens (a part of the prompt's), completion_tokens."""
    money: float | None = 0.0
    """US dollars; None where the model is in no price table."""
    stored: int = 0
    """Replies that are there already and cost nothing."""
    prompts: list[Conversation] = field(default_factory=list)
    """Three of them, as they would be sent."""
    model: str = ""

    @property
    def calls(self) -> int:
        return int(self._sum("calls"))

    @property
    def tokens(self) -> int:
        return int(self._sum("prompt_tokens") + self._sum("completion_tokens"))

    def _sum(self, name: str) -> float:
        return sum(row[name] for row in self.tasks.values())

    @property
    def table(self) -> pl.DataFrame:
        """One row a task. Columns: task, calls, prompt_tokens, image_tokens, completion_tokens."""
        return pl.DataFrame([{"task": name, **row} for name, row in self.tasks.items()])

    def summary(self) -> dict[str, Any]:
        """The same for a program to read."""
        totals = {name: int(self._sum(name)) for name in ("prompt_tokens", "image_tokens", "completion_tokens")}
        return {"model": self.model, "calls": self.calls, **totals, "money": self.money, "stored": self.stored}

    def __str__(self) -> str:
        money = f"about {self.money:,.2f} USD" if self.money is not None else (
            f"cost unknown: {self.model} is in no price table (--prices FILE)"
        )  # fmt: skip
        before = f", {self.stored:,} replies are there already" if self.stored else ""
        lines = [f"{self.calls:,} calls, about {self.tokens:,} tokens, {money}{before}"]
        for name, row in self.tasks.items():
            read = f"{row['prompt_tokens']:,.0f} in ({row['image_tokens']:,.0f} of images)"
            lines.append(f"  {name:<16} {row['calls']:>8,.0f} calls  {read}, {row['completion_tokens']:,.0f} out")
        for number, prompt in enumerate(self.prompts, 1):
            lines.append(f"\n--- prompt {number} of {len(self.prompts)} that are shown")
            lines += [
                f"[{message.role}]{' [image]' * len(message.media)} {message.text}" for message in prompt.messages
            ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def estimate_requests(
    requests: Iterable[tuple[str, Conversation, int]], price: Price | None, *, model: str = "", stored: int = 0
) -> Estimate:
    """An estimate over requests given as task, prompt and the most tokens of a reply."""
    made = Estimate(model=model, stored=stored)
    rule = price.image if price is not None else ImageRule(tokens=576)
    empty = dict.fromkeys(("calls", "prompt_tokens", "image_tokens", "completion_tokens"), 0.0)
    shown: dict[str, list[Conversation]] = {}
    for task, prompt, most in requests:
        row = made.tasks.setdefault(task, dict(empty))
        images = sum(rule.count(image.width, image.height) for image in prompt.images)
        row["calls"] += 1
        row["image_tokens"] += images
        row["prompt_tokens"] += prompt_tokens(prompt, rule)
        row["completion_tokens"] += most * REPLY_SHARE
        if len(shown.setdefault(task, [])) < SHOWN_PROMPTS:
            shown[task].append(prompt)
    made.money = None if price is None else price.money(made._sum("prompt_tokens"), made._sum("completion_tokens"))
    turns = [prompts[place] for place in range(SHOWN_PROMPTS) for prompts in shown.values() if place < len(prompts)]
    made.prompts = turns[:SHOWN_PROMPTS]
    return made
