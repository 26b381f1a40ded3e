"""One conversation with one `ChatModel`, or with two beside each other, in a terminal or through a pipe.

Knows: the lines a person types (questions and /commands), the growing conversation, and that no mistake ends the chat.
Does not know: how answers are made. Answers go to standard output; notes, errors and prompts to standard error, so
that piped questions give answers and nothing else.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Console

from workbench.chat_model import Answer, ChatModel, SamplingOptions, as_options
from workbench.conversation import Conversation, Media, Part, Video, new_id
from workbench.errors import WorkbenchError
from workbench.inference.attachments import Attached, attached_for, listed
from workbench.inference.opening import as_letters, open_beside, open_model
from workbench.inference.saving import save_chat

HELP = """\
Type a question. Commands:
  /image PATH      show an image, the pages of a PDF file or a video (or frames of it) with the next question
  /clear           forget the conversation and its images
  /regen           answer the last question again
  /set KEY VALUE   temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, seed, stop; alone: show them
  /save FILE       write the conversation as LLaVA JSON, which `workbench import` reads
  /help            this
  /quit            leave (or Ctrl-D); Ctrl-C ends an answer"""

LONG = SamplingOptions(max_tokens=512)


@dataclass
class Side:
    """One model, and the conversation with it."""

    model: ChatModel
    conversation: Conversation = field(default_factory=lambda: Conversation(new_id(), ()))


class Chat:
    """A conversation that grows line by line. `say` gets pieces of answers, `note` whole lines of everything else.

    beside: a second model that is asked the same; its answers stand below, and it remembers its own.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        beside: ChatModel | None = None,
        options: SamplingOptions | Mapping[str, Any] = LONG,
        say: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self.sides = [Side(as_letters(one)) for one in (model, beside) if one is not None]
        self.options = as_options(options)
        self.failed = False
        """Whether something could not be done."""
        self.waiting: list[Media] = []
        """Images and videos that go with the next question."""
        self._files: set[Path] = set()
        self._say = say
        self._note = note

    @property
    def conversation(self) -> Conversation:
        return self.sides[0].conversation

    def line(self, text: str) -> bool:
        """Do what one line says; False when it says to leave. Whatever goes wrong is one line, and the chat goes on."""
        try:
            return self._do(text.strip())
        except WorkbenchError as error:
            self._fail(str(error))
        except Exception as error:  # of a model that is not ours, or a fault of ours: the conversation is worth more
            self._fail(f"{type(error).__name__}: {error}; a fault of the program, not yours: the conversation is kept")
        return True

    def _do(self, text: str) -> bool:
        command, _, rest = text.partition(" ")
        if command in ("/quit", "/exit"):
            return False
        if not command.startswith("/"):
            if text:
                self.ask(text)
            return True
        commands = {"/image": self.image, "/set": self.set, "/save": self.save}
        plain = {"/clear": self.clear, "/regen": self.regenerate, "/help": lambda: self._note(HELP)}
        if command in commands:
            commands[command](rest.strip())
        elif command in plain:
            plain[command]()
        else:
            known = ", ".join([*commands, *plain, "/quit"])
            raise WorkbenchError(command, found="no such command", expected=known)
        return True

    def _fail(self, why: str) -> None:
        self.failed = True
        self._note(f"error: {' '.join(why.split())}")

    def ask(self, question: str) -> None:
        """Ask, say the answer while it is written, and keep both; a question that fails is not kept, its image is."""
        said: tuple[Part, ...] = (*self.waiting, question)
        self._answer([side.conversation.add("user", *said) for side in self.sides])
        self.waiting = []

    def regenerate(self) -> None:
        if not self.conversation.messages:
            raise WorkbenchError("/regen", found="no question yet", expected="an answer to write again")
        self._answer([side.conversation.prompt for side in self.sides if side.conversation.messages])

    def image(self, given: Attached) -> None:
        if given == "":
            raise WorkbenchError("/image", found="no path", expected="/image PATH")
        given = given.strip("'\"") if isinstance(given, str) else given
        found = attached_for(given, *(side.model for side in self.sides))
        self.waiting += found
        name = Path(given).name if isinstance(given, (str, Path)) else "picture"
        self._note(f"{name}, {_called(found)}: ask about it")

    def clear(self) -> None:
        for side in self.sides:
            side.conversation = Conversation(new_id(), ())
        self.waiting = []

    def set(self, text: str) -> None:
        if text:
            self.options = changed(self.options, text)
        self._note(" ".join(f"{name}={getattr(self.options, name)!r}" for name in KINDS))

    def save(self, path: str) -> None:
        if not path or not self.conversation.messages:
            raise WorkbenchError("/save", found="nothing to save" if path else "no file", expected="/save FILE")
        told = [side.conversation for side in self.sides if side.conversation.messages]
        place = save_chat(told, path, self._files)
        reads = f"workbench import {shlex.quote(str(place))} --out DATASET"
        self._note(f"saved {place}, its pictures beside it; `{reads}` makes a dataset of it")

    def _answer(self, asked: Sequence[Conversation]) -> None:
        """Have every side answer, one below the other; what a side has no answer to, it does not keep."""
        silent = []
        for side, conversation in zip(self.sides, asked, strict=True):
            if len(self.sides) > 1:
                self._say(f"{side.model.name}: ")
            answer = side.model.reply(conversation, self.options)
            with cancelled_by_interrupt(answer):
                for piece in answer:
                    self._say(piece)
            self._say("\n")
            if answer.finish_reason in _CUT:
                self._note(_CUT[answer.finish_reason])
            if answer.text.strip():
                side.conversation = conversation.add("assistant", answer.text)
            else:
                silent.append(side.model.name)
        if silent:
            raise WorkbenchError(silent[0], found="an empty answer, so the question is not kept", fix="ask again")


def _called(shown: Sequence[Media]) -> str:
    first = shown[0]
    if isinstance(first, Video):
        return "a video"
    if first.width:
        return f"{first.width}x{first.height}"
    return f"{len(shown)} {'pages' if '#page=' in first.path else 'frames'}"


KINDS: dict[str, Callable[[str], object]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "max_tokens": int,
    "seed": lambda given: None if given in ("", "none", "None") else int(given),
    "stop": lambda given: (given,) if given else (),
}
"""What `/set` sets, and how it is read."""
_CUT = {"length": "(cut: max_tokens, or the context is full)", "cancelled": "(cancelled)"}


def changed(options: SamplingOptions, text: str) -> SamplingOptions:
    """`options` with one `key=value` or `key value`; a key may have dashes, as on the command line.

    Raises `WorkbenchError` for an unknown key or a value of the wrong type.
    """
    read = re.fullmatch(r"-*([\w-]+)(?:\s*=\s*|\s+)(.*)", text.strip(), re.DOTALL)
    key, value = (read[1].replace("-", "_"), read[2]) if read else ("", "")
    if key not in KINDS:
        near = get_close_matches(key, KINDS, 1)
        expected, fix = f"KEY VALUE with one of {', '.join(KINDS)}", f"did you mean {near[0]}?" if near else ""
        raise WorkbenchError("/set", found=repr(text), expected=expected, fix=fix)
    try:
        return replace(options, **{key: KINDS[key](value)})  # type: ignore[arg-type]
    except ValueError:
        raise WorkbenchError(f"/set {key}", found=repr(value), expected="a number") from None


def chat(
    run: str | Path | ChatModel,
    *,
    image: Attached | Sequence[Attached] | None = None,
    compare: str | Path | bool | ChatModel = False,
    options: SamplingOptions | Mapping[str, Any] = LONG,
    load: str | None = None,
    device: str = "auto",
) -> bool:
    """Chat on standard input and output until it ends; False if something that was piped failed.

    run: whatever `workbench.open_model` opens, or a model. image: shown with the first question; several, PDF files,
    videos and PIL images too. compare: another model that is asked the same, True for the base that a run trained on.
    options: `SamplingOptions`, or a mapping of some.
    `load` is the number format of the weights that are loaded, `device` where: as in `workbench.load`. Raises what
    loading a model or the first images raises; later mistakes are one line on standard error.
    """
    options = as_options(options)  # told before a model is loaded
    out, notes = Console(highlight=False), Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    say = lambda piece: out.out(piece, end="", highlight=False)  # noqa: E731
    model = open_model(run, load=load, device=device) if isinstance(run, (str, Path)) else run
    beside = None
    if compare is True or isinstance(compare, (str, Path)):
        beside = open_beside(model, None if compare is True else compare, load=load, device=device)
    elif compare is not False:
        beside = compare
    session = Chat(model, beside=beside, options=options, say=say, note=lambda line: notes.print(line, style="dim"))
    for one in listed(image):
        session.image(one)
    typed = sys.stdin.isatty()
    if typed:
        names = " beside ".join(side.model.name for side in session.sides)
        notes.print(f"{names}. /help for commands, Ctrl-D to leave.", style="dim")
    for line in _typed() if typed else sys.stdin:
        before, session.failed = session.failed, False
        if not session.line(line):
            break
        if session.failed and not typed and not line.startswith("/"):
            say("\n")  # a line for every question, so that answers stay beside theirs
        session.failed |= before
    return typed or not session.failed


def _typed() -> Iterator[str]:
    """Lines from a terminal, with history and editing; Ctrl-C at the prompt starts a new line."""
    with suppress(ImportError):  # absent on Windows
        import readline  # noqa: F401  its import gives input() arrow keys and a history
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except EOFError:
            return


@contextmanager
def cancelled_by_interrupt(answer: Answer) -> Iterator[None]:
    """The first Ctrl-C inside cancels `answer`, the second interrupts as usual. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(number: int, frame: object) -> None:
        answer.cancel()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
