"""How an estimate is told: totals, a row for each task, and prompts as they would be sent.

Knows: how to print it, for a terminal and for a notebook.
Does not know: how any of it was counted (`cost.py`).
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from workbench.conversation import Conversation
from workbench.progress import clock

UNPRICED = "no price is known for {model}; put one into prices.yaml in the state folder, or name a file of prices"


@dataclass
class Estimate:
    """What a generation will ask for. Tokens are estimates, money follows from them."""

    model: str = ""
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per task: calls, prompt_tokens, image_tokens (a part of the prompt's), completion_tokens, and
    most_completion_tokens, if every reply were as long as it may be."""
    money: float | None = None
    """US dollars; None where no price is known."""
    most_money: float | None = None
    """US dollars, if every reply were as long as it may be."""
    priced: str = ""
    """When and where the price was looked up."""
    seconds: float | None = None
    """What the rate limits alone take; None where there are none."""
    stored: int = 0
    """Replies that are there already and cost nothing."""
    prompts: list[Conversation] = field(default_factory=list)
    """Three of them, as they would be sent."""

    @property
    def calls(self) -> int:
        return self._sum("calls")

    @property
    def prompt_tokens(self) -> int:
        return self._sum("prompt_tokens")

    @property
    def image_tokens(self) -> int:
        return self._sum("image_tokens")

    @property
    def completion_tokens(self) -> int:
        return self._sum("completion_tokens")

    @property
    def most_completion_tokens(self) -> int:
        return self._sum("most_completion_tokens")

    @property
    def tokens(self) -> int:
        """Expected, of prompts and replies together."""
        return self.prompt_tokens + self.completion_tokens

    def _sum(self, name: str) -> int:
        return round(sum(row[name] for row in self.tasks.values()))

    @property
    def table(self) -> pl.DataFrame:
        """One row a task. Columns: task, calls, prompt_tokens, image_tokens, completion_tokens, most_..."""
        rows = [{"task": name, **{key: round(value) for key, value in row.items()}} for name, row in self.tasks.items()]
        return pl.DataFrame(rows)

    def summary(self) -> dict[str, Any]:
        """The same for a program to read."""
        names = "model calls prompt_tokens image_tokens completion_tokens most_completion_tokens money most_money"
        return {name: getattr(self, name) for name in (*names.split(), "priced", "seconds", "stored")}

    def __str__(self) -> str:
        rows = [
            f"  {name:<16} {row['calls']:>8,.0f} calls  {row['prompt_tokens']:>12,.0f} tokens in "
            f"({row['image_tokens']:,.0f} of images), {row['completion_tokens']:,.0f} out"
            for name, row in self.tasks.items()
        ]
        prompts = [f"\n--- prompt {number} of {self.calls:,}\n{text}" for number, text in self._texts()]
        return "\n".join([*self._lines(), *rows, *prompts])

    def _repr_html_(self) -> str:
        said = "<br>".join(html.escape(line) for line in self._lines())
        names = ("task", "calls", "tokens in", "of images", "out", "out at most")
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join(
            f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{value:,.0f}</td>' for value in row.values())}</tr>"
            for name, row in self.tasks.items()
        )
        prompts = "".join(
            f"<details><summary>prompt {number} of {self.calls:,}</summary>"
            f"<pre style='white-space: pre-wrap'>{html.escape(text)}</pre></details>"
            for number, text in self._texts()
        )
        return f"<p>{said}</p><table><tr>{head}</tr>{body}</table>{prompts}"

    def _lines(self) -> Iterator[str]:
        if self.calls == 0:
            yield f"nothing is to be asked: {self.stored:,} replies are there already" if self.stored else "no requests"
            return
        before = f"; {self.stored:,} replies are there already" if self.stored else ""
        yield f"{self.calls:,} calls of {self.model or 'the teacher'}, about {self.tokens:,} tokens{before}"
        if self.money is None or self.most_money is None:
            yield f"cost unknown: {UNPRICED.format(model=self.model or 'the teacher')}"
        elif self.most_money == 0:
            yield "free"
        else:
            told = f" (prices {self.priced})" if self.priced else ""
            yield f"about {_dollars(self.money)}, at most {_dollars(self.most_money)}{told}"
        if self.seconds is not None:
            yield f"at least {clock(self.seconds)} at the rate limits"

    def _texts(self) -> Iterator[tuple[int, str]]:
        for number, prompt in enumerate(self.prompts, 1):
            yield number, prompt_text(prompt)


def prompt_text(prompt: Conversation) -> str:
    """A prompt as it is sent, to read: a part for each message that begins with its role and its pictures."""
    return "\n".join(f"[{one.role}]{' [image]' * len(one.media)} {one.text}" for one in prompt.messages)


def _dollars(amount: float) -> str:
    return f"{amount:,.2f} USD" if amount >= 0.1 or amount == 0 else f"{amount:.2g} USD"
