"""Models behind an endpoint: what is sent, what comes back, and what every kind of failure says. On a real server."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image, Message
from workbench.remote import RemoteError, RemoteModel, retry_after

sys.path.insert(0, str(Path(__file__).parent))
from teacher_server import FAULTS, TeacherServer, serving  # noqa: E402


@pytest.fixture
def served() -> Iterator[tuple[TeacherServer, str]]:
    with serving() as pair:
        yield pair


def asked(text: str = "What?", *media: Any) -> Conversation:
    return Conversation("a", (Message("system", ("Be brief.",)), Message("user", (*media, text))))


def ask(model: RemoteModel, conversation: Conversation | None = None, **more: Any) -> Any:
    async def once() -> Any:
        try:
            return await model.ask(conversation or asked(), **more)
        finally:
            await model.close()

    return asyncio.run(once())


def test_a_reply_is_kept_whole(served: tuple[TeacherServer, str]) -> None:
    server, url = served
    reply = ask(
        RemoteModel("gpt", url=url),
        options=SamplingOptions(temperature=0.5, top_p=0.9, seed=7, max_tokens=9, stop=("x",)),
    )
    sent = server.requests[0]
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    assert {name: sent[name] for name in ("model", "temperature", "top_p", "seed", "max_tokens", "stop")} == {
        "model": "gpt", "temperature": 0.5, "top_p": 0.9, "seed": 7, "max_tokens": 9, "stop": ["x"],
    }  # fmt: skip
    assert json.loads(reply.raw)["choices"][0]["message"]["content"] == reply.text
    assert (reply.finish_reason, reply.model, reply.usage.prompt_tokens, reply.usage.completion_tokens) == (
        "stop",
        "teacher-1",
        50,
        20,
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_pictures_arrive_bit_by_bit_or_as_png(served: tuple[TeacherServer, str], tmp_path: Path, suffix: str) -> None:
    server, url = served
    file = tmp_path / f"a.{suffix}"
    PILImage.new("RGB", (7, 5), (200, 10, 30)).save(file)
    ask(RemoteModel("gpt", url=url, open_image=lambda image: file), asked("What?", Image("a"), Image("a")))
    parts = server.requests[0]["messages"][1]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    head, _, data = parts[0]["image_url"]["url"].partition(",")
    sent = base64.b64decode(data)
    if suffix in ("bmp", "tiff"):
        assert head == "data:image/png;base64" and sent.startswith(b"\x89PNG")
    else:
        assert head == f"data:image/{suffix.replace('jpg', 'jpeg')};base64" and sent == file.read_bytes()


@pytest.mark.parametrize("fault", FAULTS)
def test_every_failure_that_may_pass_says_so(fault: str) -> None:
    with serving(share=1.0, most=1, faults=(fault,), after=7) as (_, url):
        model = RemoteModel("gpt", url=url, timeout=0.6)
        with pytest.raises(RemoteError) as caught:
            ask(model)
        error = caught.value
        assert error.retry and "gpt at http://127.0.0.1" in str(error)
        assert error.retry_after == (7 if fault == "429 after" else None)
        assert "<h1>" not in str(error)
        assert "What is" in ask(model).text, "and the next try gets its answer"


def test_an_endpoint_that_is_not_there_may_come_back() -> None:
    with pytest.raises(RemoteError, match="broken connection") as caught:
        ask(RemoteModel("gpt", url="http://127.0.0.1:9/v1"))
    assert caught.value.retry and caught.value.status is None


def test_a_wrong_key_is_final_and_never_shown() -> None:
    with serving(key="right") as (_, url):
        model = RemoteModel("gpt", url=url, api_key="sk-wrong-123")
        with pytest.raises(RemoteError, match="set the API key") as caught:
            ask(model)
        assert not caught.value.retry and caught.value.status == 401
        assert "sk-wrong" not in f"{caught.value} {model!r}"
        assert ask(RemoteModel("gpt", url=url, api_key="right")).text


@pytest.mark.parametrize("name", ["response_format", "max_tokens", "temperature", "seed"])
def test_a_field_that_an_endpoint_refuses_is_left_out_from_then_on(
    served: tuple[TeacherServer, str], name: str
) -> None:
    server, url = served
    server.refuses = {name}
    model = RemoteModel("gpt", url=url)
    for _ in range(2):
        assert ask(model, options=SamplingOptions(seed=1, max_tokens=5), schema={"type": "object"}).text
    assert [name in sent for sent in server.requests] == [True, False, False]
    if name == "max_tokens":
        assert server.requests[-1]["max_completion_tokens"] == 5


def test_a_schema_is_sent_as_the_format_of_the_reply(served: tuple[TeacherServer, str]) -> None:
    server, url = served
    ask(RemoteModel("gpt", url=url), schema={"type": "object"})
    shape = server.requests[0]["response_format"]
    assert shape["type"] == "json_schema" and shape["json_schema"]["schema"] == {"type": "object"}


def test_it_is_a_chat_model_that_streams_and_answers_in_batches(served: tuple[TeacherServer, str]) -> None:
    server, url = served
    server.reply = lambda prompt: "one two three"
    model = RemoteModel("gpt", url=url)
    answer = model.reply(asked())
    assert [piece.strip() for piece in answer] == ["one", "two", "three"] and answer.finish_reason == "stop"
    assert [one.text.split() for one in model.reply_batch([asked("a"), asked("b")])] == [["one", "two", "three"]] * 2


def test_a_stream_can_be_cancelled(served: tuple[TeacherServer, str]) -> None:
    server, url = served
    server.reply = lambda prompt: "word " * 500
    answer = RemoteModel("gpt", url=url).reply(asked())
    for number, _ in enumerate(answer):
        if number == 3:
            answer.cancel()
    assert answer.finish_reason == "cancelled" and len(answer.text.split()) == 4


def test_it_answers_inside_a_running_event_loop(served: tuple[TeacherServer, str]) -> None:
    async def cell() -> str:
        return RemoteModel("gpt", url=served[1]).reply(asked()).text

    assert "What is" in asyncio.run(cell())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({}, None), ({"retry-after": "3"}, 3), ({"retry-after-ms": "250"}, 0.25), ({"retry-after": "soon"}, None),
     ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0)],
)  # fmt: skip
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds
