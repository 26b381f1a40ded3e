"""A conversation written out under a template, as runs of characters that know what they are.

Knows: where system text, questions, answers, images and videos go, what of it is trained on, and which texts a message
must not write. Does not know: tokenizers (it is told their begin and end token) or ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from workbench.conversation import IMAGE_MARK, VIDEO_MARK, Conversation, Message, Video
from workbench.errors import RenderError
from workbench.model.templates import SLOT, Template


@dataclass(frozen=True)
class Segment:
    """A run of the rendering: the template's own characters, a message's text, or one image or video, as its mark."""

    text: str
    kind: str
    """literal | text | media"""
    message: int
    """The number of the message it was written for."""
    trained: bool = False


def write(template: Template, conversation: Conversation, bos: str, eos: str, *, videos: bool = False) -> list[Segment]:
    """The whole conversation in segments. Raises `RenderError` for a shape that the template has no place for, and for
    a video unless the model reads `videos`."""
    messages = list(enumerate(conversation.messages))
    system = template.system
    if messages[0][1].role == "system":
        system = messages.pop(0)[1].text
        if template.system_wrap is None:
            expected = f"none: template {template.name!r} has no place for more"
            raise RenderError(f"{conversation.id}, message 0", found="a system message", expected=expected)
    tokens = {"bos": bos, "eos": eos}
    wrapped: list[Segment] = []
    if system:
        wrapped = list(_fill(template.system_wrap or "", 0, tokens, system=[Segment(system, "text", 0)]))
    made: list[Segment] = []
    asked = 0
    for number, message in messages:
        if message.role == "assistant":
            answer = _fill(template.answer, number, tokens, answer=[Segment(message.text, "text", number)])
            made += [replace(segment, trained=True) for segment in answer]
            continue
        asked += 1
        form = template.first if asked == 1 else template.next
        if form is None:
            where, found = f"{conversation.id}, message {number}", "another question"
            expected = f"one question and one answer: template {template.name!r} is for captions"
            fix = "choose a template for conversations, such as template=v1, or captions alone: data.tasks=[caption]"
            raise RenderError(where, found=found, expected=expected, fix=fix)
        if not videos and any(isinstance(part, Video) for part in message.media):
            where = f"{conversation.id}, message {number}"
            fix = "put frames of it into the message as images, or train with image_mode: anyres_video_8 (LLaVA-NeXT-"
            fix += "Video) or anyres_max_9_video_8 (LLaVA-OneVision), or without what is about videos: "
            fix += "--set data.videos=false"
            raise RenderError(where, found="a video", expected="images: the model reads no videos", fix=fix)
        content = _content(template, message, number)
        made += _fill(form, number, tokens, system=wrapped, content=content)
    if template.needs_image and not any(segment.kind == "media" for segment in made):
        where = f"{conversation.id}, message {messages[0][0]}"
        raise RenderError(where, found="no image", expected=f"an image: template {template.name!r} captions one")
    return made


def answer_end(template: Template, eos: str) -> str:
    """What the template writes behind an answer's text."""
    *_, last = _fill(template.answer, 0, {"bos": "", "eos": eos}, answer=[Segment("", "text", 0)])
    return last.text


def check_text(conversation: Conversation, segments: Sequence[Segment], forbidden: Sequence[str]) -> None:
    """Raise `RenderError` if a message's text writes a forbidden one, alone or together with what surrounds it."""
    whole = "".join(segment.text for segment in segments)
    owners = [segment for segment in segments for _ in segment.text]  # of each character
    for token in forbidden:
        at = whole.find(token)
        while at >= 0:
            behind = at + len(token)
            for owner in owners[at:behind]:
                if owner.kind == "text":
                    raise control_in_text(conversation, owner.message, token)
            at = whole.find(token, behind)


def control_in_text(conversation: Conversation, message: int, token: str) -> RenderError:
    return RenderError(
        f"{conversation.id}, message {message}",
        found=f"{token!r} in the text",
        expected="plain text: the tokenizer or the template gives this a meaning of its own",
        fix="write it another way, for example with a space inside",
    )


def _content(template: Template, message: Message, number: int) -> list[Segment]:
    """A question: images or videos and texts, a newline between any two.

    One image moves to the front and the text around it is stripped, as LLaVA does; several images stay where they are.
    """
    if not message.media:
        return [Segment(message.text, "text", number)] if template.question_text else []
    ordered = message.content if len(message.media) > 1 else (*message.media, message.text)
    parts: list[Segment] = []
    for text_only, run in groupby(ordered, key=lambda part: isinstance(part, str)):
        if not text_only:
            parts += [Segment(VIDEO_MARK if isinstance(part, Video) else IMAGE_MARK, "media", number) for part in run]
        elif template.question_text and (text := "".join(map(str, run)).strip()):
            parts.append(Segment(text, "text", number))
    if not template.question_text:
        return parts
    newline = Segment("\n", "literal", number)
    return [segment for part in parts for segment in (newline, part)][1:]


def _fill(form: str, number: int, tokens: Mapping[str, str], **slots: list[Segment]) -> Iterator[Segment]:
    """The segments of one form of the template, its slots filled; what is empty is left out."""
    for index, part in enumerate(SLOT.split(form)):
        if index % 2 and part in slots:
            yield from slots[part]
        elif text := tokens[part] if index % 2 else part:
            yield Segment(text, "literal", number)
