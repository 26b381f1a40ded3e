"""What a client sees: answers whole and streamed, options, usage, and every mistake as an error object."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.serving.requests_made import Client, Paced, asked, encoded, picture, uri
from workbench.chat_model import GREEDY, Answer, Ending, Pieces, SamplingOptions, ScriptedModel, TokenLogprob, Usage
from workbench.conversation import Conversation, Image
from workbench.errors import ContextError
from workbench.serving.limits import Limits

Serving = Callable[..., Client]


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


class Failing:
    """A model that raises: `at_once` when it is asked, else after a first word."""

    name = "failing"

    def __init__(self, problem: BaseException, *, at_once: bool = True) -> None:
        self.problem, self.at_once = problem, at_once

    def reply(self, conversation: Conversation, options: SamplingOptions = GREEDY) -> Answer:
        if self.at_once:
            raise self.problem

        def write(cancelled: Any) -> Pieces:
            yield "one "
            raise self.problem

        return Answer(write)


# --- answers --------------------------------------------------------------------------------------------------


def test_an_answer_has_every_field_that_clients_read(serving: Serving) -> None:
    body = serving().post(asked("what is it?")).json()
    assert body["id"].startswith("chatcmpl-") and body["object"] == "chat.completion" and body["model"] == "scripted"
    assert abs(body["created"] - time.time()) < 60 and body["system_fingerprint"] is None
    message = {"role": "assistant", "content": "a red cube on the left", "refusal": None}
    assert body["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"]["prompt_tokens"] == 3 and body["usage"]["completion_tokens"] == 6
    assert body["usage"]["total_tokens"] == 9
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0, "image_tokens": 0, "audio_tokens": 0}


def test_a_stream_says_the_same_piece_by_piece_and_ends_with_done(serving: Serving) -> None:
    client = serving()
    answer = client.post(asked("what?", stream=True, stream_options={"include_usage": True}))
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(answer.text)
    assert {(chunk["object"], chunk["id"], chunk["usage"]) for chunk in chunks} == {
        ("chat.completion.chunk", last["id"], None)
    }
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None} and deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == client.text(asked("what?"))
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 6
    plain = events(client.post(asked("what?", stream=True)).text)
    assert len(plain) == len(chunks) and "usage" not in plain[0]


def test_options_reach_the_model_and_seeds_differ_by_choice(serving: Serving) -> None:
    seen = []

    class Noting(ScriptedModel):
        def reply(self, conversation: Conversation, options: SamplingOptions = GREEDY) -> Answer:
            seen.append(options)
            return super().reply(conversation, options)

    client = serving(Noting(lambda conversation: "yes. no. perhaps."))
    given = {"temperature": 0.7, "top_p": 0.9, "seed": 5, "stop": "no", "max_tokens": 7, "max_completion_tokens": 7}
    more = {"n": 3, "logprobs": True, "top_logprobs": 2, "top_k": -1, "user": "u", "some_new_field": {"a": 1}}
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    body = client.post(asked("q", **given, **more, response_format=form)).json()
    assert [choice["message"]["content"] for choice in body["choices"]] == ["yes. "] * 3
    assert sorted(options.seed for options in seen) == [5, 6, 7]
    assert {(o.temperature, o.top_p, o.top_k, o.max_tokens, o.stop, o.logprobs) for o in seen} == {
        (0.7, 0.9, 0, 7, ("no",), 2)
    }
    assert json.loads(seen[0].json_schema or "") == schema
    assert client.post(asked("q", response_format={"type": "json_object"})).status_code == 200
    assert json.loads(seen[-1].json_schema or "") == {"type": "object"}
    assert client.post(asked("q", max_tokens=1)).json()["choices"][0]["finish_reason"] == "length"
    assert seen[-1].greedy and seen[-1].seed is None


def test_roles_and_parts_become_one_conversation(serving: Serving) -> None:
    model = ScriptedModel(lambda conversation: "ok")
    data = uri(encoded(picture()))
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data, "detail": "low"}}]},
        {"role": "user", "content": "What is <image> and </s>?", "name": "ann"},
        {"role": "assistant", "content": [{"type": "text", "text": "A cube."}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "And here?"}, *asked("", data, data)["messages"][0]["content"][:2]],
        },
    ]
    serving(model).text({"messages": messages})
    made = model.asked[0].messages
    assert [message.role for message in made] == ["system", "user", "assistant", "user"]
    assert made[0].text == "Be short.\n\nBe kind." and made[1].text == "What is <image> and </s>?"
    assert [type(part) for part in made[3].content] == [str, Image, Image]


def test_log_probabilities_follow_their_text_in_both_modes(serving: Serving) -> None:
    tokens = tuple(TokenLogprob(i, t, -i / 2, ((i, t, -i / 2), (9, "é", float("-inf")))) for i, t in enumerate("ab"))

    class Telling(Failing):
        def reply(self, conversation: Conversation, options: SamplingOptions = GREEDY) -> Answer:
            def write(cancelled: Any) -> Pieces:
                yield "a"
                yield "b"
                return Ending("stop", Usage(1, 2), (0, 1), tokens)

            return Answer(write)

    client = serving(Telling(ValueError()))
    whole = client.post(asked("q", logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in whole] == ["a", "b"] and whole[1]["logprob"] == -0.5
    assert whole[0]["top_logprobs"][1] == {"token": "é", "logprob": -9999.0, "bytes": [195, 169]}
    chunks = events(client.post(asked("q", logprobs=True, top_logprobs=2, stream=True)).text)
    found = [one for chunk in chunks for one in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert found == whole
    assert client.post(asked("q")).json()["choices"][0]["logprobs"] is None


# --- mistakes -------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "q"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
    ({"logit_bias": {"5": 1}}, "unsupported_parameter", "logit_bias"),
    ({"presence_penalty": 0.5}, "unsupported_parameter", "presence_penalty"),
    ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions"),
    ({"modalities": ["text", "audio"]}, "invalid_value", "modalities"),
    ({"temperature": -1}, "invalid_value", "temperature"),
    ({"temperature": float("nan")}, "invalid_value", "temperature"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"n": 0}, "invalid_value", "n"),
    ({"n": 100}, "invalid_value", "n"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 4}, "invalid_value", "max_tokens"),
    ({"stop": [""]}, "invalid_value", "stop"),
    ({"stop": ["a"] * 17}, "invalid_value", "stop"),
    ({"seed": "x"}, "invalid_value", "seed"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({"response_format": {"type": "yaml"}}, "invalid_value", "response_format"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0]"),
    ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "invalid_messages", "messages"),
    ({"messages": [{"role": "assistant", "content": "x"}, USER]}, "invalid_messages", "messages"),
    ({"messages": [USER, {"role": "system", "content": "x"}, USER]}, "invalid_messages", "messages"),
    ({"messages": [{"role": "user", "content": " "}]}, "invalid_messages", "messages"),
    ({"messages": [{"role": "system", "content": [PICTURE]}, USER]}, "invalid_value", "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "invalid_value", "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}, USER]}, "unsupported_parameter",
     "messages[0].tool_calls"),
]  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Any:
    from workbench.serving.run import Server

    with Server(ScriptedModel(lambda conversation: "ok"), port=0) as server:
        yield Client(server)


@pytest.mark.parametrize(("change", "code", "param"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_names_its_field(shared: Client, change: dict[str, Any], code: str, param: str) -> None:
    body = json.dumps({"model": "scripted", **asked("q"), **change}).encode()
    answer = shared.post(body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert (error["code"], error["param"]) == (code, param) and error["message"].endswith(".")


def test_harmless_fields_are_ignored(shared: Client) -> None:
    nothing = {"tools": [], "tool_choice": "none", "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": None}
    more = {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "low", "x_unknown": 1}
    assert shared.text(asked("q", **nothing, **more)) == "ok"


def test_wrong_routes_methods_and_models_are_error_objects(shared: Client) -> None:
    for answer, status, code in (
        (shared.http.get("/v1/files"), 404, "unknown_url"),
        (shared.http.get("/v1/chat/completions"), 405, "method_not_allowed"),
        (shared.post(asked("q", model="gpt-4o")), 404, "model_not_found"),
        (shared.http.get("/v1/models/gpt-4o"), 404, "model_not_found"),
        (shared.post(b"{}", headers={"content-type": "text/plain"}), 415, "unsupported_media_type"),
        (shared.http.get("/v1/models", headers={"host": "evil.example"}), 403, "host_not_allowed"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert shared.http.get("/v1/models/scripted").json() == shared.http.get("/v1/models").json()["data"][0]
    assert shared.http.get("/v1/models").headers["x-request-id"].startswith("chatcmpl-")


def test_a_prompt_that_is_too_long_is_told_with_both_numbers(serving: Serving) -> None:
    client = serving(Failing(ContextError("c1", 5000, 4096)))
    for more in ({}, {"stream": True}):
        answer = client.post(asked("q", **more))
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
        assert "maximum context length is 4096 tokens" in answer.text and "5000" in answer.text


@pytest.mark.parametrize("problem", [ValueError("/home/secret/x.py at 10.0.0.7"), KeyError("x")])
def test_a_fault_of_ours_tells_nothing_of_this_machine(
    serving: Serving, problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    client = serving(Failing(problem))
    answer = client.post(asked("q"))
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text and "10.0" not in answer.text
    assert answer.headers["x-request-id"] in answer.text and answer.headers["x-request-id"] in caplog.text
    assert client.healthy() is False


def test_no_memory_fails_one_request(serving: Serving) -> None:
    import torch

    for problem in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes")):
        answer = serving(Failing(problem)).post(asked("q"))
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "out_of_memory"
        assert int(answer.headers["retry-after"]) >= 1


def test_what_fails_in_the_middle_of_a_stream_is_an_event_of_it(serving: Serving) -> None:
    answer = serving(Failing(ValueError("x"), at_once=False)).post(asked("q", stream=True))
    *before, last = events(answer.text)
    assert answer.status_code == 200 and before[-1]["choices"][0]["delta"] == {"content": "one "}
    assert last["error"]["type"] == "server_error"


# --- the line -------------------------------------------------------------------------------------------------


def until(check: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def test_a_full_line_is_told_when_to_come_back(serving: Serving) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = Paced()
    client = serving(model, limits=Limits(slots=1, waiting=2, queue_seconds=5))
    desk = client.server.api.desk
    desk.leave(9.0)  # an answer took nine seconds
    desk.taken += 1
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(client.post, asked("q")) for _ in range(3)]
        until(lambda: desk.taken == 1 and desk.waiting == 2)
        answer = client.post(asked("q"))
        assert answer.status_code == 429 and answer.json()["error"]["type"] == "rate_limit_error"
        assert int(answer.headers["retry-after"]) == 27  # one is written and two wait, nine seconds each
        model.go.set()
        assert [one.result().status_code for one in waiting] == [200] * 3
    assert desk.taken == desk.waiting == 0 and len(client.server.api.pictures) == 0


def test_who_waits_too_long_is_sent_away(serving: Serving) -> None:
    model = Paced()
    client = serving(model, limits=Limits(slots=1, queue_seconds=0.2, answer_seconds=1.0))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, asked("q"))
        until(lambda: model.running == 1)
        answer = client.post(asked("q"))
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "overloaded"
        assert first.result().status_code == 504 and "retry-after" in answer.headers
    until(lambda: client.server.api.desk.taken == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(serving: Serving, stream: bool) -> None:
    import httpx

    model = Paced()
    client = serving(model, limits=Limits(slots=1, waiting=4))
    body = asked("q", uri(encoded(picture())), stream=stream, model="paced")
    with httpx.Client(base_url=client.root, trust_env=False, timeout=0.3) as short:
        for _ in range(2):  # one that is written, and after it one that waits
            with pytest.raises(httpx.TimeoutException):
                short.post("/v1/chat/completions", json=body)
    until(lambda: client.server.api.desk.taken == 0 and model.running == 0)
    assert model.written == 0 and model.cancelled == model.begun and len(client.server.api.pictures) == 0
    model.go.set()
    with client.http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
        next(answer.iter_lines())
    until(lambda: client.server.api.desk.taken == 0)
    assert client.text(asked("q")).startswith("w1 ")


def test_health_sees_a_model_that_has_work_and_writes_nothing(serving: Serving) -> None:
    model = Paced()
    client = serving(model, limits=Limits(slots=2, health_seconds=0.3))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, asked("q"))
        until(lambda: model.running == 1)
        until(lambda: not client.healthy())
        assert client.http.get("/health").json() == {"status": "stuck", "running": 1, "waiting": 0}
        model.go.set()
        assert first.result().status_code == 200
    assert client.healthy()
    begun = model.begun
    assert all(client.healthy() for _ in range(5)) and model.begun <= begun + 1, "one proof serves for a while"


def test_metrics_count_what_happened(serving: Serving) -> None:
    client = serving()
    client.text(asked("one two"))
    client.post(asked("q", n=2, stream=True))
    client.post(asked("q", tools=[1]))
    text = client.http.get("/metrics").text
    for line in (
        'workbench_requests_total{route="/v1/chat/completions",status="200"} 2.0',
        'workbench_requests_total{route="/v1/chat/completions",status="400"} 1.0',
        "workbench_prompt_tokens_total 3.0",
        "workbench_completion_tokens_total 18.0",
        "workbench_request_seconds_count 2.0",
        "workbench_time_to_first_token_seconds_count 2.0",
        "workbench_running 0.0",
        "workbench_slots 64.0",
    ):
        assert line in text.splitlines()
