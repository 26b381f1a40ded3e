"""A teacher on loopback that misbehaves on purpose: OpenAI's chat completions over raw HTTP/1.1, with planned faults.

    python tests/teacher_server.py --latency 0.5 --faults 0 --log calls.jsonl      # prints its URL when it is ready

What goes wrong is decided by the seed, the prompt and the number of the try alone, so that a run can be repeated; every
prompt is answered after at most `most` faults. Answers follow from the prompt, so that each can be verified.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FAULTS = (
    "429 after", "429", "500", "503 html", "silence", "drop", "drop in body", "half json", "wrong json", "error in 200",
    "slow body",
)  # fmt: skip
"""Those that a further try mends. "empty text" is one more, by name only: it is a reply."""
HTML = "<html><head><title>503</title></head><body><h1>Service unavailable</h1></body></html>"


def digest(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def answer_of(prompt: str) -> str:
    """The one right reply to a prompt (its messages as canonical JSON)."""
    code = digest(prompt)[:12]
    return json.dumps({"turns": [{"question": f"What is {code}?", "answer": f"It is the number {code}."}]})


class TeacherServer:
    """`share`: of prompts that meet faults; `most`: faults of one prompt; `latency`: seconds before an answer."""

    def __init__(
        self, *, seed: int = 0, share: float = 0.0, most: int = 3, latency: float = 0.0, log: Path | None = None,
        faults: tuple[str, ...] = FAULTS, key: str | None = None, after: float = 0.05,
    ) -> None:  # fmt: skip
        self.seed, self.share, self.most, self.latency, self.faults = seed, share, most, latency, faults
        self.key, self.after = key, after
        self.calls: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.refuses: set[str] = set()
        self.models: tuple[str, ...] | None = None  # None: any name is answered
        self.reply = answer_of
        self._tries: dict[str, int] = {}
        self._log = open(log, "a", buffering=1) if log else None  # noqa: SIM115 - closed with the process
        self.flying = self.most_flying = 0

    def fault(self, prompt: str, number: int) -> str | None:
        """What goes wrong at the `number`-th try (from 0) of a prompt."""
        if not self.faults or int(digest(self.seed, prompt)[:8], 16) / 2**32 >= self.share:
            return None
        planned = 1 + int(digest(self.seed, prompt, "count")[:8], 16) % self.most
        if number >= planned:
            return None
        return self.faults[int(digest(self.seed, prompt, number)[:8], 16) % len(self.faults)]

    async def start(self, port: int = 0) -> str:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", port)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def stop(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self._request(lines[0].split()[1], headers, body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _request(self, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> bool:
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            told = f"Incorrect API key provided: {headers.get('authorization')}"
            return await self._send(writer, 401, {"error": {"message": told}})
        if path.endswith("/models"):
            names = self.models or ("teacher",)
            return await self._send(writer, 200, {"object": "list", "data": [{"id": name} for name in names]})
        asked = json.loads(body)
        self.requests.append(asked)
        for name in sorted(self.refuses & set(asked)):
            return await self._send(
                writer, 400, {"error": {"message": f"Unsupported parameter: {name}", "param": name}}
            )
        if self.models is not None and asked["model"] not in self.models:
            told = f"The model `{asked['model']}` does not exist"
            return await self._send(writer, 404, {"error": {"message": told, "code": "model_not_found"}})
        prompt = json.dumps(asked["messages"], sort_keys=True)
        number = self._tries.get(prompt, 0)
        self._tries[prompt] = number + 1
        fault = self.fault(prompt, number)
        self.flying += 1
        self.most_flying = max(self.most_flying, self.flying)
        try:
            open_still = await self._answer(fault, asked, prompt, writer)
        finally:
            self.flying -= 1
        call = {"prompt": digest(prompt)[:16], "try": number, "fault": fault, "time": time.monotonic()}
        self.calls.append(call)
        if self._log:
            self._log.write(json.dumps(call) + "\n")
        return open_still

    async def _answer(
        self, fault: str | None, asked: dict[str, Any], prompt: str, writer: asyncio.StreamWriter
    ) -> bool:
        if self.latency:
            await asyncio.sleep(self.latency)
        if fault == "429 after":
            return await self._send(writer, 429, {"error": {"message": "slow down"}}, f"Retry-After: {self.after}\r\n")
        if fault == "429":
            return await self._send(writer, 429, {"error": {"message": "slow down"}})
        if fault == "500":
            return await self._send(writer, 500, {"error": {"message": "it broke"}})
        if fault == "503 html":
            return await self._send(writer, 503, HTML)
        if fault == "silence":
            await asyncio.sleep(30)
            return False
        if fault == "drop":
            return False
        text = "" if fault == "empty text" else self.reply(prompt)
        whole = completion(asked, text)
        if fault == "error in 200":
            return await self._send(writer, 200, {"error": {"message": "overloaded", "code": 529}})
        if fault == "wrong json":
            return await self._send(writer, 200, {"hello": ["world"]})
        if fault == "half json":
            return await self._send(writer, 200, json.dumps(whole)[:60])
        if asked.get("stream"):
            return await self._stream(writer, asked, text, half=fault == "drop in body")
        if fault in ("drop in body", "slow body"):
            return await self._part(writer, json.dumps(whole).encode(), slow=fault == "slow body")
        return await self._send(writer, 200, whole)

    async def _send(self, writer: asyncio.StreamWriter, status: int, body: Any, more: str = "") -> bool:
        kind = "text/html" if body is HTML else "application/json"
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{more}\r\n"
        writer.write(head.encode() + data)
        await writer.drain()
        return True

    async def _part(self, writer: asyncio.StreamWriter, data: bytes, *, slow: bool) -> bool:
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        )
        for start in range(0, len(data) // 2, 10 if slow else len(data)):
            writer.write(data[start : start + 10])
            await writer.drain()
            await asyncio.sleep(0.2 if slow else 0)
        return False

    async def _stream(self, writer: asyncio.StreamWriter, asked: dict[str, Any], text: str, *, half: bool) -> bool:
        """Word by word, or the first half of the words."""
        words = [{"delta": {"content": f"{word} "}, "finish_reason": None} for word in text.split(" ")]
        chunks = [{"choices": [{"index": 0, **choice}]} for choice in (*words, {"delta": {}, "finish_reason": "stop"})]
        if (asked.get("stream_options") or {}).get("include_usage"):
            chunks.append({"choices": [], "usage": completion(asked, text)["usage"]})
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for number, chunk in enumerate(chunks):
            if half and number == len(words) // 2:
                return False
            head = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "teacher-1"}
            writer.write(f"data: {json.dumps(head | chunk)}\n\n".encode())
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        return False


def completion(asked: dict[str, Any], text: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "teacher-1",
        "choices": [choice],
        "usage": usage,
    }


@contextmanager
def serving(**settings: Any) -> Iterator[tuple[TeacherServer, str]]:
    """A server in a thread of its own, and its URL."""
    server = TeacherServer(**settings)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    url = asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    try:
        yield server, url
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _serve(given: argparse.Namespace) -> None:
    server = TeacherServer(seed=given.seed, share=given.faults, latency=given.latency, log=given.log)
    print(await server.start(given.port), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--faults", type=float, default=0.0, help="share of prompts that meet faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    asyncio.run(_serve(parser.parse_args()))
