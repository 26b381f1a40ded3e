"""Text with `<image>` marks and a list of images, as parts in their order and back.

Knows: that a mark stands where its image is, and that the line break behind marks at the front belongs to the marks.
Does not know: which file they come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from workbench.conversation import IMAGE_MARK, Image, Part

_FRONT = re.compile(rf"(?:{IMAGE_MARK}\n?)+")


def parts_of(text: str, images: Iterator[Image]) -> tuple[Part, ...]:
    """The parts of one message; takes an image for every mark. Raises `StopIteration` where none is left."""
    front = _FRONT.match(text)
    head = front.group() if front else ""
    parts: list[Part] = [next(images) for _ in range(head.count(IMAGE_MARK))]
    for number, piece in enumerate(text[len(head) :].split(IMAGE_MARK)):
        if number:
            parts.append(next(images))
        if piece:
            parts.append(piece)
    return tuple(parts) or ("",)


def marked(parts: Sequence[Part]) -> str:
    """The inverse: marks at the front stand on lines of their own."""
    front = 0
    while front < len(parts) and not isinstance(parts[front], str):
        front += 1
    rest = "".join(part if isinstance(part, str) else IMAGE_MARK for part in parts[front:])
    return "\n".join([IMAGE_MARK] * front + ([rest] if rest or not front else []))
