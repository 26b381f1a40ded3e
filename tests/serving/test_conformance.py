"""The contract tests themselves: a server that keeps to everything passes, each fault is found by its own check."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from workbench import cli
from workbench.serving.conformance import CHECKS, conformance

sys.path.insert(0, str(Path(__file__).parent))
from small_run import small_run  # noqa: E402

NAME = "stand-in"


class Refused(Exception):
    pass


class StandIn(BaseHTTPRequestHandler):
    """What OpenAI's chat completions promise, with an answer made of the question; `fault` breaks one promise."""

    fault = ""
    owed: list[float] = []

    def do_GET(self) -> None:
        if self.fault == "a web site":
            return self.send(200, "<html>\nHello.\n</html>")
        listed = [] if self.fault in ("models", "no answers") else [{"id": NAME, "object": "model"}]
        self.send(200, {"object": "list", "data": listed})

    def do_POST(self) -> None:
        try:
            sent = self.rfile.read(int(self.headers["content-length"]))
            if self.fault in ("a web site", "no answers"):
                return self.send(501, "<html>\nUnsupported method\n</html>")
            body = json.loads(sent)
            self.answer(body)
        except (Refused, ValueError) as error:
            status = 404 if "model" in str(error) else 400
            told: Any = {"error": {"message": str(error), "type": "invalid_request_error"}}
            if self.fault == "plain errors":
                told = "<!DOCTYPE HTML>\n<html>\n" + "  <p>Bad Request</p>\n" * 20
            self.send(500 if self.fault == "status" and status == 404 else status, told)

    def answer(self, body: dict[str, Any]) -> None:
        prompt, seen = self.check(body)
        words = f"{prompt} {seen} and so on for ever".split() * 3
        if body.get("temperature", 0) > 0.5 and (self.fault == "seed" or "seed" not in body):
            words = [str(time.monotonic_ns()), *words]
        limit = 10_000 if self.fault == "max_tokens" else body.get("max_tokens", 16)
        said, reason = " ".join(words[:limit]), "length"
        for stop in body.get("stop") or []:
            if stop in said and self.fault != "stop":
                said, reason = said[: said.index(stop)], "stop"
        count = len(said.split())
        prompt_tokens = len(prompt.split()) + (0 if self.fault == "image left out" else 10 * bool(seen))
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count, "total_tokens": prompt_tokens + count}
        if body.get("stream"):
            return self.stream(said, reason, usage if body.get("stream_options") else None)
        usage["total_tokens"] += self.fault == "usage"
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": reason}
        if body.get("logprobs") and self.fault != "logprobs":
            top = [{"token": "a", "logprob": -0.1}] * body.get("top_logprobs", 0)
            choice["logprobs"] = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": top}]}
        many = 1 if self.fault == "n" else body.get("n", 1)
        choices = [{"index": index, **choice} for index in range(many)]
        self.send(200, {"id": "c", "object": "chat.completion", "model": NAME, "choices": choices, "usage": usage})

    def check(self, body: dict[str, Any]) -> tuple[str, str]:
        """(the text asked, what stands for the picture)"""
        if body["model"] != NAME and self.fault != "any model":
            raise Refused(f"no model {body['model']}")
        if not body["messages"] and self.fault != "no messages":
            raise Refused("messages: found none")
        if (body.get("temperature", 0) < 0 or body["max_tokens"] < 1) and self.fault != "values":
            raise Refused("temperature or max_tokens makes no sense")
        content = body["messages"][-1]["content"] if body["messages"] else ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        if len(text.split()) > 1000 and self.fault != "length":
            raise Refused(
                f"found {len(text.split())} tokens, expected at most 1000" if self.fault != "no number" else "long"
            )
        seen = ""
        for part in parts:
            if part["type"] == "image_url":
                url = part["image_url"]["url"]
                if not url.startswith("data:") and self.fault != "paths":
                    raise Refused("only data URIs")
                data = base64.b64decode(url.partition(",")[2])
                if len(data) < 40 and url.startswith("data:") and self.fault != "broken images":
                    raise Refused("no picture")
                seen = "picture" if self.fault == "same image" else f"picture{sum(data)}"
        return text, seen

    def stream(self, said: str, reason: str, usage: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        pieces = [{"delta": {"content": piece}, "finish_reason": None} for piece in said.split(" ")]
        for piece in pieces[1:]:
            piece["delta"]["content"] = ("" if self.fault == "other stream" else " ") + piece["delta"]["content"]
        chunks: list[Any] = [{"choices": [{"index": 0, **one}]} for one in pieces]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        if usage and self.fault != "stream usage":
            chunks.append({"choices": [], "usage": usage})
        events = [json.dumps({"id": "c", "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
        if self.fault == "busy" and said.count(" ") > 16:  # first: writing fails once the client has left
            self.owed.append(0.4)  # seconds of work for a client that may have left
        for event in (*events, *([] if self.fault == "done" else ["[DONE]"])):
            self.wfile.write(f"data: {event}\n\n".encode())

    def send(self, status: int, body: Any) -> None:
        time.sleep(sum(self.owed))
        self.owed.clear()
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@contextmanager
def standing_in(fault: str = "") -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Faulty", (StandIn,), {"fault": fault, "owed": []}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def failed(url: str) -> dict[str, str]:
    report = conformance(url)
    return {one.check: one.reason for one in report.outcomes if one.result != "pass"}


def test_a_server_that_keeps_to_everything_passes_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in() as url:
        assert cli.main(["conformance", url, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and found["model"] == NAME and len(found["checks"]) == len(CHECKS)
    assert {one["result"] for one in found["checks"]} == {"pass"}


@pytest.mark.parametrize(
    "fault, check",
    [
        ("models", "models are listed"), ("usage", "a question is answered"), ("max_tokens", "max tokens cuts"),
        ("done", "a stream ends with done"), ("other stream", "a stream says what an answer says"),
        ("stream usage", "a stream counts tokens when asked"), ("stop", "a stop text stops"),
        ("seed", "a seed repeats"), ("n", "n gives n choices"), ("logprobs", "logprobs are given"),
        ("image left out", "an image is understood"), ("same image", "another image is another question"),
        ("broken images", "a broken image is refused"), ("paths", "a local path is refused"),
        ("any model", "an unknown model is refused"), ("status", "an unknown model is refused"),
        ("no messages", "no messages are refused"), ("plain errors", "broken json is refused"),
        ("values", "senseless values are refused"), ("length", "too long a prompt is refused"),
        ("no number", "too long a prompt is refused"), ("busy", "leaving frees the server"),
    ],
)  # fmt: skip
def test_each_fault_is_found_by_its_own_check(fault: str, check: str) -> None:
    with standing_in(fault) as url:
        found = failed(url)
    assert check in found, found
    assert fault in ("plain errors", "models") or list(found) == [check], found


def test_a_failure_is_exit_status_1_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in("done") as url:
        assert cli.main(["conformance", url]) == 1
    told = capsys.readouterr().out
    assert "fail     a stream ends with done" in told and "20 pass, 1 fail, 0 skipped" in told


def test_every_row_is_one_line_whatever_a_server_says(capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in("plain errors") as url:
        assert cli.main(["conformance", url]) == 1
    heading, *rows, counts = capsys.readouterr().out.splitlines()
    assert heading == f"{NAME} at {url}" and len(rows) == len(CHECKS) and "pass" in counts
    assert any("<!DOCTYPE HTML> <html>" in row for row in rows) and max(map(len, rows)) < 170


def test_what_is_no_such_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in("a web site") as url:
        assert cli.main(["conformance", url]) == 1
    told = capsys.readouterr()
    assert "found no JSON for models (200) and chat/completions (501); it does not look like an OpenAI" in told.err
    assert told.out == "" and len(told.err.splitlines()) == 1


def test_a_server_that_answers_nothing_has_failed_to_stop_and_names_no_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with standing_in("no answers") as url:
        assert cli.main(["conformance", url]) == 1
    told = capsys.readouterr().out
    assert told.startswith(f"{url}, which names no model\n")
    assert "  fail     a stop text stops                  expected 200; found 501\n" in told


def test_no_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["conformance", "http://127.0.0.1:9/v1"]) == 1
    assert "error: http://127.0.0.1:9/v1: found no server" in capsys.readouterr().err


def test_our_own_server_keeps_to_it(tmp_path: Path) -> None:
    from workbench.inference.opening import open_model
    from workbench.serving.run import Server

    server = Server(open_model(small_run(tmp_path)), port=0).start()
    try:
        found = failed(server.url)
    finally:
        server.close()
    assert found == {}, found
