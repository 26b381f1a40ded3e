"""The instruction tasks: what each needs, what it asks a teacher, and how the reply becomes turns.

Knows: the tasks by name, their prompts (Jinja files in `prompts/`, each with a version) and how to add one.
Does not know: who answers (`teacher.py`, `rules.py`), when (`loop.py`), or what is kept (`generator.py`).

A prompt file begins with `{# version: 1 #}`. Lines `<<system>>`, `<<user>>` and `<<assistant>>` begin its messages;
without any, all of it is one user message. Each part is a Jinja template over what is known: `captions`, `boxes`
(label and x0, y0, x1, y1 from 0 to 1 of the image), `label`, `classes`, `labels`, `things`, `width`, `height`, `number`
(which of several for the same image), `sees` (whether the teacher is given the picture) and `json` (whether the
endpoint takes a JSON schema).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import FileSystemLoader, StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from workbench.conversation import ROLES, Conversation, Message
from workbench.errors import DataError
from workbench.instruct import parse, rules
from workbench.instruct.material import Material, Turns
from workbench.resources import as_path

PROMPTS = Path(__file__).parent / "prompts"
_MARK = re.compile(r"^<<(\w+)>>\s*$", re.MULTILINE)
_VERSION = re.compile(r"\{#-?\s*version:\s*(\d+)\s*-?#\}\s*\n?")
_JINJA = SandboxedEnvironment(
    loader=FileSystemLoader(PROMPTS), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)

NEEDS = ("annotations", "captions", "boxes", "class", "pixels")
Write = Callable[[Material, np.random.Generator], Turns]
Parse = parse.Parse


@dataclass(frozen=True)
class Task:
    """A kind of conversation. `write` is how rules answer it, `prompt` how any other teacher is asked."""

    name: str
    needs: tuple[str, ...]
    """Any one of these is enough: annotations, captions, boxes, class, pixels (a teacher that sees the picture)."""
    write: Write | None = None
    prompt: str = ""
    """The text of a prompt file."""
    parse: Parse = parse.turns
    """A reply as turns; raises `ReplyError` where there are none in it."""
    schema: Mapping[str, Any] | None = field(default=None, hash=False)
    """JSON schema of the reply, for endpoints that hold a model to one."""
    max_tokens: int = 512
    """Of the reply."""

    def fits(self, material: Material, *, sees: bool = False) -> bool:
        """Whether what is known about the image is enough. `sees`: whether the teacher is given the picture."""
        known = material.has if sees else material.has - {"pixels"}
        return any(need in known for need in self.needs)

    @cached_property
    def version(self) -> int:
        found = _VERSION.match(self.prompt)
        return int(found[1]) if found else 1

    @cached_property
    def prompt_hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the prompt file's text."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:16]

    def ask(
        self,
        material: Material,
        *,
        id: str,
        number: int = 0,
        sees: bool = False,
        json: bool = False,
        more: Mapping[str, Any] | None = None,
    ) -> Conversation:
        """What a teacher is asked about one image; the picture stands before the last question if the teacher sees it.

        `more` are further values for the prompt. Raises `DataError` for a prompt that cannot be filled in.
        """
        known = _known(material) | {"number": number, "sees": sees, "json": json} | dict(more or {})
        messages = []
        for role, template in _sections(self):
            try:
                text = _compiled(template).render(known).strip()
            except TemplateError as problem:
                raise DataError(f"prompt of task {self.name}", found=str(problem)) from problem
            messages.append(Message(role, (text,)))
        if sees and material.image is not None:
            messages[-1] = Message("user", (material.image, *messages[-1].content))
        return Conversation(id, tuple(messages))


def _sections(task: Task) -> list[tuple[str, str]]:
    """The messages of a prompt file as role and template. What is filled in can begin no message."""
    before, *rest = _MARK.split(_VERSION.sub("", task.prompt, count=1))
    found = list(zip(rest[::2], rest[1::2], strict=True)) if rest else [("user", before)]
    wrong = [role for role, _ in found if role not in ROLES]
    if wrong or found[-1][0] != "user" or (rest and before.strip()):
        what = f"a message of {wrong[0]!r}" if wrong else "text before the first message, or no user message at its end"
        raise DataError(f"prompt of task {task.name}", found=what, expected="<<system>>, <<user>>, <<assistant>>")
    return found


@cache
def _compiled(template: str) -> Template:
    return _JINJA.from_string(template)


def _known(material: Material) -> dict[str, Any]:
    image = material.image
    width, height = (image.width or 0, image.height or 0) if image else (0, 0)
    boxes = [
        {"label": thing.label, "box": [round(value / side, 3) for value, side in zip(thing.box, (width, height) * 2)]}  # noqa: B905
        for thing in material.things
        if thing.box and width and height
    ]
    names = ("captions", "label", "classes", "labels", "things", "question")
    return {name: getattr(material, name) for name in names} | {"boxes": boxes, "width": width, "height": height}


# --- the tasks that ship --------------------------------------------------------------------------------------

BRIEF_QUESTIONS = (
    rules.BRIEF,
    "Give a short description of the image.",
    "What does the image show? Answer in one sentence.",
    "Summarize the image in a few words.",
    "Write a brief caption for this image.",
    "Provide a concise description of the picture.",
)
DETAIL_QUESTIONS = (
    rules.DETAIL,
    "What do you see in this picture? Be thorough.",
    "Give a detailed description of the image.",
    "Can you describe the image for me in detail?",
    "Walk through everything that is visible in this image.",
    "Write a detailed account of what the picture shows.",
)
_SEEN = ("annotations", "captions", "boxes", "pixels")


def _task(name: str, needs: tuple[str, ...], write: Write | None, read: Parse, shape: Mapping[str, Any]) -> Task:
    return Task(name, needs, write, shipped_prompt(name), read, shape)


def shipped_prompt(name: str) -> str:
    """The text of a prompt file that ships."""
    return (PROMPTS / f"{name}.jinja").read_text(encoding="utf-8")


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task("caption", (*_SEEN, "class"), rules.write_caption, parse.statement(*BRIEF_QUESTIONS), parse.STATEMENT),
        _task("conversation", (*_SEEN, "class"), rules.write_conversation, parse.turns, parse.PAIRS),
        _task("detail", _SEEN, rules.write_detail, parse.statement(*DETAIL_QUESTIONS), parse.STATEMENT),
        _task("reasoning", _SEEN, rules.write_reasoning, parse.turns, parse.PAIRS),
        _task(
            "short_answer",
            (*_SEEN, "class"),
            rules.write_short_answer,
            parse.short_answer,
            parse.PAIRS,
        ),
        _task(
            "multiple_choice",
            (*_SEEN, "class"),
            rules.write_multiple_choice,
            parse.multiple_choice,
            parse.CHOICE,
        ),
        _task("grounding", ("boxes",), rules.write_grounding, parse.grounding, parse.PHRASES),
        _task(
            "refusal",
            ("annotations", "boxes", "pixels"),
            rules.write_refusal,
            parse.turns,
            parse.PAIRS,
        ),
        Task("classify", ("class",), rules.write_classify),
    )
}
"""The tasks by name; `add_task` puts a person's own beside them."""


def add_task(task: Task | str | Path | Write, *, name: str | None = None, needs: Sequence[str] = _SEEN) -> Task:
    """Add a task of your own, for this session; it can then be named wherever a shipped one can.

    `task`: a `Task`; or a Jinja file, whose reply is read as questions and answers; or a function
    `(material, rng) -> [(question, answer), ...]` for the rules teacher, also as a decorator:

    >>> @wb.add_task
    ... def aspect(material, rng):
    ...     image = material.image
    ...     return [("Is the image wide or tall?", "wide" if image.width > image.height else "tall")]
    >>> aspect.name
    'aspect'

    Raises `DataError` for a file that is missing or no prompt, and for an unknown need.
    """
    if callable(task):
        made = Task(name or str(getattr(task, "__name__", "task")), NEEDS, task)
    elif isinstance(task, Task):
        made = task
    else:
        path = as_path(task, "task")
        if not path.is_file():
            raise DataError(str(path), found="no such file", expected="a prompt in a Jinja file")
        made = Task(name or path.stem, tuple(needs), prompt=path.read_text(encoding="utf-8"))
    wrong = [need for need in made.needs if need not in NEEDS]
    if wrong:
        raise DataError(f"task {made.name}", found=f"need {wrong[0]!r}", expected=", ".join(NEEDS))
    if made.prompt:
        _sections(made)
    TASKS[made.name] = made
    return made


def find_task(task: str | Task) -> Task:
    """A task by name, by the file of its prompt, or as it is. Raises `DataError` naming those there are."""
    if isinstance(task, Task):
        return task
    if task in TASKS:
        return TASKS[task]
    if task.endswith(".jinja"):
        return add_task(task)
    raise DataError("generate", found=f"task {task!r}", expected=f"one of {', '.join(TASKS)}, or a .jinja file")
