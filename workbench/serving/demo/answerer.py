"""A model folder as a demo's model, by transformers alone, and peft where there is an adapter.

Knows: the folder that `workbench export --as demo` writes (`demo.json`, `model/`, `adapter/`), and ZeroGPU of the Hub.
Does not know: workbench, Gradio: this file is copied into exported demos.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

# ZeroGPU's package is there on Spaces only, and has to be imported before torch.
spaces: Any = importlib.import_module("spaces") if importlib.util.find_spec("spaces") else None

import torch  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
    StoppingCriteria,
    TextIteratorStreamer,
)

from .films import sampled, spread  # noqa: E402
from .turns import NotAnswered, Settings  # noqa: E402

MARK = "<video>"

LARGEST = 120_000_000
"""Pixels of a picture that is decoded."""
_LOADED: dict[str, Answerer] = {}
"""ZeroGPU calls functions in a process of its own: what is handed over is a name, never a model."""


class Answerer:
    """The model of an exported demo."""

    concurrent = 1

    def __init__(self, folder: Path) -> None:
        self.about = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
        self.name: str = self.about["name"]
        self.image_modes = tuple(self.about["image_modes"])
        self.model = load_model(folder, self.about)
        self.processor = load_processor(folder / "model")
        _LOADED[self.name] = self

    def answer(self, messages: list[dict[str, Any]], settings: Settings) -> Generator[str, None, str | None]:
        """See `turns.Model`."""
        return _write(self.name, messages, settings)

    def inputs(self, messages: list[dict[str, Any]], settings: Settings) -> Any:
        """What the model reads: `input_ids` (1, T), with an id per image token, and `pixel_values` (N, 3, H, W).

        For a LLaVA-NeXT, its Video or OneVision these are (N, tiles, 3, H, W), and `image_sizes` (N, 2) beside them.
        Videos are `pixel_values_videos` (V, frames, 3, H, W); a model that reads none gets frames as pictures.
        """
        for mark in self.about["reserved"]:
            if any(part["type"] == "text" and mark in part["text"] for one in messages for part in one["content"]):
                raise NotAnswered(f"the conversation writes {mark!r}, a mark of the model's own. Leave it out.")
        opened = [one | {"content": [shown for part in one["content"] for shown in self._opened(part)]}
                  for one in messages]  # fmt: skip
        seen = [part for one in opened for part in one["content"]]
        pictures = [part["picture"] for part in seen if part["type"] == "image"]
        films = [part["frames"] for part in seen if part["type"] == "video"]
        text = self.processor.apply_chat_template(opened, add_generation_prompt=True, tokenize=False)
        if len({len(frames) for frames in films}) > 1:
            raise NotAnswered("these videos have different numbers of frames. Ask about one of them at a time.")
        shown: dict[str, Any] = {}
        if pictures:
            mode = self.about["image_modes"][settings.image_mode or self.image_modes[0]]
            shown = {"images": [pictures], **mode}  # all of one conversation
        if not films:
            return self.processor(text=text, return_tensors="pt", **shown)
        videos = self.about["videos"]
        pieces = text.split(MARK)  # nobody can have written one: it is a mark of the model's own
        counts = [videos["each"] * len(frames) + videos["more"] for frames in films]
        text = pieces[0] + "".join(MARK * n + piece for n, piece in zip(counts, pieces[1:], strict=True))
        inputs = self.processor(text=text, return_tensors="pt", **shown)
        inputs["pixel_values_videos"] = torch.stack([squares(frames, videos["processor"]) for frames in films])
        return inputs

    def _opened(self, part: dict[str, Any]) -> list[dict[str, Any]]:
        """A part with its picture or frames; a video for a model of pictures as several pictures."""
        if part["type"] == "image":
            return [{"type": "image", "picture": open_picture(part["path"])}]
        if part["type"] == "text":
            return [part]
        if self.about["videos"] is None:
            return [{"type": "image", "picture": frame} for frame in spread(part["path"])]
        return [{"type": "video", "frames": sampled(part["path"], self.about["videos"]["frames"])}]

    def room(self, length: int) -> int:
        """Tokens that fit behind a prompt of `length`. Raises `NotAnswered` where none does."""
        longest = self.model.config.get_text_config().max_position_embeddings
        if length >= longest:
            raise NotAnswered(
                f"the conversation has {length} tokens, and the model was built for fewer than {longest}. "
                "Start a new one with the bin above, or ask about fewer pictures."
            )
        return longest - length


def load_model(folder: Path, about: dict[str, Any]) -> Any:
    """The base with what was trained put into it, on the GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = folder / "model" if about["base"] == "model" else about["base"]
    quantised = BitsAndBytesConfig(**about["quantisation"]) if about["quantisation"] else None
    dtype = torch.float32 if device == "cpu" and about["dtype"] == "float16" else getattr(torch, about["dtype"])
    model: Any = AutoModelForImageTextToText.from_pretrained(
        base, dtype=dtype, quantization_config=quantised, device_map={"": device}
    )
    if (folder / "trained.safetensors").is_file():
        trained = load_file(folder / "trained.safetensors")
        unknown = model.load_state_dict(trained, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"trained.safetensors: found {unknown[0]}, which {base} has no place for")
    if (folder / "adapter").is_dir():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder / "adapter")
    for module in model.modules():  # on some CPUs bitsandbytes would pack 4-bit weights anew, to rounded numbers
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model.generation_config = GenerationConfig.from_pretrained(folder / "model")
    return model.eval()


def load_processor(folder: Path) -> Any:
    """The folder's processor. Those of a LLaVA-OneVision and a LLaVA-NeXT-Video are put together here: transformers
    makes them only around a video processor, which needs torchvision, whose image processors give other pixels."""
    held = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    if held.get("processor_class") == "LlavaNextVideoProcessor":
        return _of_pictures(folder, held)
    if held.get("processor_class") != "LlavaOnevisionProcessor":
        return AutoProcessor.from_pretrained(folder, backend="pil")
    from transformers.models.llava_onevision import image_processing_pil_llava_onevision as images

    made: Any = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    made.image_processor = images.LlavaOnevisionImageProcessorPil(**held["image_processor"])
    made.tokenizer = AutoTokenizer.from_pretrained(folder)
    made.video_processor = made.video_token = None
    made.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("image_token", "num_image_tokens", "vision_feature_select_strategy", "vision_aspect_ratio"):
        setattr(made, name, held[name])
    made.image_token_id = made.tokenizer.convert_tokens_to_ids(made.image_token)
    return made


def _of_pictures(folder: Path, held: dict[str, Any]) -> Any:
    """LLaVA-NeXT's, which gives pictures the same tiles and tokens as LLaVA-NeXT-Video's own."""
    from transformers.models.llava_next import image_processing_pil_llava_next as images

    told = ("patch_size", "vision_feature_select_strategy", "image_token", "num_additional_image_tokens")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return LlavaNextProcessor(
        images.LlavaNextImageProcessorPil(**held["image_processor"]),
        AutoTokenizer.from_pretrained(folder),
        chat_template=template,
        **{name: held[name] for name in told},
    )


def squares(frames: list[Image.Image], settings: dict[str, Any]) -> torch.Tensor:
    """(frames, 3, H, W) of a video's frames, by its processor's settings and Pillow."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    made: torch.Tensor = CLIPImageProcessorPil(**settings)(frames, return_tensors="pt")["pixel_values"]
    return made


def open_picture(path: str) -> Image.Image:
    """The picture as RGB: upright, first frame, alpha flattened on white. Raises `NotAnswered`."""
    name = Path(path).name
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > LARGEST:
                raise NotAnswered(f"{name} has {opened.width} x {opened.height} pixels. Make it smaller.")
            upright = ImageOps.exif_transpose(opened)
            if upright.mode.startswith("I;16"):
                upright = upright.point(lambda value: value / 256).convert("L")
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            layer = upright.convert("RGBA")
            white = Image.new("RGB", layer.size, "white")
            white.paste(layer, mask=layer.getchannel("A"))
            return white
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise NotAnswered(f"{name} is not a picture that can be read ({error}). Try another file.") from None


class _Stop(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def _on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    return function if spaces is None else spaces.GPU(duration=120)(function)


@_on_gpu
def _write(name: str, messages: list[dict[str, Any]], settings: Settings) -> Generator[str, None, str | None]:
    """Pieces of the answer while another thread makes it. What fails there is raised here."""
    answerer = _LOADED[name]
    inputs = answerer.inputs(messages, settings).to(answerer.model.device, answerer.model.dtype)
    length = inputs["input_ids"].shape[1]
    limit = min(settings.max_tokens, answerer.room(length))
    streamer = TextIteratorStreamer(
        answerer.processor.tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    stop, ended = threading.Event(), dict[str, Any]()

    def make() -> None:
        try:
            how: dict[str, Any] = {"do_sample": False}
            if settings.temperature > 0:
                how = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
                if settings.seed is not None:
                    torch.manual_seed(settings.seed)
            ended["ids"] = answerer.model.generate(
                **inputs, **how, max_new_tokens=limit, streamer=streamer, stopping_criteria=[_Stop(stop)]
            )[0, length:]
        except Exception as error:
            ended["error"] = error
            streamer.end()

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:
        stop.set()
        thread.join()
    if "error" in ended:
        raise ended["error"]
    count = len(ended["ids"])
    cut = count == limit and int(ended["ids"][-1]) not in answerer.model.generation_config.eos_token_id
    return f"cut after {count} tokens" if cut else f"{count} tokens"
