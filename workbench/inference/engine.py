"""A LLaVA as a `ChatModel`: answers one conversation while it is read, or many at once.

Knows: how conversations become rows of tokens and image features, which rows to run together, and the exact reuse of
an image's features (kept between calls) and of the prefix that questions about one image share (within a call).
Does not know: templates (the renderer's), the decode loop (`decoding`), servers, terminals or datasets: images arrive
through `open_image`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from PIL.Image import Image as PilImage

from workbench.chat_model import GREEDY, Answer, Pieces, SamplingOptions
from workbench.conversation import Conversation, Image
from workbench.errors import RenderError
from workbench.inference.decoding import Row, evaluating, write
from workbench.inference.opening import open_file
from workbench.inference.prefix_cache import FeatureCache, pixel_hash, prefix_key, tower_state
from workbench.inference.sampling import generator
from workbench.inference.text import TextStream
from workbench.model.llava import Llava
from workbench.model.renderer import Rendered

TOWER_BATCH = 32
"""Images that go through the vision tower together."""


class Seen(NamedTuple):
    """One image as the language model gets it."""

    hash: str
    features: torch.Tensor
    """(tokens, width of the language model)"""


class Engine:
    """Answers with `llava`. The model may train between calls: nothing is reused that its weights have outgrown.

    open_image: gives the picture of an `Image`; for a dataset `lambda image: load_image(dataset.resolve(image))`, for
    a baseline any other picture. What it raises reaches the caller.
    features: share one between engines on the same model, for example one per `open_image`.
    rows, kv_bytes: how much runs together at most: rows of a batch, and bytes of keys and values (None: 1 GiB, or half
    of what is free on a CUDA device).
    """

    def __init__(
        self,
        llava: Llava,
        *,
        open_image: Callable[[Image], PilImage] = open_file,
        features: FeatureCache | None = None,
        name: str = "llava",
        rows: int = 64,
        kv_bytes: int | None = None,
    ) -> None:
        self.llava = llava
        self.name = name
        self.open_image = open_image
        self.features = FeatureCache() if features is None else features
        self.rows = rows
        self.kv_bytes = kv_bytes
        self._text = llava.model.config.get_text_config()

    def reply(self, conversation: Conversation, options: SamplingOptions = GREEDY) -> Answer:
        """The answer, written while it is read. Raises `RenderError` or `ImageError` here, before any token."""
        row = self._prepare([(0, self.llava.renderer.prompt(conversation))], options)[0][1]

        def pieces(cancelled: threading.Event) -> Pieces:
            if cancelled.is_set():
                row.finish("cancelled")
            else:
                for _ in write(self.llava, [row], options):
                    if text := row.new_text():
                        yield text
                    if cancelled.is_set():
                        row.finish("cancelled")
            if text := row.new_text():
                yield text
            return row.ending

        return Answer(pieces)

    def reply_batch(self, conversations: Sequence[Conversation], options: SamplingOptions = GREEDY) -> list[Answer]:
        """Finished answers in the order of `conversations`, token for token those that `reply` gives in fp32.

        A conversation or image that cannot be used raises: `RenderError` before the first token, `ImageError` when
        its turn comes.
        """
        answers = dict(self.reply_each(conversations, options))
        return [answers[index] for index in range(len(conversations))]

    def reply_each(
        self, conversations: Sequence[Conversation], options: SamplingOptions = GREEDY
    ) -> Iterator[tuple[int, Answer]]:
        """As `reply_batch`, but gives (index, answer) as soon as answers are there, for progress; not in order."""
        asked = [(index, self.llava.renderer.prompt(asking)) for index, asking in enumerate(conversations)]
        # Questions about one image stand together, and prompts of one length, so that they share and pad little.
        asked.sort(key=lambda item: (item[1].prefix, [image.path for image in item[1].images], len(item[1].ids)))
        for start in range(0, len(asked), self.rows):
            prepared = self._prepare(asked[start : start + self.rows], options)
            for batch in self._batches(prepared):
                for _ in write(self.llava, [row for _, row in batch], options):
                    pass
                for index, row in batch:
                    yield index, Answer.finished(row.new_text(), row.ending)

    def _batches(self, prepared: Sequence[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
        """Rows with one prefix length, within the budget for keys and values; order is kept."""
        groups: dict[Hashable, list[tuple[int, Row]]] = {}
        for index, row in prepared:
            # A sliding window counts columns, padding too: such models get rows of one length only.
            alike = len(row.ids) if getattr(self._text, "sliding_window", None) else 0
            groups.setdefault((row.prefix, alike), []).append((index, row))
        for group in groups.values():
            longest = max(len(row.ids) + row.limit for _, row in group)
            size = max(1, self._kv_budget() // (longest * self._kv_bytes_per_token()))
            for start in range(0, len(group), size):
                yield group[start : start + size]

    def _kv_budget(self) -> int:
        if self.kv_bytes is not None:
            return self.kv_bytes
        device = self.llava.device
        return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 1 << 30

    def _kv_bytes_per_token(self) -> int:
        text = self._text
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return 2 * text.num_hidden_layers * heads * width * self.llava.dtype.itemsize

    # --- conversations to rows ----------------------------------------------------------------------------------

    def _prepare(self, asked: Sequence[tuple[int, Rendered]], options: SamplingOptions) -> list[tuple[int, Row]]:
        seen = self._look(image for _, rendered in asked for image in rendered.images)
        return [(index, self._row(index, rendered, seen, options)) for index, rendered in asked]

    def _row(self, index: int, rendered: Rendered, seen: dict[Image, Seen], options: SamplingOptions) -> Row:
        llava = self.llava
        images = [seen[image] for image in rendered.images]
        ids, _ = llava.renderer.expand(rendered, [len(image.features) for image in images], llava.image_token_id)
        room = self._text.max_position_embeddings - len(ids)
        if room < 1:
            raise RenderError(
                rendered.id,
                found=f"a prompt of {len(ids)} tokens",
                expected=f"fewer than {self._text.max_position_embeddings}, what the model was built for",
                fix="shorten the conversation or start a new one",
            )
        in_prefix = sum(token < 0 for token in rendered.ids[: rendered.prefix])
        prefix = rendered.prefix + sum(len(image.features) - 1 for image in images[:in_prefix])
        prefix = min(prefix, len(ids) - 1)  # the last token is the row's own: its logits begin the answer
        none = torch.empty(0, self._text.hidden_size, device=llava.device)
        return Row(
            ids=ids,
            features=torch.cat([none, *(image.features for image in images)]) if images else none,
            prefix=prefix,
            prefix_key=prefix_key(ids[:prefix], [image.hash for image in images[:in_prefix]]),
            limit=min(options.max_tokens, room),
            end_ids=llava.renderer.end_ids,
            text=TextStream(self._decode, options.stop),
            generator=generator(options, index),
        )

    def _decode(self, ids: list[int]) -> str:
        return self.llava.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @torch.no_grad()
    def _look(self, images: Iterable[Image]) -> dict[Image, Seen]:
        """Open every image once, and give its features, from the cache where its pixels were seen before."""
        state = tower_state(self.llava.tower)
        names: dict[Image, str] = {}
        tower: dict[str, torch.Tensor] = {}
        waiting: dict[str, torch.Tensor] = {}
        for image in dict.fromkeys(images):
            pixels = self.llava.image_mode.pixels(self.open_image(image))
            names[image] = name = pixel_hash(pixels)
            if name in tower or name in waiting:
                continue
            found = self.features.get((state, name))
            if found is None:
                waiting[name] = pixels
            else:
                tower[name] = found
        with evaluating(self.llava.model), self.llava.autocast():
            for batch in _slices(list(waiting), TOWER_BATCH):
                pixels = torch.stack([waiting[name] for name in batch])
                for name, features in zip(batch, self.llava.tower_features(pixels), strict=True):
                    tower[name] = features.clone()
                    self.features.put((state, name), tower[name])
            projected: dict[str, torch.Tensor] = {}
            for batch in _slices(list(tower), TOWER_BATCH):
                stacked = torch.stack([tower[name] for name in batch])
                projected.update(zip(batch, self.llava.project(stacked), strict=True))
        return {image: Seen(name, projected[name]) for image, name in names.items()}


def _slices(names: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]
