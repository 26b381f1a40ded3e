"""Where a conversation comes from, in words.

Knows: the keys of `Conversation.source` that generation, review and imports write.
Does not know: datasets or stores; everything it says travels with the conversation.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workbench.conversation import Conversation, as_conversation, from_chat, to_chat
from workbench.instruct.checks import CHECKS

_PLAIN = {
    "dataset": "dataset", "teacher": "teacher", "model": "model, as the endpoint called it", "task": "task",
    "foreign_id": "id in the file it came from", "seed": "seed", "version": "version of the rules",
    "attempt": "attempt", "reply": "SHA-256 of the raw reply", "key": "address of the reply in replies.sqlite",
}  # fmt: skip
_OWN_LINES = ("prompt_version", "prompt_hash", "parameters", "checks", "rejected", "parents", "edits")


class Explanation(str):
    """A text that shows itself as one in notebooks."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre style='white-space: pre-wrap'>{html.escape(self)}</pre>"


def explain(conversation: Conversation) -> Explanation:
    """Teacher, prompt version, parameters, hash of the raw reply, checks, parents, and what people changed; print it.

    What is not known about the conversation is left out.

    >>> print(wb.explain(dataset.conversations()[0]))
    conversation ...
      dataset: scenes
      teacher: rules
      ...
    """
    as_conversation(conversation)
    lines = [f"conversation {conversation.id}", *_origin(conversation), *_edits(conversation)]
    return Explanation("\n".join(lines if len(lines) > 1 else [*lines, "  nothing is known about where it comes from"]))


def _origin(conversation: Conversation) -> Iterator[str]:
    source = conversation.source
    for key, name in _PLAIN.items():
        if source.get(key) not in (None, ""):
            yield f"  {name}: {source[key]}"
    if "prompt_version" in source:
        hashed = f", SHA-256 {source['prompt_hash']}..." if source.get("prompt_hash") else ""
        yield f"  prompt: version {source['prompt_version']}{hashed}"
    if source.get("parameters"):
        said = ", ".join(f"{name} {value}" for name, value in source["parameters"].items() if value not in (None, []))
        yield f"  parameters: {said}"
    if source.get("checks"):
        yield f"  checks passed: {', '.join(source['checks'])}"
    for rejection in source.get("rejected") or ():
        known = CHECKS.get(rejection["check"])
        yield f"  check failed: {rejection['check']}{f', {known.reason}' if known else ''}"
        yield f"    found: {rejection['found']}"
    if source.get("parents"):
        yield f"  made from: {', '.join(map(str, source['parents']))}"
    for key, value in source.items():
        if key not in _PLAIN and key not in _OWN_LINES:
            yield f"  {key}: {value}"


def _edits(conversation: Conversation) -> Iterator[str]:
    """Every change by a person: what it said before and after, message by message."""
    edits = conversation.source.get("edits") or []
    for number, edit in enumerate(edits):
        why = f" ({edit['why']})" if edit.get("why") else ""
        yield f"  changed by {edit.get('who', 'somebody')} at {edit.get('time', 'an unknown time')}{why}"
        for column, before in (edit.get("before") or {}).items():
            if column == "messages":
                later = (other["before"]["messages"] for other in edits[number + 1 :] if "messages" in other["before"])
                yield from _changes(before, next(later, to_chat(conversation)))
            elif column != "source":
                yield f"    {column} before: {'none' if before is None else before}"


def _changes(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    old, new = _said(before), _said(after)
    for place in range(max(len(old), len(new))):
        was, now = (said[place] if place < len(said) else "nothing" for said in (old, new))
        if was != now:
            yield f"    message {place} before: {was}"
            yield f"    message {place} after:  {now}"


def _said(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each message in one line: who, its images, its text."""
    return [
        f"{message.role}: {' '.join([*(f'[{media.path}]' for media in message.media), message.text])}"
        for message in from_chat(messages, id="before").messages
    ]
