"""From conversations to examples: rendered when they are needed, measured, refused by name where they are unfit.

Knows: how a conversation becomes token ids with places for its images.
Does not know: which conversations a recipe means (`source.py`), packs, batches, the loop. It never cuts a conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, overload

import numpy as np

from workbench.conversation import Conversation
from workbench.errors import ModelError
from workbench.model.renderer import IGNORE_INDEX, Renderer
from workbench.model.tiling import Size, Tiling
from workbench.training.example import Example
from workbench.training.rows import Rows, image_key
from workbench.training.sizes import Sizes, shown_key

HELD = 50_000
"""Examples that stay in memory once they were rendered, about 1 KB each; those after them are rendered again."""


class Reader(Protocol):
    """What turns conversations into ids: a model, or what is known of one before its weights are read."""

    @property
    def renderer(self) -> Renderer: ...
    @property
    def tiling(self) -> Tiling:
        """How many tokens an image takes in the language model."""
        ...


class Examples(Sequence[Example]):
    """The examples of some conversations. Indexing raises `RenderError` for one that is unfit.

    sizes: of their images, where `reader.tiling` varies with them.
    """

    def __init__(self, rows: Rows, reader: Reader, sizes: Sizes | None = None) -> None:
        self.rows, self.reader, self.sizes = rows, reader, sizes
        self._held: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> list[Example]: ...
    def __getitem__(self, number: int | slice) -> Example | list[Example]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        held = self._held.get(number)
        return held or self.keep(number, self.example(self.rows[number]))

    def example(self, conversation: Conversation) -> Example:
        """A conversation as token ids."""
        return to_example(conversation, self.reader, self.sizes)

    def among(self, numbers: np.ndarray) -> Iterator[Conversation]:
        """The conversations of these numbers, made together: faster than one by one."""
        return iter(self.rows.take(numbers))

    def keep(self, number: int, example: Example) -> Example:
        """Hold on to an example that was rendered, while there is room."""
        if len(self._held) < HELD:
            self._held[number] = example
        return example


def to_example(conversation: Conversation, reader: Reader, sizes: Sizes | None = None) -> Example:
    """One conversation as token ids, with as many tokens for each image as the model makes of it.

    Raises `ModelError` without `sizes` where these decide.
    """
    rendered, tiling = reader.renderer.render(conversation), reader.tiling
    keys = tuple(image_key(image) for image in rendered.images)
    if tiling.varies and sizes is None:
        raise ModelError(conversation.id, found="no sizes of images", expected="some, for a model that sees tiles")
    known: tuple[Size, ...] = ()
    counts = (tiling.each,) * len(keys)
    if tiling.varies and sizes is not None:
        known = tuple(tiling.seen(sizes[key], rendered.pictures) for key in keys)
        counts = tuple(map(tiling.tokens, known))
        keys = tuple(map(shown_key, keys, known))
    return Example(
        id=rendered.id,
        ids=np.array(rendered.ids, np.int32),
        trained=np.array(rendered.labels) != IGNORE_INDEX,
        shared=rendered.prefix,
        images=keys,
        counts=counts,
        sizes=known,
        task=conversation.task,
    )
