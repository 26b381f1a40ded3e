"""The loop against a real server that misbehaves: nothing lost, doubled, paid twice or overspent."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench.chat_model import SamplingOptions, ScriptedModel
from workbench.conversation import Conversation, Image, Message
from workbench.errors import WorkbenchError
from workbench.instruct import limits, loop
from workbench.instruct.endpoints import Endpoint, LocalEndpoint, Request
from workbench.instruct.limits import Budget
from workbench.instruct.loop import Outcome, run
from workbench.instruct.replies import Reply, ReplyStore
from workbench.remote import RemoteError, RemoteModel, RemoteReply

HERE = Path(__file__)
sys.path.insert(0, str(HERE.parents[1]))
from teacher_server import answer_of, digest, serving  # noqa: E402


def requests(count: int, *, start: int = 0, tokens: int = 20) -> Iterator[Request]:
    for number in range(start, start + count):
        text = f"question {number}"
        conversation = Conversation(str(number), (Message("user", (text,)),))
        yield Request(text, conversation, SamplingOptions(max_tokens=tokens), None, 50)


def right(number: int) -> str:
    return answer_of(prompt(number))


def prompt(number: int) -> str:
    """The messages as the server sees them."""
    return json.dumps([{"content": f"question {number}", "role": "user"}], sort_keys=True)


def endpoint(url: str, *, timeout: float = 10.0, concurrency: int = 32, **more: Any) -> Endpoint:
    return Endpoint(RemoteModel("teacher", url=url, timeout=timeout), concurrency=concurrency, **more)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ReplyStore]:
    with ReplyStore(tmp_path / "replies.sqlite") as made:
        yield made


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FIRST_WAIT", 0.02)


# --- the whole of it ------------------------------------------------------------------------------------------------


def test_a_thousand_conversations_from_a_server_that_does_everything_wrong(store: ReplyStore) -> None:
    with serving(seed=3, share=0.5, most=3, after=0.02) as (server, url):
        outcome = run(requests(1000), [endpoint(url, timeout=2.0)], store)
        calls = list(server.calls)
    assert outcome.asked == 1000 == len(store) and outcome.failed == {} and outcome.stopped is None
    kept = {reply.key: reply.text for reply in store}
    assert kept == {f"question {number}": right(number) for number in range(1000)}
    good = Counter(call["prompt"] for call in calls if call["fault"] is None)
    assert set(good.values()) == {1} and len(good) == 1000, "each is answered once: none lost, none doubled"
    silent = sum(call["fault"] == "silence" for call in calls)  # the server notes those only when it is closed
    faults = Counter(call["fault"] for call in calls)
    print(f"\n{outcome.calls} calls for 1,000 replies; faults met: {dict(faults)}")
    assert outcome.calls == sum(server._tries.values()) and len(calls) - silent <= outcome.calls
    assert len(faults) >= 10, "nearly every kind of fault came up"


WORKER = """
import sys
sys.path.insert(0, {tests!r}); sys.path.insert(0, {here!r})
from test_loop import requests, endpoint
from workbench.instruct import limits, loop
from workbench.instruct.replies import ReplyStore
limits.FIRST_WAIT = 0.02
with ReplyStore({path!r}) as store:
    print(loop.run(requests(1000), [endpoint({url!r}, concurrency=16)], store), flush=True)
"""


def test_killed_twenty_times_and_resumed_it_ends_the_same_and_pays_nothing_twice(tmp_path: Path) -> None:
    path, dice = tmp_path / "replies.sqlite", random.Random(5)
    stored_at_kill: list[tuple[float, set[str]]] = []
    arrived: list[tuple[float, str]] = []
    with serving(seed=4, share=0.3, most=2, latency=0.05, after=0.02) as (server, url):
        planned = server.fault

        def note(asked: str, number: int) -> str | None:  # on arrival: the server's log tells when a call ended
            arrived.append((time.monotonic(), digest(asked)[:16]))
            return planned(asked, number)

        server.fault = note  # type: ignore[method-assign]
        code = WORKER.format(tests=str(HERE.parents[1]), here=str(HERE.parent), path=str(path), url=url)
        for _ in range(20):
            process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            before, deadline = _count(path), time.monotonic() + 60
            wanted = before + dice.randint(1, 45)
            while _count(path) < wanted and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(dice.random() * 0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
            with ReplyStore(path) as store:
                stored_at_kill.append((time.monotonic(), {reply.key for reply in store}))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    with ReplyStore(path) as store:
        kept = {reply.key: reply.text for reply in store}
    assert kept == {f"question {number}": right(number) for number in range(1000)}
    sizes = [len(keys) for _, keys in stored_at_kill]
    assert sizes == sorted(sizes) and 20 <= sizes[-1] < 1000, "it was killed in the midst of it"
    names = {digest(prompt(number))[:16]: f"question {number}" for number in range(1000)}
    for when, keys in stored_at_kill:
        later = {names[asked] for time_of_it, asked in arrived if time_of_it > when}
        assert not later & keys, "a stored reply is never asked for again"


def _count(path: Path) -> int:
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5) as db:
            return int(db.execute("select count(*) from replies").fetchone()[0])
    except sqlite3.Error:
        return 0


# --- endpoints ------------------------------------------------------------------------------------------------------


def test_several_endpoints_share_the_load(store: ReplyStore) -> None:
    with serving(latency=0.02) as (one, first), serving(latency=0.02) as (two, second):
        run(requests(200), [endpoint(first, concurrency=4), endpoint(second, concurrency=4)], store)
        assert len(one.calls) + len(two.calls) == 200 and min(len(one.calls), len(two.calls)) > 50


def test_an_endpoint_that_is_not_there_costs_the_others_nothing(store: ReplyStore) -> None:
    with serving(latency=0.01) as (server, url):
        dead = endpoint("http://127.0.0.1:9/v1", concurrency=4)
        outcome = run(requests(300), [dead, endpoint(url, concurrency=8)], store)
    assert outcome.asked == 300 and outcome.failed == {} and len(server.calls) == 300


def test_without_any_endpoint_left_it_says_why_and_keeps_what_it_has(store: ReplyStore) -> None:
    with serving(key="right") as (_, url):
        outcome = run(requests(20), [endpoint(url, concurrency=3)], store)
    assert outcome.asked == 0 and outcome.calls <= 3 and "no endpoint is left" in str(outcome.stopped)
    assert "401" in str(outcome)


def test_what_fails_every_time_is_given_up_and_named_and_the_rest_goes_on(store: ReplyStore) -> None:
    with serving(share=1.0, most=1000, faults=("500",)) as (_, bad):
        outcome = run(requests(3), [endpoint(bad, concurrency=3)], store)
    assert len(outcome.failed) == 3 and outcome.calls == 3 * loop.TRIES and "500" in outcome.failed["question 0"]


def test_retry_after_is_obeyed_by_the_whole_endpoint(store: ReplyStore) -> None:
    with serving(seed=1, share=0.02, most=1, faults=("429 after",), after=0.4, latency=0.01) as (server, url):
        run(requests(150), [endpoint(url, concurrency=2)], store)
        refused = [call["time"] for call in server.calls if call["fault"]]
        times = [call["time"] for call in server.calls]
    assert refused
    for when in refused:  # a call that was on its way may still arrive
        assert sum(when + 0.05 < other < when + 0.38 for other in times) == 0


def test_rates_are_kept_before_a_server_complains(store: ReplyStore) -> None:
    with serving() as (server, url):
        start = time.monotonic()
        run(requests(40), [endpoint(url, requests_per_minute=1200)], store)
        times = sorted(call["time"] - start for call in server.calls)
    # Counted from the start: the way to a busy server makes a call later, never earlier.
    early = [number for number, when in enumerate(times) if when < (number - 1) / 20]
    assert len(times) == 40 and not early, "20 a second, of which one may be caught up"


def test_an_endpoint_with_a_low_rate_holds_nothing_that_another_could_answer(store: ReplyStore) -> None:
    with serving(latency=0.01) as (slow, first), serving(latency=0.01) as (fast, second):
        slowly = endpoint(first, concurrency=8, requests_per_minute=30)
        outcome = run(requests(40), [slowly, endpoint(second, concurrency=4)], store)
    assert outcome.asked == 40 and len(slow.calls) <= 3 and len(fast.calls) >= 37


def test_tokens_per_minute_count_the_prompt_and_the_longest_reply(store: ReplyStore) -> None:
    with serving() as (server, url):
        start = time.monotonic()
        run(requests(6), [endpoint(url, tokens_per_minute=42_000)], store)  # 700 a second, 70 a request
        last = max(call["time"] for call in server.calls)
    assert last - start > 0.4, "five intervals of 0.1 s, of which one may be caught up"


def test_a_server_that_is_away_for_a_while_costs_no_request(store: ReplyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LONGEST_WAIT", 0.05)
    away = range(20, 20 + 2 * loop.TRIES)  # of all calls; the last request meets them all
    with serving() as (server, url):
        server.fault = lambda prompt, number: "503 html" if len(server.calls) in away else None  # type: ignore[method-assign]
        outcome = run(requests(21), [endpoint(url, concurrency=1)], store)
    assert outcome.asked == 21 and outcome.failed == {} and outcome.stopped is None
    assert outcome.calls == 21 + 2 * loop.TRIES


def test_a_server_that_went_down_is_tried_by_one_call_at_a_time(
    store: ReplyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GIVE_UP", 3)
    with serving(latency=0.02) as (server, url):
        server.fault = lambda prompt, number: None if len(server.calls) < 100 else "503 html"  # type: ignore[method-assign]
        outcome = run(requests(400), [endpoint(url, concurrency=16)], store)
    after = len(server.calls) - outcome.asked
    assert (
        after <= 16 + limits.OVERLOOKED + 3
        and "no endpoint is left" in str(outcome.stopped)
        and "503" in str(outcome.stopped)
    )
    assert outcome.failed == {} and 100 <= outcome.asked < 400, "what was not asked is not given up either"


def test_one_of_two_endpoints_may_die_in_the_midst(store: ReplyStore) -> None:
    with serving(latency=0.01) as (one, first), serving(latency=0.01) as (two, second):
        two.fault = lambda prompt, number: "drop" if len(two.calls) > 20 else None  # type: ignore[method-assign]
        outcome = run(requests(300), [endpoint(first, concurrency=4), endpoint(second, concurrency=4)], store)
    assert outcome.asked == 300 and outcome.failed == {} and len(one.calls) > 200
    assert {reply.key: reply.text for reply in store} == {f"question {n}": right(n) for n in range(300)}


def test_an_endpoint_that_only_ever_refuses_is_given_up(store: ReplyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GIVE_UP", 3)
    with serving(share=1.0, most=1000, faults=("429 after",), after=0.05) as (server, url):
        outcome = run(requests(20), [endpoint(url, concurrency=1)], store)
    assert len(server.calls) == 4 and "429" in str(outcome.stopped) and outcome.failed == {}


class Moderated(RemoteModel):
    """A provider that answers some questions with 403, as moderating ones do."""

    flagged = "question 7"

    async def ask(self, conversation: Conversation, *args: Any, **more: Any) -> RemoteReply:
        if conversation.messages[-1].text == self.flagged:
            raise RemoteError.of("teacher", "status 403: flagged", retry=False, status=403)
        return await super().ask(conversation, *args, **more)


def test_a_question_that_is_forbidden_closes_no_endpoint_that_answers_others(store: ReplyStore) -> None:
    with serving() as (_, url):
        outcome = run(requests(20), [Endpoint(Moderated("teacher", url=url), concurrency=1)], store)
    assert outcome.asked == 19 and list(outcome.failed) == ["question 7"] and outcome.stopped is None


def test_a_picture_that_is_gone_is_named_and_the_others_are_asked(store: ReplyStore, tmp_path: Path) -> None:
    def asked() -> Iterator[Request]:
        for one in requests(10):
            seen = (Image("gone.png", width=9, height=9),) if one.key == "question 4" else ()
            told = Conversation(one.key, (Message("user", (*seen, one.key)),))
            yield Request(one.key, told, one.options, None, 50)

    with serving() as (_, url):
        model = RemoteModel("teacher", url=url, open_image=lambda image: tmp_path / image.path)
        outcome = run(asked(), [Endpoint(model, concurrency=2)], store)
    assert outcome.asked == 9 and "gone.png" in outcome.failed["question 4"]


def test_no_endpoint_and_a_budget_of_money_without_a_price_are_refused(store: ReplyStore) -> None:
    with pytest.raises(WorkbenchError, match="no endpoint"):
        run(requests(1), [], store)
    with pytest.raises(WorkbenchError, match="no known price"):
        run(requests(1), [endpoint("http://127.0.0.1:9/v1")], store, budget=Budget(money=1.0))


# --- ending ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "most"),
    [(Budget(calls=30), 30), (Budget(tokens=2100), 30), (Budget(money=0.003), 30)],
    ids=["calls", "tokens", "money"],
)
def test_a_budget_is_never_exceeded_and_used_as_far_as_it_goes(store: ReplyStore, budget: Budget, most: int) -> None:
    with serving(latency=0.01) as (server, url):
        outcome = run(requests(200), [endpoint(url, concurrency=16, cost=paid)], store, budget=budget)
    assert len(server.calls) == outcome.asked == len(store) == most
    assert outcome.stopped and "budget" in outcome.stopped
    if budget.money:
        assert outcome.money is not None and outcome.money <= budget.money + 1e-9


def test_a_budget_of_seconds_lets_those_on_their_way_finish(store: ReplyStore) -> None:
    with serving(latency=0.1) as (server, url):
        outcome = run(requests(1000), [endpoint(url, concurrency=4)], store, budget=Budget(seconds=0.5))
    assert outcome.asked == len(server.calls) == len(store) and 4 <= len(store) < 100
    assert outcome.stopped == "budget of 0.5 seconds"


def paid(prompt: int, reply: int) -> float:
    return prompt / 1e6 + reply * 2.5e-6  # 1e-4 a call


def test_replies_that_arrive_broken_use_up_the_budget_too(store: ReplyStore) -> None:
    with serving(share=1.0, most=1000, faults=("half json",)) as (server, url):
        outcome = run(requests(50), [endpoint(url, concurrency=4, cost=paid)], store, budget=Budget(money=0.001))
    assert len(server.calls) == 10 == outcome.lost, "each may have been charged"
    assert "may be charged" in str(outcome.stopped)


def test_prompts_that_are_longer_than_estimated_do_not_break_the_budget(store: ReplyStore) -> None:
    short = (Request(one.key, one.conversation, one.options, None, 10) for one in requests(100))  # in truth 50
    with serving(latency=0.01) as (_, url):
        outcome = run(short, [endpoint(url, concurrency=4)], store, budget=Budget(tokens=1000))
    assert outcome.prompt_tokens + outcome.completion_tokens == 980


def test_the_first_calls_of_many_do_not_break_the_budget_either(store: ReplyStore) -> None:
    """Before the first reply nobody knows how far the estimates are off; with 16 at once all 16 used to be sent."""
    short = (Request(one.key, one.conversation, one.options, None, 10) for one in requests(100))  # in truth 50
    with serving(latency=0.05) as (_, url):
        outcome = run(short, [endpoint(url, concurrency=16)], store, budget=Budget(tokens=500))
    assert outcome.prompt_tokens + outcome.completion_tokens <= 500 and outcome.asked > 1


def test_interrupting_keeps_what_has_arrived(store: ReplyStore) -> None:
    stop = threading.Event()
    with serving(latency=0.05) as (_, url):
        threading.Timer(0.6, stop.set).start()
        outcome = run(requests(5000), [endpoint(url, concurrency=8)], store, stop=stop)
    assert outcome.stopped == "interrupted" and outcome.asked == len(store) > 8
    assert {reply.text for reply in store} <= {right(number) for number in range(5000)}


def test_ctrl_c_in_the_main_thread_ends_it_too(tmp_path: Path) -> None:
    with serving(latency=0.05) as (_, url):
        path = tmp_path / "replies.sqlite"
        code = WORKER.format(tests=str(HERE.parents[1]), here=str(HERE.parent), path=str(path), url=url)
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while _count(path) < 10 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert "stopped: interrupted" in out and "Traceback" not in err and _count(path) >= 10, err


def test_a_second_ctrl_c_does_not_wait(store: ReplyStore) -> None:
    answer, asked = threading.Event(), threading.Event()

    class Slow(ScriptedModel):
        def reply_batch(self, conversations, options=SamplingOptions()):  # type: ignore[no-untyped-def]  # noqa: B008
            asked.set()
            answer.wait(20)
            return super().reply_batch(conversations, options)

    def press() -> None:
        asked.wait(10)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    threading.Thread(target=press, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(requests(40), [LocalEndpoint(Slow(lambda one: "x"))], store)
        assert not answer.is_set()
    finally:
        answer.set()


def test_an_interrupted_model_of_this_process_finishes_its_batch(store: ReplyStore) -> None:
    stop = threading.Event()

    class Slow(ScriptedModel):
        def reply_batch(self, conversations, options=SamplingOptions()):  # type: ignore[no-untyped-def]  # noqa: B008
            stop.set()
            time.sleep(0.4)
            return super().reply_batch(conversations, options)

    outcome = run(requests(40), [LocalEndpoint(Slow(lambda one: "x"), batch=8)], store, stop=stop)
    assert outcome.asked == 8 == len(store) and outcome.stopped == "interrupted"


def test_it_runs_inside_an_event_loop_as_in_a_notebook(store: ReplyStore) -> None:
    async def cell() -> Outcome:
        return run(requests(10), [endpoint(url)], store)

    with serving() as (_, url):
        assert asyncio.run(cell()).asked == 10


# --- the same question, models of this process ------------------------------------------------------------------------


def test_equal_requests_are_one_call_and_stored_ones_none(store: ReplyStore) -> None:
    with serving() as (server, url):
        run([*requests(5), *requests(5)], [endpoint(url)], store)
        assert len(server.calls) == 5
        seen: list[str] = []
        outcome = run(requests(7), [endpoint(url)], store, on_reply=lambda request, reply: seen.append(reply.text))
        assert len(server.calls) == 7 and (outcome.asked, outcome.stored) == (2, 5)
    assert sorted(seen) == sorted(right(number) for number in range(7))


def test_a_reply_is_on_the_disk_before_anybody_hears_of_it(store: ReplyStore) -> None:
    missing: list[str] = []

    def look(request: Request, reply: Reply) -> None:
        with sqlite3.connect(store.path) as other:  # a connection of its own sees only what is committed
            if not other.execute("select 1 from replies where key = ?", [request.key]).fetchone():
                missing.append(request.key)

    with serving() as (_, url):
        run(requests(60), [endpoint(url)], store, on_reply=look)
    assert missing == []


def test_a_model_of_this_process_answers_in_batches_and_one_bad_question_stays_alone(store: ReplyStore) -> None:
    sizes: list[int] = []

    class Model(ScriptedModel):
        def reply_batch(self, conversations, options=SamplingOptions()):  # type: ignore[no-untyped-def]  # noqa: B008
            sizes.append(len(conversations))
            if any(one.id == "13" for one in conversations):
                raise WorkbenchError("question 13", found="something that cannot be answered")
            return super().reply_batch(conversations, options)

    outcome = run(requests(40), [LocalEndpoint(Model(lambda one: f"answer {one.id}"), batch=8)], store)
    assert outcome.asked == 39 and list(outcome.failed) == ["question 13"] and max(sizes) == 8
    assert {reply.key.split()[1]: reply.text for reply in store} == {
        str(number): f"answer {number}" for number in range(40) if number != 13
    }


@pytest.mark.parametrize("fault", ["too few", "no error of ours"])
def test_a_batch_that_goes_wrong_is_asked_one_by_one(store: ReplyStore, fault: str) -> None:
    class Model(ScriptedModel):
        def reply_batch(self, conversations, options=SamplingOptions()):  # type: ignore[no-untyped-def]  # noqa: B008
            if fault == "too few" and len(conversations) > 1:
                return super().reply_batch(conversations[1:], options)
            if fault != "too few" and any(one.id == "3" for one in conversations):
                raise RuntimeError("device error")
            return super().reply_batch(conversations, options)

    outcome = run(requests(12), [LocalEndpoint(Model(lambda one: one.id), batch=4)], store)
    assert outcome.failed == ({} if fault == "too few" else {"question 3": "RuntimeError: device error"})
    assert all(reply.key == f"question {reply.text}" for reply in store) and len(store) == 12 - len(outcome.failed)
