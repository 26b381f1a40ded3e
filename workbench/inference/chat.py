"""One conversation with one `ChatModel`, in a terminal or through a pipe.

Knows: the lines a person types (questions and /commands), the growing conversation, and that no mistake ends the chat.
Does not know: how answers are made. Answers go to standard output; notes, errors and prompts to standard error, so
that piped questions give answers and nothing else.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console

from workbench.chat_model import Answer, ChatModel, SamplingOptions
from workbench.conversation import Conversation, Image, new_id, to_llava
from workbench.data.images import load_image
from workbench.errors import WorkbenchError
from workbench.resources import write_atomic

HELP = """\
Type a question. Commands:
  /image PATH      show the model an image with the next question
  /clear           forget the conversation and its images
  /regen           answer the last question again
  /set KEY=VALUE   temperature, top_p, top_k, max_tokens, seed, stop; without KEY: show them
  /save FILE       write the conversation as LLaVA JSON
  /help            this
  /quit            leave (or Ctrl-D); Ctrl-C ends an answer"""

LONG = SamplingOptions(max_tokens=512)


class Chat:
    """A conversation that grows line by line. `say` gets pieces of answers, `note` whole lines of everything else."""

    def __init__(
        self,
        model: ChatModel,
        *,
        options: SamplingOptions = LONG,
        say: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self.model = model
        self.options = options
        self.conversation = Conversation(new_id(), ())
        self.waiting: list[Image] = []
        """Images that go with the next question."""
        self._say = say
        self._note = note

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
            self._note(f"error: {' '.join(str(error).split())}")
        return True

    def ask(self, question: str) -> None:
        """Ask, say the answer while it is written, and keep both; a question that fails is not kept, its image is."""
        self._answer(self.conversation.add("user", *self.waiting, question))
        self.waiting = []

    def regenerate(self) -> None:
        if not self.conversation.messages:
            raise WorkbenchError("/regen", found="no question yet", expected="an answer to write again")
        self._answer(self.conversation.prompt)

    def image(self, path: str) -> None:
        if not path:
            raise WorkbenchError("/image", found="no path", expected="/image PATH")
        place = Path(path.strip("'\"")).expanduser().resolve()
        picture = load_image(place)
        self.waiting.append(Image(str(place), width=picture.width, height=picture.height))
        self._note(f"{place.name}, {picture.width}x{picture.height}: ask about it")

    def clear(self) -> None:
        self.conversation = Conversation(new_id(), ())
        self.waiting = []

    def set(self, text: str) -> None:
        if text:
            self.options = changed(self.options, text)
        self._note(" ".join(f"{field.name}={getattr(self.options, field.name)!r}" for field in fields(self.options)))

    def save(self, path: str) -> None:
        if not path or not self.conversation.messages:
            raise WorkbenchError("/save", found="nothing to save" if path else "no file", expected="/save FILE")
        place = Path(path).expanduser()
        write_atomic(place, json.dumps([to_llava(self.conversation)], indent=2, ensure_ascii=False) + "\n")
        self._note(f"saved {place}")

    def _answer(self, asked: Conversation) -> None:
        answer = self.model.reply(asked, self.options)
        with cancelled_by_interrupt(answer):
            for piece in answer:
                self._say(piece)
        self._say("\n")
        if answer.finish_reason != "stop":
            self._note(
                f"({'cut: max_tokens, or the context is full' if answer.finish_reason == 'length' else 'cancelled'})"
            )
        if answer.text.strip():
            self.conversation = asked.add("assistant", answer.text)
        else:
            raise WorkbenchError(self.model.name, found="an empty answer, so the question is not kept", fix="ask again")


def changed(options: SamplingOptions, text: str) -> SamplingOptions:
    """`options` with one `key=value`; raises `WorkbenchError` for an unknown key or a value of the wrong type."""
    key, sign, value = (part.strip() for part in text.partition("="))
    kinds: dict[str, Callable[[str], object]] = {
        "temperature": float,
        "top_p": float,
        "top_k": int,
        "max_tokens": int,
        "seed": lambda given: None if given in ("", "none", "None") else int(given),
        "stop": lambda given: (given,) if given else (),
    }
    if key not in kinds or not sign:
        raise WorkbenchError("/set", found=repr(text), expected=f"KEY=VALUE with one of {', '.join(kinds)}")
    try:
        return replace(options, **{key: kinds[key](value)})  # type: ignore[arg-type]
    except ValueError:
        raise WorkbenchError(f"/set {key}", found=repr(value), expected="a number") from None


def chat(
    run: str | Path | ChatModel,
    *,
    image: str | Path | None = None,
    options: SamplingOptions = LONG,
    load: str | None = None,
    device: str = "auto",
) -> None:
    """Chat on standard input and output until it ends. run: a run folder, a checkpoint, a Hub name, or a model.

    `load` is the number format of the weights that are loaded, `device` where: as in `workbench.load`. Raises what
    loading the model or the first image raises; later mistakes are one line on standard error.
    """
    out, notes = Console(highlight=False), Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    say = lambda piece: out.out(piece, end="", highlight=False)  # noqa: E731
    model = _loaded(run, load, device) if isinstance(run, (str, Path)) else run
    session = Chat(model, options=options, say=say, note=lambda line: notes.print(line, style="dim"))
    if image is not None:
        session.image(str(image))
    typed = sys.stdin.isatty()
    if typed:
        notes.print(f"{model.name}. /help for commands, Ctrl-D to leave.", style="dim")
    for line in _typed() if typed else sys.stdin:
        if not session.line(line):
            break


def _loaded(run: str | Path, load: str | None, device: str) -> ChatModel:
    from workbench.inference.engine import Engine  # torch and transformers: only where a model is really loaded
    from workbench.model import llava

    return Engine(llava.load(run, load=load, device=device), name=Path(run).name)


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
