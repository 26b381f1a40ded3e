"""A LLaVA as a `ChatModel`: answers many conversations at once, each while it is read, streamed or whole.

Knows: how conversations become requests of tokens and pixels, how an answer is read, cancelled and found again as the
very tokens it was written in, and adapters on one model.
Does not know: templates (the renderer's), how requests run together (`generator`), servers, terminals or datasets:
images arrive through `open_image`.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from workbench.chat_model import GREEDY, Answer, Ending, Pieces, SamplingOptions
from workbench.conversation import Conversation
from workbench.errors import BusyError, ContextError, ModelError
from workbench.inference.adapters import BASE, Adapters
from workbench.inference.attachments import open_file
from workbench.inference.batch import Batch
from workbench.inference.decoding import Row
from workbench.inference.generator import Generator
from workbench.inference.grammar import Grammars
from workbench.inference.pixels import Known, Pixels
from workbench.inference.prefix_cache import FeatureCache, PrefixCache, prefix_key
from workbench.inference.requests import EngineState, Event, Request
from workbench.inference.sampling import generator
from workbench.inference.spoken import Spoken
from workbench.inference.text import TextStream
from workbench.inference.vision import Vision
from workbench.model.llava import Llava
from workbench.model.parts import places_of
from workbench.model.renderer import Rendered
from workbench.resources import expanded

PREFIX_BYTES = 512 * 2**20
"""Of keys and values that are kept between requests, where nothing else is said."""


class Engine:
    """Answers with `llava`. The model may train between calls: nothing is reused that its weights have outgrown.

    open_image: gives the picture of an `Image`, and for a model that reads videos the `Film` of a `Video`; for a
    dataset `lambda media: load_media(media, dataset.resolve(media))`, for a baseline any other picture. What it raises
    reaches the caller. By an `attachments.TrackedOpener` a picture that has not changed is opened once.
    features: share one between engines on the same model, for example one per `open_image`.
    rows, kv_bytes: how much runs together at most: rows of a batch, and bytes of keys and values (None: 1 GiB, or half
    of what is free on a CUDA device). prefix_bytes: keys and values kept for prompts that begin alike; 0 keeps none.
    queue: how many requests may wait that were made with `start=True`.

    All answers are written by one thread, which starts when there is work and ends when there is none: requests of
    any threads run in one batch. Used in a `with` block, it is closed at the end.
    """

    def __init__(
        self,
        llava: Llava,
        *,
        open_image: Callable[[Any], Any] = open_file,
        features: FeatureCache | None = None,
        name: str = "llava",
        rows: int = 64,
        kv_bytes: int | None = None,
        prefix_bytes: int = PREFIX_BYTES,
        queue: int = 256,
    ) -> None:
        self.llava = llava
        self.name = name
        self.open_image = open_image
        self.features = FeatureCache() if features is None else features
        self.rows = rows
        self.queue = queue
        self.literal_text = False
        """Whether a control token that a question writes is read as letters, not refused (see `Renderer.prompt`)."""
        self._vision = Vision(llava, self.features)
        self._pixels = Pixels()
        self._adapters = Adapters(llava)
        prefixes = PrefixCache(prefix_bytes)
        self._generator = Generator(
            Batch(llava, self._vision, prefixes, rows=rows, kv_bytes=kv_bytes, adapters=self._adapters)
        )
        self._spoken = Spoken(llava.renderer)
        self._text = llava.model.config.get_text_config()
        self._adapter: str | None = None
        self._grammars = Grammars(llava.tokenizer, self._text.vocab_size, llava.renderer.end_ids)

    def __repr__(self) -> str:
        llava = self.llava
        what = f"{type(llava.model.get_decoder()).__name__} in {str(llava.dtype).removeprefix('torch.')}"
        through = f", with {Path(self._adapter).name}" if self._adapter else ""
        return f"Engine({self.name!r}, {what} on {llava.device}, {llava.image_tokens} image tokens{through})"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    # --- answering ----------------------------------------------------------------------------------------------

    def reply(self, conversation: Conversation, options: SamplingOptions = GREEDY, *, start: bool = False) -> Answer:
        """The answer, written while it is read. Raises `RenderError` or `ImageError` here, before any token.

        start: begin now and not when it is first read; raises `BusyError` where `queue` requests wait already. An
        answer that is let go of unread is cancelled.
        """
        request = self._requests([(0, self._prompt(conversation))], options)[0]

        def write(cancelled: threading.Event) -> Pieces:
            request.cancelled = cancelled
            return self._pieces(request, conversation, started=start)

        answer = Answer(write, lambda: request.row.logprobs[: request.read])
        request.reader = weakref.ref(answer)
        if start:
            self._generator.submit([request], self.queue)
        return answer

    def _pieces(self, request: Request, conversation: Conversation, *, started: bool) -> Pieces:
        if not started:
            self._generator.submit([request])
        text = ""
        try:
            while True:
                _, told = request.events.get()
                if isinstance(told, Ending):
                    self._spoken.keep(conversation, text, told)
                    return told
                if isinstance(told, Exception):
                    raise told
                piece, request.read = told
                text += piece
                yield piece
        finally:
            request.cancelled.set()  # nobody reads on

    def reply_batch(self, conversations: Sequence[Conversation], options: SamplingOptions = GREEDY) -> list[Answer]:
        """Finished answers in the order of `conversations`, token for token those that `reply` gives in fp32, but for
        ties: two logits within 1e-3 of each other may change places when other rows are summed beside them.

        A conversation or image that cannot be used raises: `RenderError` before the first token, `ImageError` when
        its turn comes.
        """
        answers = dict(self.reply_each(conversations, options))
        return [answers[index] for index in range(len(conversations))]

    def reply_each(
        self, conversations: Sequence[Conversation], options: SamplingOptions = GREEDY
    ) -> Iterator[tuple[int, Answer]]:
        """As `reply_batch`, but gives (index, answer) as soon as answers are there, for progress; not in order."""
        asked = [(index, self._prompt(asking)) for index, asking in enumerate(conversations)]
        # Questions about one image stand together, and prompts of one length, so that they share and pad little.
        asked.sort(key=lambda item: (item[1].prefix, [image.path for image in item[1].images], len(item[1].ids)))
        ended: SimpleQueue[Event] = SimpleQueue()
        running: dict[Request, int] = {}
        waiting = deque(asked)
        try:
            while waiting or running:
                if waiting and len(running) <= self.rows:
                    some = [waiting.popleft() for _ in range(min(self.rows, len(waiting)))]
                    made = self._requests(some, options, ended)
                    running |= {request: index for request, (index, _) in zip(made, some, strict=True)}
                    self._generator.submit(made)
                    continue
                request, told = ended.get()
                index = running.pop(request)
                if isinstance(told, Exception):
                    raise told
                yield index, Answer.finished(request.row.new_text(), request.row.ending)
        finally:
            for request in running:
                request.cancelled.set()
            while running:  # the model is left alone once this is over
                running.pop(ended.get()[0])

    def next_logits(self, conversations: Sequence[Conversation]) -> torch.Tensor:
        """What the model expects first of each answer: logits, (conversations, vocabulary), float32, on the CPU.

        Beginnings that prompts share are computed once. Raises as `reply_batch` does.
        """
        asked = [(index, self._prompt(asking)) for index, asking in enumerate(conversations)]
        ended: SimpleQueue[Event] = SimpleQueue()
        made = self._requests(asked, SamplingOptions(max_tokens=1), ended)
        for request in made:
            request.row.keeps_logits = True
        self._generator.submit(made)
        told = [ended.get()[1] for _ in made]
        for one in told:
            if isinstance(one, Exception):
                raise one
        return torch.stack([request.row.logits for request in made if request.row.logits is not None])

    # --- adapters -----------------------------------------------------------------------------------------------

    @property
    def frames(self) -> int:
        """Of a video that the model is shown at most; 0: it reads pictures only."""
        return self.llava.tiling.frames

    @property
    def swaps(self) -> bool:
        """Whether another adapter may be put on the model between two answers."""
        return len(self._adapters) > 1

    def base(self) -> Engine:
        """The model before this run trained it: the same weights without the adapter, and with the projector that it
        began with, where that is known. Shares batch, thread and memory with this engine; an answer of one runs while
        none of the other does. Raises `ModelError` where more than adapter and projector trained."""
        if BASE not in self._adapters:
            self._adapters.add_base()
        return self._through(BASE, f"{self.name} (base)")

    def adapted(self, source: str | Path, *, name: str | None = None) -> Engine:
        """The adapter and projector of another run or checkpoint on this model, as an engine that shares all with this
        one, as `base` does. Raises `ModelError` for one that lies on another base, `CheckpointError` for a broken one.
        """
        key = str(expanded(source, ModelError).resolve())
        if key not in self._adapters:
            if not self._generator.idle:
                raise ModelError(str(source), found="answers being written", expected="none while an adapter is added")
            self._adapters.add(key, source)
        return self._through(key, name or Path(source).name)

    def _through(self, adapter: str, name: str) -> Engine:
        view = copy.copy(self)
        view._adapter, view.name, view._spoken = adapter, name, Spoken(self.llava.renderer)
        return view

    @contextmanager
    def alone(self) -> Iterator[Llava]:
        """The model as this engine answers from it, for a pass of one's own; nothing may be asked meanwhile.

        Raises `BusyError` while answers are being written.
        """
        if not self._generator.idle:
            raise BusyError(self.name, found="answers being written", expected="none", fix="try again when they ended")
        with self._adapters.placed(self._adapter):
            yield self.llava

    # --- the engine itself --------------------------------------------------------------------------------------

    def state(self) -> EngineState:
        """How it is doing at this moment; costs nothing."""
        return self._generator.state()

    def close(self) -> None:
        """Cancel what runs, end the thread and forget what was kept; the model is left as it is. Raises nothing."""
        self._generator.close()

    # --- conversations to requests ------------------------------------------------------------------------------

    def _prompt(self, conversation: Conversation) -> Rendered:
        return self._spoken.restored(conversation, self.llava.renderer.prompt(conversation, literal=self.literal_text))

    def _prepare(self, asked: Sequence[tuple[int, Rendered]], options: SamplingOptions) -> list[tuple[int, Row]]:
        """Rows with their features, for `Decoding.prefill`."""
        made = self._requests(asked, options)
        shown = {name: one for request in made for name, one in request.shown.items()}
        seen = self._vision.look(shown) if shown else {}
        for request in made:
            parts = [seen[name] for _, _, name in request.images]
            request.row.features = torch.cat(parts) if parts else None
        return [(index, request.row) for (index, _), request in zip(asked, made, strict=True)]

    def _requests(
        self,
        asked: Sequence[tuple[int, Rendered]],
        options: SamplingOptions,
        ended: SimpleQueue[Event] | None = None,
    ) -> list[Request]:
        """One request per prompt; every image is opened once, for each way in which it is shown. `ended`: where ends
        are told of, and nothing else."""
        mode_among = self.llava.mode_among
        shown = {
            (image, mode_among(rendered.pictures)): rendered.pictures
            for _, rendered in asked
            for image in rendered.images
        }
        opened = {key: self._pixels.of(key[0], self.open_image, self.llava, among) for key, among in shown.items()}
        made = []
        for index, rendered in asked:
            mode = mode_among(rendered.pictures)
            known = [opened[image, mode] for image in rendered.images]
            made.append(self._request(index, rendered, known, options))
        if ended is not None:
            for request in made:
                request.events, request.streams = ended, False
        return made

    def _request(
        self,
        index: int,
        rendered: Rendered,
        opened: Sequence[Known],
        options: SamplingOptions,
    ) -> Request:
        llava = self.llava
        ids, images = self._expanded(rendered, opened)
        limit = places_of(self._text)
        room = limit - len(ids)
        if room < 1:
            raise ContextError(rendered.id, len(ids), limit, fix="shorten the conversation or start a new one")
        inside = images[: sum(one < 0 for one in rendered.ids[: rendered.prefix])]
        prefix = min(rendered.prefix + sum(last - first - 1 for first, last, _ in inside), len(ids) - 1)
        row = Row(
            ids=ids,
            features=None,
            prefix=prefix,  # the last token is the row's own: its logits begin the answer
            prefix_key=prefix_key(ids[:prefix], [name for _, _, name in inside]),
            limit=min(options.max_tokens, room),
            end_ids=llava.renderer.end_ids,
            text=TextStream(self._decode, options.stop),
            options=options,
            generator=generator(options, index),
            grammar=self._grammars.of(options.json_schema),
            image_tokens=sum(last - first for first, last, _ in images),
        )
        shown = {known.name: known for known in opened}
        return Request(row, images, shown, adapter=self._adapter)

    def _expanded(self, rendered: Rendered, opened: Sequence[Known]) -> tuple[list[int], list[tuple[int, int, str]]]:
        """The prompt's tokens with image slots written out, and where each image's slots are."""
        tiling = self.llava.tiling
        counts = [tiling.tokens(known.size) for known in opened]
        ids, _ = self.llava.renderer.expand(rendered, counts, self.llava.image_token_id)
        images, written = [], 0  # slots written out so far, beyond the one that stands for each image
        places = [place for place, id in enumerate(rendered.ids) if id < 0]
        for place, count, known in zip(places, counts, opened, strict=True):
            images.append((place + written, place + written + count, known.name))
            written += count - 1
        return ids, images

    def _decode(self, ids: list[int]) -> str:
        return self.llava.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
