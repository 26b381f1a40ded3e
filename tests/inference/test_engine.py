"""The engine against transformers' own `generate`, token for token: single, batched, with shared prefixes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.asking import IMAGE_TOKENS, asked, greedy, picture, random_llava, thirty
from workbench.chat_model import ChatModel, SamplingOptions
from workbench.conversation import Conversation, Image
from workbench.errors import ImageError, RenderError
from workbench.inference import decoding
from workbench.inference.engine import Engine
from workbench.inference.prefix_cache import BLOCK, FeatureCache
from workbench.model.llava import Llava

SHORT = SamplingOptions(max_tokens=10)


@pytest.fixture(scope="module")
def llava() -> Llava:
    return random_llava()


def generated(llava: Llava, conversation: Conversation, options: SamplingOptions = SHORT) -> tuple[int, ...]:
    """What transformers writes for the same prompt, with nothing of ours but the renderer and the pixels."""
    rendered = llava.renderer.prompt(conversation)
    counts = [IMAGE_TOKENS] * len(rendered.images)
    ids = torch.tensor([llava.renderer.expand(rendered, counts, llava.image_token_id)[0]])
    pixels = [llava.image_mode.pixels(picture(image)) for image in rendered.images]
    images = {"pixel_values": torch.stack(pixels)} if pixels else {}
    return greedy(llava, ids, options.max_tokens, **images)


@pytest.fixture(scope="module")
def ending() -> Llava:
    """A model with so many end tokens that answers end at different steps."""
    made = random_llava()
    made.renderer.end_ids = (*made.renderer.end_ids, *range(0, 60))
    return made


def test_thirty_requests_give_the_tokens_of_generate(ending: Llava) -> None:
    conversations = thirty()
    expected = [generated(ending, conversation) for conversation in conversations]
    assert len(set(expected)) > 15 and len({len(ids) for ids in expected}) > 4  # else this test would show nothing
    engine = Engine(ending, open_image=picture)
    assert [engine.reply(conversation, SHORT).ids for conversation in conversations] == expected
    assert [answer.ids for answer in engine.reply_batch(conversations, SHORT)] == expected


@pytest.mark.parametrize("limits", [{"rows": 4}, {"rows": 30, "kv_bytes": 200_000}])
def test_how_many_rows_run_together_changes_nothing(ending: Llava, limits: dict[str, int]) -> None:
    conversations = thirty()
    expected = [answer.ids for answer in Engine(ending, open_image=picture).reply_batch(conversations, SHORT)]
    engine = Engine(ending, open_image=picture, **limits)
    assert [answer.ids for answer in engine.reply_batch(conversations, SHORT)] == expected


@pytest.mark.parametrize(
    "text",
    [
        {"kind": "qwen2"},
        {"kind": "llama", "tie_word_embeddings": True},
        {"kind": "qwen2", "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0},
    ],
    ids=["qwen2", "tied", "sliding window"],
)
def test_other_language_models_give_the_tokens_of_generate(text: dict[str, object]) -> None:
    llava = random_llava(**text)
    conversations = thirty()[:12]
    expected = [generated(llava, conversation) for conversation in conversations]
    answers = Engine(llava, open_image=picture).reply_batch(conversations, SHORT)
    assert [answer.ids for answer in answers] == expected


def test_a_caption_prompt_that_ends_with_its_image_works() -> None:
    llava = random_llava("plain")
    conversations = [asked(number, "ab"[number % 2]) for number in range(4)]
    answers = Engine(llava, open_image=picture).reply_batch(conversations, SHORT)
    assert [answer.ids for answer in answers] == [generated(llava, one) for one in conversations]


def test_a_shared_prefix_is_computed_once(llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    forward = decoding.Decoding._forward

    def counted(self, embedded, *more):
        computed.append(embedded.shape[0] * embedded.shape[1])
        return forward(self, embedded, *more)

    monkeypatch.setattr(decoding.Decoding, "_forward", counted)
    conversations = [asked(number, "ab"[number % 2]) for number in range(8)]
    answers = Engine(llava, open_image=picture).reply_batch(conversations, SamplingOptions(max_tokens=1))
    prefix = llava.renderer.prompt(conversations[0]).prefix - 1 + IMAGE_TOKENS
    cached = sorted(answer.usage.cached_tokens for answer in answers)
    assert cached[:2] == [0, 0] and min(cached[2:]) >= prefix // BLOCK * BLOCK > 0
    assert sum(computed) < sum(answer.usage.prompt_tokens for answer in answers) * 0.9


def test_next_token_distributions_are_those_of_the_model(llava: Llava) -> None:
    conversations = thirty()[:9]
    engine = Engine(llava, open_image=picture)
    logits = engine.next_logits(conversations)
    expected = [generated(llava, one)[0] for one in conversations]
    assert logits.argmax(dim=-1).tolist() == expected
    rows = [row for _, row in engine._prepare(list(enumerate(map(llava.renderer.prompt, conversations))), SHORT)]
    torch.testing.assert_close(decoding.Decoding(llava).prefill(rows), logits, atol=1e-3, rtol=1e-4)


# --- law: reuse is exact --------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=5))
def test_a_warm_engine_answers_as_a_cold_one(ending: Llava, questions: list[tuple[str, int]]) -> None:
    few = SamplingOptions(max_tokens=4)
    conversations = [asked(number, image, words=2) for image, number in questions]
    warm = Engine(ending, open_image=picture)
    warm.reply_batch([asked(0, "a"), asked(1, "b")], SHORT)
    cold = [Engine(ending, open_image=picture).reply(one, few).ids for one in conversations]
    assert [answer.ids for answer in warm.reply_batch(conversations, few)] == cold


def test_another_image_under_the_same_name_and_prompt_never_hits(llava: Llava) -> None:
    features = FeatureCache()
    first = Engine(llava, open_image=picture, features=features)
    other = Engine(llava, open_image=lambda image: picture(Image("quite another")), features=features)
    conversation = asked(1)
    truth = [engine.reply(conversation, SHORT).ids for engine in (first, other, first)]
    assert truth[0] == truth[2] != truth[1] == generated(llava, asked(1, "quite another"))
    # Both in one batch: the same tokens, two pictures, so two prefixes.
    pictures = iter([picture(Image("a")), picture(Image("quite another"))])
    both = Engine(llava, open_image=lambda image: next(pictures), features=features)
    batch = both.reply_batch([asked(1, "one"), asked(1, "two")], SHORT)
    assert [answer.ids for answer in batch] == truth[:2]


def test_questions_about_one_image_open_and_look_at_it_once(llava: Llava) -> None:
    paths: list[str] = []
    engine = Engine(llava, open_image=lambda image: paths.append(image.path) or picture(image))
    engine.reply_batch([asked(number, "ab"[number % 2]) for number in range(10)], SHORT)
    assert sorted(paths) == ["a", "b"]
    assert (engine.features.misses, len(engine.features)) == (2, 2)
    engine.reply_batch([asked(11, "a")], SHORT)
    assert engine.features.misses == 2


def test_equal_pixels_under_two_names_are_looked_at_once(llava: Llava) -> None:
    engine = Engine(llava, open_image=lambda image: picture(Image("grey")))
    answers = engine.reply_batch([asked(1, "one"), asked(1, "two")], SHORT)
    assert engine.features.misses == 1 and answers[0].ids == answers[1].ids


def test_a_tower_that_trained_is_not_served_from_the_cache() -> None:
    llava = random_llava()
    engine = Engine(llava, open_image=picture)
    before = engine.reply(asked(1), SHORT).ids
    with torch.no_grad():
        for weight in llava.tower.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    after = engine.reply(asked(1), SHORT).ids
    assert before != after == generated(llava, asked(1))


def test_a_model_that_is_training_answers_without_dropout_and_trains_on() -> None:
    llava = random_llava(attention_dropout=0.9)
    expected = generated(llava, asked(1))
    llava.model.model.language_model.train()
    engine = Engine(llava, open_image=picture)
    assert engine.reply(asked(1), SHORT).ids == expected
    assert llava.model.model.language_model.training and not llava.tower.training and torch.is_grad_enabled()


# --- text, ends, sampling -------------------------------------------------------------------------------------


def test_streamed_pieces_are_the_text_of_the_batch(ending: Llava) -> None:
    engine = Engine(ending, open_image=picture)
    conversations = thirty()[:10]
    for conversation, answer in zip(conversations, engine.reply_batch(conversations, SHORT), strict=True):
        streamed = engine.reply(conversation, SHORT)
        assert "".join(streamed) == streamed.text == answer.text
        assert (streamed.finish_reason, streamed.ids) == (answer.finish_reason, answer.ids)


def test_the_answer_is_its_tokens_as_text_without_the_end(ending: Llava) -> None:
    engine = Engine(ending, open_image=picture)
    reasons = set()
    for answer in engine.reply_batch(thirty(), SHORT):
        reasons.add(answer.finish_reason)
        ended = answer.ids[-1] in ending.renderer.end_ids
        assert answer.finish_reason == ("stop" if ended else "length")
        ids = answer.ids[:-1] if ended else answer.ids
        assert answer.text == ending.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert answer.usage.completion_tokens == len(answer.ids) <= SHORT.max_tokens
    assert reasons == {"stop", "length"}


def test_usage_counts_image_tokens(llava: Llava) -> None:
    engine = Engine(llava, open_image=picture)
    with_image, without = (engine.reply(asked(1, image), SHORT) for image in ("a", None))
    extra = with_image.usage.prompt_tokens - without.usage.prompt_tokens
    assert extra == IMAGE_TOKENS + 1  # and the line break between image and question


def test_a_stop_text_ends_the_answer_alone_and_in_a_batch(llava: Llava) -> None:
    engine = Engine(llava, open_image=picture)
    options = SamplingOptions(max_tokens=30)
    whole = engine.reply(asked(2), options).text
    stop = whole[4:6]
    stopping = SamplingOptions(max_tokens=30, stop=(stop,))
    single, batched = engine.reply(asked(2), stopping), engine.reply_batch([asked(3), asked(2)], stopping)[1]
    assert single.text == batched.text == whole[: whole.find(stop)].rstrip()
    assert single.finish_reason == batched.finish_reason == "stop"
    assert len(single.ids) < 30


def test_cancel_computes_at_most_one_more_token(llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(llava, open_image=picture)
    answer = engine.reply(asked(1), SamplingOptions(max_tokens=200))
    late: list[bool] = []
    step = decoding.Decoding.step

    def slow(self, *given):
        late.append(answer._cancelled.is_set())
        time.sleep(0.02)
        return step(self, *given)

    monkeypatch.setattr(decoding.Decoding, "step", slow)
    pieces = iter(answer)
    text = next(pieces)
    answer.cancel()
    text += "".join(pieces)
    assert sum(late) <= 1 and len(late) < 20
    assert (answer.text, answer.finish_reason) == (text, "cancelled")
    assert len(answer.ids) == engine.state().tokens <= len(late) + 1
    never = engine.reply(asked(1))
    never.cancel()
    assert (never.text, never.finish_reason, never.usage.completion_tokens) == ("", "cancelled", 0)


def test_sampling_repeats_with_its_seed_alone_and_in_a_batch(llava: Llava) -> None:
    engine = Engine(llava, open_image=picture)
    options = [SamplingOptions(temperature=1.0, top_p=0.95, top_k=40, max_tokens=12, seed=seed) for seed in (3, 4, 5)]
    conversations = [asked(number) for number in range(3)]
    alone = [engine.reply(one, option).ids for one, option in zip(conversations, options, strict=True)]
    assert [answer.ids for answer in engine.reply_batch(conversations, options[0])] == alone
    same = [engine.reply(conversations[0], option).ids for option in options]
    assert len(set(same)) == 3
    fresh = SamplingOptions(temperature=1.0, max_tokens=12)
    assert engine.reply(conversations[0], fresh).ids != engine.reply(conversations[0], fresh).ids


def test_the_context_ends_an_answer_and_refuses_a_prompt_that_fills_it(llava: Llava) -> None:
    engine = Engine(llava, open_image=picture)
    long = Conversation("long", ()).add("user", "x" * 220)
    answer = engine.reply(long, SamplingOptions(max_tokens=500))
    assert answer.finish_reason in ("length", "stop")
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens <= 256
    with pytest.raises(RenderError, match=r"too-long: found a prompt of \d+ tokens; expected fewer than 256"):
        engine.reply(Conversation("too-long", ()).add("user", "x" * 300))


# --- bad input ------------------------------------------------------------------------------------------------


def test_bad_images_and_prompts_are_named_before_any_token(llava: Llava, tmp_path: Path) -> None:
    engine = Engine(llava)
    with pytest.raises(ImageError, match=r"missing\.png"):
        engine.reply(asked(1, str(tmp_path / "missing.png")))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(ImageError, match=r"broken\.png"):
        engine.reply_batch([asked(1, None), asked(2, str(tmp_path / "broken.png"))])
    answered = asked(1, None).add("assistant", "yes")
    with pytest.raises(RenderError, match="expected a question last"):
        engine.reply(answered)


def test_a_file_on_this_disk_is_opened_by_its_path(llava: Llava, tmp_path: Path) -> None:
    picture(Image("a")).save(tmp_path / "a.png")
    assert Engine(llava).reply(asked(1, str(tmp_path / "a.png")), SHORT).ids == generated(llava, asked(1, "a"))


def test_no_conversations_no_answers(llava: Llava) -> None:
    model: ChatModel = Engine(llava)
    assert model.reply_batch([], SHORT) == []
