"""Vision-language models of transformers, three kinds of them, small and with random weights, as chat models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image, Message, Video
from workbench.errors import ConversationError, ModelError
from workbench.inference.vlm import VisionLanguageModel, without_video

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
COLORS = {"red": (220, 30, 30), "blue": (20, 40, 220)}
KINDS = ("llava", "qwen2_vl", "idefics3")
PATCHES = {"image_size": 48, "patch_size": 12}
SPECIAL = (
    "<image>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<fake_token_around_image>",
    "<global-img>", "<end_of_utterance>",
)  # fmt: skip


def open_image(image: Image) -> PILImage.Image:
    return PILImage.new("RGB", (64, 48), COLORS[image.path])


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", "<pad>", "<unk>", *SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={name: id for id, name in enumerate(names)}, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=list(SPECIAL), **ends)


def llava(words: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaImageProcessorPil,
        LlavaProcessor,
    )

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, **PATCHES}
    image = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=CLIPVisionConfig(**sizes), text_config=LlamaConfig(**text), image_token_id=image)
    side = {"height": 48, "width": 48}
    pictures = LlavaImageProcessorPil(size=side, crop_size=side)
    settings = {"patch_size": 12, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = LlavaProcessor(pictures, words, chat_template=TEMPLATE.replace("IMAGE", "<image>"), **settings)
    return LlavaForConditionalGeneration(config), processor


def qwen2_vl(words: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil, Qwen2VLProcessor

    marks = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in marks.items()}
    rope = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "patch_size": 14, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config={**text, **rope}, vision_config=vision, **ids)
    pictures = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = without_video(Qwen2VLProcessor)(pictures, words, chat_template=template)
    return Qwen2VLForConditionalGeneration(config), processor


def idefics3(words: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
        LlamaConfig,
    )

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, **PATCHES}
    ids = {"image_token_id": words.convert_tokens_to_ids("<image>"), "pad_token_id": 2}
    words_config = LlamaConfig(**text).to_dict()
    config = Idefics3Config(vision_config=vision, text_config=words_config, scale_factor=2, **ids)
    side = {"longest_edge": 48}
    pictures = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    template = TEMPLATE.replace("IMAGE", "<image>")
    processor = Idefics3Processor(pictures, words, image_seq_len=4, chat_template=template)
    return Idefics3ForConditionalGeneration(config), processor


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    made = {}
    for kind in KINDS:
        torch.manual_seed(0)
        words = tokenizer()
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
        text = {**sizes, "num_key_value_heads": 2, "vocab_size": len(words), **ends}
        model, processor = globals()[kind](words, text)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.15)
        made[kind] = tmp_path_factory.mktemp(kind)
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 2
        model.save_pretrained(made[kind])
        if kind == "qwen2_vl":  # whose part for videos cannot be made here, so that it cannot be saved either
            processor.tokenizer.save_pretrained(made[kind])
            processor.image_processor.save_pretrained(made[kind])
            (made[kind] / "chat_template.jinja").write_text(processor.chat_template)
        else:
            processor.save_pretrained(made[kind])
    return made


@pytest.fixture
def load(folders: dict[str, Path]) -> Callable[..., VisionLanguageModel]:
    return lambda kind, **more: VisionLanguageModel(folders[kind], open_image=open_image, device="cpu", **more)


def asked(text: str = "What?", *pictures: str) -> Conversation:
    return Conversation("a", (Message("user", (*map(Image, pictures), text)),))


OPTIONS = SamplingOptions(max_tokens=12)


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_generate_says(load: Callable[..., VisionLanguageModel], kind: str) -> None:
    model = load(kind)
    answer = model.reply(asked("What color?", "red"), OPTIONS)
    picture = {"type": "image", "image": open_image(Image("red"))}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "What color?"}]}]
    inputs = model.processor.apply_chat_template(
        [messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        plain = model.model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    assert "".join(answer) == answer.text
    assert list(answer.ids) == plain.tolist()
    assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1] > len("user: What color?")


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_says_what_single_questions_say_and_another_picture_another_thing(
    load: Callable[..., VisionLanguageModel], kind: str
) -> None:
    model = load(kind)
    long = "Is it a long question, this one?"
    questions = [asked("What color?", "red"), asked("What color?", "blue"), asked(long, "red")]
    batch = model.reply_batch(questions, OPTIONS)
    assert [one.ids for one in batch] == [model.reply(one, OPTIONS)._read().ids for one in questions]
    assert batch[0].ids != batch[1].ids
    assert all(one.usage.completion_tokens == len(one.ids) for one in batch)


def test_text_alone_and_two_pictures(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("qwen2_vl")
    assert model.reply(asked("Hello"), OPTIONS).ids
    two = model.reply(asked("Same?", "red", "blue"), OPTIONS)
    assert two.usage.prompt_tokens > model.reply(asked("Same?", "red"), OPTIONS).usage.prompt_tokens


def test_sampling_follows_its_seed_and_leaves_others_alone(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    options = [SamplingOptions(temperature=2.0, seed=seed, max_tokens=12) for seed in (1, 1, 2)]
    hot = [model.reply(asked("What?", "red"), one).ids for one in options]
    assert hot[0] == hot[1] != hot[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_stop_text_ends_it_and_is_not_said(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")
    whole = model.reply(asked("What?", "red"), SamplingOptions(max_tokens=30)).text
    stop = whole[3:5]
    options = SamplingOptions(max_tokens=30, stop=(stop,))
    for answer in (model.reply(asked("What?", "red"), options), model.reply_batch([asked("What?", "red")], options)[0]):
        assert answer.text == whole[: whole.index(stop)].rstrip() and answer.finish_reason == "stop"


def test_an_answer_can_be_cancelled(load: Callable[..., VisionLanguageModel]) -> None:
    before = threading.active_count()
    answer = load("llava").reply(asked("What?", "red"), SamplingOptions(max_tokens=500))
    for number, _ in enumerate(answer):
        if number == 3:
            answer.cancel()
    assert answer.finish_reason == "cancelled" and len(answer.ids) <= 6 and threading.active_count() == before


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_only_the_language_model_is_quantised(load: Callable[..., VisionLanguageModel], bits: str) -> None:
    model = load("llava", load=bits)
    kinds = {name: type(module).__name__ for name, module in model.model.named_modules()}
    quantised = [name for name, kind in kinds.items() if kind in ("Linear4bit", "Linear8bitLt")]
    assert quantised and all("language_model" in name for name in quantised)
    assert model.reply(asked("What?", "red"), OPTIONS).ids


def test_what_cannot_be_used_says_why(
    load: Callable[..., VisionLanguageModel], folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        VisionLanguageModel(tmp_path / "none")
    with pytest.raises(ConversationError, match="a video"):
        load("llava").reply(Conversation("a", (Message("user", (Video("a.mp4"), "What?")),)))
    with pytest.raises(ModelError, match="open_image"):
        VisionLanguageModel(folders["llava"], device="cpu").reply(asked("What?", "red"))
    with pytest.raises(ModelError, match="load"):
        load("llava", load="3bit")


def test_a_processor_without_a_chat_template_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(folders["llava"], tmp_path / "copy"))
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        VisionLanguageModel(copy, device="cpu")
