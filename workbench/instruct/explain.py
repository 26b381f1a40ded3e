"""Where a conversation comes from, in words.

Knows: the keys of `Conversation.source` that generation, review and imports write.
Does not know: datasets or stores; everything it says travels with the conversation.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

from workbench.conversation import Conversation

_PLAIN = {
    "dataset": "dataset", "teacher": "teacher", "model": "model, as the endpoint called it", "task": "task",
    "foreign_id": "id in the file it came from", "seed": "seed", "version": "version of the rules",
    "attempt": "attempt", "reply": "SHA-256 of the raw reply", "key": "address of the reply in replies.sqlite",
}  # fmt: skip


class Explanation(str):
    """A text that shows itself as one in notebooks."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self)}</pre>"


def explain(conversation: Conversation) -> Explanation:
    """Teacher, prompt version, parameters, hash of the raw reply, checks, and what people changed; print it.

    What is not known about the conversation is left out.
    """
    return Explanation("\n".join([f"conversation {conversation.id}", *_lines(conversation.source)]))


def _lines(source: Mapping[str, Any]) -> Iterator[str]:
    for key, name in _PLAIN.items():
        if source.get(key) not in (None, ""):
            yield f"  {name}: {source[key]}"
    if "prompt_version" in source:
        yield f"  prompt: version {source['prompt_version']}, SHA-256 {source.get('prompt_hash', '?')}..."
    if source.get("parameters"):
        said = ", ".join(f"{name} {value}" for name, value in source["parameters"].items() if value not in (None, []))
        yield f"  parameters: {said}"
    if source.get("checks"):
        yield f"  checks passed: {', '.join(source['checks'])}"
    for rejection in source.get("rejected") or ():
        yield f"  rejected by {rejection['check']}: {rejection['found']}"
    for edit in source.get("edits") or ():
        why = f" ({edit['why']})" if edit.get("why") else ""
        yield f"  changed by {edit.get('who', 'somebody')} at {edit.get('time', '?')}{why}; before:"
        yield from (f"    {line}" for line in _before(edit.get("before") or {}))
    known = {*_PLAIN, "prompt_version", "prompt_hash", "parameters", "checks", "rejected", "edits"}
    for key in source:
        if key not in known:
            yield f"  {key}: {source[key]}"


def _before(before: Mapping[str, Any]) -> Iterator[str]:
    for column, value in before.items():
        if column != "messages":
            yield f"{column}: {value}"
            continue
        for message in value:
            parts = [part.get("text") or f"[{part['type']}]" for part in message["content"]]
            yield f"{message['role']}: {' '.join(parts)}"
