"""Models behind an endpoint: what is sent, what comes back, and what every kind of failure says. On a real server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from workbench.chat_model import SamplingOptions, Usage
from workbench.conversation import Conversation, Image, Message
from workbench.errors import ImageError, WorkbenchError
from workbench.remote import RemoteError, RemoteModel, retry_after

sys.path.insert(0, str(Path(__file__).parent))
from teacher_server import FAULTS, TeacherServer, serving  # noqa: E402


@pytest.fixture
def served() -> Iterator[tuple[TeacherServer, str]]:
    with serving() as pair:
        yield pair


def asked(text: str = "What?", *media: Any) -> Conversation:
    return Conversation("a", (Message("system", ("Be brief.",)), Message("user", (*media, text))))


@contextmanager
def answering(
    *pieces: bytes, status: str = "200 OK", kind: str = "application/json", gap: float = 0.0
) -> Iterator[Any]:
    """A server that sends these bytes whatever it is asked, then waits until the client hangs up. Gives its URL and,
    growing, the bodies it was sent and None for every client that hung up."""
    seen: list[dict[str, Any] | None] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket, got: Any) -> None:
        """Every request of one connection."""
        while head := b"\n".join(iter(lambda: got.readline().strip(), b"")).lower():
            if b"content-length:" in head:
                seen.append(json.loads(got.read(int(head.partition(b"content-length:")[2].split()[0]))))
            length = f"Content-Length: {sum(map(len, pieces))}\r\n" if kind != EVENTS else ""
            connection.sendall(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{length}\r\n".encode())
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(gap)

    def serve() -> None:
        with suppress(OSError):  # the end of the test
            while True:
                connection, _ = listening.accept()
                with connection, connection.makefile("rb") as got, suppress(OSError):
                    answer(connection, got)
                seen.append(None)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1", seen
    finally:
        listening.close()


EVENTS = "text/event-stream"


def event(word: str) -> bytes:
    choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "t", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


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


def test_a_picture_that_cannot_be_read_is_named(served: tuple[TeacherServer, str], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "sound.webp").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    model = RemoteModel("gpt", url=served[1], open_image=lambda image: tmp_path / image.path)
    for name in ("gone.png", "text.png", "sound.webp"):
        with pytest.raises(ImageError, match=name):
            ask(model, asked("What?", Image(name)))


def test_pictures_that_png_cannot_hold_and_turned_ones_are_sent_upright(
    served: tuple[TeacherServer, str], tmp_path: Path
) -> None:
    turned = PILImage.new("RGB", (7, 5))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / "turned.avif", exif=exif)
    sources = {"turned": tmp_path / "turned.avif", "cmyk": PILImage.new("CMYK", (7, 5))}
    ask(
        RemoteModel("gpt", url=served[1], open_image=lambda image: sources[image.path]),
        asked("?", *map(Image, sources)),
    )
    urls = [part["image_url"]["url"] for part in served[0].requests[0]["messages"][1]["content"][:2]]
    sent = [PILImage.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    assert [picture.size for picture in sent] == [(5, 7), (7, 5)]


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


def test_tokens_of_pictures_and_cached_ones_are_counted_where_they_are_told() -> None:
    told = {
        "prompt_tokens": 90,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 8, "image_tokens": 64},
    }
    choice = {"index": 0, "message": {"role": "assistant", "content": "red"}, "finish_reason": "stop"}
    with answering(json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": told}).encode()) as (url, _):
        assert ask(RemoteModel("gpt", url=url)).usage == Usage(90, 2, 8, 64)


def test_an_empty_text_is_a_reply() -> None:
    with serving(share=1.0, most=1, faults=("empty text",)) as (_, url):
        assert ask(RemoteModel("gpt", url=url)).text == ""


@pytest.mark.parametrize(
    ("status", "body", "again"),
    [(400, "{}", False), (403, "{}", False), (404, "{}", False), (422, "{}", False), (408, "{}", True),
     (409, "{}", True), (425, "{}", True), (502, "", True), (529, "{}", True),
     (429, '{"error": {"code": "insufficient_quota"}}', False), (200, "", True),
     (200, "<html>Ollama is running</html>", True), (200, '{"choices": []}', True), (200, "[]", True)],
)  # fmt: skip
def test_what_may_succeed_later_follows_from_the_status_and_the_body(status: int, body: str, again: bool) -> None:
    with answering(body.encode(), status=f"{status} X") as (url, _), pytest.raises(RemoteError) as caught:
        ask(RemoteModel("gpt", url=url))
    assert (caught.value.retry, caught.value.status) == (again, status)


def test_a_model_that_is_not_there_is_told_with_those_that_are() -> None:
    with serving() as (server, url):
        server.models = ("teacher", "other")
        with pytest.raises(RemoteError, match="it has teacher, other") as caught:
            ask(RemoteModel("gtp", url=url))
        assert not caught.value.retry


def test_one_byte_at_a_time_does_not_hold_a_request_beyond_its_time() -> None:
    slow, began = [b"{", *[b" "] * 300], time.monotonic()  # 30 seconds
    with answering(*slow, gap=0.1) as (url, _), pytest.raises(RemoteError, match="within 0.5 seconds"):
        ask(RemoteModel("gpt", url=url, timeout=0.5))
    with answering(*slow, gap=0.1, kind=EVENTS) as (url, _), pytest.raises(RemoteError, match="within 0.5 seconds"):
        _ = RemoteModel("gpt", url=url, timeout=0.5).reply(asked()).text
    assert time.monotonic() - began < 25


def test_an_endpoint_that_is_not_there_may_come_back() -> None:
    with pytest.raises(RemoteError, match="broken connection") as caught:
        ask(RemoteModel("gpt", url="http://127.0.0.1:9/v1"))
    assert caught.value.retry and caught.value.status is None
    assert caught.value.broken and not caught.value.sent


def test_a_connection_that_breaks_may_have_carried_the_request() -> None:
    with serving(share=1.0, most=1, faults=("drop in body",)) as (_, url), pytest.raises(RemoteError) as caught:
        ask(RemoteModel("gpt", url=url))
    assert caught.value.broken and caught.value.sent


def test_a_wrong_key_is_final_and_never_shown() -> None:
    with serving(key="right") as (_, url):
        model = RemoteModel("gpt", url=url, api_key="sk-wrong-123")
        with pytest.raises(RemoteError, match="set the API key") as caught:
            ask(model)
        assert not caught.value.retry and caught.value.status == 401
        assert "sk-wrong" not in f"{caught.value} {model!r}"
        assert ask(RemoteModel("gpt", url=url, api_key="right\n")).text, "the end of a line is no part of a key"


@pytest.mark.parametrize(("status", "body"), [(200, '{"error": "sk-9876543210"}'), (500, "x" * 190 + "sk-9876543210")])
def test_a_key_that_an_endpoint_repeats_is_not_shown_nor_its_beginning(status: int, body: str) -> None:
    with answering(body.encode(), status=f"{status} X") as (url, _), pytest.raises(RemoteError) as caught:
        ask(RemoteModel("gpt", url=url, api_key="sk-9876543210"))
    assert "sk-9" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-98 76", "sk-98\n76", "sk-98\u00e976"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(WorkbenchError, match="the API key") as caught:
        RemoteModel("gpt", api_key=key)
    assert "sk-98" not in str(caught.value)


def test_without_a_key_the_word_none_stays_readable() -> None:
    with answering(b"none is ready", status="500 X") as (url, _), pytest.raises(RemoteError, match="none is ready"):
        ask(RemoteModel("gpt", url=url))


@pytest.mark.parametrize("url", ["localhost:8000/v1", "http://", "http://[::1", "ftp://a/v1", "http://a:port/v1"])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(WorkbenchError, match="the URL of an endpoint"):
        RemoteModel("gpt", url=url)


def test_a_password_in_the_url_is_not_shown() -> None:
    model = RemoteModel("gpt", url="http://me:secret@127.0.0.1:9/v1")
    with pytest.raises(RemoteError) as caught:
        ask(model)
    assert "secret" not in f"{caught.value} {model!r}" and "127.0.0.1:9" in f"{caught.value}"


def test_url_and_key_come_from_the_environment(
    served: tuple[TeacherServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = served
    server.key = "right"
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    assert ask(RemoteModel("gpt")).text


def test_options_beyond_openai_are_passed_on_and_left_out_where_they_are_refused(
    served: tuple[TeacherServer, str],
) -> None:
    server, url = served
    options = SamplingOptions(
        top_k=5, min_p=0.1, repetition_penalty=1.2, logprobs=3, json_schema='{"type": "object"}', temperature=0.5
    )
    assert ask(RemoteModel("gpt", url=url), options=options).text
    names = ("top_k", "min_p", "repetition_penalty", "logprobs", "top_logprobs")
    assert [server.requests[0][name] for name in names] == [5, 0.1, 1.2, True, 3]
    assert server.requests[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    server.refuses = {"min_p"}
    model = RemoteModel("gpt", url=url)
    assert ask(model, options=options).text and ask(model, options=options).text
    assert ["min_p" in sent for sent in server.requests[1:]] == [True, False, False]
    assert "top_k" in server.requests[-1]


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


@pytest.mark.parametrize(
    "told",
    ["'max_tokens' or 'max_completion_tokens' is too large: 9000. This model's maximum context length is 4096 tokens.",
     "Your prompt 'what is the temperature' was flagged"],
)  # fmt: skip
def test_a_value_that_is_too_large_and_a_word_of_the_prompt_are_no_refused_fields(told: str) -> None:
    with answering(told.encode(), status="400 X") as (url, seen), pytest.raises(RemoteError) as caught:
        ask(RemoteModel("gpt", url=url))
    assert caught.value.status == 400 and len([one for one in seen if one]) == 1


def test_a_schema_that_is_refused_late_in_a_long_message_is_left_out() -> None:
    told = f"{'x' * 400} ('body', 'response_format'): extra_forbidden"
    with answering(told.encode(), status="422 X") as (url, seen), pytest.raises(RemoteError):
        ask(RemoteModel("gpt", url=url), schema={"type": "object"})
    assert ["response_format" in one for one in seen if one] == [True, False]


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


def test_a_batch_draws_each_row_with_its_own_seed_and_ends_with_its_first_error() -> None:
    with serving() as (server, url), RemoteModel("gpt", url=url) as model:
        model.reply_batch([asked("a"), asked("b"), asked("c")], SamplingOptions(seed=5))
        assert sorted(sent["seed"] for sent in server.requests) == [5, 6, 7]
        server.key = "another"
        with pytest.raises(RemoteError, match="401"):
            model.reply_batch([asked("a"), asked("b")])


def test_a_stream_can_be_cancelled(served: tuple[TeacherServer, str]) -> None:
    server, url = served
    server.reply = lambda prompt: "word " * 500
    answer = RemoteModel("gpt", url=url).reply(asked())
    for number, _ in enumerate(answer):
        if number == 3:
            answer.cancel()
    assert answer.finish_reason == "cancelled" and len(answer.text.split()) == 4


def test_cancelling_closes_the_connection_of_a_server_that_says_no_more() -> None:
    with answering(event("one "), kind=EVENTS) as (url, seen):
        answer = RemoteModel("gpt", url=url, timeout=30).reply(asked())
        threading.Timer(0.2, answer.cancel).start()
        began = time.monotonic()
        assert (answer.text, answer.finish_reason) == ("one ", "cancelled")
        while None not in seen and time.monotonic() - began < 10:
            time.sleep(0.01)
        assert None in seen and time.monotonic() - began < 10, "not after 30 seconds, when it would have timed out"


@pytest.mark.parametrize("fault", ["drop in body", "wrong json", "error in 200", "503 html", "drop", "half json"])
def test_half_a_stream_is_an_error_and_no_answer(fault: str) -> None:
    with serving(share=1.0, most=1, faults=(fault,)) as (_, url):
        model = RemoteModel("gpt", url=url)
        with pytest.raises(RemoteError) as caught:
            _ = model.reply(asked()).text
        assert caught.value.retry
        answer = model.reply(asked())
        assert "What is" in answer.text and answer.usage.completion_tokens == 20


def test_it_answers_inside_a_running_event_loop(served: tuple[TeacherServer, str]) -> None:
    async def cell() -> str:
        return RemoteModel("gpt", url=served[1]).reply(asked()).text

    assert "What is" in asyncio.run(cell())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({}, None), ({"retry-after": "3"}, 3), ({"retry-after-ms": "250"}, 0.25), ({"retry-after": "soon"}, None),
     ({"retry-after-ms": "nan"}, None), ({"retry-after-ms": "inf"}, None), ({"retry-after": "-1"}, None),
     ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0)],
)  # fmt: skip
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds
