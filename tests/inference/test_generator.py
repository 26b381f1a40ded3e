"""Requests join and leave one batch: each gets the tokens it gets alone, and what fails concerns no other."""

from __future__ import annotations

import gc
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig

from tests.asking import IMAGE_TOKENS, asked, greedy, picture, random_llava, thirty
from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image
from workbench.errors import BusyError, ModelError, WorkbenchError
from workbench.inference import decoding, generator
from workbench.inference.engine import Engine
from workbench.inference.prefix_cache import BLOCK
from workbench.model.llava import Llava
from workbench.model.lora import adapted, adapter_parameters, attach_config

SHORT = SamplingOptions(max_tokens=8)
LONG = SamplingOptions(max_tokens=60)


@pytest.fixture(scope="module")
def llava() -> Llava:
    """With an adapter that says something else than its base, and so many end tokens that answers end at all steps."""
    made = random_llava()
    made.renderer.end_ids = (*made.renderer.end_ids, *range(0, 30))
    pattern = r"model\.language_model\..*\.(q_proj|v_proj|down_proj)"
    attach_config(made, LoraConfig(r=4, lora_alpha=16, target_modules=pattern))
    source = torch.Generator().manual_seed(5)
    for weight in adapter_parameters(made.model).values():
        weight.data = torch.randn(weight.shape, generator=source) * 0.5
    return made


def generated(llava: Llava, ids: list[int], images: tuple[Image, ...], most: int = 8) -> tuple[int, ...]:
    """What transformers writes after these very tokens."""
    pixels = [llava.image_mode.pixels(picture(image)) for image in images]
    return greedy(llava, torch.tensor([ids]), most, **({"pixel_values": torch.stack(pixels)} if pixels else {}))


def expected(engine: Engine, conversation: Conversation) -> tuple[int, ...]:
    rendered = engine._prompt(conversation)
    ids, _ = engine.llava.renderer.expand(rendered, [IMAGE_TOKENS] * len(rendered.images), engine.llava.image_token_id)
    return generated(engine.llava, ids, rendered.images)


def without_adapter(llava: Llava, function: Callable[[], Any]) -> Any:
    layers = [layer for _, layer in adapted(llava.model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        return function()
    finally:
        for layer in layers:
            layer.enable_adapters(True)
            layer.requires_grad_(False)


def test_two_hundred_requests_give_the_tokens_of_generate(llava: Llava) -> None:
    """Alone, in a batch, found in the cache, and with the adapter swapped for its base."""
    engine = Engine(llava, open_image=picture, rows=7)
    base, checked = engine.base(), 0
    conversations = [*thirty(), *(asked(100 + n, "efgh"[n % 4], words=1 + n % 9) for n in range(20))]
    truth = [expected(engine, one) for one in conversations]
    before = without_adapter(llava, lambda: [expected(engine, one) for one in conversations])
    assert sum(one != other for one, other in zip(truth, before, strict=True)) > 30
    for ways in ("single", "batched, cached"):
        for one, ids, bare in zip(conversations, truth, before, strict=True):
            if ways == "single":
                assert engine.reply(one, SHORT).ids == ids
                assert base.reply(one, SHORT).ids == bare
                checked += 2
        if ways == "batched, cached":
            assert [answer.ids for answer in engine.reply_batch(conversations, SHORT)] == truth
            assert [answer.ids for answer in base.reply_batch(conversations, SHORT)] == before
            checked += 2 * len(conversations)
    assert checked == 200


def test_joins_and_leaves_change_nobody_s_tokens(llava: Llava) -> None:
    """Twelve threads ask what they like, read at their own pace, and cancel a third of it."""
    engine = Engine(llava, open_image=picture, rows=6, kv_bytes=700_000, prefix_bytes=400_000)
    pool_of = thirty()[:16]
    truth = {one.id: Engine(llava, open_image=picture).reply(one, LONG).ids for one in pool_of}

    def person(seed: int) -> int:
        draw, right = random.Random(seed), 0
        for _ in range(5):
            one = draw.choice(pool_of)
            answer = engine.reply(one, LONG, start=draw.random() < 0.5)
            end = draw.randint(0, 6) if draw.random() < 0.3 else None
            for number, _ in enumerate(answer):
                if number == end:
                    answer.cancel()
                if draw.random() < 0.05:
                    time.sleep(0.01)
            whole = answer.finish_reason != "cancelled"
            assert answer.ids == truth[one.id][: len(answer.ids)]
            assert len(answer.ids) == len(truth[one.id]) or not whole
            right += whole
        return right

    with ThreadPoolExecutor(12) as pool:
        whole = sum(pool.map(person, range(12)))
    assert whole > 25
    state = engine.state()
    assert (state.running, state.waiting, state.failed, state.stalled) == (0, 0, 0, 0.0)
    assert state.cache_hits > 10 and engine._generator.prefixes.size <= 400_000


def test_each_row_has_options_of_its_own(llava: Llava) -> None:
    engine = Engine(llava, open_image=picture)
    options = [
        SamplingOptions(max_tokens=20),
        SamplingOptions(max_tokens=20, temperature=1.3, seed=4),
        SamplingOptions(max_tokens=20, temperature=0.8, top_k=5, top_p=0.9, seed=5),
        SamplingOptions(max_tokens=20, temperature=2.0, min_p=0.2, seed=6),
        SamplingOptions(max_tokens=20, repetition_penalty=1.5),
        SamplingOptions(max_tokens=3, logprobs=2),
    ]
    alone = [engine.reply(asked(n), one).ids for n, one in enumerate(options)]
    together = [engine.reply(asked(n), one, start=True) for n, one in enumerate(options)]
    assert [answer.ids for answer in together] == alone
    assert together[5].finish_reason in ("length", "stop") and len(together[5].ids) <= 3


def test_a_repetition_penalty_is_that_of_transformers() -> None:
    llava = random_llava()
    engine = Engine(llava, open_image=picture)
    one = asked(3)
    ids, _ = llava.renderer.expand(engine._prompt(one), [IMAGE_TOKENS], llava.image_token_id)
    out = llava.model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        pixel_values=llava.image_mode.pixels(picture(Image("a")))[None],
        do_sample=False,
        repetition_penalty=1.3,
        max_new_tokens=20,
        eos_token_id=list(llava.renderer.end_ids),
        pad_token_id=0,
    )
    given = engine.reply(one, SamplingOptions(max_tokens=20, repetition_penalty=1.3)).ids
    assert given == tuple(out[0, len(ids) :].tolist()) != engine.reply(one, SamplingOptions(max_tokens=20)).ids


def test_log_probabilities_are_those_of_the_model(llava: Llava) -> None:
    engine = Engine(llava, open_image=picture)
    answer = engine.reply(asked(2), SamplingOptions(max_tokens=6, logprobs=3))
    assert answer.logprobs == ()
    for _ in answer:
        assert 0 < len(answer.logprobs) <= 6
        break
    told = (answer.text, answer.logprobs)[1]
    assert [one.id for one in told] == list(answer.ids)
    first = engine.next_logits([asked(2)])[0].log_softmax(-1)
    assert told[0].logprob == pytest.approx(float(first[told[0].id]), abs=1e-4)
    values = [value for _, _, value in told[0].top]
    assert values == sorted(values, reverse=True) and len(values) == 3
    assert told[0].top[0][2] == pytest.approx(float(first.max()), abs=1e-4)


def test_a_json_schema_is_satisfied_beside_answers_without_one() -> None:
    engine = Engine(random_llava(), open_image=picture)
    shape = {"count": {"type": "integer"}, "colour": {"enum": ["red", "blue"]}, "round": {"type": "boolean"}}
    schema = {"type": "object", "properties": shape, "required": list(shape), "additionalProperties": False}
    asking = SamplingOptions(max_tokens=150, json_schema=json.dumps(schema), temperature=1.0, seed=1)
    free = engine.reply(asked(1), SHORT).ids
    answers = [engine.reply(asked(n), replace(asking, seed=n), start=True) for n in range(4)]
    beside = engine.reply(asked(1), SHORT, start=True)
    for answer in answers:
        if answer.finish_reason == "stop":
            told = json.loads(answer.text)
            assert set(told) == set(shape) and told["colour"] in ("red", "blue") and isinstance(told["round"], bool)
    assert sum(answer.finish_reason == "stop" for answer in answers) >= 2
    assert beside.ids == free
    with pytest.raises(WorkbenchError, match="json_schema"):
        engine.reply(asked(1), SamplingOptions(json_schema='{"type": "nothing"}'))


# --- reuse ------------------------------------------------------------------------------------------------------


def test_a_second_turn_computes_only_what_is_new(llava: Llava) -> None:
    engine = Engine(llava, open_image=picture)
    one = asked(4)
    first = engine.reply(one, SamplingOptions(max_tokens=20))
    again = one.add("assistant", first.text).add("user", "and now?")
    second = engine.reply(again, SHORT)
    known = first.usage.prompt_tokens + len(first.ids) - 1
    assert second.usage.cached_tokens == known > first.usage.prompt_tokens
    assert second.ids == expected(engine, again)
    engine._generator.batch.release()  # its slot is gone, the blocks of its beginning are not
    third = engine.reply(again, SHORT)
    assert third.usage.cached_tokens == (second.usage.prompt_tokens - 1) // BLOCK * BLOCK and third.ids == second.ids


def test_nothing_is_taken_for_a_talk_that_goes_on(llava: Llava) -> None:
    """One request after the other, each in the slot that the one before left: what it finds there is its own."""
    engine = Engine(llava, open_image=picture)
    base, draw = engine.base(), random.Random(1)
    talks = [asked(number, image, words=3) for number in range(2) for image in ("a", "b", None)]
    talks += [
        one.add("assistant", "a red cube").add("user", *more, "and now?") for one in talks for more in ((), ("so",))
    ]
    with engine.alone():  # whatever another engine on this model has left in place
        truth = [expected(engine, one) for one in talks]
    bare = without_adapter(llava, lambda: [expected(engine, one) for one in talks])
    went_on = 0
    for _ in range(120):
        place, through = draw.randrange(len(talks)), draw.random() < 0.2
        answer = (base if through else engine).reply(talks[place], SHORT)
        for _ in zip(answer, range(draw.choice((1, 9))), strict=False):  # some are given up in the middle
            pass
        answer.cancel()
        wanted = (bare if through else truth)[place]
        assert answer.ids == wanted[: len(answer.ids)]
        went_on += answer.usage.cached_tokens % BLOCK > 0  # only the slot of the one before gives part of a block
    assert went_on > 5


def test_answers_that_read_alike_are_found_as_they_were_written(llava: Llava) -> None:
    """Bytes that are no text become the same replacement mark; their tokens differ from those the mark would get."""
    engine = Engine(llava, open_image=picture)
    one = asked(6)
    first = engine.reply(one, SamplingOptions(max_tokens=20, temperature=3.0, seed=2))
    again = one.add("assistant", first.text).add("user", "and now?")
    retold = llava.renderer.prompt(again).ids
    written = engine._prompt(again).ids
    assert retold != written
    start = len(llava.renderer.prompt(one).ids)
    ids = first.ids[:-1] if first.ids[-1] in llava.renderer.end_ids else first.ids
    assert written[start : start + len(ids)] == ids


def test_other_weights_are_not_served_from_the_cache() -> None:
    llava = random_llava(seed=3)
    engine = Engine(llava, open_image=picture)
    before = engine.reply(asked(1), SHORT).ids
    with torch.no_grad():
        for weight in llava.model.model.language_model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    after = engine.reply(asked(1), SHORT)
    assert before != after.ids == expected(engine, asked(1))
    assert after.usage.cached_tokens == 0


def test_both_caches_keep_their_budgets(llava: Llava) -> None:
    engine = Engine(llava, open_image=picture, prefix_bytes=100_000)
    for number in range(12):
        assert engine.reply(asked(number, f"image {number}"), SHORT).text is not None
    assert 0 < engine._generator.prefixes.size <= 100_000
    nothing = Engine(llava, open_image=picture, prefix_bytes=0)
    assert [nothing.reply(asked(1), SHORT).usage.cached_tokens for _ in range(2)] == [0, 0]


# --- who waits, what fails, what ends ---------------------------------------------------------------------------


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While it is not set, no answer gets its next token."""
    opened = threading.Event()
    step = decoding.Decoding.step

    def held(self: decoding.Decoding, *given: Any) -> torch.Tensor:
        assert opened.wait(20)
        return step(self, *given)

    monkeypatch.setattr(decoding.Decoding, "step", held)
    yield opened
    opened.set()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_full_queue_refuses_and_state_tells(llava: Llava, gate: threading.Event) -> None:
    engine = Engine(llava, open_image=picture, rows=1, queue=3)
    idle = engine.state()
    assert (idle.running, idle.waiting, idle.stalled, idle.tokens) == (0, 0, 0.0, 0)
    answers = [engine.reply(asked(0), SamplingOptions(max_tokens=5), start=True)]
    until(lambda: engine.state().running == 1)
    answers += [engine.reply(asked(n), SamplingOptions(max_tokens=5), start=True) for n in range(3)]
    assert engine.state().waiting == 3
    with pytest.raises(BusyError, match="3 requests that wait already"):
        engine.reply(asked(9), SHORT, start=True)
    time.sleep(0.1)
    assert engine.state().stalled >= 0.1
    gate.set()
    assert all(answer.text is not None for answer in answers)
    state = engine.state()
    assert state.tokens == sum(len(answer.ids) for answer in answers) and state.tokens_per_second > 0
    assert state.stalled == 0


def test_an_answer_that_nobody_can_read_is_given_up(llava: Llava, gate: threading.Event) -> None:
    engine = Engine(llava, open_image=picture)
    answer = engine.reply(asked(1), LONG, start=True)
    until(lambda: engine.state().running == 1)
    del answer
    gc.collect()
    gate.set()
    until(lambda: engine.state().running == 0)
    assert engine.state().tokens <= 3


def test_a_long_prompt_does_not_hold_up_a_running_answer(llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(llava, open_image=picture)
    lasting = next(one for one in (asked(n, None) for n in range(99)) if len(engine.reply(one, LONG).ids) > 30)
    engine._generator.batch.chunk = 16
    order: list[str] = []
    for name in ("step", "advance"):
        one = getattr(decoding.Decoding, name)
        monkeypatch.setattr(decoding.Decoding, name, lambda *given, n=name, f=one: (order.append(n), f(*given))[1])
    running = engine.reply(lasting, LONG)
    pieces = iter(running)
    next(pieces)
    long = engine.reply(asked(8, "a", words=20), SHORT, start=True)
    assert long.text is not None and running.text
    joined = "".join(name[0] for name in order)
    assert "asasasa" in joined  # pieces of the long prompt and steps of the answer in turn


@pytest.mark.parametrize("where", ["advance", "step"])
def test_no_memory_fails_one_request_and_no_other(
    where: str, llava: Llava, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    engine = Engine(llava, open_image=picture)
    conversations = [asked(n, None, words=6) for n in range(5)]
    truth = [Engine(llava).reply(one, SHORT).ids for one in conversations if not gate.set()]
    bad = engine._prompt(conversations[2]).ids
    real = getattr(decoding.Decoding, where)

    def short(self: decoding.Decoding, *given: Any) -> torch.Tensor:
        rows = self.rows[self.ready :] if where == "advance" else self.rows[: self.ready]
        if any(tuple(row.ids) == tuple(bad) for row in rows if where == "advance" or row is rows[-1]):
            raise torch.OutOfMemoryError("out of memory")
        return real(self, *given)

    monkeypatch.setattr(decoding.Decoding, where, short)
    answers = [engine.reply(one, SHORT, start=True) for one in conversations]
    failed = 0
    for answer, ids in zip(answers, truth, strict=True):
        try:
            assert answer.ids == ids
        except ModelError as problem:
            assert "no memory left for a prompt of" in str(problem)
            failed += 1
    assert failed == engine.state().failed == 1
    monkeypatch.undo()
    assert engine.reply(conversations[2], SHORT).ids == truth[2]


def test_closing_ends_everything_and_refuses_more(llava: Llava) -> None:
    with Engine(llava, open_image=picture) as engine:
        answer = engine.reply(asked(1), SamplingOptions(max_tokens=200), start=True)
    assert answer.finish_reason in ("cancelled", "stop", "length")
    with pytest.raises(WorkbenchError, match="closed"):
        assert engine.reply(asked(1), SHORT).text
    assert engine._generator._thread is None


def test_the_thread_ends_when_idle_and_gives_memory_back(llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it after several answers; after one the slot in which its talk goes on stays, if it is small."""
    monkeypatch.setattr(generator, "LINGER", 0.05)
    for kept, count, held in ((512 * 2**20, 1, True), (512 * 2**20, 8, True), (300_000, 8, False), (0, 1, False)):
        with Engine(llava, open_image=picture, prefix_bytes=kept) as engine:
            answers = [engine.reply(asked(number), SHORT, start=True) for number in range(count)]
            assert all(answer.text is not None for answer in answers)
            until(lambda engine=engine: engine._generator._thread is None)
            slots = engine._generator.batch.decoding.slots
            assert (0 < slots.nbytes <= kept / 4) if held else slots.nbytes == 0
            again = asked(count - 1).add("assistant", answers[-1].text).add("user", "and now?")
            assert (engine.reply(again, SHORT).usage.cached_tokens > 0) == (kept > 0)
        assert slots.nbytes == 0
