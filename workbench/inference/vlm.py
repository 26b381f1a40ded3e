"""Any vision-language model of transformers as a `ChatModel`: Qwen-VL, InternVL, SmolVLM, LLaVA and their like.

Knows: `AutoModelForImageTextToText` and `AutoProcessor`, whose own chat template renders the conversation.
Does not know: our templates, adapters or caches; a LLaVA made here is served by `engine.Engine`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.chat_model import GREEDY, Answer, Ending, Pieces, SamplingOptions, Usage
from workbench.conversation import Conversation, Image, check_conversation
from workbench.errors import ConversationError, ModelError
from workbench.inference.text import TextStream
from workbench.model.parts import loading_quietly
from workbench.model.precision import DTYPES, QUANTISED, keep_weights_readable, pick_device, quantisation
from workbench.model.sources import resolve

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

VIDEO = "video_processor"
_NOT_LANGUAGE = ("visual", "vision_tower", "vision_model", "multi_modal_projector", "connector", "mlp1", "aligner")
"""Names under which models keep tower and projector, which are never quantised."""


class VisionLanguageModel:
    """A model by folder or name on the Hub. One answer or batch at a time; several threads wait for each other.

    `load`: fp32, bf16, fp16, 8bit or 4bit (NF4, language model only); as saved by default. `open_image` gives the
    picture of a reference. Raises `ModelError` for what is not there, no such model, or without a chat template.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        load: str | None = None,
        device: str = "auto",
        open_image: Callable[[Image], Picture] | None = None,
        name: str | None = None,
    ) -> None:
        self.name = name or str(source)
        self._open_image = open_image
        self._lock = threading.Lock()
        self.model, self.processor = _loaded(resolve(source), load, device)
        ends = self.model.generation_config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or [self.processor.tokenizer.eos_token_id])

    # --- answering ----------------------------------------------------------------------------------------------

    def reply(self, conversation: Conversation, options: SamplingOptions = GREEDY) -> Answer:
        """As `ChatModel.reply`: the answer as it is generated."""
        inputs = self._inputs([conversation])

        def write(cancelled: threading.Event) -> Pieces:
            told, stop = _Tokens(), threading.Event()
            thread = threading.Thread(target=self._generate_into, args=(told, inputs, options, stop), daemon=True)
            thread.start()
            stream, ids, reason = TextStream(self._decode, options.stop), [], "length"
            for token in told:
                ids.append(token)
                if token in self._ends:
                    reason = "stop"
                    break
                yield stream.push(token)
                if stream.stopped or cancelled.is_set():
                    reason = "stop" if stream.stopped else "cancelled"
                    break
            stop.set()
            thread.join()
            if told.problem is not None:
                raise told.problem
            yield stream.finish()
            return Ending(reason, Usage(int(inputs["attention_mask"].sum()), len(ids)), tuple(ids))

        return Answer(write)

    def reply_batch(self, conversations: Sequence[Conversation], options: SamplingOptions = GREEDY) -> list[Answer]:
        """As `ChatModel.reply_batch`, in one padded batch."""
        if not conversations:
            return []
        inputs = self._inputs(conversations)
        rows = self._generate(inputs, options)[:, inputs["input_ids"].shape[1] :].tolist()
        prompts = inputs["attention_mask"].sum(1).tolist()
        return [self._finished(row, options, prompt) for row, prompt in zip(rows, prompts, strict=True)]

    def _finished(self, row: list[int], options: SamplingOptions, prompt: int) -> Answer:
        """The answer in one row of a batch: up to its end token or a stop text, without the padding behind it."""
        stream, ids, reason = TextStream(self._decode, options.stop), [], "length"
        for token in row:
            ids.append(token)
            if token not in self._ends:
                stream.push(token)
            if token in self._ends or stream.stopped:
                reason = "stop"
                break
        stream.finish()
        return Answer.finished(stream.text, Ending(reason, Usage(prompt, len(ids)), tuple(ids)))

    # --- the model ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _generate(self, inputs: dict[str, Any], options: SamplingOptions, **more: Any) -> torch.Tensor:
        """(B, prompt and answer) token ids. Sampling with a seed leaves other random numbers as they were."""
        chosen: dict[str, Any] = {"do_sample": not options.greedy, "max_new_tokens": options.max_tokens}
        if not options.greedy:
            chosen |= {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k or None}
        with self._lock, torch.random.fork_rng(enabled=options.seed is not None):
            if options.seed is not None:
                torch.manual_seed(options.seed)
            return self.model.generate(**inputs, **chosen, **more)

    def _generate_into(
        self, told: _Tokens, inputs: dict[str, Any], options: SamplingOptions, stop: threading.Event
    ) -> None:
        def ended(input_ids: torch.Tensor, scores: torch.Tensor, **more: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), stop.is_set(), device=input_ids.device)

        try:
            self._generate(inputs, options, streamer=told, stopping_criteria=[ended])
        except Exception as problem:  # raised again by whoever reads the answer
            told.problem = problem
        finally:
            told.end()

    def _inputs(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """What the processor makes of the conversations, on the model's device, padded on the left."""
        messages = [self._messages(check_conversation(one)) for one in conversations]
        made = self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        )
        dtype = self.model.dtype
        return {
            name: value.to(self.model.device, dtype) if value.is_floating_point() else value.to(self.model.device)
            for name, value in made.items()
        }

    def _messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        made = []
        for message in conversation.messages:
            parts = [self._part(part, conversation.id) for part in message.content]
            made.append({"role": message.role, "content": parts})
        return made

    def _part(self, part: Any, where: str) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if not isinstance(part, Image):
            raise ConversationError(where, found="a video", expected="text and images")
        if self._open_image is None:
            raise ModelError(self.name, found="an image", expected="open_image to be given")
        return {"type": "image", "image": self._open_image(part)}

    def _decode(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True)


class _Tokens:
    """Tokens on their way from `generate`, which calls `put` and `end`, to whoever iterates."""

    def __init__(self) -> None:
        self._queue: queue.Queue[int | None] = queue.Queue()
        self._prompt = True
        self.problem: Exception | None = None

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt:
            self._queue.put(int(value.flatten()[0]))
        self._prompt = False

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[int]:
        while (token := self._queue.get()) is not None:
            yield token


def _loaded(folder: Path, load: str | None, device: str) -> tuple[Any, Any]:
    """The model in evaluation, and its processor."""
    from transformers import AutoModelForImageTextToText

    place = pick_device(device)
    if load is not None and load not in (*DTYPES, *QUANTISED):
        raise ModelError("load", found=repr(load), expected=", ".join((*DTYPES, *QUANTISED)))
    held = DTYPES.get(load or "", "auto")
    config = quantisation(load or "", torch.float32, inside_llava=True)
    if config is not None:
        config.llm_int8_skip_modules = [
            "lm_head",
            *(f"{way}{part}" for part in _NOT_LANGUAGE for way in ("", "model.")),
        ]
        held = torch.float32
    try:
        with loading_quietly(folder):
            processor = _processor_class(folder).from_pretrained(folder, backend="pil")
            model = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=held, quantization_config=config, device_map={"": place}, use_safetensors=True
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as problem:
        found = " ".join(str(problem).split())[:300]
        expected = "a vision-language model of transformers with its processor"
        raise ModelError(str(folder), found=found, expected=expected) from problem
    if getattr(processor, "tokenizer", None) is None or not processor.chat_template:
        raise ModelError(
            str(folder),
            found="no chat template",
            expected="a processor that has one",
            fix="use a -chat or -instruct model",
        )
    processor.tokenizer.padding_side = "left"
    keep_weights_readable(model)
    return model.eval(), processor


def _processor_class(folder: Path) -> Any:
    """The class of a folder's processor, as `AutoProcessor` finds it, but one that loads without torchvision."""
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    config = AutoConfig.from_pretrained(folder)
    return without_video(PROCESSOR_MAPPING[type(config)]) if type(config) in PROCESSOR_MAPPING else AutoProcessor


def without_video(processor: Any) -> Any:
    """The class of a processor whose part for videos is None: transformers cannot make that without torchvision."""
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
    return type(processor.__name__, (processor,), own)
