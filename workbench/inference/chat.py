"""One conversation with one `ChatModel`, or with two beside each other, in a terminal or through a pipe.

Knows: the lines a person types (questions and /commands), the growing conversation, and that no mistake ends the chat.
Does not know: how answers are made. Answers go to standard output; notes, errors and prompts to standard error, so
that piped questions give answers and nothing else.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from workbench.chat_model import Answer, ChatModel, SamplingOptions
from workbench.conversation import Conversation, Media, Message, Part, Video, new_id, to_llava
from workbench.data.images import read_file
from workbench.errors import WorkbenchError
from workbench.inference.attachments import attached_for, open_file
from workbench.inference.opening import as_letters, open_beside, open_model
from workbench.resources import write_atomic

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
        options: SamplingOptions = LONG,
        say: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self.sides = [Side(as_letters(one)) for one in (model, beside) if one is not None]
        self.options = options
        self.failed = False
        """Whether something could not be done."""
        self.waiting: list[Media] = []
        """Images and videos that go with the next question."""
        self._say = say
        self._note = note

    @property
    def conversation(self) -> Conversation:
        return self.sides[0].conversation

    def line(self, text: str) -> bool:
        """Do what one line says; False when it says to leave. A `WorkbenchError` becomes one line."""
        try:
            command, _, rest = text.strip().partition(" ")
            if command in ("/quit", "/exit"):
                return False
            if not command.startswith("/"):
                if text.strip():
                    self.ask(text.strip())
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
        except WorkbenchError as error:
            self.failed = True
            self._note(f"error: {' '.join(str(error).split())}")
        return True

    def ask(self, question: str) -> None:
        """Ask, say the answer while it is written, and keep both; a question that fails is not kept, its image is."""
        said: tuple[Part, ...] = (*self.waiting, question)
        self._answer([side.conversation.add("user", *said) for side in self.sides])
        self.waiting = []

    def regenerate(self) -> None:
        if not self.conversation.messages:
            raise WorkbenchError("/regen", found="no question yet", expected="an answer to write again")
        self._answer([side.conversation.prompt for side in self.sides if side.conversation.messages])

    def image(self, path: str) -> None:
        if not path:
            raise WorkbenchError("/image", found="no path", expected="/image PATH")
        path = path.strip("'\"")
        found = attached_for(path, *(side.model for side in self.sides))
        self.waiting += found
        self._note(f"{Path(path).name}, {_called(found)}: ask about it")

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
        place = Path(path).expanduser()
        told = with_files([side.conversation for side in self.sides if side.conversation.messages], place)
        write_atomic(place, json.dumps([to_llava(one) for one in told], indent=2, ensure_ascii=False) + "\n")
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


def with_files(conversations: Sequence[Conversation], place: Path) -> list[Conversation]:
    """The conversations with all their pictures and videos copied beside `place`, and named from its folder on.

    A page or a frame becomes a PNG file. Raises `ImageError` for one that is no longer there.
    """
    folder = place.with_name(f"{place.stem}-pictures")
    known: dict[Media, Media] = {}
    for image in dict.fromkeys(image for one in conversations for image in one.media):
        data, suffix = _bytes_of(image)
        file = folder / f"{len(known) + 1:04}{suffix}"
        write_atomic(file, data)
        known[image] = type(image)(f"{folder.name}/{file.name}")
    return [replace(one, messages=tuple(_renamed(message, known) for message in one.messages)) for one in conversations]


def _renamed(message: Message, known: Mapping[Media, Media]) -> Message:
    return replace(message, content=tuple(part if isinstance(part, str) else known[part] for part in message.content))


def _bytes_of(image: Media) -> tuple[bytes, str]:
    """A picture or video as a file: its bytes, and how its name ends."""
    if Path(image.path).is_file():
        return read_file(Path(image.path)), Path(image.path).suffix
    written = io.BytesIO()
    open_file(image).save(written, "PNG")
    return written.getvalue(), ".png"


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
    """`options` with one `key=value` or `key value`.

    Raises `WorkbenchError` for an unknown key or a value of the wrong type.
    """
    key, sign, value = re.fullmatch(r"\s*(\w*)\s*(=|\s|$)\s*(.*?)\s*", text, re.DOTALL).groups()  # type: ignore[union-attr]
    if key not in KINDS or not sign:
        raise WorkbenchError("/set", found=repr(text), expected=f"KEY VALUE with one of {', '.join(KINDS)}")
    try:
        return replace(options, **{key: KINDS[key](value)})  # type: ignore[arg-type]
    except ValueError:
        raise WorkbenchError(f"/set {key}", found=repr(value), expected="a number") from None


def chat(
    run: str | Path | ChatModel,
    *,
    image: str | Path | Sequence[str | Path] | None = None,
    compare: str | Path | bool | ChatModel = False,
    options: SamplingOptions = LONG,
    load: str | None = None,
    device: str = "auto",
) -> bool:
    """Chat on standard input and output until it ends; False if something that was piped failed.

    run: whatever `workbench.open_model` opens, or a model. image: shown with the first question; several, PDF files and
    videos too. compare: another model that is asked the same, True for the base that a run trained on. `load` is the
    number format of the weights that are loaded, `device` where: as in `workbench.load`. Raises what loading a model or
    the first images raises; later mistakes are one line on standard error.
    """
    out, notes = Console(highlight=False), Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    say = lambda piece: out.out(piece, end="", highlight=False)  # noqa: E731
    model = open_model(run, load=load, device=device) if isinstance(run, (str, Path)) else run
    beside = None
    if compare is True or isinstance(compare, (str, Path)):
        beside = open_beside(model, None if compare is True else compare, load=load, device=device)
    elif compare is not False:
        beside = compare
    session = Chat(model, beside=beside, options=options, say=say, note=lambda line: notes.print(line, style="dim"))
    for one in [image] if isinstance(image, (str, Path)) else image or []:
        session.image(str(one))
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
