"""What a second question about a picture costs, and a second turn, up to their first token: asked and timed.

Knows: the questions and pictures of a round, how our engine is asked them, and how rounds become medians and shares.
Does not know: which sides are compared, on what device, or who prints it.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image as PILImage

from workbench.chat_model import Answer, SamplingOptions
from workbench.conversation import Conversation, Image
from workbench.inference.engine import Engine

ONE, SOME = SamplingOptions(max_tokens=1), SamplingOptions(max_tokens=16)
KINDS = ("first question", "second question", "second turn", "the same, a second later")
Spent = dict[str, list[tuple[float, float]]]
"""Kind of request -> (processor, wall) seconds of each round."""
Turns = list[tuple[str, str]]
"""(question, answer) of the turns before."""


class Side(Protocol):
    """Somebody who answers."""

    def cpu(self) -> float:
        """Processor seconds it has used so far."""

    def ask(self, number: int, text: str, before: Turns, options: SamplingOptions) -> str:
        """The answer to a question about picture `number`."""


def picture(number: int, size: tuple[int, int] = (336, 336)) -> bytes:
    """A PNG file of noise, (width, height) pixels."""
    noise = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    written = io.BytesIO()
    PILImage.fromarray(noise).save(written, "PNG")
    return written.getvalue()


def question(number: int) -> str:
    return f"w{100 + number} w7 w8 w9 w10 w11 w12 ?"


class Ours:
    """The engine in this process, and pictures for it in files below `folder`."""

    def __init__(self, llava: Any, folder: Path, pictures: int, size: tuple[int, int] = (336, 336)) -> None:
        self.engine, self.folder = Engine(llava), folder
        for number in range(pictures):
            (folder / f"{number}.png").write_bytes(picture(number, size))

    def cpu(self) -> float:
        return time.process_time()

    def asked(self, number: int, text: str, before: Turns) -> Conversation:
        """The conversation that ends with this question."""
        asked = Conversation(f"c{number}", ())
        for turn, (said, answer) in enumerate([*before, (text, "")]):
            asked = asked.add("user", *([Image(str(self.folder / f"{number}.png"))] if not turn else []), said)
            asked = asked.add("assistant", answer) if answer else asked
        return asked

    def answer(self, number: int, text: str, options: SamplingOptions) -> Answer:
        """An answer that is written while it is read."""
        return self.engine.reply(self.asked(number, text, []), options)

    def ask(self, number: int, text: str, before: Turns, options: SamplingOptions) -> str:
        return self.engine.reply(self.asked(number, text, before), options).text


def measure(side: Side, function: Callable[[], Any]) -> tuple[float, float]:
    used, wall = side.cpu(), time.perf_counter()
    function()
    return side.cpu() - used, time.perf_counter() - wall


def one_round(side: Side, number: int, spent: Spent) -> None:
    """A first question about a new picture, another, a second turn, and one after a second of doing nothing."""
    first, other = question(number), question(number + 50)
    spent[KINDS[0]].append(measure(side, lambda: side.ask(number, first, [], ONE)))
    spent[KINDS[1]].append(measure(side, lambda: side.ask(number, other, [], ONE)))
    answer = side.ask(number, first, [], SOME)
    spent[KINDS[2]].append(measure(side, lambda: side.ask(number, other, [(first, answer)], ONE)))
    time.sleep(1)
    spent[KINDS[3]].append(measure(side, lambda: side.ask(number, question(number + 70), [(first, answer)], ONE)))


def medians(spent: Spent) -> dict[str, tuple[tuple[float, float], tuple[float, float]]]:
    """Kind -> (processor, wall) seconds, medians of all rounds but the first, and shares of a first question's."""
    told = {}
    for kind, seconds in spent.items():
        used, wall = (statistics.median(each[place] for each in seconds[1:]) for place in (0, 1))
        cold = told[KINDS[0]][0] if told else (used, wall)
        told[kind] = (used, wall), (used / cold[0], wall / cold[1])
    return told
