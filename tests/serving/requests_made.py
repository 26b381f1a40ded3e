"""What the tests of the server share: pictures and requests, a model that is paced, and a client of plain HTTP."""

from __future__ import annotations

import base64
import io
import threading
from typing import Any

import httpx
import numpy as np
from PIL import Image as PILImage

from workbench.chat_model import GREEDY, Answer, Ending, Pieces, SamplingOptions, Usage
from workbench.conversation import Conversation
from workbench.serving.run import Server


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> PILImage.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return PILImage.fromarray(noise)


def encoded(image: PILImage.Image, kind: str = "PNG", **more: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **more)
    return held.getvalue()


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def asked(text: str = "what is it?", *images: str, **more: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": each}} for each in images]
    content = [*parts, {"type": "text", "text": text}] if parts else text
    return {"messages": [{"role": "user", "content": content}]} | more


class Paced:
    """A model whose answers go on word by word only as `go` is set, and which counts what it computes."""

    def __init__(self, words: int = 40, *, name: str = "paced") -> None:
        self.name, self.words = name, words
        self.go = threading.Event()
        self.step = threading.Semaphore(0)
        self.begun = self.written = self.running = self.cancelled = 0
        self.lock = threading.Lock()

    def reply(self, conversation: Conversation, options: SamplingOptions = GREEDY) -> Answer:
        def write(cancelled: threading.Event) -> Pieces:
            with self.lock:
                self.begun += 1
                self.running += 1
            count = 0
            try:
                while count < min(self.words, options.max_tokens) and not cancelled.is_set():
                    if not self.go.wait(0.02):
                        continue
                    count += 1
                    self.written += 1
                    yield f"w{count} "
                reason = "cancelled" if cancelled.is_set() else "stop"
                return Ending(reason, Usage(3, count))
            finally:
                with self.lock:
                    self.running -= 1
                    self.cancelled += cancelled.is_set()

        return Answer(write)

    def reply_batch(self, conversations: Any, options: SamplingOptions = GREEDY) -> list[Answer]:
        return [self.reply(one, options) for one in conversations]


class Client:
    """A server's address, and a client that speaks plain HTTP to it."""

    def __init__(self, server: Server) -> None:
        self.server, self.url = server, server.url
        self.root = server.url.removesuffix("/v1")
        self.name = server.api.model.name
        self.http = httpx.Client(base_url=self.root, timeout=30, trust_env=False)

    def post(self, body: dict[str, Any] | bytes, **more: Any) -> httpx.Response:
        if isinstance(body, bytes):
            return self.http.post("/v1/chat/completions", content=body, **more)
        return self.http.post("/v1/chat/completions", json={"model": self.name} | body, **more)

    def text(self, body: dict[str, Any]) -> str:
        answer = self.post(body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"]

    def healthy(self) -> bool:
        answer = self.http.get("/health")
        return answer.status_code == 200 and answer.json()["status"] == "ok"
