"""Templates are data: the texts LLaVA writes, and a chat template with which vanilla transformers sees the same ids."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture
from tokenizers import processors
from transformers import AutoProcessor, AutoTokenizer, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from workbench.conversation import Conversation, Image, Message, Video, to_chat
from workbench.errors import RecipeError
from workbench.model.images import ImageMode
from workbench.model.renderer import Renderer
from workbench.model.templates import Template, load_template, template_names
from workbench.model.tokenizers import load_tokenizer

CAT, DOG = Image("cat.png"), Image("dog.png")
ALL = ("plain", "v1", "llava_v1", "llama_2", "mistral", "tiny")
PAIRS = [(name, template) for name in ("sentencepiece", "sentencepiece_new", "unigram", "gpt") for template in ALL]
PAIRS += [("chatml", template) for template in ("chatml", "qwen", "plain")]
PAIRS += [(name, name) for name in ("llama_3", "phi", "gemma")]
TILE, SIDE = 4, 16
TOKENS = (SIDE // TILE) ** 2


def talk(*turns: Any, system: str = "") -> Conversation:
    messages = [Message(("user", "assistant")[number % 2], turn) for number, turn in enumerate(turns)]
    return Conversation("talk", tuple([Message("system", system)] * bool(system) + messages))


TALKS = {
    "one image": talk((CAT, "What colour is the cat?")),
    "image alone": talk(CAT),
    "image behind a text with white space": talk(("\n What? ", CAT, " ")),
    "several turns": talk((CAT, "What is this?"), "A cat — 🙂.", "Sure?\n", " Yes, I  am.", "And?"),
    "two images and texts between them": talk((CAT, " one ", "or ", DOG, "two?"), "Both.", ("Now? ", CAT)),
    "text only": talk(" Is there a dog? ", "No.", "Why?"),
    "system text": talk((CAT, "Hi"), "Yo", "Bye", system="Be brief."),
}


@pytest.mark.parametrize(("name", "length", "digest"), [("v1", 154, "1fa69e2371b7"), ("llava_v1", 156, "ace78a978005")])
def test_the_system_text_is_llavas(name: str, length: int, digest: str) -> None:
    text = load_template(name).system
    assert (len(text), hashlib.sha256(text.encode()).hexdigest()[:12]) == (length, digest)


def test_v1_writes_llavas_prompt(tokenizers: dict[str, Path]) -> None:
    renderer = Renderer(load_tokenizer(tokenizers["sentencepiece"]), "v1")
    text = renderer.prompt(talk((CAT, "Q1"), "A1", "Q2")).text
    assert (len(text), hashlib.sha256(text.encode()).hexdigest()[:12]) == (208, "080b3549d584")


@pytest.mark.parametrize(
    ("name", "length", "digest"),
    [("llama_3", 462, "5c6f6b50df3c"), ("gemma", 138, "beee6e94a128"), ("phi", 217, "e13656624f70")],
)
def test_later_templates_write_their_authors_prompt(
    name: str, length: int, digest: str, tokenizers: dict[str, Path]
) -> None:
    renderer = Renderer(load_tokenizer(tokenizers[name]), name)
    text = renderer.prompt(talk((CAT, "Q1"), "A1", "Q2")).text
    assert (len(text), hashlib.sha256(text.encode()).hexdigest()[:12]) == (length, digest)


def test_every_template_loads_and_has_a_hash_of_its_own() -> None:
    assert template_names() == [
        "chatml", "gemma", "llama_2", "llama_3", "llava_v1", "mistral", "phi", "plain", "qwen", "tiny", "v1",
    ]  # fmt: skip
    templates = [load_template(name) for name in template_names()]
    assert [template.name for template in templates] == template_names()
    assert len({template.hash for template in templates}) == len(templates)


def test_a_template_survives_being_written_and_read(tmp_path: Path) -> None:
    import yaml

    for name in template_names():
        template = load_template(name)
        (tmp_path / "template.yaml").write_text(yaml.safe_dump(template.model_dump(mode="json")))
        again = load_template(tmp_path / "template.yaml")
        assert again == template and again.hash == template.hash
    assert load_template({"name": "mine", "first": "{content}?", "answer": "{answer}{eos}"}).name == "mine"


BROKEN = {
    "unknown name": ("v2", "template: found 'v2'; expected a YAML file or one of chatml, gemma, llama_2"),
    "unknown key": ({"name": "x", "first": "{content}", "answer": "{answer}", "sep": " "}, "x, sep: found Extra"),
    "no answer": ({"name": "x", "first": "{content}"}, "x, answer: found Field required"),
    "unknown slot": ({"name": "x", "first": "{content}{user}", "answer": "{answer}"}, r"x, first: found \{user\}"),
    "content left out": ({"name": "x", "first": "USER:", "answer": "{answer}"}, r"found USER:; expected \{content\}"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_template_is_named(name: str) -> None:
    source, message = BROKEN[name]
    with pytest.raises(RecipeError, match=message):
        load_template(source)


# --- the same ids from vanilla transformers ---------------------------------------------------------------------


def exported(renderer: Renderer, folder: Path) -> Any:
    """The processor of an exported folder, read back as anybody would."""
    settings = ImageMode("pad", {"size": {"height": SIDE, "width": SIDE}}).processor_settings()
    settings.pop("image_processor_type")
    tokenizer = copy.deepcopy(renderer.tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])  # the chat template writes BOS
    tokenizer.chat_template = renderer.chat_template()
    LlavaProcessor(
        image_processor=LlavaImageProcessorPil(**settings),
        tokenizer=tokenizer,
        patch_size=TILE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


def in_transformers_shape(conversation: Conversation, picture: Picture.Image) -> list[dict[str, Any]]:
    messages = to_chat(conversation)
    for message in messages:
        message["content"] = [
            {"type": "image", "image": picture} if part["type"] == "image" else part for part in message["content"]
        ]
    return messages


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_vanilla_processor_sees_the_ids_of_the_prompt(
    pair: tuple[str, str], tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    renderer = Renderer(load_tokenizer(tokenizers[pair[0]]), pair[1])
    processor = exported(renderer, tmp_path)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    picture = Picture.new("RGB", (9, 5), "red")
    seen = 0
    for name, conversation in TALKS.items():
        if pair[1] == "plain" and name not in ("one image", "image alone"):
            continue
        if pair[1] == "gemma" and name == "system text":
            continue
        if pair[1] in ("chatml", "qwen", "llama_3", "gemma"):
            conversation = without_white_space_before_answers(conversation)
        prompt = renderer.prompt(conversation)
        ids, _ = renderer.expand(prompt, [TOKENS] * len(prompt.images), image)
        chat = in_transformers_shape(conversation, picture)
        how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        assert processor.apply_chat_template(chat, **how)["input_ids"][0] == ids, name
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        pictures = [picture] * len(prompt.images)
        assert processor(text=text, images=pictures or None)["input_ids"][0] == ids, name
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        short = [image if id < 0 else id for id in prompt.ids]
        assert tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == short, name
        seen += 1
    assert seen == {"plain": 2, "gemma": len(TALKS) - 1}.get(pair[1], len(TALKS))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_videos_have_their_own_mark_where_a_model_reads_them(
    pair: tuple[str, str], tokenizers: dict[str, Path]
) -> None:
    tokenizer = load_tokenizer(tokenizers[pair[0]])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<video>"]}, replace_extra_special_tokens=False)
    renderer = Renderer(tokenizer, pair[1], videos=True)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    tokenizer.chat_template = renderer.chat_template()
    marks = {Image: tokenizer.convert_tokens_to_ids("<image>"), Video: tokenizer.convert_tokens_to_ids("<video>")}
    for name in ("one image", "image alone", "two images and texts between them"):
        if pair[1] == "plain" and name.startswith("two"):
            continue
        filmed = [
            Message(one.role, tuple(Video("cat.mp4") if part == CAT else part for part in one.content))
            for one in TALKS[name].messages
        ]
        conversation = Conversation(name, tuple(filmed))
        prompt = renderer.prompt(conversation)
        waiting = iter(prompt.images)
        ids = [id if id >= 0 else marks[type(next(waiting))] for id in prompt.ids]
        assert tokenizer.apply_chat_template(to_chat(conversation), add_generation_prompt=True)["input_ids"] == ids
        assert prompt.images == conversation.media


def without_white_space_before_answers(conversation: Conversation) -> Conversation:
    """A merge of an answer's first space with the prompt's last newline is the one thing a text cannot say."""
    messages = [
        Message(message.role, message.text.lstrip()) if message.role == "assistant" else message
        for message in conversation.messages
    ]
    return Conversation(conversation.id, tuple(messages))


@pytest.mark.parametrize("pair", [("sentencepiece", "v1"), ("sentencepiece_new", "llama_2"), ("chatml", "qwen")])
def test_a_renderer_made_of_the_exported_folder_gives_the_same_ids(
    pair: tuple[str, str], tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    renderer = Renderer(load_tokenizer(tokenizers[pair[0]]), pair[1])
    exported(renderer, tmp_path)
    again = Renderer(load_tokenizer(tmp_path), pair[1])
    for conversation in TALKS.values():
        assert again.prompt(conversation).ids == renderer.prompt(conversation).ids
    assert again.bos == renderer.bos and again.lead == renderer.lead and again.end_ids == renderer.end_ids


def test_the_chat_template_refuses_what_the_template_has_no_place_for(
    tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    processor = exported(Renderer(load_tokenizer(tokenizers["gpt"]), "plain"), tmp_path)
    with pytest.raises(Exception, match="template plain: one question only"):
        processor.apply_chat_template(to_chat(talk((CAT, "a"), "b", "c")))
    with pytest.raises(Exception, match="template plain: no place for a system message"):
        processor.apply_chat_template(to_chat(talk((CAT, "a"), system="b")))


def test_a_template_of_ones_own_renders_without_code(tokenizers: dict[str, Path]) -> None:
    mine = Template(name="mine", first="Q: {content}\nA:", next="\nQ: {content}\nA:", answer=" {answer}{eos}")
    renderer = Renderer(load_tokenizer(tokenizers["gpt"]), mine)
    assert renderer.render(talk((CAT, "Hi"), "Yo", "Bye", "Ciao")).text == (
        "Q: <image>\nHi\nA: Yo</s>\nQ: Bye\nA: Ciao</s>"
    )
