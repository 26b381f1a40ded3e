"""FiftyOne's own App server, whose page asks no other host: `python -m workbench.curation.app_server --port N`.

Knows: which lines of FiftyOne's page and style sheets name fonts of Google's (tried with 1.22).
Does not know: when the server is started, and by whom (`app.py`).

The App looks the same without a network, in fonts that the machine has; with one, nobody learns who works with what.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from starlette.datastructures import MutableHeaders

KINDS = ("text/html", "text/css")
ELSEWHERE = re.compile(rb'<link[^>]*"https?://[^>]*>|@import\s*(?:url\()?["\']?https?://[^;]*;')
"""A link of a page, or the import of a style sheet, that leads to another host."""


class OwnHostOnly:
    """ASGI middleware: pages and style sheets without links to style sheets and fonts of other hosts."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start: Any = None
        body = b""

        async def filtered(message: Any) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and _kind(message) in KINDS:
                start = message
            elif start is None or message["type"] != "http.response.body":
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body"):
                    await send(_of_length(start, text := ELSEWHERE.sub(b"", body)))
                    await send({"type": "http.response.body", "body": text})

        await self.app(scope, receive, filtered if scope["type"] == "http" else send)


def _kind(start: Any) -> str:
    return MutableHeaders(raw=start["headers"]).get("content-type", "").partition(";")[0]


def _of_length(start: Any, body: bytes) -> Any:
    headers = MutableHeaders(raw=start["headers"])
    if body:  # else an answer without a body: one to HEAD, or that nothing changed
        headers["content-length"] = str(len(body))
    return start | {"headers": headers.raw}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--address", required=True)
    words = parser.parse_args()
    from fiftyone.server.app import app
    from fiftyone.server.main import start_server  # which says, in its environment, that this process is the server

    app.add_middleware(OwnHostOnly)
    start_server(port=words.port, address=words.address)


if __name__ == "__main__":
    main()
