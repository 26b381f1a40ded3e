"""What each token of a rendering says, one by one.

Knows: that a tokenizer writes a space only between words, and characters whose bytes are split over several tokens.
Does not know: colours, widgets, or how the rendering was made (`renderer.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.model.renderer import IGNORE_INDEX, IMAGE_TOKEN_INDEX, Rendered, Renderer

BROKEN = "\ufffd"
"""What decoders write for bytes that are not, or not yet, a character."""


@dataclass(frozen=True)
class Piece:
    """One id of a rendering."""

    id: int
    """-200 is an image."""
    text: str
    """Joined between two images, the texts are what the ids there say; empty where a later token ends the character."""
    trained: bool

    @property
    def is_image(self) -> bool:
        return self.id == IMAGE_TOKEN_INDEX


def pieces(renderer: Renderer, rendered: Rendered) -> list[Piece]:
    """One for each of `rendered.ids`, in their order."""
    made: list[Piece] = []
    chunk: list[int] = []  # ids since the last image
    start = done = 0  # those from start to done are the context that decides on spaces
    for id, label in zip(rendered.ids, rendered.labels, strict=True):
        text = ""
        if id == IMAGE_TOKEN_INDEX:
            chunk, start, done = [], 0, 0
        else:
            chunk.append(id)
            decoded = _decode(renderer, chunk[start:])
            if not decoded.endswith(BROKEN):
                text = decoded[len(_decode(renderer, chunk[start:done])) :]
                start, done = done, len(chunk)
        made.append(Piece(id, text, label != IGNORE_INDEX))
    return made


def _decode(renderer: Renderer, ids: list[int]) -> str:
    return renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
