"""Text with `<image>` marks and a list of images, as parts in their order and back; with `<video>` and videos as well.

Knows: that a mark stands where its file is, and that the line break behind marks at the front belongs to the marks.
Does not know: which file they come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from workbench.conversation import IMAGE_MARK, VIDEO_MARK, Media, Part, Video


def parts_of(text: str, images: Iterator[Media], videos: Iterator[Media] | None = None) -> tuple[Part, ...]:
    """The parts of one message; takes an image for every mark. Raises `StopIteration` where none is left.

    `videos`: those that `<video>` marks stand for; without them such a mark is text.
    """
    waiting = {IMAGE_MARK: images} if videos is None else {IMAGE_MARK: images, VIDEO_MARK: videos}
    mark = "|".join(waiting)
    front = re.match(rf"(?:(?:{mark})\n?)+", text)
    head = front.group() if front else ""
    parts: list[Part] = [next(waiting[one]) for one in re.findall(mark, head)]
    for piece in re.split(f"({mark})", text[len(head) :]):
        if piece in waiting:
            parts.append(next(waiting[piece]))
        elif piece:
            parts.append(piece)
    return tuple(parts) or ("",)


def marked(parts: Sequence[Part], video: str = IMAGE_MARK) -> str:
    """The inverse: marks at the front stand on lines of their own. `video`: the mark of a video."""
    front = 0
    while front < len(parts) and not isinstance(parts[front], str):
        front += 1
    written = [part if isinstance(part, str) else video if isinstance(part, Video) else IMAGE_MARK for part in parts]
    rest = "".join(written[front:])
    return "\n".join(written[:front] + ([rest] if rest or not front else []))
