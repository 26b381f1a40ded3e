"""What anything that answers looks like: a `ChatModel` is asked with conversations and gives `Answer`s.

Knows: the protocol, the sampling options, what an answer carries, and `ScriptedModel`, which answers from a list.
Does not know: tokens, pixels, networks, or which rooms bring a model (`inference`) or ask one (all the others).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from numbers import Integral, Real
from types import NoneType
from typing import Any, Protocol

from workbench.conversation import Conversation
from workbench.errors import WorkbenchError, kind_of


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens. The defaults are greedy; raises `WorkbenchError` naming a value that makes no sense.

    >>> wb.SamplingOptions(temperature=0.7, top_p=0.9).greedy
    False
    """

    temperature: float = 0.0
    """0 is greedy: the most likely token, always. Below 0.00001 too, where dividing by it would overflow."""
    top_p: float = 1.0
    """Only the fewest most likely tokens whose probabilities reach this sum; 1 keeps all."""
    top_k: int = 0
    """Only this many most likely tokens; 0 keeps all."""
    max_tokens: int = 256
    """Tokens of the answer, its end token included."""
    seed: int | None = None
    """Two answers with the same seed are equal; None draws afresh. In a batch, row i draws with `seed + i`."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of it."""
    min_p: float = 0.0
    """Only tokens at least this fraction as likely as the likeliest; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the prompt or the answer already holds become less likely (Keskar et al. 2019); 1 is off."""
    logprobs: int | None = None
    """Keep for each token its log probability and those of this many most likely ones; None keeps nothing."""
    json_schema: str | None = None
    """A JSON schema, as JSON text: only answers that satisfy it can be written."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", tuple(stop) if isinstance(stop, Iterable) else stop)
        for name, kind, legal, expected in _LEGAL:
            value = getattr(self, name)
            if not (isinstance(value, kind) and legal(value)):
                raise WorkbenchError(f"sampling option {name}", found=kind_of(value), expected=expected)

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


_LEGAL: tuple[tuple[str, tuple[type, ...], Callable[[Any], bool], str], ...] = (
    ("temperature", (Real,), lambda value: 0 <= value < float("inf"), "a number, 0 (greedy) or more"),
    ("top_p", (Real,), lambda value: 0 < value <= 1, "a number, more than 0 and at most 1"),
    ("top_k", (Integral,), lambda value: value >= 0, "a whole number, 0 (all) or more"),
    ("max_tokens", (Integral,), lambda value: value >= 1, "a whole number, 1 or more"),
    ("seed", (Integral, NoneType), lambda value: True, "a whole number, or None"),
    ("min_p", (Real,), lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    ("repetition_penalty", (Real,), lambda value: 0 < value < float("inf"), "a number, more than 0; 1 is off"),
    ("logprobs", (Integral, NoneType), lambda value: value is None or 0 <= value <= 20, "a whole number from 0 to 20"),
    ("stop", (tuple,), lambda value: all(isinstance(one, str) and one for one in value), "texts that are not empty"),
    ("json_schema", (str, NoneType), lambda value: value is None or _is_object(value), "a JSON object, as text"),
)
"""Of each option the kinds it can have, whether a value makes sense, and what is expected instead."""

GREEDY = SamplingOptions()


def as_options(given: SamplingOptions | Mapping[str, Any]) -> SamplingOptions:
    """The options, also of a mapping that names some of them.

    Raises `WorkbenchError` for a name that there is not, with the nearest one, and for anything else.
    """
    if isinstance(given, SamplingOptions):
        return given
    if not isinstance(given, Mapping):
        expected = "SamplingOptions, such as wb.SamplingOptions(temperature=1)"
        raise WorkbenchError("options", found=kind_of(given), expected=expected)
    known = [one.name for one in fields(SamplingOptions)]
    for name in given:
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            fix = f"did you mean {near[0]}?" if near else ""
            raise WorkbenchError("options", found=repr(name), expected=f"one of {', '.join(known)}", fix=fix)
    return SamplingOptions(**given)


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer: the prompt's with its image tokens, and the answer's with its end token."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt that were not computed, because they had been before."""
    image_tokens: int = 0
    """Tokens of the prompt that stand for pictures and frames; 0 where a model does not say."""


@dataclass(frozen=True)
class TokenLogprob:
    """One written token, how likely it was, and what else was likely, before temperature and filters."""

    id: int
    text: str
    logprob: float
    """Natural logarithm of its probability."""
    top: tuple[tuple[int, str, float], ...] = ()
    """(id, text, logprob) of the most likely tokens, the likeliest first."""


@dataclass(frozen=True)
class Ending:
    """What is known once an answer has ended."""

    finish_reason: str
    """stop: the model or a stop text ended it; length: `max_tokens` or the context did; cancelled: somebody did."""
    usage: Usage = Usage()
    ids: tuple[int, ...] = ()
    """The tokens as generated, end token included; empty where a model does not show them."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per token where `SamplingOptions.logprobs` asked for them and the model shows them."""


Pieces = Generator[str, None, Ending]


class Answer:
    """An answer that is iterated piece by piece while it is written, or read whole with `text`.

    Nothing is computed before it is read. Joined pieces equal `text`, also when it is iterated again.
    `cancel` may be called from another thread; at most one more token is computed. Reading is for one thread.
    """

    def __init__(
        self,
        write: Callable[[threading.Event], Pieces],
        logprobs: Callable[[], Sequence[TokenLogprob]] = tuple,
    ) -> None:
        """write: begins it, given what `cancel` sets. logprobs: those of the pieces that were read so far."""
        self._cancelled = threading.Event()
        self._logprobs = logprobs
        self._writer = write(self._cancelled)
        self._pieces: list[str] = []
        self._ending: Ending | None = None

    @classmethod
    def finished(cls, text: str, ending: Ending) -> Answer:
        """An answer that is already there."""

        def write(cancelled: threading.Event) -> Pieces:
            yield text
            return ending

        return cls(write)._read()

    def __iter__(self) -> Iterator[str]:
        position = 0
        while position < len(self._pieces) or self._advance():
            yield self._pieces[position]
            position += 1

    def cancel(self) -> None:
        """End the answer; what was written so far stays readable. No effect on one that has ended."""
        self._cancelled.set()

    @property
    def text(self) -> str:
        return "".join(self._read()._pieces)

    @property
    def finish_reason(self) -> str:
        return self._end.finish_reason

    @property
    def usage(self) -> Usage:
        return self._end.usage

    @property
    def ids(self) -> tuple[int, ...]:
        return self._end.ids

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those of the tokens so far while the answer is read, all once it has ended; reads nothing itself."""
        return tuple(self._logprobs()) if self._ending is None else self._ending.logprobs

    @property
    def _end(self) -> Ending:
        self._read()
        assert self._ending is not None
        return self._ending

    def _read(self) -> Answer:
        while self._advance():
            pass
        return self

    def _advance(self) -> bool:
        """Write one more piece; False when there is none."""
        try:
            self._pieces.append(next(self._writer))
            return True
        except StopIteration as end:
            self._ending = self._ending or end.value
        if self._ending is None:  # the writer raised the time before: what there is must not pass for an answer
            raise WorkbenchError("this answer", found="no end, because writing it failed", fix="ask again")
        return False


class ChatModel(Protocol):
    """Anything that answers conversations whose last message is a question."""

    @property
    def name(self) -> str: ...

    def reply(self, conversation: Conversation, options: SamplingOptions = ...) -> Answer:
        """The answer to one conversation. What is wrong with the conversation or its images is raised here."""

    def reply_batch(self, conversations: Sequence[Conversation], options: SamplingOptions = ...) -> list[Answer]:
        """One finished answer per conversation, in their order; the same answers that `reply` gives one by one."""


class ScriptedModel:
    """A `ChatModel` that says what it was told to: the next text of a list, or what a function makes of the question.

    A word with the space before it counts as one token. `asked` keeps every conversation it was given.

    >>> asked = wb.Conversation("1", (wb.Message("user", "What is it?"),))
    >>> wb.ScriptedModel(["A cat."]).reply(asked).text
    'A cat.'
    """

    def __init__(self, answers: Sequence[str] | Callable[[Conversation], str], *, name: str = "scripted") -> None:
        self.name = name
        self.asked: list[Conversation] = []
        self._answers = answers

    def reply(self, conversation: Conversation, options: SamplingOptions = GREEDY) -> Answer:
        text = self._next(conversation)
        self.asked.append(conversation)
        prompt_tokens = sum(len(message.text.split()) for message in conversation.messages)

        def write(cancelled: threading.Event) -> Pieces:
            ends = [index for index in map(text.find, options.stop) if index >= 0]
            words = re.findall(r"\s*\S+|\s+$", text[: min(ends)] if ends else text)
            reason = "stop" if len(words) <= options.max_tokens else "length"
            written = 0
            for word in words[: options.max_tokens]:
                if cancelled.is_set():
                    break
                written += 1
                yield word
            reason = "cancelled" if cancelled.is_set() else reason
            return Ending(reason, Usage(prompt_tokens, written))

        return Answer(write)

    def reply_batch(self, conversations: Sequence[Conversation], options: SamplingOptions = GREEDY) -> list[Answer]:
        return [self.reply(conversation, options)._read() for conversation in conversations]

    def _next(self, conversation: Conversation) -> str:
        if callable(self._answers):
            return self._answers(conversation)
        if len(self.asked) >= len(self._answers):
            raise WorkbenchError(
                f"scripted model {self.name!r}",
                found=f"question {len(self.asked) + 1}",
                expected=f"at most {len(self._answers)}, the answers it was given",
            )
        return self._answers[len(self.asked)]
