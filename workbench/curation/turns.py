"""Changing turns of a conversation in the chat shape: pure functions from messages to messages.

Knows: that a picture stays when the words beside it change, and that a question goes together with its answer.
Does not know: datasets, or who wants the change (`review.py` keeps it).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.conversation import IMAGE_MARK, Conversation, Message, Part, from_chat, to_chat
from workbench.data.marked_text import marked, parts_of
from workbench.errors import ConversationError

Chat = list[dict[str, Any]]


def shown_text(message: Message) -> str:
    """The words of a message as a person edits them; `<image>` stands only for a picture amid the words."""
    _, rest = _apart(message)
    return marked(rest) if rest else ""


def with_text(messages: Sequence[Mapping[str, Any]], number: int, text: str) -> Chat:
    """Message `number` says `text`; its pictures stay. Raises `ConversationError` where one of them would be lost."""
    turns = _turns(messages)
    front, rest = _apart(_at(turns, number))
    inner = [part for part in rest if not isinstance(part, str)]
    if text.count(IMAGE_MARK) != len(inner):
        where = f"message {number}"
        raise ConversationError(where, found=f"{text.count(IMAGE_MARK)} {IMAGE_MARK}", expected=str(len(inner)))
    words = list(parts_of(text, iter(inner))) if inner else [text.strip()]  # type: ignore[arg-type]
    turns[number] = Message(turns[number].role, (*front, *words))
    return _chat(turns)


def with_exchange(messages: Sequence[Mapping[str, Any]], question: str, answer: str) -> Chat:
    """One more question with its answer, at the end."""
    return _chat([*_turns(messages), Message("user", (question.strip(),)), Message("assistant", (answer.strip(),))])


def without_exchange(messages: Sequence[Mapping[str, Any]], number: int) -> Chat:
    """Message `number` goes, with the question or answer that belongs to it; pictures move to the next question.

    Raises `ConversationError` for the only exchange: a conversation without one is rejected instead.
    """
    turns, where = _turns(messages), f"message {number}"
    if _at(turns, number).role == "system":
        return _chat(turns[1:])
    first = number - (turns[number].role == "assistant")
    gone, rest = turns[first : first + 2], [*turns[:first], *turns[first + 2 :]]
    if not any(turn.role == "user" for turn in rest):
        raise ConversationError(where, found="the only question", fix="reject the conversation instead")
    media = [part for turn in gone for part in turn.media]
    if media and first >= len(rest):
        raise ConversationError(where, found="a picture that no later question could take", fix="reject it instead")
    if media:
        rest[first] = Message("user", (*media, *rest[first].content))
    return _chat(rest)


def before_people(conversation: Conversation) -> list[Message] | None:
    """What the teacher wrote, before people changed it; None where nobody did."""
    for edit in _since_teacher(conversation):
        if "messages" in edit.get("before", {}):
            return list(from_chat(edit["before"]["messages"], id=conversation.id).messages)
    return None


def teachers_text(conversation: Conversation) -> dict[int, str | None]:
    """For each message that a person changed or added: what the teacher said there, None where nothing.

    Messages are matched by what did not change, so that an added or deleted turn does not shift the others.
    """
    old = before_people(conversation)
    if old is None:
        return {}
    was, now = ([(turn.role, shown_text(turn)) for turn in turns] for turns in (old, conversation.messages))
    found: dict[int, str | None] = {}
    for kind, a, b, c, d in difflib.SequenceMatcher(None, was, now, autojunk=False).get_opcodes():
        if kind in ("replace", "insert"):
            waiting = was[a:b]
            for place in range(c, d):
                match = next((turn for turn in waiting if turn[0] == now[place][0]), None)
                if match is not None:
                    waiting.remove(match)
                found[place] = None if match is None else match[1]
    return found


REGENERATED = "regenerated"
"""What the `why` of an edit begins with that a teacher's new text made."""


def _since_teacher(conversation: Conversation) -> list[Mapping[str, Any]]:
    """The edits after the last time that a teacher wrote all of it."""
    edits = list(conversation.source.get("edits") or [])
    last = max(
        (place for place, edit in enumerate(edits) if str(edit.get("why", "")).startswith(REGENERATED)), default=-1
    )
    return edits[last + 1 :]


def _apart(message: Message) -> tuple[list[Part], list[Part]]:
    """The pictures before the words, and the rest."""
    parts = list(message.content)
    front = next((place for place, part in enumerate(parts) if isinstance(part, str)), len(parts))
    return parts[:front], parts[front:]


def _at(turns: Sequence[Message], number: int) -> Message:
    if not 0 <= number < len(turns):
        raise ConversationError(f"message {number}", found=f"{len(turns)} messages", expected="the number of one")
    return turns[number]


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    return list(from_chat(messages, id="edited").messages)


def _chat(turns: Sequence[Message]) -> Chat:
    return to_chat(Conversation("edited", tuple(turns)))
