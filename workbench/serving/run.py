"""A server from its start to its end: where it may listen, the line it prints, the signals that end it.

Knows: addresses, keys, uvicorn's settings, and opening what is served. Does not know: routes or requests.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from workbench.chat_model import ChatModel
from workbench.errors import WorkbenchError
from workbench.inference.opening import as_letters, as_model
from workbench.serving.api import Api
from workbench.serving.connection import protocol
from workbench.serving.limits import Limits
from workbench.serving.pictures import Pictures
from workbench.serving.remote_images import RemoteImages
from workbench.serving.schemas import HOTTEST

KEY_VARIABLE = "WORKBENCH_API_KEY"
SHORTEST_KEY = 8
"""Characters of an API key."""
_BACKLOG = 512
_CUT = 5.0
"""Seconds in which answers that were cut have to end, before their connections are."""


class Server:
    """A `ChatModel` behind OpenAI's chat completions, at `url` from the moment it is made until `close`.

    `run` serves in this thread until a signal comes; `start` in one of its own, ended by `close` or a `with` block.
    A model that opens images by `open_image` gets those of requests too. Raises `WorkbenchError` for an address that is
    taken, or one that is not of this machine without an `api_key`.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | Sequence[str] | None = None,
        remote: RemoteImages | None = None,
        limits: Limits | None = None,
        pictures: Pictures | None = None,
        temperature: float = 0.0,
    ) -> None:
        keys = [api_key] if isinstance(api_key, str) else list(api_key or ())
        _check_keys(host, keys)
        _check_temperature(temperature)
        pictures = Pictures(limits or limits_for(model)) if pictures is None else pictures
        _prepare(model, pictures)
        self.api = Api(model, pictures=pictures, keys=keys, remote=remote, temperature=temperature)
        self._socket = _listening(host, port)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"
        self._server = _Uvicorn(self._config(pictures.limits), self.api, self._socket)
        self._thread: threading.Thread | None = None

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until Ctrl-C or SIGTERM; answers that are being written get time to end. `ready` is called once."""
        self._server.ready = ready
        self._server.run(sockets=[self._socket])

    def start(self) -> Server:
        """Serve in a thread; comes back when requests are answered."""
        began = threading.Event()
        self._server.ready = began.set
        serve = lambda: asyncio.run(self._server._serve([self._socket]))  # noqa: E731 - without taking over signals
        self._thread = threading.Thread(target=serve, name="workbench serve", daemon=True)
        self._thread.start()
        while not began.wait(0.1):
            if not self._thread.is_alive():
                raise WorkbenchError("the server", found="an end before its start", fix="see the lines above")
        return self

    def close(self) -> None:
        """End it: nothing new is taken, answers that are being written get time to end."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()
        self._socket.close()

    def __enter__(self) -> Server:
        return self if self._thread else self.start()

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _config(self, limits: Limits) -> uvicorn.Config:
        return uvicorn.Config(
            self.api.app,
            http=protocol(limits),
            ws="none",
            loop="asyncio",
            lifespan="on",
            access_log=False,
            log_level="warning",
            server_header=False,
            proxy_headers=False,  # whoever asks does not get to say who it is
            h11_max_incomplete_event_size=limits.header_bytes,
            timeout_keep_alive=int(limits.idle_seconds),
            timeout_graceful_shutdown=int(limits.grace_seconds + _CUT),
            backlog=_BACKLOG,
        )


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, api: Api, listening: socket.socket) -> None:
        super().__init__(config)
        self._api = api
        self.ready: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._api.desk.close()  # who waits in line is told at once; who is answered goes on, for a while
        asyncio.get_running_loop().call_later(self._api.limits.grace_seconds, self._api.room.cut)
        await super().shutdown(sockets)


def serve(
    run: str | Path | ChatModel,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | Sequence[str] | None = None,
    allow_remote_images: Sequence[str] = (),
    load: str | None = None,
    device: str = "auto",
    name: str | None = None,
    temperature: float = 0.0,
    limits: Limits | None = None,
    background: bool = False,
    say: Callable[[str], None] = print,
) -> Server:
    """Serve a run folder, a merged folder, a Hub name, or any `ChatModel`; one line is said when it is ready.

    api_key: one key or several, by default `$WORKBENCH_API_KEY`. allow_remote_images: domains whose https images are
    fetched; none by default. temperature: of requests that do not say. background: come back at once, in a notebook,
    say; `close()` ends it. Raises `WorkbenchError` for what cannot be opened or listened on, before a model is loaded
    where that can be told.
    """
    keys = api_key or os.environ.get(KEY_VARIABLE) or None
    _check_keys(host, [keys] if isinstance(keys, str) else list(keys or ()))
    _check_temperature(temperature)
    _listening(host, port).close()
    held = Pictures(limits or Limits())
    # Before the model is loaded, so that a mistaken domain does not cost minutes.
    remote = RemoteImages(allow_remote_images, limit=held.limits.image.bytes) if allow_remote_images else None
    model: Any = _opened(run, load, device, held, name) if isinstance(run, (str, Path)) else as_model(run)
    if limits is None:
        held.limits = limits_for(model)
    server = Server(model, host=host, port=port, api_key=keys, remote=remote, pictures=held, temperature=temperature)
    line = f"serving {model.name} at {server.url}"
    if background:
        server.start()
        say(line)
    else:
        server.run(ready=lambda: say(line))
    return server


def limits_for(model: ChatModel) -> Limits:
    """As many slots as the model writes rows at once; one for a model that says nothing of that."""
    rows = getattr(model, "rows", None)
    return Limits() if rows is None else replace(Limits(), slots=max(1, int(rows)))


def _opened(run: str | Path, load: str | None, device: str, pictures: Pictures, name: str | None) -> ChatModel:
    from workbench.inference.opening import open_model  # torch and transformers: only where a model is loaded

    model = open_model(run, load=load, device=device, open_image=pictures.open)
    model.name = name or Path(str(run).rstrip("/")).name or str(run)  # type: ignore[misc]
    return model


def _prepare(model: Any, pictures: Pictures) -> None:
    """Have the model open what requests bring, and read what users write as text, control tokens too."""
    if hasattr(model, "open_image"):
        model.open_image = pictures.or_else(model.open_image) if model.open_image else pictures.open
    as_letters(model)


def _check_keys(host: str, keys: Sequence[str]) -> None:
    for key in keys:
        if wrong := _wrong_with(key):
            expected = f"{SHORTEST_KEY} characters or more that a header can carry"
            raise WorkbenchError("--api-key", found=wrong, expected=expected)
    if keys or _is_loopback(host):
        return
    fix = "give --api-key KEY (or set WORKBENCH_API_KEY), or listen on 127.0.0.1"
    raise WorkbenchError(f"--host {host}", found="an address that others reach, and no API key", fix=fix)


def _wrong_with(key: str) -> str:
    """What keeps a key from being one; it is not repeated itself, since it may be secret."""
    if len(key) < SHORTEST_KEY:
        return f"a key of {len(key)} characters"
    odd = next((place for place, letter in enumerate(key) if not (letter.isascii() and letter.isprintable())), None)
    if odd is not None:
        return f"{key[odd]!r} as character {odd + 1} of a key"
    return "a key that begins or ends with a space" if key != key.strip() else ""


def _check_temperature(value: float) -> None:
    if not 0 <= value <= HOTTEST:
        raise WorkbenchError("--temperature", found=f"{value:g}", expected=f"from 0 (the likeliest) to {HOTTEST:g}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    """A socket at the address. Raises `WorkbenchError` where none can be had."""
    if not 0 <= port <= 65535:
        raise WorkbenchError("--port", found=str(port), expected="0 (any free one) to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as problem:
        told = (problem.strerror or str(problem)).lower()
        fix = "give another --port, or --port 0 for any free one" if "in use" in told else ""
        raise WorkbenchError(f"{host}:{port}", found=told, expected="a free address of this machine", fix=fix) from None
