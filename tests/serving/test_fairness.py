"""Clients take turns: one with many requests in line starves nobody, by key or by address, and fills nobody's line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from tests.serving.requests_made import Client, asked
from workbench.chat_model import ScriptedModel
from workbench.conversation import Conversation
from workbench.serving.limits import Limits

Serving = Callable[..., Client]
KEYS = ("key of the first", "key of another")


class Gated(ScriptedModel):
    """Answers nothing while its gate is closed; `order` is the order in which requests got their slot."""

    def __init__(self) -> None:
        super().__init__(self._say)
        self.gate = threading.Event()
        self.order: list[str] = []

    def _say(self, conversation: Conversation) -> str:
        self.order.append(conversation.messages[-1].text)
        assert self.gate.wait(30)
        return "yes"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(70) as made:
        yield made


@pytest.fixture
def crowd_of(serving: Serving, pool: ThreadPoolExecutor) -> Iterator[Callable[[str, int], Crowd]]:
    """`crowd_of(way, waiting)`: two clients told apart by key or address, and a line for so many."""
    made: list[Crowd] = []

    def make(way: str, waiting: int) -> Crowd:
        made.append(Crowd(serving, pool, way, waiting))
        return made[-1]

    yield make
    for crowd in made:
        crowd.model.gate.set()
        for one in (*crowd.http, crowd.client.http):
            one.close()


def http_of(client: Client, way: str, number: int) -> httpx.Client:
    """One of two clients: by key or, on loopback, by address."""
    headers = {"authorization": f"Bearer {KEYS[number] if way == 'key' else KEYS[0]}"}
    from_here = httpx.HTTPTransport(local_address="127.0.0.1" if way == "key" else f"127.0.0.{number + 1}")
    return httpx.Client(base_url=client.root, headers=headers, transport=from_here, timeout=60)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


class Crowd:
    """Two clients of one server with one slot, and what they are told."""

    def __init__(self, serving: Serving, pool: ThreadPoolExecutor, way: str, waiting: int) -> None:
        self.model = Gated()
        keys = KEYS if way == "key" else KEYS[:1]
        self.client = serving(self.model, limits=Limits(slots=1, waiting=waiting), api_key=keys)
        self.desk, self.pool = self.client.server.api.desk, pool
        self.http = [http_of(self.client, way, number) for number in range(2)]

    def ask(self, who: int, text: str, instead: Future[httpx.Response] | None = None) -> Future[httpx.Response]:
        """Ask, and come back when it has its place in line (that of `instead`), or its answer."""
        before = self.desk.taken + self.desk.waiting
        body = {"model": self.client.name, **asked(text)}
        told = self.pool.submit(self.http[who].post, "/v1/chat/completions", json=body)
        placed = lambda: self.desk.taken + self.desk.waiting > before if instead is None else instead.done()  # noqa: E731
        until(lambda: placed() or told.done())
        return told


@pytest.mark.parametrize("way", ["key", "address"])
def test_a_client_with_fifty_in_line_does_not_starve_another(way: str, crowd_of: Callable[[str, int], Crowd]) -> None:
    crowd = crowd_of(way, 100)
    many = [crowd.ask(0, f"many {number}") for number in range(51)]
    few = [crowd.ask(1, f"few {number}") for number in range(3)]
    assert crowd.desk.waiting == 53
    crowd.model.gate.set()
    assert all(one.result().status_code == 200 for one in (*many, *few))
    order = crowd.model.order
    assert [order.index(f"few {number}") for number in range(3)] == [2, 4, 6], order[:9]
    assert [one for one in order if one.startswith("many")] == [f"many {number}" for number in range(51)]


@pytest.mark.parametrize("way", ["key", "address"])
def test_a_line_that_one_client_fills_has_room_for_another(way: str, crowd_of: Callable[[str, int], Crowd]) -> None:
    crowd = crowd_of(way, 6)
    many = [crowd.ask(0, f"many {number}") for number in range(7)]
    over = crowd.ask(0, "one too many").result()
    assert over.status_code == 429 and int(over.headers["retry-after"]) >= 1
    few = [crowd.ask(1, f"few {number}", instead=many[-1 - number]) for number in range(3)]
    pushed = [many[-number].result() for number in (1, 2, 3)]
    assert [one.status_code for one in pushed] == [429] * 3 and pushed[0].json()["error"][
        "code"
    ] == "rate_limit_exceeded"
    assert crowd.ask(1, "few 3").result().status_code == 429  # now both have three in line
    assert crowd.desk.waiting == 6
    crowd.model.gate.set()
    assert all(one.result().status_code == 200 for one in (*many[:4], *few))
    until(lambda: crowd.desk.taken == 0)
    assert crowd.desk.waiting == 0 and crowd.client.http.get("/health").status_code == 200


def test_who_leaves_the_line_takes_no_turn(crowd_of: Callable[[str, int], Crowd], pool: ThreadPoolExecutor) -> None:
    crowd = crowd_of("address", 20)
    first = crowd.ask(0, "first")
    impatient = httpx.Timeout(30, read=0.3)
    body = {"model": crowd.client.name, **asked("impatient")}
    gone = [pool.submit(crowd.http[1].post, "/v1/chat/completions", json=body, timeout=impatient) for _ in range(4)]
    until(lambda: crowd.desk.waiting == 4)
    patient = crowd.ask(0, "patient")
    until(lambda: crowd.desk.waiting == 1)
    crowd.model.gate.set()
    assert first.result().status_code == patient.result().status_code == 200
    assert all(isinstance(one.exception(), httpx.ReadTimeout) for one in gone)
    assert crowd.model.order == ["first", "patient"] and crowd.desk.taken == crowd.desk.waiting == 0
