"""Our contract with clients, asked of any OpenAI-compatible server: what it keeps to, and what it does not.

Knows: the checks, each one function over plain HTTP, and what a client relies on in each.
Does not know: who serves, or how: it imports no server. Nothing is asked that could change or stop the server.
"""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from workbench.display import AsPrinted
from workbench.errors import WorkbenchError, kind_of

TIMEOUT = 120.0
"""Seconds that a server may take over one answer."""
REASON = 120
"""Characters of a reason: one row of the table each."""
LONG = 200_000
"""Words that no context holds."""


@dataclass(frozen=True)
class Outcome:
    check: str
    result: str
    """pass, fail or skipped."""
    reason: str = ""


@dataclass(frozen=True)
class Report(AsPrinted):
    """What came of every check, in order."""

    url: str
    model: str
    """Empty where none was given and the server lists none."""
    outcomes: tuple[Outcome, ...] = field(default=())

    @property
    def passed(self) -> bool:
        return all(outcome.result != "fail" for outcome in self.outcomes)

    def summary(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "model": self.model,
            "passed": self.passed,
            "checks": [asdict(o) for o in self.outcomes],
        }

    def __str__(self) -> str:
        lines = [f"  {one.result:<8} {one.check:<34} {one.reason}".rstrip() for one in self.outcomes]
        counts = {kind: sum(one.result == kind for one in self.outcomes) for kind in ("pass", "fail", "skipped")}
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        heading = f"{self.model} at {self.url}" if self.model else f"{self.url}, which names no model"
        return "\n".join([heading, *lines, told])


class Broken(Exception):
    """What the server did not keep to: expected, found."""


class Skipped(Exception):
    """Why a check could not be asked."""


def conformance(url: str, *, model: str | None = None, api_key: str | None = None) -> Report:
    """Run every check against the server at `url` (with /v1). Raises `WorkbenchError` where nothing answers there.

    model: its name there, by default the first that the server lists. api_key: by default `$OPENAI_API_KEY`.
    """
    if not isinstance(url, str):
        raise WorkbenchError("conformance", found=kind_of(url), expected="a server's address, with /v1")
    import httpx

    key = api_key or os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url.rstrip("/") + "/", headers=headers, timeout=TIMEOUT, trust_env=False) as client:
            listed = client.get("models")
            _check_way_in(url, listed, client)
            name = model or _first_model(listed)
            server = Server(client, name or "model")
            return Report(url, name, tuple(_outcome(name, check, server) for name, check in CHECKS.items()))
    except (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        fix = "start it, and give its address with /v1"
        raise WorkbenchError(url, found=f"no server ({error})", fix=fix) from None


def _check_way_in(url: str, listed: Any, client: Any) -> None:
    """Raise for a key that is missing or wrong, and for an address that is no such server's: no check could pass."""
    status, fix = listed.status_code, "give the address of an OpenAI-compatible server, with /v1"
    if status in (401, 403):
        found, fix = f"{status} without a key that it takes", "give --api-key KEY"
        raise WorkbenchError(url, found=found, fix=fix)
    if status != 404 and _is_json(listed):
        return
    answer = client.post("chat/completions", json={})
    if status == answer.status_code == 404:
        raise WorkbenchError(url, found="404 for models and chat/completions", fix=fix)
    if not _is_json(listed) and not _is_json(answer):
        found = f"no JSON for models ({status}) and chat/completions ({answer.status_code})"
        raise WorkbenchError(url, found=found, fix=f"it does not look like an OpenAI-compatible server: {fix}")


def _is_json(response: Any) -> bool:
    try:
        response.json()
    except ValueError:
        return False
    return True


def _first_model(listed: Any) -> str:
    try:
        return str(listed.json()["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        return ""  # the first check says what is wrong with the list


def _outcome(name: str, check: Callable[[Server], None], server: Server) -> Outcome:
    import httpx

    try:
        check(server)
    except Skipped as why:
        return Outcome(name, "skipped", _one_line(why))
    except Broken as why:
        return Outcome(name, "fail", _one_line(why))
    except httpx.HTTPError as error:
        return Outcome(name, "fail", f"the connection ended: {type(error).__name__}")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        return Outcome(name, "fail", _one_line(f"an answer of another shape ({type(error).__name__}: {error})"))
    return Outcome(name, "pass")


def _one_line(told: object) -> str:
    line = " ".join(str(told).replace("\\n", " ").split())
    return line if len(line) <= REASON else f"{line[: REASON - 4]} ..."


class Server:
    """Requests of one model at one address."""

    def __init__(self, client: Any, model: str) -> None:
        self.client, self.model = client, model

    def post(self, content: Any = "Say something.", **more: Any) -> Any:
        """The response to one question; None as a value leaves the field out."""
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "max_tokens": 8, **more}
        return self.client.post(
            "chat/completions", json={key: value for key, value in body.items() if value is not None}
        )

    def ask(self, content: Any = "Say something.", **more: Any) -> dict[str, Any]:
        """A completion that has to succeed."""
        response = self.post(content, **more)
        expect(response.status_code == 200, "200", f"{response.status_code} {response.text[:120]}")
        return response.json()

    def optional(self, name: str, content: Any = "Say something.", **more: Any) -> dict[str, Any]:
        """A completion with a parameter that a server may refuse, if it does so by name."""
        response = self.post(content, **more)
        if response.status_code in (400, 422) and name in response.text:
            raise Skipped(f"refused by name: {error_of(response)['message'][:90]}")
        expect(response.status_code == 200, f"200, or a refusal that names {name}", f"{response.status_code}")
        return response.json()

    def stream(self, **more: Any) -> Iterator[str]:
        """The data of every event."""
        body = {"model": self.model, "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 8}
        with self.client.stream("POST", "chat/completions", json={**body, "stream": True, **more}) as response:
            expect(response.status_code == 200, "200", str(response.status_code))
            kind = response.headers.get("content-type", "")
            expect(kind.startswith("text/event-stream"), "content type text/event-stream", kind)
            yield from (line[5:].strip() for line in response.iter_lines() if line.startswith("data:"))


def expect(true: bool, expected: str, found: str) -> None:
    if not true:
        raise Broken(f"expected {expected}; found {found}")


def error_of(response: Any) -> dict[str, Any]:
    """The error object of a refusal, which has to have a message and a type."""
    try:
        error = response.json()["error"]
        expect(bool(error["message"]) and "type" in error, "an error object with message and type", str(error)[:120])
        return error
    except (ValueError, KeyError, TypeError):
        raise Broken(f"expected an error object; found {response.text[:120]!r}") from None


def refused(response: Any, *statuses: int) -> dict[str, Any]:
    expect(response.status_code in statuses, " or ".join(map(str, statuses)), f"{response.status_code}")
    return error_of(response)


def picture(colour: tuple[int, int, int]) -> dict[str, Any]:
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (96, 96), colour).save(data, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"},
    }


def text_of(completion: dict[str, Any]) -> str:
    return completion["choices"][0]["message"]["content"] or ""


# --- the checks -----------------------------------------------------------------------------------------------


def models_are_listed(server: Server) -> None:
    listed = server.client.get("models")
    expect(listed.status_code == 200, "200", str(listed.status_code))
    body = listed.json()
    expect(body.get("object") == "list", "object: list", str(body.get("object")))
    names = [one["id"] for one in body["data"]]
    expect(server.model in names, f"{server.model} in the list", str(names)[:120])


def a_question_is_answered(server: Server) -> None:
    answer = server.ask()
    expect(answer["object"] == "chat.completion", "object: chat.completion", str(answer["object"]))
    choice, usage = answer["choices"][0], answer["usage"]
    expect(choice["message"]["role"] == "assistant", "role: assistant", str(choice["message"]["role"]))
    expect(isinstance(choice["message"]["content"], str), "content: a text", str(choice["message"]["content"]))
    expect(choice["finish_reason"] in ("stop", "length"), "finish_reason stop or length", str(choice["finish_reason"]))
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    expect(usage["total_tokens"] == total, f"total_tokens {total}", str(usage["total_tokens"]))


def max_tokens_cuts(server: Server) -> None:
    answer = server.ask("Count from one to one hundred.", max_tokens=2, temperature=0)
    expect(answer["usage"]["completion_tokens"] <= 2, "at most 2 tokens", str(answer["usage"]["completion_tokens"]))


def a_stream_ends_with_done(server: Server) -> None:
    events = list(server.stream())
    expect(bool(events) and events[-1] == "[DONE]", "[DONE] last", repr(events[-1]) if events else "no event")
    chunks = [json.loads(event) for event in events[:-1]]
    kinds = {chunk["object"] for chunk in chunks}
    expect(kinds == {"chat.completion.chunk"}, "object: chat.completion.chunk", str(kinds))
    expect(len({chunk["id"] for chunk in chunks}) == 1, "one id in all chunks", str({chunk["id"] for chunk in chunks}))
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    expect([one for one in reasons if one] in (["stop"], ["length"]), "finish_reason once", str(reasons)[-80:])


def a_stream_says_what_an_answer_says(server: Server) -> None:
    chunks = [json.loads(event) for event in server.stream(temperature=0) if event != "[DONE]"]
    streamed = "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])
    whole = text_of(server.ask(temperature=0))
    expect(streamed == whole, f"{whole!r}", f"{streamed!r}")


def a_stream_counts_tokens_when_asked(server: Server) -> None:
    chunks = [json.loads(one) for one in server.stream(stream_options={"include_usage": True}) if one != "[DONE]"]
    last = chunks[-1]
    expect(last["choices"] == [] and bool(last.get("usage")), "a last chunk with usage and no choices", str(last)[:120])
    early = [chunk for chunk in chunks[:-1] if chunk.get("usage")]
    expect(not early, "usage null before it", str(early)[:80])


def a_stop_text_stops(server: Server) -> None:
    tries: list[Any] = ["Say something.", "Count from one to ten in words."]
    tries.append([picture((250, 0, 0)), {"type": "text", "text": "Describe the picture in detail."}])
    for asked in tries:
        response = server.post(asked, temperature=0, max_tokens=16)
        if asked == tries[0]:
            expect(response.status_code == 200, "200", str(response.status_code))
        words = text_of(response.json()).split() if response.status_code == 200 else []
        if len(words) > 1:
            break
    else:
        raise Skipped("it says one word at most, so that there is no second one to stop at")
    stop = words[1]
    cut = server.optional("stop", asked, temperature=0, max_tokens=16, stop=[stop])
    expect(stop not in text_of(cut), f"nothing from {stop!r} on", repr(text_of(cut)))
    expect(cut["choices"][0]["finish_reason"] == "stop", "finish_reason stop", str(cut["choices"][0]["finish_reason"]))


def a_seed_repeats(server: Server) -> None:
    how = {"temperature": 1.0, "seed": 7, "max_tokens": 16}
    one, two = (text_of(server.optional("seed", **how)) for _ in range(2))
    expect(one == two, f"{one!r} twice", f"{two!r}")


def n_gives_n_choices(server: Server) -> None:
    choices = server.optional("n", n=2, temperature=1.0)["choices"]
    found = sorted(choice["index"] for choice in choices)
    expect(found == [0, 1], "choices 0 and 1", str(found))


def logprobs_are_given(server: Server) -> None:
    choice = server.optional("logprobs", logprobs=True, top_logprobs=2, temperature=0)["choices"][0]
    tokens = (choice.get("logprobs") or {}).get("content") or []
    expect(bool(tokens), "logprobs.content", str(choice.get("logprobs"))[:80])
    expect(all(one["logprob"] <= 1e-6 for one in tokens), "logarithms of probabilities", str(tokens)[:80])
    expect(len(tokens[0]["top_logprobs"]) == 2, "2 top_logprobs", str(len(tokens[0]["top_logprobs"])))


def a_system_message_is_taken(server: Server) -> None:
    response = server.client.post("chat/completions", json={
        "model": server.model, "max_tokens": 4,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}],
    })  # fmt: skip
    if response.status_code == 400:
        raise Skipped(f"refused: {error_of(response)['message'][:90]}")
    expect(response.status_code == 200, "200, or a clear 400", str(response.status_code))


def an_image_is_understood(server: Server) -> None:
    response = server.post([picture((250, 0, 0)), {"type": "text", "text": "What colour is this?"}])
    if response.status_code in (400, 422):
        raise Skipped(f"images are refused: {error_of(response)['message'][:90]}")
    expect(response.status_code == 200, "200, or a clear 400", str(response.status_code))
    with_image = response.json()["usage"]["prompt_tokens"]
    without = server.ask("What colour is this?")["usage"]["prompt_tokens"]
    expect(with_image > without, f"more than {without} prompt tokens", f"{with_image}: the image was left out")


def another_image_is_another_question(server: Server) -> None:
    """Two images under one prompt must not be taken for each other: a cache that forgets the picture does that."""
    asked = {"type": "text", "text": "Describe the picture in detail."}
    first = server.post([picture((250, 0, 0)), asked], temperature=0, logprobs=True, max_tokens=16)
    if first.status_code == 400:
        raise Skipped("images or logprobs are refused")
    second = server.post([picture((0, 0, 250)), asked], temperature=0, logprobs=True, max_tokens=16)
    expect((first.status_code, second.status_code) == (200, 200), "200 twice", str(second.status_code))
    one, two = first.json()["choices"][0], second.json()["choices"][0]
    same = one["message"] == two["message"] and one.get("logprobs") == two.get("logprobs")
    expect(not same, "another answer, or other log probabilities", "the same for a red and a blue picture")


def a_broken_image_is_refused(server: Server) -> None:
    url = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\nno picture").decode()
    refused(server.post([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]), 400, 422)


def a_local_path_is_refused(server: Server) -> None:
    """A server that opens what a client names gives its files away."""
    part = {"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}
    refused(server.post([part, {"type": "text", "text": "?"}]), 400, 403, 422)


def an_unknown_model_is_refused(server: Server) -> None:
    refused(server.post(model="no-such-model-here"), 404)


def no_messages_are_refused(server: Server) -> None:
    refused(server.client.post("chat/completions", json={"model": server.model, "messages": []}), 400, 422)


def broken_json_is_refused(server: Server) -> None:
    headers = {"content-type": "application/json"}
    refused(server.client.post("chat/completions", content=b'{"model": ', headers=headers), 400, 422)


def senseless_values_are_refused(server: Server) -> None:
    refused(server.post(temperature=-1), 400, 422)
    refused(server.post(max_tokens=0), 400, 422)


def too_long_a_prompt_is_refused(server: Server) -> None:
    error = refused(server.post("word " * LONG), 400, 413)
    expect(any(letter.isdigit() for letter in error["message"]), "how long it may be", error["message"][:120])


def leaving_frees_the_server(server: Server) -> None:
    """Ten clients that leave at the first word must not keep an eleventh waiting for answers that nobody reads."""
    began = time.monotonic()
    server.ask(max_tokens=4)
    alone = time.monotonic() - began
    for _ in range(10):
        stream = server.stream(max_tokens=256)
        next(stream, None)
        stream.close()  # type: ignore[attr-defined]
    began = time.monotonic()
    server.ask(max_tokens=4)
    took = time.monotonic() - began
    expect(took < max(2.0, 5 * alone), f"about {alone:.1f} s, as when idle", f"{took:.1f} s")


CHECKS: dict[str, Callable[[Server], None]] = {
    check.__name__.replace("_", " "): check
    for check in (
        models_are_listed, a_question_is_answered, max_tokens_cuts, a_stream_ends_with_done,
        a_stream_says_what_an_answer_says, a_stream_counts_tokens_when_asked, a_stop_text_stops, a_seed_repeats,
        n_gives_n_choices, logprobs_are_given, a_system_message_is_taken, an_image_is_understood,
        another_image_is_another_question, a_broken_image_is_refused, a_local_path_is_refused,
        an_unknown_model_is_refused, no_messages_are_refused, broken_json_is_refused, senseless_values_are_refused,
        too_long_a_prompt_is_refused, leaving_frees_the_server,
    )
}  # fmt: skip
