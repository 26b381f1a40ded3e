"""A folder's own chat template tells which of ours it was trained with; where it does not, loading says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model.test_original_next import PublishedNext
from workbench.errors import ModelError
from workbench.model.chat_templates import Alike, alike, chat_template_in
from workbench.model.export import export_hf, write_folder
from workbench.model.llava import load
from workbench.model.templates import chat_template, load_template, template_names
from workbench.model.tokenizers import load_tokenizer

IMAGES = "{% for c in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
TEXTS = "{% for c in message['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}"
HEAD, TAIL = "{% for message in messages %}", "{% endfor %}"
ASKS = "{% if add_generation_prompt %}CALL{% endif %}"
MISTRAL = (
    HEAD + "{% if message['role'] == 'user' %}{{ '[INST] ' }}" + IMAGES + TEXTS + "{{ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + 'END' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}" + TAIL
)  # fmt: skip
CHATML = HEAD + "{{ '<|im_start|>' + message['role'] + '\n' }}" + IMAGES + TEXTS + "{{ '<|im_end|>END' }}" + TAIL
VICUNA = HEAD + "{{ message['role'].upper() + ': ' }}" + IMAGES + TEXTS + "{{ ' ' }}" + TAIL
LLAMA_3 = (
    HEAD + "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content']"
    " | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    + TAIL + ASKS.replace("CALL", "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}")
)  # fmt: skip
QWEN = (
    HEAD + "{% if loop.first %}{{ '<|im_start|>system\nSYSTEM<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}" + TAIL
    + ASKS.replace("CALL", "{{ '<|im_start|>assistant\n' }}")
)  # fmt: skip
CALL = ASKS.replace("CALL", "{{ '<|im_start|>assistant\n' }}")
HELPFUL = "You are a helpful assistant."
WRITTEN: dict[str, tuple[str, str, Alike]] = {
    # name -> (tokenizer, chat template, which of ours)
    "llava 1.6 mistral, its end token misspelt": (
        "sentencepiece", MISTRAL.replace("END", "<\\\\s> "), Alike((), ("llama_2", "mistral"))),
    "mistral with ours": (
        "sentencepiece", MISTRAL.replace("END", " </s>"), Alike(("mistral",), ("llama_2", "mistral"))),
    "mistral's own, no space before its mark": (
        "sentencepiece", MISTRAL.replace(" [/INST]", "[/INST]").replace("END", "</s>"), Alike()),
    "llava 1.5, no system text and no end": (
        "sentencepiece", VICUNA + ASKS.replace("CALL", "ASSISTANT:"), Alike((), ("llava_v1", "phi", "tiny", "v1"))),
    "llava next 72b, no system text": ("chatml", CHATML.replace("END", "\n") + CALL, Alike((), ("qwen",))),
    "no newline between turns": ("chatml", CHATML.replace("END", "") + CALL, Alike((), ("chatml",))),
    "qwen's own, of text": ("chatml", QWEN.replace("SYSTEM", HELPFUL), Alike(("qwen",), ("qwen",))),
    "qwen 2.5's own, of another system text": ("chatml", QWEN.replace("SYSTEM", "You are Qwen. " + HELPFUL), Alike()),
    "llama 3's own, of text": ("llama_3", LLAMA_3, Alike((), ("llama_3",))),
    "words of its own behind an answer": (
        "sentencepiece", MISTRAL.replace("END", "</s> Now the user: "), Alike()),
    "somebody else's": ("gpt", HEAD + "### {{ message['role'] }}: " + IMAGES + TEXTS + TAIL, Alike()),
    "one that refuses": ("gpt", "{{ raise_exception('no') }}", Alike()),
    "one that is no template": ("gpt", "{% for", Alike()),
    "one that reaches for Python": ("gpt", "{{ messages.__class__.__mro__ }}", Alike()),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_templates_are_told_by_what_a_chat_template_writes(name: str, tokenizers: dict[str, Path]) -> None:
    words, written, expected = WRITTEN[name]
    assert alike(written, load_tokenizer(tokenizers[words])) == expected


@pytest.mark.parametrize("name", [name for name in template_names() if name != "plain"])
def test_each_of_ours_is_told_by_the_chat_template_that_leaves_with_it(name: str, tokenizers: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tokenizers.get(name, tokenizers["gpt"]))
    for bos in {tokenizer.bos_token is not None, False}:
        found = alike(chat_template(load_template(name), bos=bos), tokenizer)
        assert found.exactly == (("phi", "v1") if name == "phi" else (name,)), "v1 ends with the tokenizer's own token"


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer"])
def test_it_is_found_wherever_folders_keep_it(name: str, tokenizers: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizers["gpt"])
    assert chat_template_in(tmp_path, tokenizer) is None
    if name == "tokenizer":
        tokenizer.chat_template = "of the tokenizer"
    else:
        tokenizer.chat_template = "not this one"
        text = f"of {name}"
        (tmp_path / name).write_text(text if name.endswith("jinja") else json.dumps({"chat_template": text}))
    assert chat_template_in(tmp_path, tokenizer) == f"of {'the tokenizer' if name == 'tokenizer' else name}"
    tokenizer.chat_template = {"default": "one of two", "tool_use": "another"}
    assert name != "tokenizer" or chat_template_in(tmp_path, tokenizer) == "one of two"


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(parts: dict[str, Path], make: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """`hub("mistral", chat_template)`: a LLaVA-NeXT on such a language model as it lies on the Hub, nothing of ours."""

    def made(language: str, written: str | None) -> Path:
        if language == "mistral":
            source = PublishedNext(tmp_path / "source", parts["clip"], kind="llava_mistral")
            folder = export_hf(source.save(), tmp_path / "hub", vision_tower=source.tower, device="cpu")
        else:
            folder = write_folder(make(language=language, template="qwen", image_mode="anyres"), tmp_path / "hub")
        for name in ("template.yaml", "chat_template.jinja"):
            (folder / name).unlink()
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings.pop("chat_template", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        if written is not None:
            (folder / "chat_template.json").write_text(json.dumps({"chat_template": written}))
        return folder

    return made


@pytest.mark.parametrize(
    ("language", "name", "template"),
    [
        ("mistral", "llava 1.6 mistral, its end token misspelt", "mistral"),
        ("qwen2", "llava next 72b, no system text", "qwen"),
        ("qwen2", "no newline between turns", "chatml"),
    ],
)
def test_a_folder_of_the_hub_is_read_with_the_template_it_was_trained_with(
    language: str, name: str, template: str, hub: Callable[..., Path]
) -> None:
    llava = load(hub(language, WRITTEN[name][1]), device="cpu")
    assert llava.renderer.template == load_template(template) and llava.image_mode.mode == "anyres"


@pytest.mark.parametrize(
    ("language", "name", "says"),
    [
        (
            "mistral",
            None,
            "a mistral model with no chat template; expected a template.yaml, or to be told one of ",
        ),
        ("mistral", "somebody else's", "a mistral model with a chat template that writes as none of ours; expected"),
        ("mistral", "llava 1.5, no system text and no end", "template that may be llava_v1, phi, tiny, v1; expected"),
        ("qwen2", "qwen 2.5's own, of another system text", "a qwen2 model with a chat template that writes as none"),
    ],
)
def test_a_guess_is_refused_with_the_names_that_may_be_meant(
    language: str, name: str | None, says: str, hub: Callable[..., Path], tmp_path: Path
) -> None:
    folder = hub(language, None if name is None else WRITTEN[name][1])
    with pytest.raises(ModelError, match=f"{says}.*say which: workbench export FOLDER OUT --as hf --template NAME"):
        load(folder, device="cpu")
    told = "mistral" if language == "mistral" else "chatml"
    assert load(folder, device="cpu", template=told).renderer.template.name == told


def test_what_is_said_once_stays_beside_the_weights(hub: Callable[..., Path], tmp_path: Path) -> None:
    out = export_hf(hub("qwen2", None), tmp_path / "out", device="cpu", template="qwen")
    assert load(out, device="cpu").renderer.template.name == "qwen"
