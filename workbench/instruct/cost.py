"""What a generation will cost, before it starts: calls, tokens, money and time.

Knows: a table of prices that a person can edit, how many tokens texts and pictures count as, roughly.
Does not know: what is asked (`plan.py`), or what was really paid, which the endpoint reports with every reply.
"""

from __future__ import annotations

import ipaddress
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from workbench.conversation import Conversation
from workbench.errors import RecipeError
from workbench.instruct.estimate import Estimate
from workbench.recipe import Section
from workbench.recipe_yaml import explain, read_yaml
from workbench.resources import state_folder

PRICES = Path(__file__).parent / "prices.yaml"
REPLY_SHARE = 0.35
"""Tokens of a reply that are expected, as a share of what it may have, where no reply is there to go by."""
SHOWN_PROMPTS = 3
MESSAGE_TOKENS = 4
"""Of a message beside its words: role and separators."""
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, BeforeValidator(str)]
"""Also of a date or number, as YAML reads them."""
_DATED = re.compile(r"[-@](\d{4}-?\d\d-?\d\d|\d{4}|latest)")


class ImageRule(Section):
    """How many tokens a picture counts as: exactly one of the three."""

    tiles: tuple[NonNegative, NonNegative] | None = Field(default=None, strict=False)
    """Of every picture, and of each tile of 512 pixels."""
    patches: NonNegative | None = None
    """Tokens of each patch of 32 pixels."""
    tokens: NonNegative | None = None
    """Of any picture."""

    @model_validator(mode="after")
    def _one(self) -> ImageRule:
        given = [name for name in ("tiles", "patches", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            raise RecipeError("image", found=" and ".join(given) or "nothing", expected="one of tiles, patches, tokens")
        return self

    def count(self, width: int | None, height: int | None) -> int:
        """Tokens of a picture of so many pixels; of 1024 x 1024 where its size is not known.

        The rules and these examples are those of OpenAI's page "Images and vision", for high detail: 1024 x 1024 is
        765 tokens of gpt-4o, 2048 x 4096 is 1105; of patch models 1024 x 1024 is 1024 patches, 1800 x 2400 is 1452.
        """
        width, height = width or 1024, height or 1024
        if self.tiles is not None:
            scale = min(1.0, 2048 / max(width, height), 768 / min(width, height))
            return round(self.tiles[0] + self.tiles[1] * _cover(width * scale, height * scale, 512))
        if self.patches is not None:
            return math.ceil(_patches(width, height) * self.patches)
        return round(self.tokens or 0)


def _cover(width: float, height: float, side: int) -> int:
    """Squares that cover so many pixels; what floating point adds to whole ones does not count."""
    return math.ceil(round(width / side, 6)) * math.ceil(round(height / side, 6))


def _patches(width: int, height: int, most: int = 1536, side: int = 32) -> int:
    """Patches of 32 pixels; a larger picture is shrunk until at most 1536 whole ones cover it."""
    if _cover(width, height, side) <= most:
        return _cover(width, height, side)
    shrink = math.sqrt(side**2 * most / (width * height))
    across, down = width * shrink / side, height * shrink / side
    if min(across, down) < 1:  # a strip: the rule leaves nothing of its short side
        return most
    shrink *= min(math.floor(across) / across, math.floor(down) / down)
    return min(most, _cover(width * shrink, height * shrink, side))


class Price(Section):
    """US dollars per million tokens."""

    input: NonNegative
    output: NonNegative
    image: ImageRule = ImageRule(tokens=576)
    as_of: Text | None = None
    """When it was looked up."""
    source: Text | None = None
    """Where."""

    @staticmethod
    def free() -> Price:
        return Price(input=0.0, output=0.0)

    def money(self, prompt_tokens: float, completion_tokens: float) -> float:
        """US dollars."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


class PriceTable(Section):
    """A file of prices. `as_of` and `source` are those of every model that has none of its own."""

    models: dict[str, Price]
    as_of: Text | None = None
    source: Text | None = None


def load_prices(path: str | Path | None = None) -> dict[str, Price]:
    """The shipped prices, the person's own (`prices.yaml` in the state folder) and those in `path`, later over earlier.

    Raises `RecipeError` naming file and key.
    """
    found: dict[str, Price] = {}
    own = state_folder() / "prices.yaml"
    for file in (PRICES, own if own.is_file() else None, path):
        if file is not None:
            found |= _read_table(Path(file))
    return found


def _read_table(path: Path) -> dict[str, Price]:
    try:
        table = PriceTable.model_validate(read_yaml(path))
    except ValidationError as error:
        raise explain(error, PriceTable, path.name, set()) from None
    except RecipeError as error:
        where = error.where if error.where.startswith(path.name) else f"{path.name}, {error.where}"
        raise RecipeError(where, found=error.found, expected=error.expected, fix=error.fix) from None
    told = {"as_of": table.as_of, "source": table.source}
    return {
        name: price.model_copy(update={key: getattr(price, key) or value for key, value in told.items()})
        for name, price in table.models.items()
    }


def price_of(model: str, prices: Mapping[str, Price], urls: Sequence[str | None] = ()) -> Price | None:
    """The price of a model: by its name, by its name without a date, by the longest `name*` it begins with.

    Where there is none: nothing if all `urls` that answer for it are of this machine, else None, unknown.
    """
    if model in prices:
        return prices[model]
    dated = [name for name in prices if model.startswith(name) and _DATED.fullmatch(model[len(name) :])]
    open_ended = [name for name in prices if name.endswith("*") and model.startswith(name[:-1])]
    for names in (dated, open_ended):
        if names:
            return prices[max(names, key=len)]
    return Price.free() if urls and all(url and _is_this_machine(url) for url in urls) else None


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback or host == "0.0.0.0"
    except ValueError:
        return host == "localhost"


# --- tokens of a prompt ---------------------------------------------------------------------------------------

OTHER_LETTERS = 2.5
"""Of a token, where they are neither Latin nor Chinese, Japanese or Korean."""
_PIECE = re.compile(r"[^\W\d_]+|\d{1,3}|[^\w\s]+|\n+|_+")


@lru_cache(512)
def text_tokens(text: str) -> int:
    """About how many tokens a text is, without a tokenizer: words, numbers and marks, long ones for several.

    Measured against o200k_base (gpt-4o, gpt-4.1): the shipped prompts within 4 %, lists of boxes and JSON 9 % too few,
    eight other languages within 20 %. Older tokenizers need up to twice as many where letters are not Latin.
    """
    marks = 0
    if not text.isascii():  # vowel signs and accents of their own belong to the word around them
        bare = "".join(letter for letter in text if not unicodedata.category(letter).startswith("M"))
        marks, text = len(text) - len(bare), bare
    return math.ceil(marks / OTHER_LETTERS + sum(map(_piece_tokens, _PIECE.findall(text))))


def _piece_tokens(piece: str) -> float:
    if piece.isascii():
        return math.ceil(len(piece) / 9) if piece.isalpha() else 1
    if not piece[0].isalpha():
        return len(piece)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in piece)
    latin = sum(letter < "\u0250" for letter in piece)
    return wide * 0.8 + math.ceil(latin / 6) + (len(piece) - wide - latin) / OTHER_LETTERS


def prompt_tokens(conversation: Conversation, rule: ImageRule | None = None) -> int:
    """About how many tokens a prompt is, its pictures included."""
    texts = sum(MESSAGE_TOKENS + text_tokens(message.text) for message in conversation.messages)
    return texts + _image_tokens(conversation, rule or Price.free().image)


def _image_tokens(conversation: Conversation, rule: ImageRule) -> int:
    return sum(rule.count(image.width, image.height) for image in conversation.images)


# --- the whole ------------------------------------------------------------------------------------------------


def estimate_requests(
    requests: Iterable[tuple[str, Conversation, int]],
    price: Price | None,
    *,
    model: str = "",
    stored: int = 0,
    reply_tokens: Mapping[str, float] | None = None,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
) -> Estimate:
    """An estimate over requests given as task, prompt and the most tokens of a reply.

    `stored`: replies that are there already and not among the requests. `reply_tokens`: the mean of stored replies by
    task; else `REPLY_SHARE` of the most is expected. Rates are those of all endpoints together.
    """
    rule = price.image if price is not None else Price.free().image
    names = ("calls", "prompt_tokens", "image_tokens", "completion_tokens", "most_completion_tokens")
    tasks: dict[str, dict[str, float]] = {}
    shown: dict[str, list[Conversation]] = {}
    for task, prompt, most in requests:
        row = tasks.setdefault(task, dict.fromkeys(names, 0.0))
        expected = min(most, (reply_tokens or {}).get(task, most * REPLY_SHARE))
        counts = (1, prompt_tokens(prompt, rule), _image_tokens(prompt, rule), expected, most)
        for name, count in zip(names, counts, strict=True):
            row[name] += count
        if len(shown.setdefault(task, [])) < SHOWN_PROMPTS:
            shown[task].append(prompt)
    made = Estimate(model, tasks, stored=stored)
    if price is not None:
        made.money = price.money(made.prompt_tokens, made.completion_tokens)
        made.most_money = price.money(made.prompt_tokens, made.most_completion_tokens)
        made.priced = " ".join(filter(None, [price.as_of and f"as of {price.as_of}", price.source]))
    made.seconds = _seconds(made, requests_per_minute, tokens_per_minute)
    mixed = [prompts[place] for place in range(SHOWN_PROMPTS) for prompts in shown.values() if place < len(prompts)]
    made.prompts = mixed[:SHOWN_PROMPTS]  # of different tasks where there are several
    return made


def _seconds(made: Estimate, requests_per_minute: float | None, tokens_per_minute: float | None) -> float | None:
    """What the rates alone take; an endpoint counts the most tokens a reply may have."""
    tokens = made.prompt_tokens + made.most_completion_tokens
    waits = [60 * made.calls / requests_per_minute] if requests_per_minute else []
    waits += [60 * tokens / tokens_per_minute] if tokens_per_minute else []
    return max(waits, default=None)
