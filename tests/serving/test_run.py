"""A server from its start to its end: addresses, keys, the line it prints, the signals that end it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.requests_made import Client, Paced, asked, encoded, picture, uri
from workbench import cli
from workbench.chat_model import ScriptedModel
from workbench.errors import WorkbenchError
from workbench.serving.limits import Limits
from workbench.serving.run import Server, limits_for, serve


@pytest.fixture(scope="session")
def folder(llava: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from workbench.model.export import write_folder

    return write_folder(llava, tmp_path_factory.mktemp("served") / "tiny-merged")


@contextmanager
def started(command: list[str]) -> Iterator[tuple[Any, str]]:
    """A process, and the first line that it printed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_the_command_serves_a_folder_and_ends_when_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_API_KEY", "from-the-environment")
    line = [sys.executable, "-m", "workbench.cli", "serve", str(folder), "--port", "0", "--name", "shapes"]
    with started([*line, "--host", "0.0.0.0"]) as (process, said):
        told = re.fullmatch(r"serving shapes at http://0\.0\.0\.0:(\d+)/v1\n", said)
        assert told, said + process.stderr.read()
        root, key = f"http://127.0.0.1:{told[1]}", {"authorization": "Bearer from-the-environment"}
        assert httpx.get(f"{root}/v1/models").status_code == 401
        body = {"model": "shapes", "max_tokens": 4, **asked("what?", uri(encoded(picture())))}
        answer = httpx.post(f"{root}/v1/chat/completions", json=body, timeout=60, headers=key)
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] >= 1
        metrics = httpx.get(f"{root}/metrics", headers=key).text
        assert "workbench_model_cache_bytes" in metrics and "workbench_model_stalled 0.0" in metrics
        process.send_signal(signal.SIGINT)
        out, problem = process.communicate(timeout=20)
    assert process.returncode == 130 and out == ""
    assert problem == "stopped by Ctrl-C; what was finished before is kept\n"


SCRIPT = """
import time
from workbench.chat_model import ScriptedModel
from workbench.serving.run import serve
serve(ScriptedModel(lambda conversation: time.sleep(1) or "slow"), port=0, say=lambda line: print(line, flush=True))
"""


def test_sigterm_lets_an_answer_end() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with started([sys.executable, "-c", SCRIPT]) as (process, said), ThreadPoolExecutor(1) as pool:
        body = {"model": "scripted", **asked("q")}
        asking = pool.submit(httpx.post, f"{said.split()[-1]}/chat/completions", json=body, timeout=20)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert asking.result().json()["choices"][0]["message"]["content"] == "slow"
        assert process.communicate(timeout=20) == ("", "") and process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", ""])
def test_any_other_address_needs_a_key(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "nothing-there", "--host", host]) == 1
    assert "no API key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--api-key", "sekret"], "--api-key: found a key of 6 characters; expected 8 characters or more"),
        (["--api-key", "schlüssel"], "--api-key: found 'ü' as character 5 of a key"),
        (["--api-key", "a secret "], "--api-key: found a key that begins or ends with a space"),
        (["--port", "99999"], "--port"),
        (["--allow-remote-images", "https://example.org"], "--allow-remote-images"),
        (["--load", "3bit"], "invalid choice"),
        (["--temperature", "5"], "--temperature: found 5; expected from 0 (the likeliest) to 2"),
        (["--temperature", "-0.1"], "--temperature: found -0.1"),
        (["--temperature", "nan"], "--temperature: found nan"),
        ([], "nothing-there"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main(["serve", "nothing-there", "--port", "0", *arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    told = capsys.readouterr().err
    assert status in (1, 2) and says in told and "Traceback" not in told


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        assert cli.main(["serve", "nothing-there", "--port", str(port)]) == 1
    assert f"127.0.0.1:{port}" in (told := capsys.readouterr().err) and "in use" in told and "--port 0" in told


def test_keys_open_every_route_but_health(serving: Callable[..., Client]) -> None:
    client = serving(api_key=["first-secret", "second-secret"])
    routes = ["/v1/models", "/v1/models/scripted", "/metrics", "/openapi.json", "/nothing", "/docs", "/health/"]
    for route in routes:
        for key in (None, "wrong-secret", "first-secre", "first-secrett", "é"):
            headers = {} if key is None else {"authorization": f"Bearer {key}".encode()}
            answer = client.http.get(route, headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error", (route, key)
            assert answer.headers["www-authenticate"] == "Bearer"
    assert client.post(asked("q")).status_code == 401 and client.healthy()
    for key in ("first-secret", "second-secret"):
        assert client.post(asked("q"), headers={"authorization": f"Bearer {key}", "host": "far"}).status_code == 200


def test_a_key_is_asked_for_before_a_body_is_read(serving: Callable[..., Client]) -> None:
    client = serving(api_key="first-secret")
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=5) as line:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 999\r\n\r\n"
        line.sendall(head)
        assert b" 401 " in line.recv(4096)


def test_what_is_written_ends_and_who_waits_is_sent_away_when_it_stops() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = Paced(words=20)
    server = Server(model, port=0, limits=Limits(slots=1, waiting=4, grace_seconds=10)).start()
    client = Client(server)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(client.post, asked("q", stream=True))
        while not model.running:
            time.sleep(0.01)
        second = pool.submit(client.post, asked("q"))
        while not server.api.desk.waiting:
            time.sleep(0.01)
        ending = pool.submit(server.close)
        sent_away = second.result()
        assert sent_away.status_code == 503 and sent_away.json()["error"]["code"] == "stopping"
        assert not ending.done()
        model.go.set()
        assert first.result().text.endswith("data: [DONE]\n\n") and "w20 " in first.result().text
        ending.result(10)
    with pytest.raises(httpx.ConnectError):
        httpx.get(client.root)


def test_what_is_not_written_in_time_is_cut_and_told() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = Paced()
    server = Server(model, port=0, limits=Limits(slots=1, grace_seconds=0.5)).start()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(Client(server).post, asked("q", stream=True))
        while not model.running:
            time.sleep(0.01)
        server.close()
        assert asking.result().json()["error"]["code"] == "stopping"
    assert model.running == 0 and model.cancelled == 1


def test_a_model_in_hand_is_served_in_the_background(llava: Any) -> None:
    """Its own images stay its own, and those of requests are opened too."""
    from workbench.chat_model import SamplingOptions
    from workbench.conversation import Conversation, Image
    from workbench.inference.engine import Engine

    lines: list[str] = []
    with Engine(llava, name="mine", open_image=lambda image: picture(5)) as engine:
        server = serve(engine, port=0, background=True, say=lines.append)
        with server:
            assert lines == [f"serving mine at {server.url}"]
            text = Client(server).text(asked("what?", uri(encoded(picture(5))), max_tokens=5))
            own = Conversation("c", ()).add("user", Image("a.png"), "what?")
            assert engine.reply(own, SamplingOptions(max_tokens=5)).text == text
        assert engine.state().failed == 0


def test_slots_are_as_many_as_a_model_writes_at_once() -> None:
    class Rows(ScriptedModel):
        rows = 7

    assert limits_for(Rows([])).slots == 7 and limits_for(ScriptedModel([])).slots == Limits().slots
    with pytest.raises(WorkbenchError, match="no API key"):
        Server(ScriptedModel([]), host="0.0.0.0", port=0)


def test_a_server_does_not_say_what_it_is_made_of(serving: Callable[..., Client]) -> None:
    answer = serving().http.get("/v1/models")
    assert "server" not in answer.headers and json.loads(answer.text)["data"]
    assert os.sep + "root" not in answer.text
