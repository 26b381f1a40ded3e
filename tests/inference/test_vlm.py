"""Vision-language models of transformers, eight kinds of them, small and with random weights, as chat models."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

from tests.families import KINDS, TEMPLATE, made, tokenizer
from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image, Message, Video
from workbench.errors import ConversationError, ModelError, RenderError
from workbench.inference.vlm import VisionLanguageModel

SLOTS = {"qwen2_vl": "<|image_pad|>", "internvl": "<IMG_CONTEXT>"}
COLORS = {"red": (220, 30, 30), "blue": (20, 40, 220)}


def open_image(image: Image) -> PILImage.Image:
    return PILImage.new("RGB", (64, 48), COLORS[image.path])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    return {kind: made(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture
def load(folders: dict[str, Path]) -> Callable[..., VisionLanguageModel]:
    return lambda kind, **more: VisionLanguageModel(folders[kind], open_image=open_image, device="cpu", **more)


@pytest.fixture
def notices() -> Iterator[io.StringIO]:
    """What transformers logs meanwhile."""
    from transformers.utils import logging as its

    said = io.StringIO()
    handler = logging.StreamHandler(said)
    its.add_handler(handler)
    yield said
    its.remove_handler(handler)


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
        plain = model.model.generate(**inputs, do_sample=False, max_new_tokens=12)[0].tolist()
    prompt = inputs["input_ids"].shape[1]
    assert "".join(answer) == answer.text
    assert list(answer.ids) == (
        plain[1:] if kind == "blip2_t5" else plain[prompt:]
    )  # a decoder alone begins with its start
    assert answer.usage.prompt_tokens == prompt > len("What color?")
    slot = model.processor.tokenizer.convert_tokens_to_ids(SLOTS.get(kind, "<image>"))
    assert answer.usage.image_tokens == int((inputs["input_ids"] == slot).sum()) > 0
    assert re.fullmatch(r"VisionLanguageModel\('.+', \w+ForConditionalGeneration in float32 on cpu\)", repr(model))


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


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"llava"}))
def test_it_is_asked_but_not_trained(folders: dict[str, Path], kind: str) -> None:
    from workbench.model.llava import build
    from workbench.model.outline import outline
    from workbench.recipe import ModelSpec

    for make in (build, outline):
        name = json.loads((folders[kind] / "config.json").read_text())["model_type"]
        told = f"a {name} model; .*no other architecture is trained here; chat, generate"
        with pytest.raises(ModelError, match=told):
            make(ModelSpec(checkpoint=str(folders[kind]), device="cpu"), template="v1", image_mode="pad")
        with pytest.raises(ModelError, match=f"a {name} model; expected a language model of Llama"):
            spec = ModelSpec(vision="tiny", language=str(folders[kind]), device="cpu")
            make(spec, template="v1", image_mode="pad")


def test_families_are_evaluated_and_stand_side_by_side(folders: dict[str, Path], tmp_path: Path) -> None:
    from workbench.evaluation.side_by_side import compare_models
    from workbench.evaluation.task import evaluate
    from workbench.inference.opening import open_model

    for name in COLORS:
        open_image(Image(name)).save(tmp_path / f"{name}.png")
    files = sorted(tmp_path.glob("*.png"))
    names = [folders[kind] for kind in KINDS]
    page = compare_models(names, files, "What color?", out=tmp_path / "page.html", device="cpu", max_tokens=6)
    assert len(page.answers) == 2 * len(KINDS) and not any(one.error for one in page.answers)
    questions = [
        Conversation(
            file.stem, (Message("user", (Image(str(file)), "What color?")), Message("assistant", (file.stem,)))
        )
        for file in files
    ]
    rows = evaluate(open_model(names[0], device="cpu"), questions, max_tokens=6).rows
    assert rows["answer"].to_list() == [one.text for one in page.answers[:2]]


def test_blip_models_are_asked_as_their_authors_ask_them(load: Callable[..., VisionLanguageModel]) -> None:
    talk = Conversation(
        "a",
        (Message("user", (Image("red"), "What?")), Message("assistant", ("Red.",)), Message("user", ("Why?",))),
    )
    asked_as = {
        "blip2": ("Question: What? Answer:", "Question: What? Answer: Red.. Question: Why? Answer:"),
        "instructblip": ("What?", "dialog history: Question: What? Answer: Red.. \nWhy?"),
    }
    for kind, (first, second) in asked_as.items():
        model = load(kind)
        for one, written in ((asked("What?", "red"), first), (talk, second)):
            assert model.reply(one, OPTIONS).usage.prompt_tokens == 4 + len(written)
        for pictures in ((), ("red", "blue")):
            with pytest.raises(RenderError, match=f"{len(pictures)} pictures: this model takes one"):
                model.reply(asked("What?", *pictures))


@pytest.mark.parametrize("kind", ["qwen2_vl", "smolvlm", "internvl"])
def test_text_alone_and_two_pictures(load: Callable[..., VisionLanguageModel], kind: str) -> None:
    model = load(kind)
    assert model.reply(asked("Hello"), OPTIONS).ids
    two = model.reply(asked("Same?", "red", "blue"), OPTIONS)
    assert two.usage.prompt_tokens > model.reply(asked("Same?", "red"), OPTIONS).usage.prompt_tokens
    assert two.ids != model.reply(asked("Same?", "blue", "red"), OPTIONS).ids


def test_earlier_messages_and_the_system_message_reach_the_model(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")
    first = Message("user", (Image("red"), "What?"))
    whole = Conversation("a", (Message("system", ("Be brief.",)), first, Message("assistant", ("Red.",)), first))
    answer = model.reply(whole, OPTIONS)
    written = "system: Be brief." + "user: What?" + "assistant: Red." + "user: What?" + "assistant: "
    assert answer.usage.prompt_tokens == 2 * 16 + len(written)
    assert answer.ids != model.reply(asked("What?", "red"), OPTIONS).ids


def test_sampling_follows_its_seed_and_leaves_others_alone(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    options = [SamplingOptions(temperature=2.0, seed=seed, max_tokens=12) for seed in (1, 1, 2)]
    hot = [model.reply(asked("What?", "red"), one).ids for one in options]
    assert hot[0] == hot[1] != hot[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_penalty_log_probabilities_and_schema_hold_here_too(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")
    plain = model.reply(asked("What?", "red"), OPTIONS).ids
    assert model.reply(asked("What?", "red"), replace(OPTIONS, repetition_penalty=1.8)).ids != plain
    told = model.reply(asked("What?", "red"), replace(OPTIONS, logprobs=2))
    assert told.ids == plain and [one.id for one in told.logprobs] == list(plain)
    assert all(one.logprob == one.top[0][2] for one in told.logprobs)  # greedy: the likeliest
    schema = replace(OPTIONS, max_tokens=40, json_schema='{"enum": ["red", "blue"]}')
    assert [one.text for one in model.reply_batch([asked("What?", "red")], schema)][0] in ('"red"', '"blue"')


def test_a_row_of_a_batch_draws_with_its_own_seed(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")
    questions = [asked("What?", "red"), asked("Why is that so?", "blue"), asked("What?", "red")]
    batch = model.reply_batch(questions, SamplingOptions(temperature=2.0, seed=5, max_tokens=12))
    alone = [
        model.reply(one, SamplingOptions(temperature=2.0, seed=5 + index, max_tokens=12)).ids
        for index, one in enumerate(questions)
    ]
    assert [one.ids for one in batch] == alone
    assert alone[0] != alone[2]


def test_what_is_drawn_from_follows_the_options(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")
    greedy = model.reply(asked("What?", "red"), OPTIONS).ids
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
        assert (
            model.reply(asked("What?", "red"), SamplingOptions(temperature=5.0, max_tokens=12, **narrow)).ids == greedy
        )


def test_options_decide_over_what_the_folder_proposes(
    folders: dict[str, Path], tmp_path: Path, notices: io.StringIO
) -> None:
    copy = Path(shutil.copytree(folders["llava"], tmp_path / "copy"))
    proposed = json.loads((copy / "generation_config.json").read_text())
    proposed |= {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.001, "max_length": 20}
    (copy / "generation_config.json").write_text(json.dumps(proposed))
    plain, other = (VisionLanguageModel(one, open_image=open_image, device="cpu") for one in (folders["llava"], copy))
    for options in (OPTIONS, SamplingOptions(temperature=2.0, seed=1, max_tokens=30)):
        assert other.reply(asked("What?", "red"), options).ids == plain.reply(asked("What?", "red"), options).ids
    assert notices.getvalue() == ""


def test_a_stop_text_ends_it_and_is_not_said(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")
    whole = model.reply(asked("What?", "red"), SamplingOptions(max_tokens=30)).text
    stop = whole[3:5]
    options = SamplingOptions(max_tokens=30, stop=(stop,))
    for answer in (model.reply(asked("What?", "red"), options), model.reply_batch([asked("What?", "red")], options)[0]):
        assert answer.text == whole[: whole.index(stop)].rstrip() and answer.finish_reason == "stop"
        assert answer.usage.completion_tokens == len(answer.ids) < 30


def test_a_batch_is_computed_only_until_its_last_row_has_stopped(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")
    questions = [asked("What?", "red"), asked("Why?", "blue")]
    whole = model.reply_batch(questions, SamplingOptions(max_tokens=30))
    stop = whole[0].text[3:5]
    steps = counted(model)
    answers = model.reply_batch(questions[:1], SamplingOptions(max_tokens=400, stop=(stop,)))
    assert answers[0].finish_reason == "stop" and len(steps) == len(answers[0].ids) < 30
    both = model.reply_batch(questions, SamplingOptions(max_tokens=30, stop=(stop,)))
    assert both[0].ids == answers[0].ids and len(both[1].ids) > 1


def counted(model: VisionLanguageModel) -> list[float]:
    """When the language model's head was asked, from now on."""
    steps: list[float] = []
    model.model.lm_head.register_forward_hook(lambda *_: steps.append(time.monotonic()))
    return steps


def test_pieces_come_while_the_answer_is_written(load: Callable[..., VisionLanguageModel]) -> None:
    answer = load("llava").reply(asked("What?", "red"), SamplingOptions(max_tokens=30))
    pieces = list(answer)
    assert len(pieces) > 5 and "" not in pieces and "".join(pieces) == answer.text


def test_cancelling_ends_the_computation_within_a_token(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")
    before, steps = set(threading.enumerate()), counted(model)
    answer = model.reply(asked("What?", "red"), SamplingOptions(max_tokens=1500))
    next(iter(answer))
    answer.cancel()
    cancelled = time.monotonic()
    assert answer.finish_reason == "cancelled" and len(answer.ids) == len(steps) < 1500
    assert sum(step > cancelled for step in steps) <= 1 and set(threading.enumerate()) <= before


def test_an_answer_cancelled_before_it_is_read_costs_nothing(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")
    steps = counted(model)
    answer = model.reply(asked("What?", "red"), OPTIONS)
    answer.cancel()
    assert (answer.finish_reason, answer.text, answer.ids, steps) == ("cancelled", "", (), [])


def test_an_answer_nobody_reads_on_is_not_computed_on(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")
    before, steps = set(threading.enumerate()), counted(model)
    answer = model.reply(asked("What?", "red"), SamplingOptions(max_tokens=1500))
    next(iter(answer))
    del answer
    assert set(threading.enumerate()) <= before and len(steps) < 1500


def test_an_answer_ends_where_the_context_does(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")
    around = model.reply(asked("", "red"), OPTIONS).usage.prompt_tokens
    context = model.model.config.text_config.max_position_embeddings
    options = SamplingOptions(temperature=5.0, seed=0, max_tokens=50)
    answer = model.reply(asked("x" * (context - around - 4), "red"), options)
    assert (answer.finish_reason, len(answer.ids)) == ("length", 4)
    with pytest.raises(RenderError, match=f"a prompt of {context} tokens.*fewer than {context}"):
        model.reply(asked("x" * (context - around), "red"), OPTIONS)


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
    with pytest.raises(ConversationError, match="a, message 0: found a video"):
        load("llava").reply(Conversation("a", (Message("user", (Video("a.mp4"), "What?")),)))
    with pytest.raises(RenderError, match="a, message 1: found an answer"):
        load("llava").reply(Conversation("a", (Message("user", ("What?",)), Message("assistant", ("Red.",)))))
    with pytest.raises(ModelError, match="open_image"):
        VisionLanguageModel(folders["llava"], device="cpu").reply(asked("What?", "red"))
    with pytest.raises(ModelError, match="load"):
        load("llava", load="3bit")


def test_a_processor_without_a_chat_template_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders["llava"], tmp_path / "copy"))
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        VisionLanguageModel(copy, device="cpu")


@pytest.mark.parametrize(("kind", "token"), [("llava", "<image>"), ("qwen2_vl", "<|image_pad|>"), ("llava", "</s>")])
def test_a_text_cannot_write_a_control_token(load: Callable[..., VisionLanguageModel], kind: str, token: str) -> None:
    with pytest.raises(RenderError, match="a, message 0") as told:
        load(kind).reply(asked(f"What is {token} for?", "red"))
    assert repr(token) in str(told.value)


def test_a_conversation_the_template_refuses_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders["llava"], tmp_path / "copy"))
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system here') }}{% endif %}"
    (copy / "chat_template.jinja").write_text(refusal + TEMPLATE)
    model = VisionLanguageModel(copy, device="cpu")
    bad = Conversation("bad", (Message("system", ("Be brief.",)), Message("user", ("What?",))))
    with pytest.raises(RenderError, match="^bad: found No system here"):
        model.reply_batch([asked(), bad, asked()])


def test_no_weight_is_made_up(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(folders["llava"], tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights[min(weights)]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="1 missing tensors: "):
        VisionLanguageModel(copy, device="cpu")


def test_a_model_without_eyes_is_refused_in_one_line(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=300)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="LlamaConfig") as told:
        VisionLanguageModel(tmp_path, device="cpu")
    assert "expected a vision-language model" in str(told.value) and "Blip" not in str(told.value)


def test_memory_that_runs_out_is_told(load: Callable[..., VisionLanguageModel]) -> None:
    model = load("llava")

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.lm_head.register_forward_hook(full)
    with pytest.raises(ModelError, match="no memory left for 2 prompts"):
        model.reply_batch([asked(), asked()])
    answer = model.reply(asked())
    with pytest.raises(ModelError, match="no memory left"):
        _ = answer.text


def adapter(model: Path, folder: Path) -> Path:
    """A fresh adapter that changes answers, saved by peft itself."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(LlavaForConditionalGeneration.from_pretrained(model), config).save_pretrained(folder)
    return folder


def test_an_adapter_answers_as_peft_does(
    load: Callable[..., VisionLanguageModel], folders: dict[str, Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    folder = adapter(folders["llava"], tmp_path)
    plain, adapted = load("llava"), load("llava", adapter=folder)
    before = plain.reply(asked("What?", "red"), OPTIONS).ids
    plain.model = PeftModel.from_pretrained(plain.model, folder)
    assert (
        adapted.reply(asked("What?", "red"), OPTIONS).ids == plain.reply(asked("What?", "red"), OPTIONS).ids != before
    )


def test_an_adapter_of_another_model_is_refused(
    load: Callable[..., VisionLanguageModel],
    folders: dict[str, Path],
    tmp_path: Path,
    notices: io.StringIO,
) -> None:
    folder = adapter(folders["llava"], tmp_path)
    with pytest.raises(ModelError, match="missing tensors.*an adapter of this model"):
        load("idefics3", adapter=folder)
    with pytest.raises(ModelError, match="no adapter_config.json"):
        load("llava", adapter=folders["llava"])
    assert notices.getvalue() == ""
