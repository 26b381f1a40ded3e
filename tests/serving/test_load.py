"""Many clients at once around the real engine: nobody is lost or waits for ever, and who leaves costs nothing.

The full size, with memory and fairness told in figures: `python tests/benchmarks/serving_load.py`.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serving.requests_made import Client, asked, encoded, picture, uri
from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image
from workbench.inference.engine import Engine
from workbench.serving.limits import Limits
from workbench.serving.run import Server

PICTURES = [uri(encoded(picture(seed))) for seed in range(6)]
WORDS = ("what", "colour", "shape", "where", "how", "many", "small", "red", "left")


@pytest.fixture(scope="module")
def engine(llava: Any) -> Iterator[Engine]:
    with Engine(llava, name="tiny", rows=8, open_image=lambda image: picture(int(image.path))) as made:
        yield made


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[Client]:
    with Server(engine, port=0, limits=Limits(slots=8, waiting=300)) as server:
        yield Client(server)


def question(number: int) -> tuple[str, int]:
    """A text and the number of a picture, always the same for a number."""
    drawn = random.Random(number)
    return " ".join(("describe the image in detail.", *drawn.choices(WORDS, k=number % 5))), number % len(PICTURES)


def body(number: int, **more: Any) -> dict[str, Any]:
    text, seed = question(number)
    return {"model": "tiny", "max_tokens": 8, **asked(text, PICTURES[seed]), **more}


async def streamed(http: httpx.AsyncClient, number: int, leave: bool) -> str | None:
    """The text of a stream; None for a client that leaves after its first event."""
    text = ""
    async with http.stream("POST", "/v1/chat/completions", json=body(number, stream=True)) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if leave:
                return None
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        assert line == "data: [DONE]" or not line
    return text


async def one(http: httpx.AsyncClient, number: int) -> str | None:
    if number % 5 == 4:
        try:
            await http.post("/v1/chat/completions", json=body(number), timeout=0.05 * (number % 3))
        except httpx.TimeoutException:
            return None
        return None
    if number % 2:
        return await streamed(http, number, leave=number % 7 == 3)
    answer = await http.post("/v1/chat/completions", json=body(number))
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def until_idle(client: Client) -> None:
    end = time.monotonic() + 30
    desk = client.server.api.desk
    while desk.taken or desk.waiting or len(client.server.api.pictures):
        assert time.monotonic() < end, "a slot or a picture was never given back"
        time.sleep(0.01)


def test_twenty_clients_with_streams_and_hang_ups_get_what_one_would(client: Client, engine: Engine) -> None:
    got: dict[int, str | None] = {}

    async def everybody() -> None:
        limits = httpx.Limits(max_connections=20)
        async with httpx.AsyncClient(base_url=client.root, timeout=120, limits=limits, trust_env=False) as http:
            waiting = list(range(100))

            async def person() -> None:
                while waiting:
                    number = waiting.pop()
                    got[number] = await one(http, number)

            await asyncio.gather(*(person() for _ in range(20)))

    asyncio.run(everybody())
    until_idle(client)
    assert len(got) == 100 and client.healthy() and engine.state().failed == 0
    whole = {number: text for number, text in got.items() if text is not None}
    assert len(whole) > 60
    for number in random.Random(0).sample(sorted(whole), 15):
        text, seed = question(number)
        conversation = Conversation("c", ()).add("user", Image(str(seed)), text)
        assert engine.reply(conversation, SamplingOptions(max_tokens=8)).text == whole[number]


def test_two_hundred_that_time_out_leave_no_work_behind(client: Client, engine: Engine) -> None:
    """After them a fresh request computes its own tokens and no others."""
    left = 0

    async def everybody() -> None:
        nonlocal left
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=client.root, limits=limits, trust_env=False) as http:

            async def person(number: int) -> None:
                nonlocal left
                try:
                    long = body(number, max_tokens=400, stream=number % 2 == 0, temperature=1.5)
                    await http.post("/v1/chat/completions", json=long, timeout=httpx.Timeout(60, read=0.3))
                except httpx.TimeoutException:
                    left += 1

            await asyncio.gather(*(person(number) for number in range(200)))

    asyncio.run(everybody())
    assert left > 150
    until_idle(client)
    state = engine.state()
    assert (state.running, state.waiting, state.failed) == (0, 0, 0)
    answer = client.post(body(3, max_tokens=20, temperature=1.5, seed=1)).json()
    assert engine.state().tokens - state.tokens == answer["usage"]["completion_tokens"] <= 20
    assert client.healthy()


def test_who_leaves_in_the_middle_costs_at_most_one_more_token(client: Client, engine: Engine) -> None:
    until_idle(client)
    with client.http.stream("POST", "/v1/chat/completions", json=body(1, max_tokens=2000, stream=True)) as answer:
        lines = answer.iter_lines()
        for _ in range(4):
            next(lines)
    until_idle(client)
    tokens = engine.state().tokens
    time.sleep(0.3)
    assert engine.state().tokens == tokens and engine.state().running == 0
