"""A server as a process of its own, and what a crowd of clients measures of it.

Knows: starting and ending a server, its processor time and memory, requests with a bound on how many are in flight.
Does not know: which server it is, or what a figure is compared with.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from workbench.curation.server import free_port as free_port  # for who starts one

READY = 300.0
"""Seconds that a server may take to load its model."""


@dataclass(frozen=True)
class Asked:
    """What became of one request."""

    status: int
    text: str
    first: float
    """Seconds to the first text of a stream; of a whole answer, to all of it."""
    whole: float
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Served:
    """A running server: `url`, and what its process and children have used."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, model: str) -> None:
        self.url, self.model = f"http://127.0.0.1:{port}", model
        self._process = psutil.Process(process.pid)

    def cpu(self) -> float:
        """Seconds of processor time so far, children included."""
        everybody = [self._process, *self._process.children(recursive=True)]
        return sum(each.cpu_times().user + each.cpu_times().system for each in everybody)

    def memory(self) -> int:
        """Bytes of resident memory, children included."""
        everybody = [self._process, *self._process.children(recursive=True)]
        return sum(each.memory_info().rss for each in everybody)


@contextmanager
def served(command: Sequence[str], port: int, model: str, log: Path, threads: int) -> Iterator[Served]:
    """Start a server, wait until it lists its models, and end it afterwards."""
    own = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=own)
    try:
        _wait(process, port, log)
        yield Served(process, port, model)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + READY
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def request(model: str, image: Path, question: str, tokens: int, **more: Any) -> bytes:
    """The body of one request."""
    url = f"data:image/jpeg;base64,{base64.b64encode(image.read_bytes()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": parts}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, **more}).encode()


async def crowd(url: str, bodies: Sequence[bytes], clients: int) -> list[Asked]:
    """Ask everything, `clients` at a time; in the order of `bodies`."""
    answers: list[Asked | None] = [None] * len(bodies)
    waiting = iter(range(len(bodies)))
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=3600, limits=limits, trust_env=False) as http:

        async def client() -> None:
            for number in waiting:
                answers[number] = await ask(http, bodies[number])

        await asyncio.gather(*(client() for _ in range(clients)))
    return [answer for answer in answers if answer is not None]


async def ask(http: httpx.AsyncClient, body: bytes) -> Asked:
    began, first, text, usage = time.perf_counter(), 0.0, "", {}
    headers = {"content-type": "application/json"}
    async with http.stream("POST", "/v1/chat/completions", content=body, headers=headers) as answer:
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            told = json.loads(await answer.aread())
            whole = time.perf_counter() - began
            if answer.status_code != 200:
                return Asked(answer.status_code, json.dumps(told)[:300], whole, whole)
            text, usage = told["choices"][0]["message"]["content"], told.get("usage") or {}
            return Asked(200, text, whole, whole, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            told = json.loads(line[6:])
            piece = (told["choices"][0]["delta"].get("content") or "") if told.get("choices") else ""
            if piece and not first:
                first = time.perf_counter() - began
            text += piece
            usage = told.get("usage") or usage
    whole = time.perf_counter() - began
    return Asked(
        answer.status_code,
        text,
        first or whole,
        whole,
        usage.get("prompt_tokens", 0),
        usage.get("completion_tokens", 0),
    )
