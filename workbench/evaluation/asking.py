"""Who is asked, and how: a LLaVA with its pictures' cost shared, one row at a time, or any other model in batches.

Knows: parts of a size that is kept between two writes, the next form of a question only after a right one, and that a
row that fails takes no other with it.
Does not know: what answers mean (the evaluation's rules say whether one is right), or files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from workbench.chat_model import Answer, ChatModel, SamplingOptions
from workbench.conversation import Conversation, placed, to_llava
from workbench.errors import RenderError
from workbench.inference.attachments import seen_by

if TYPE_CHECKING:
    from workbench.evaluation.task import Evaluation
    from workbench.inference.decoding import Row
    from workbench.inference.engine import Engine
    from workbench.inference.next_token import Branches, Said
    from workbench.model.renderer import Rendered

BATCH = 64
"""Questions handed to a model at once."""
WORTH = 576
"""Tokens that sharing a beginning must save to be worth a pass of its own. Below, questions about many pictures go
through the engine's batch together: each step of it costs about as much as one of a single picture's questions."""
RANKED = "the likeliest first token of the candidates"
"""The rule of rows whose answer was not written but chosen."""


@dataclass(frozen=True)
class Line:
    """The forms of one question, in their order; each is asked only while those before it are right."""

    forms: tuple[Conversation, ...]
    lost: bool = False
    """Whether one form is known to be wrong."""


@dataclass(frozen=True)
class Given:
    """What became of one question. Neither text nor error: it was not asked, for another form of it is wrong."""

    asked: Conversation
    text: str | None
    prompt: str | None = None
    margin: float | None = None
    seconds: float = 0.0
    error: str | None = None
    rule: str | None = None


Ask = Callable[[Sequence[Line]], Iterator[list[Given]]]


def asker(model: ChatModel, evaluation: Evaluation, reuse: bool, likelihood: bool) -> Ask:
    """What asks `model` the lines of `evaluation`. Raises `RenderError` where no likelihood can be read."""
    if _is_engine(model):
        return EngineAsker(model, evaluation, reuse, likelihood)  # type: ignore[arg-type]
    if likelihood:
        raise RenderError(f"model {model.name}", found="no token probabilities", expected="a LLaVA in this process")
    return ModelAsker(model, evaluation, reuse)


def _is_engine(model: ChatModel) -> bool:
    import sys

    engine = sys.modules.get("workbench.inference.engine")  # loaded, if the model is one
    return engine is not None and isinstance(model, engine.Engine)


class _Asker:
    """What both have in common: the options, and whether an answer is right."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.options = SamplingOptions(max_tokens=evaluation.max_tokens)

    def right(self, asked: Conversation, text: str) -> bool:
        row = {"id": asked.id, "reference": asked.reference, "about": asked.metadata.get("about")}
        return self.evaluation.rules.read(text.strip(), row).earned >= 1

    def waves(self, lines: Sequence[Line], ask: Callable[[list[Conversation]], list[Given]]) -> list[Given]:
        """The first forms of all lines together, then the second ones of those that are right, and so on."""
        given: list[Given] = []
        going = list(lines)
        for form in range(max((len(line.forms) for line in lines), default=0)):
            going = [line for line in going if form < len(line.forms)]
            answers = ask([line.forms[form] for line in going]) if going else []
            given += answers
            right = []
            for line, answer in zip(going, answers, strict=True):
                if answer.error is not None or answer.text is None or self.right(answer.asked, answer.text):
                    right.append(line)  # one that failed says nothing about the others
                else:
                    given += [Given(left, None) for left in line.forms[form + 1 :]]
            going = right
        return given


class ModelAsker(_Asker):
    """Any model, in batches; without `together` one row after the other."""

    def __init__(self, model: ChatModel, evaluation: Evaluation, together: bool) -> None:
        super().__init__(evaluation)
        self.model, self.together = model, together
        if together and _is_engine(model):  # which tells how sure the first token was
            self.options = replace(self.options, logprobs=2)

    def __call__(self, lines: Sequence[Line]) -> Iterator[list[Given]]:
        for part in parts(lines, BATCH if self.together else 1):
            yield self.waves(part, self._ask)

    def _ask(self, asked: list[Conversation]) -> list[Given]:
        began = time.perf_counter()
        try:
            answers = self.model.reply_batch([sent(self.evaluation, one, self.model) for one in asked], self.options)
            texts = [answer.text for answer in answers]
        except Exception as error:  # whatever a model raises: the rows that did nothing wrong are asked again, alone
            if len(asked) > 1:
                return [self._ask([one])[0] for one in asked]
            return [Given(asked[0], None, _written(asked[0]), error=told(error))]
        spent = (time.perf_counter() - began) / len(asked)
        found = zip(asked, texts, map(_margin, answers), strict=True)
        return [Given(one, text, _written(one), margin, spent) for one, text, margin in found]


def _margin(answer: Answer) -> float | None:
    """Log probability of the first token above that of the second likeliest; None where a model does not show it."""
    top = answer.logprobs[0].top if answer.logprobs else ()
    return top[0][2] - top[1][2] if len(top) > 1 else None


class EngineAsker(_Asker):
    """A LLaVA in this process."""

    def __init__(self, engine: Engine, evaluation: Evaluation, reuse: bool, likelihood: bool) -> None:
        from workbench.inference.next_token import shareable

        super().__init__(evaluation)
        self.engine = _own(engine, evaluation, reuse)
        self.reuse, self.likelihood = reuse, likelihood
        self.share = (reuse or likelihood) and not engine.swaps and shareable(engine.llava)
        self._prompts: dict[str, str] = {}  # of the rows that are being asked

    def __call__(self, lines: Sequence[Line]) -> Iterator[list[Given]]:
        if not self.share:
            yield from self._batches(lines)
            return
        for part in parts(lines, BATCH if self.reuse else 1):
            shared = part if self.likelihood else self._worth(part)
            ready, failed = self._ready(shared)
            if failed:
                yield failed
            for group in _alike(ready):
                yield self._group(group)
            chosen = set(map(id, shared))
            yield from self._batches([line for line in part if id(line) not in chosen])

    def _worth(self, lines: Sequence[Line]) -> list[Line]:
        """Those about one picture that save enough by sharing it, told before any picture is opened (of a video that is
        seen as frames, its length is looked at)."""
        found: list[Line] = []
        for _, group in groupby(lines, key=lambda line: line.forms[0].media):
            some = list(group)
            if self._begins(some[0].forms[0]) * (sum(len(line.forms) for line in some) - 1) >= WORTH:
                found += some
        return found

    def _begins(self, asked: Conversation) -> int:
        """Tokens, at least, that questions about the same picture may begin with; 0 for one that cannot be asked."""
        llava = self.engine.llava
        try:
            made = self._rendered(asked)
        except Exception:  # its row says what is wrong with it
            return 0
        return made.prefix + sum(token < 0 for token in made.ids[: made.prefix]) * (llava.tiling.each - 1)

    def _batches(self, lines: Sequence[Line]) -> Iterator[list[Given]]:
        """The plain path, and that of models whose branches cannot share a row."""
        plain = ModelAsker(self.engine, self.evaluation, self.reuse)
        for given in plain(lines):
            yield [replace(one, prompt=self._prompt(one.asked)) for one in given]

    def _prompt(self, asked: Conversation) -> str | None:
        """The text as sent, with the template's words."""
        if asked.id in self._prompts:
            return self._prompts[asked.id]
        try:
            return self._rendered(asked).text
        except Exception:  # the row says what is wrong with it
            return None

    def _rendered(self, asked: Conversation) -> Rendered:
        return self.engine.llava.renderer.prompt(sent(self.evaluation, asked, self.engine))

    # --- shared -----------------------------------------------------------------------------------------------------

    def _ready(self, lines: Sequence[Line]) -> tuple[list[Ready], list[Given]]:
        """Lines as rows of tokens and features; one that cannot be is alone in that."""
        asked = [form for line in lines for form in line.forms]
        try:
            rows = dict(zip([one.id for one in asked], self._rows(asked), strict=True))
            return [Ready(line, tuple(rows[form.id] for form in line.forms)) for line in lines], []
        except Exception as error:
            if len(asked) == 1:
                return [], [Given(asked[0], None, self._prompt(asked[0]), error=told(error))]
            split = [Line((form,)) for form in asked] if len(lines) == 1 else lines
            found = [self._ready([line]) for line in split]
            return [one for ready, _ in found for one in ready], [one for _, failed in found for one in failed]

    def _rows(self, asked: Sequence[Conversation]) -> list[Row]:
        rendered = [(number, self._rendered(one)) for number, one in enumerate(asked)]
        self._prompts = {one.id: text.text for one, (_, text) in zip(asked, rendered, strict=True)}
        return [row for _, row in self.engine._prepare(rendered, self.options)]

    def _group(self, group: Sequence[Ready]) -> list[Given]:
        """Lines that begin alike, in one pass for each wave."""
        from workbench.inference.next_token import Branches

        rows = {form.id: row for ready in group for form, row in zip(ready.line.forms, ready.rows, strict=True)}
        lines = [ready.line for ready in group]
        try:
            branches = Branches(self.engine.llava, list(rows.values()))
            return self.waves(lines, lambda asked: self._ask(branches, asked, [rows[one.id] for one in asked]))
        except Exception as error:  # memory, most likely: each alone
            if len(rows) == 1:
                return [Given(lines[0].forms[0], None, self._prompt(lines[0].forms[0]), error=told(error))]
            alone = ModelAsker(self.engine, self.evaluation, together=False)
            return [replace(one, prompt=self._prompt(one.asked)) for given in alone(lines) for one in given]

    def _ask(self, branches: Branches, asked: list[Conversation], rows: Sequence[Row]) -> list[Given]:
        began = time.perf_counter()
        firsts = [self._candidates(one) for one in asked]
        ranked = [number for number, found in enumerate(firsts) if found]
        written = [number for number, found in enumerate(firsts) if not found]
        said: dict[int, Said] = {}
        if ranked:
            chosen = branches.likeliest([rows[number] for number in ranked], [firsts[number] for number in ranked])
            said |= zip(ranked, chosen, strict=True)
        if written:
            answers = branches.answer([rows[number] for number in written], self.evaluation.rules.settled)
            said |= zip(written, answers, strict=True)
        spent = (time.perf_counter() - began) / len(asked)
        rules = [RANKED if found else None for found in firsts]
        return [
            Given(one, said[number].text, self._prompt(one), said[number].margin, spent, rule=rules[number])
            for number, one in enumerate(asked)
        ]

    def _candidates(self, asked: Conversation) -> dict[str, int]:
        """The answers there are to choose from, each with its first token; empty where the answer is written."""
        from workbench.inference.next_token import first_tokens

        listed = asked.metadata.get("candidates") if self.likelihood else None
        if not listed:
            return {}
        try:
            return first_tokens(self.engine.llava.renderer, sent(self.evaluation, asked, self.engine), listed)
        except RenderError:  # two begin alike
            return {}


@dataclass(frozen=True)
class Ready:
    """A line with its forms as rows."""

    line: Line
    rows: tuple[Row, ...]


def _alike(ready: Iterable[Ready]) -> list[list[Ready]]:
    """Lines by how they begin."""
    ordered = sorted(ready, key=lambda one: hash(one.rows[0].prefix_key))
    return [list(group) for _, group in groupby(ordered, key=lambda one: one.rows[0].prefix_key)]


def _own(engine: Engine, evaluation: Evaluation, reuse: bool) -> Engine:
    """The engine as this evaluation needs it: opening its pictures, and on the plain path keeping nothing."""
    from workbench.inference.attachments import open_file
    from workbench.inference.engine import PREFIX_BYTES, Engine
    from workbench.inference.prefix_cache import FeatureCache

    if engine.swaps:  # such a one answers through its own thread only
        return engine
    return Engine(
        engine.llava,
        open_image=open_file if evaluation.resolve else engine.open_image,
        features=engine.features if reuse else FeatureCache(0),
        prefix_bytes=PREFIX_BYTES if reuse else 0,
        name=engine.name,
    )


def sent(evaluation: Evaluation, asked: Conversation, model: ChatModel) -> Conversation:
    """What a model is given: the conversation without its reference, pictures by their place on this disk, and frames
    of a video where it reads pictures only. Raises `ImageError` for a video that cannot be read."""
    prompt = asked.prompt
    if not prompt.media:
        return prompt
    return seen_by(model, placed(prompt, evaluation.resolve) if evaluation.resolve else prompt)


def _written(asked: Conversation) -> str:
    """The turns as they were sent, for a model whose template is not known."""
    return "\n".join(turn["value"] for turn in to_llava(asked.prompt)["conversations"])


def parts(lines: Sequence[Line], size: int) -> Iterator[list[Line]]:
    """Lines together while they have at most `size` forms; pictures stay together where they fit."""
    part: list[Line] = []
    for line in lines:
        if part and sum(len(one.forms) for one in part) + len(line.forms) > size:
            yield part
            part = []
        part.append(line)
    if part:
        yield part


def told(error: BaseException) -> str:
    """One line of what went wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:497] + "..."
