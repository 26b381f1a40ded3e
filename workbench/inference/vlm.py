"""Any vision-language model of transformers as a `ChatModel`: Qwen-VL, InternVL, SmolVLM, BLIP-2, LLaVA.

Knows: `AutoModelForImageTextToText` and `AutoProcessor`, whose own chat template renders the conversation.
Does not know: our templates or caches; a LLaVA made here is served by `engine.Engine`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError

from workbench.chat_model import GREEDY, Answer, Pieces, SamplingOptions
from workbench.conversation import Conversation, Image, Message, check_conversation
from workbench.errors import ContextError, ConversationError, ModelError, RenderError
from workbench.inference import blip
from workbench.inference.decoding import Row
from workbench.inference.grammar import Grammars
from workbench.inference.sampling import generator, next_tokens
from workbench.inference.text import TextStream
from workbench.model.parts import load_exactly, loading_quietly, quietly
from workbench.model.precision import keep_weights_readable, pick_device, pick_dtypes, quantisation
from workbench.model.segments import control_in_text
from workbench.model.sources import resolve
from workbench.resources import expanded

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

VIDEO = "video_processor"
_NOT_LANGUAGE = ("visual", "vision_tower", "vision_model", "multi_modal_projector", "connector", "mlp1", "aligner")
"""Names under which models keep tower and projector, which are never quantised."""
_UNUSABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError)
"""What transformers and peft raise for a folder that does not hold what it should."""


class VisionLanguageModel:
    """A model by folder or name on the Hub. One answer or batch at a time; several threads wait for each other.

    `load`: fp32, bf16, fp16, 8bit or 4bit (NF4, language model only); as saved by default. `open_image` gives the
    picture of a reference. `adapter`: a folder with a peft adapter of this model. Raises `ModelError` for what is not
    there, incomplete, no such model, or without a chat template.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        load: str | None = None,
        device: str = "auto",
        open_image: Callable[[Image], Picture] | None = None,
        adapter: str | Path | None = None,
        name: str | None = None,
    ) -> None:
        self.name = name or str(source)
        self.open_image = open_image
        self._lock = threading.Lock()
        self.model, self.processor = _loaded(resolve(source), load, device)
        if adapter is not None:
            _attach(self.model, expanded(adapter, ModelError))
        tokenizer, ends = self.processor.tokenizer, self.model.generation_config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or [tokenizer.eos_token_id])
        self._grammars = Grammars(tokenizer, self.model.config.get_text_config().vocab_size, self._ends)
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        image = getattr(self.processor, "image_token", None)
        shown = ("image_token_id", "image_token_index", "video_token_id")
        self._image_ids = {id for id in (getattr(self.model.config, name, None) for name in shown) if id is not None}
        self._controls = special | set(tokenizer.all_special_tokens) | ({str(image)} if image else set())

    def __repr__(self) -> str:
        number = str(self.model.dtype).removeprefix("torch.")
        return f"VisionLanguageModel({self.name!r}, {type(self.model).__name__} in {number} on {self.model.device})"

    # --- answering ----------------------------------------------------------------------------------------------

    def reply(self, conversation: Conversation, options: SamplingOptions = GREEDY) -> Answer:
        """As `ChatModel.reply`: `generate` runs in a thread from the first piece read, and ends when reading does."""
        inputs, rows = self._prepare([conversation], options)
        return Answer(lambda cancelled: self._write(inputs, rows[0], options, cancelled), lambda: rows[0].logprobs)

    def reply_batch(self, conversations: Sequence[Conversation], options: SamplingOptions = GREEDY) -> list[Answer]:
        """As `ChatModel.reply_batch`, in one padded batch; one by one where padding would change what is said."""
        if not conversations:
            return []
        if self.model.config.is_encoder_decoder and len(conversations) > 1:  # T5 counts padding as distance
            return [self.reply_batch([one], options)[0] for one in conversations]
        inputs, rows = self._prepare(conversations, options)
        self._generate(inputs, rows, options)
        return [Answer.finished(row.new_text(), row.ending) for row in rows]

    def _write(self, inputs: dict[str, Any], row: Row, options: SamplingOptions, cancelled: threading.Event) -> Pieces:
        pieces: queue.Queue[str | Exception | None] = queue.Queue()
        left = threading.Event()

        def tell() -> None:
            if cancelled.is_set() or left.is_set():
                row.finish("cancelled")
            pieces.put(row.new_text())

        def work() -> None:
            try:
                self._generate(inputs, [row], options, tell)
                pieces.put(None)
            except Exception as problem:  # raised again by whoever reads the answer
                pieces.put(problem)

        if cancelled.is_set():
            row.finish("cancelled")
            return row.ending
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                if piece:
                    yield piece
        finally:  # also when nobody reads on: the next answer would wait for this one
            left.set()
            thread.join()
        return row.ending

    @torch.no_grad()
    def _generate(
        self,
        inputs: dict[str, Any],
        rows: Sequence[Row],
        options: SamplingOptions,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        """Write the answers of `rows`; `tell` is called after every step, and may end a row."""

        def chosen(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            going = [index for index, row in enumerate(rows) if row.finish_reason is None]
            tokens = torch.zeros(len(rows), dtype=torch.long)
            told = next_tokens(scores[going], [rows[index] for index in going], self._text_of)
            tokens[going] = torch.tensor(told)
            for row in rows:
                if row.fault is not None:
                    raise row.fault
            return torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None].to(scores.device), 0.0)

        def ended(ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
            for row, token in zip(rows, ids[:, -1].tolist(), strict=True):
                if row.finish_reason is None:
                    row.take(token)
            tell()
            return torch.tensor([row.finish_reason is not None for row in rows], device=ids.device)

        # Each row draws from its own generator and by its own grammar, which generate's own sampling cannot do.
        own: dict[str, Any] = {"logits_processor": [chosen]}
        longest = max(row.limit for row in rows)
        with self._lock:
            try:
                self.model.generate(**inputs, do_sample=False, max_new_tokens=longest, stopping_criteria=[ended], **own)
            except torch.OutOfMemoryError as problem:
                found = f"no memory left for {len(rows)} prompts of up to {inputs['input_ids'].shape[1]:,} tokens"
                fix = "ask fewer at once, give smaller images, or load it in 4bit"
                raise ModelError(self.name, found=found, fix=fix) from problem

    # --- conversations to rows ----------------------------------------------------------------------------------

    def _prepare(
        self, conversations: Sequence[Conversation], options: SamplingOptions
    ) -> tuple[dict[str, Any], list[Row]]:
        """What `generate` gets, padded on the left, and one row per conversation for what it writes."""
        messages = [self._messages(check_conversation(one)) for one in conversations]
        with self._lock:  # padding is a state of the tokenizer
            inputs = self._inputs(conversations, messages)
        prompts = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        ids = [prompt[seen].tolist() for prompt, seen in prompts]
        return inputs, [self._row(index, one, ids[index], options) for index, one in enumerate(conversations)]

    def _row(self, index: int, conversation: Conversation, ids: list[int], options: SamplingOptions) -> Row:
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        room = options.max_tokens if context is None else context - len(ids)
        if room < 1:
            raise ContextError(conversation.id, len(ids), context or 0, fix="shorten it, or give fewer images")
        return Row(
            ids=ids,
            features=None,  # the model sees its images itself
            prefix=0,
            prefix_key=None,
            limit=min(options.max_tokens, room),
            end_ids=self._ends,
            text=TextStream(self._decode, options.stop),
            options=options,
            generator=generator(options, index),
            grammar=self._grammars.of(options.json_schema),
            image_tokens=sum(id in self._image_ids for id in ids),
        )

    def _inputs(self, conversations: Sequence[Conversation], messages: Sequence[Any]) -> dict[str, Any]:
        """What the processor makes of the messages, on the model's device. Raises `RenderError` where it cannot."""
        try:
            made = self.processor.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                processor_kwargs={"return_tensors": "pt", "padding": True},
            )
        except (TemplateError, ValueError, TypeError) as problem:
            if len(conversations) > 1:  # name the one that is meant
                for one, its in zip(conversations, messages, strict=True):
                    self._inputs([one], [its])
            expected = "what the model's own chat template and processor take"
            raise RenderError(conversations[0].id, found=_told(problem), expected=expected) from problem
        floats = {"device": self.model.device, "dtype": self.model.dtype}
        return {
            name: value.to(**floats) if value.is_floating_point() else value.to(self.model.device)
            for name, value in made.items()
        }

    def _messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        """The conversation in transformers' form, images opened."""
        last = len(conversation.messages) - 1
        if conversation.messages[last].role != "user":
            expected = "a question last: conversation.prompt"
            raise RenderError(f"{conversation.id}, message {last}", found="an answer", expected=expected)
        return [self._message(conversation, number, one) for number, one in enumerate(conversation.messages)]

    def _message(self, conversation: Conversation, number: int, message: Message) -> dict[str, Any]:
        parts: list[dict[str, Any]] = []
        for part in message.content:
            if isinstance(part, str):
                if found := sorted(token for token in self._controls if token in part):
                    raise control_in_text(conversation, number, found[0])
                parts.append({"type": "text", "text": part})
            elif not isinstance(part, Image):
                where = f"{conversation.id}, message {number}"
                fix = "put frames of it into the message as images"
                raise ConversationError(where, found="a video", expected="text and images", fix=fix)
            elif self.open_image is None:
                raise ModelError(self.name, found="an image", expected="open_image to be given")
            else:
                parts.append({"type": "image", "image": self.open_image(part)})
        return {"role": message.role, "content": parts}

    def _text_of(self, token: int) -> str:
        return self.processor.tokenizer.decode([token], clean_up_tokenization_spaces=False)

    def _decode(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _loaded(folder: Path, load: str | None, device: str) -> tuple[Any, Any]:
    """The model in evaluation, and its processor."""
    from transformers import AutoModelForImageTextToText

    place = pick_device(device)
    held = None if load is None else pick_dtypes(load, "auto", place)[0]
    config = None if load is None or held is None else quantisation(load, held, inside_llava=True)
    if config is not None:
        config.llm_int8_skip_modules = [
            "lm_head",
            *(f"{way}{part}" for part in _NOT_LANGUAGE for way in ("", "model.")),
        ]
    try:
        with loading_quietly(folder):
            processor = _processor_class(folder).from_pretrained(folder, backend="pil")
            model = load_exactly(
                AutoModelForImageTextToText,
                folder,
                allowed=("",),  # heads for other uses may be left out; nothing may be made up
                dtype=held or "auto",
                quantization_config=config,
                device_map={"": place},
            )
    except _UNUSABLE as problem:
        expected = "a vision-language model of transformers with its processor"
        raise ModelError(str(folder), found=_told(problem), expected=expected) from problem
    if not getattr(processor, "chat_template", None):
        processor.chat_template = blip.TEMPLATES.get(model.config.model_type)
    if getattr(processor, "tokenizer", None) is None or not processor.chat_template:
        expected, fix = "a processor that has one", "use a -chat or -instruct model"
        raise ModelError(str(folder), found="no chat template", expected=expected, fix=fix)
    processor.tokenizer.padding_side = "left"
    for name in ("temperature", "top_p", "top_k", "max_length"):  # an answer's options decide, without a warning
        setattr(model.generation_config, name, None)
    keep_weights_readable(model)
    return model.eval(), processor


def _attach(model: Any, folder: Path) -> None:
    """Put a peft adapter on the model, whole, or raise `ModelError`."""
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(str(folder), found="no adapter_config.json", expected="a folder with a peft adapter")
    try:
        with quietly(0):
            report = model.load_adapter(str(folder))
    except _UNUSABLE as problem:
        raise ModelError(str(folder), found=_told(problem), expected="an adapter of this model") from problem
    for what, keys in (("missing", report.missing_keys), ("surplus", report.unexpected_keys)):
        if keys:
            found = f"{len(keys)} {what} tensors, such as {min(keys)}"
            raise ModelError(str(folder), found=found, expected="an adapter of this model")


def _told(problem: Exception) -> str:
    """What a library says, on one line, without its list of all the models it knows."""
    return " ".join(str(problem).split()).partition(" Model type should be")[0][:300]


def _processor_class(folder: Path) -> Any:
    """The class of a folder's processor, as `AutoProcessor` finds it, but one that loads without torchvision."""
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    config = AutoConfig.from_pretrained(folder)
    return without_video(PROCESSOR_MAPPING[type(config)]) if type(config) in PROCESSOR_MAPPING else AutoProcessor


def without_video(processor: Any) -> Any:
    """The class of a processor whose part for videos is None: transformers cannot make that without torchvision."""
    from transformers import ProcessorMixin

    names = processor.get_attributes()
    if VIDEO not in names:
        return processor
    others = [name for name in names if name != VIDEO]
    reduced: Any = type(processor.__name__, (processor,), {"get_attributes": classmethod(lambda cls: others)})

    def arguments(cls: Any, *args: Any, **more: Any) -> list[Any]:
        found = reduced._get_arguments_from_pretrained(*args, **more)
        return [*found[: names.index(VIDEO)], None, *found[names.index(VIDEO) :]]

    def check(self: Any, name: str, argument: Any) -> Any:
        return None if name == VIDEO else processor.check_argument_for_proper_class(self, name, argument)

    own = {"_get_arguments_from_pretrained": classmethod(arguments), "check_argument_for_proper_class": check}
    own["apply_chat_template"] = ProcessorMixin.apply_chat_template  # SmolVLM's asks the part for videos first
    return type(processor.__name__, (processor,), own)
