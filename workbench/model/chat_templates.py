"""Which of our templates writes what the chat template of somebody's folder writes.

Knows: where such a folder keeps one, and how two ways of writing one conversation may differ and still be one template.
Does not know: which template a family of models was trained with (`hf_folder.py`).

Published chat templates leave out what LLaVA trained with: the system text, and the token that ends an answer (LLaVA
1.5's), or misspell it (`<\\s>`, LLaVA 1.6's for Mistral). So there are two ways to be alike: to the letter, and but for
these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.conversation import Conversation, Image, Message, to_chat
from workbench.errors import RenderError
from workbench.model.segments import answer_end, write
from workbench.model.sources import read_json
from workbench.model.templates import Template, load_template, template_names

ANSWER = "Two of them."
PROBE = Conversation(
    "probe",
    (
        Message("user", (Image("probe.png"), "How many?")),
        Message("assistant", (ANSWER,)),
        Message("user", ("Which one?",)),
    ),
)
"""What tells templates apart: an image, an answer with its end, a second question, and where a prompt ends."""


@dataclass(frozen=True)
class Alike:
    """Names of our templates that write `PROBE` as a chat template does."""

    exactly: tuple[str, ...] = ()
    """To the letter, system text and end token included."""
    nearly: tuple[str, ...] = ()
    """But for a system text of ours that is not written there, and for what ends an answer."""


def chat_template_in(folder: Path, tokenizer: Any) -> str | None:
    """A folder's own chat template: its processor's, else its tokenizer's; None where it has none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file() and isinstance(text := read_json(folder / name).get("chat_template"), str):
            return text
    held = tokenizer.chat_template
    return held.get("default") if isinstance(held, dict) else held


def alike(written: str, tokenizer: Any) -> Alike:
    """Our templates that write `PROBE` as the chat template `written` does. Nothing in it reaches files or Python."""
    theirs = list(_theirs(written, tokenizer))
    exactly, nearly = [], []
    for name in template_names():
        own = load_template(name)
        if _ours(own, tokenizer) in theirs:
            exactly.append(name)
        if any(_near(text, own, tokenizer) for text in theirs):
            nearly.append(name)
    return Alike(tuple(exactly), tuple(nearly))


def _theirs(written: str, tokenizer: Any) -> Iterator[str]:
    """What a chat template makes of `PROBE`, with its messages in parts and, where it takes them so, as plain text."""
    parts = to_chat(PROBE)
    plain = [{"role": message.role, "content": _flat(message)} for message in PROBE.messages]
    for messages in (parts, plain):
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=written, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # noqa: S112 - made for the other shape; it may raise whatever it calls for
            continue
        yield str(text).removeprefix(tokenizer.bos_token or "")


def _flat(message: Message) -> str:
    return "\n".join("<image>" if isinstance(part, Image) else str(part) for part in message.content)


def _ours(template: Template, tokenizer: Any) -> str | None:
    """`PROBE` under a template of ours; None where that has no place for a second question."""
    try:
        segments = write(template, PROBE, tokenizer.bos_token or "", tokenizer.eos_token or "")
    except RenderError:
        return None
    return "".join(segment.text for segment in segments)


def _near(text: str, template: Template, tokenizer: Any) -> bool:
    """Whether a text is ours but for the end of the answer, with our system text or without any."""
    end = answer_end(template, tokenizer.eos_token or "").lstrip()
    for own in (template, template.model_copy(update={"system": ""})):
        if (written := _ours(own, tokenizer)) is None:
            return False
        before, _, behind = written.partition(ANSWER)
        head, tail = before + ANSWER, behind.lstrip().removeprefix(end).removeprefix(tokenizer.bos_token or "").lstrip()
        between = text[len(head) : len(text) - len(tail)]
        if text.startswith(head) and text.endswith(tail) and len(between.split()) <= 1:
            return True
    return False
