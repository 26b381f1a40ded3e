"""Requests of somebody who means harm: each is refused with its own clear error, and the server stays well.

With those of test_remote_images there are two hundred.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from tests.serving.requests_made import Client, asked, encoded, picture, uri
from tests.videos import LEADING, unknown_codec
from workbench.chat_model import GREEDY, Answer, Ending, Pieces, SamplingOptions
from workbench.conversation import Conversation
from workbench.data.images import Limits as ImageLimits
from workbench.inference.opening import open_file
from workbench.serving.limits import Limits
from workbench.serving.run import Server

LIMITS = Limits(
    body_bytes=4 * 2**20, bodies_bytes=32 * 2**20, gap_seconds=0.4, body_seconds=1.5, header_seconds=0.6,
    header_bytes=16 * 2**10, images=4, image=ImageLimits(pixels=1_000_000, bytes=2**20), pixels=2_000_000,
)  # fmt: skip


class Looking:
    """Opens every image, as a model does, and says how large they are."""

    name = "looking"
    open_image = staticmethod(open_file)

    def reply(self, conversation: Conversation, options: SamplingOptions = GREEDY) -> Answer:
        sizes = [self.open_image(image).size for image in conversation.images]
        return Answer.finished(f"{sizes} {conversation.messages[-1].text}", Ending("stop"))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Server(Looking(), port=0, limits=LIMITS) as server:
        yield Client(server)


# --- material -------------------------------------------------------------------------------------------------


def png(width: int, height: int, data: bytes = b"", kind: int = 2) -> bytes:
    """A PNG whose header says what it likes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\xf0\x00\x00"
        + bytes(6)
        + b",\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
    )


PNG, JPEG, GIF = encoded(picture()), encoded(picture(), "JPEG"), encoded(picture(), "GIF")
WEBP = encoded(picture(), "WEBP")


def images() -> Iterator[tuple[str, str, str]]:
    """(name, URL, code): about ninety pictures that are none, or too many."""
    for side in (1_100, 5_000, 30_000, 65_535, 2**20, 2**31 - 1):
        yield f"png bomb {side}", uri(png(side, side, bytes(9))), "image_too_large|invalid_image"
        yield f"gif bomb {side}", uri(gif(min(side, 65_535), min(side, 65_535)), "image/gif"), "image_too_large"
    yield "zlib bomb", uri(png(1000, 1000, bytes(900_000))), "invalid_image"
    yield "long file", uri(JPEG + bytes(2**20)), "image_too_large"
    yield "huge text chunk", uri(PNG[:33] + struct.pack(">I", 2**30) + b"tEXt" + bytes(50)), "invalid_image"
    for name, whole in (("png", PNG), ("jpeg", JPEG), ("webp", WEBP), ("gif", GIF)):
        for share in (0.05, 0.2, 0.5, 0.8):
            part = whole[: max(8, int(len(whole) * share))]
            yield f"{name} cut at {share}", uri(part), "invalid_image"
        if name != "gif":  # where that is a change of colours
            yield f"{name} with a hole", uri(whole[:20] + bytes(40) + whole[60:]), "invalid_image"
    for name, data in (
        ("html", b"<html><script>alert(1)</script>" + PNG),
        ("svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
        ("pdf", b"%PDF-1.7\n" + PNG),
        ("zip", b"PK\x03\x04" + PNG),
        ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file"),
        ("elf", b"\x7fELF" + bytes(64)),
        ("tiff", encoded(picture(), "TIFF")),
        ("bmp", encoded(picture(), "BMP")),
        ("ico", encoded(picture(), "ICO")),
        ("javascript gif", b"GIF89a/*" + bytes(20) + b"*/=alert(1)//"),
        ("riff that is sound", b"RIFF\x24\0\0\0WAVEfmt " + bytes(40)),
        ("pickle", b"\x80\x04\x95\x0c" + bytes(20)),
        ("nothing", b""),
        ("one byte", b"\xff"),
        ("text", b"just words"),
    ):
        yield f"{name} as a png", uri(data), "invalid_image"
    for name, url in (
        ("svg declared", uri(PNG, "image/svg+xml")),
        ("text declared", uri(PNG, "text/html")),
        ("no kind", "data:;base64," + base64.b64encode(PNG).decode()),
        ("not base64", "data:image/png,%89PNG"),
        ("bad letters", "data:image/png;base64,!!!!"),
        ("bad padding", "data:image/png;base64,QUJD="),
        ("line breaks", "data:image/png;base64,QUJD\r\nQUJD"),
        ("unicode letters", "data:image/png;base64,ＱＵＪＤ"),
        ("only data", "data:"),
        ("comma only", "data:,"),
        ("no data", "data:image/png;base64"),
        ("long type", "data:image/" + "a" * 5000 + ";base64,QUJD"),
    ):
        yield name, url, "invalid_image"


def urls() -> Iterator[tuple[str, str]]:
    """(name, URL): forty ways to have a server read a file or call somebody."""
    for url in (
        "/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd", "file://localhost/etc/passwd", "../../etc/passwd",
        "..\\..\\windows\\win.ini", "C:\\windows\\win.ini", "~/.ssh/id_rsa", "/proc/self/environ", "/dev/zero",
        "\\\\evil\\share\\x.png", "request/0", "./a.png", "http://127.0.0.1/", "http://localhost:22/", "http://[::1]/",
        "http://169.254.169.254/latest/meta-data/", "https://169.254.169.254/", "http://0/", "http://0x7f000001/",
        "http://2130706433/", "http://127.1/", "http://[::ffff:127.0.0.1]/", "https://example.org/a.png",
        "https://user:pw@example.org/a.png", "ftp://example.org/a.png", "gopher://127.0.0.1:6379/_INFO",
        "dict://127.0.0.1:11211/stats", "jar:file:///x!/y", "javascript:alert(1)", "blob:https://example.org/1",
        "about:blank", "ssh://host", "ldap://127.0.0.1/", "//example.org/a.png", "https:/\\127.0.0.1", "", " ", "\x00",
        "https://example.org\r\nHost: evil",
    ):  # fmt: skip
        yield url[:30] or "empty", url


def bodies() -> Iterator[tuple[str, bytes, int]]:
    """(name, body, status): what is no request at all."""
    deep = 100_000
    for name, body in (
        ("deep list", b"[" * deep),
        ("deep object", b'{"a":' * deep),
        ("deep closed list", b"[" * deep + b"]" * deep),
        ("deep field", b'{"model":"looking","messages":' + b"[" * deep + b"]" * deep + b"}"),
        ("half json", b'{"model":"looking","messages":[{"role":"us'),
        ("no json", b"model=looking&messages=x"),
        ("empty", b""),
        ("null", b"null"),
        ("a number", b"17"),
        ("a text", b'"hello"'),
        ("a list", b"[1,2,3]"),
        ("bad utf-8", b'{"model":"\xff\xfe","messages":[]}'),
        ("utf-16", '{"model":"looking"}'.encode("utf-16")),
        ("zero bytes", bytes(1000)),
        ("gzip", b"\x1f\x8b\x08\x00" + bytes(50)),
        ("huge number", b'{"model":"looking","messages":[],"seed":1' + b"0" * 5000 + b"}"),
        ("many keys", b"{" + b",".join(b'"k%d":1' % n for n in range(50_000)) + b"}"),
        ("prototype", b'{"__proto__":{"admin":true},"messages":[]}'),
        ("infinite", b'{"model":"looking","messages":[{"role":"user","content":"q"}],"temperature":Infinity}'),
        ("messages as text", b'{"model":"looking","messages":"hello"}'),
        ("role of a list", b'{"model":"looking","messages":[{"role":["user"],"content":"q"}]}'),
        ("content of an object", b'{"model":"looking","messages":[{"role":"user","content":{"a":1}}]}'),
        (
            "image of a number",
            b'{"model":"looking","messages":[{"role":"user","content":[{"type":"image_url","image_url":7}]}]}',
        ),
        (
            "a local file part",
            b'{"model":"looking","messages":[{"role":"user","content":[{"type":"file","path":"/etc/passwd"}]}]}',
        ),
        (
            "audio",
            b'{"model":"looking","messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{}}]}]}',
        ),
    ):
        yield name, body, 400
    yield "too large", b'{"model":"' + b"x" * (5 * 2**20) + b'"}', 413
    for name, schema in (
        ("deep schema", json.loads('{"a":' * 60 + "1" + "}" * 60)),
        ("long schema", {f"k{number}": "x" * 50 for number in range(2000)}),
    ):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        yield name, json.dumps({"model": "looking", **asked("q"), "response_format": form}).encode(), 400
    for count in (5, 40):
        yield f"{count} images", json.dumps({"model": "looking", **asked("q", *[uri(PNG)] * count)}).encode(), 400
    large = uri(encoded(PILImage.new("RGB", (1000, 990))))
    yield "too many pixels", json.dumps({"model": "looking", **asked("q", *[large] * 3)}).encode(), 400
    for name, data in (
        ("a video that is none", b"words"),
        ("a playlist", b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n"),
        ("a list of files", b"ffconcat version 1.0\nfile /etc/passwd\n"),
        *((f"a video: {name}", led) for name, led in LEADING.items()),
        ("half a video", b"\0\0\0\x18ftypmp42" + bytes(40)),
        ("a picture as video", PNG),
    ):
        video = {"type": "video_url", "video_url": {"url": uri(data, "video/mp4")}}
        body = json.dumps({"model": "looking", "messages": [{"role": "user", "content": [video]}]})
        yield name, body.encode(), 400


IMAGES, URLS, BODIES = list(images()), list(urls()), list(bodies())


def refused(answer: Any, status: int, code: str = "") -> None:
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert error["message"] and (not code or error["code"] in code.split("|")), error
    for secret in ("root:", "/root", "/usr", "site-packages", "Traceback", "0x7f"):
        assert secret not in answer.text


@pytest.mark.parametrize(("name", "url", "code"), IMAGES, ids=[name for name, *_ in IMAGES])
def test_a_picture_that_is_none_is_refused(client: Client, name: str, url: str, code: str) -> None:
    refused(client.post(asked("q", url)), 400, code)


@pytest.mark.parametrize(("name", "url"), URLS, ids=[name for name, _ in URLS])
def test_no_path_is_read_and_nobody_is_called(
    client: Client, name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *told, **more: calls.append(told))
    refused(client.post(asked("q", url)), 400, "invalid_image_url")
    assert calls == []


@pytest.mark.parametrize(("name", "body", "status"), BODIES, ids=[name for name, *_ in BODIES])
def test_a_body_that_is_no_request_is_refused(client: Client, name: str, body: bytes, status: int) -> None:
    refused(client.post(body, headers={"content-type": "application/json"}), status)


# --- below HTTP -----------------------------------------------------------------------------------------------

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"model": "looking", **asked("q")}).encode()


def spoken(client: Client, *parts: bytes | float, seconds: float = 8) -> bytes:
    """What the server says to bytes, with pauses between them."""
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=seconds) as line:
        try:
            for part in parts:
                time.sleep(part) if isinstance(part, float) else line.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass
        got = b""
        while piece := _received(line):
            got += piece
    return got


def _received(line: socket.socket) -> bytes:
    try:
        return line.recv(65536)
    except ConnectionResetError:
        return b""


def raw() -> Iterator[tuple[str, tuple[bytes | float, ...], bytes, bytes]]:
    """(name, what is sent, status line, code)"""
    long = b"X-A: " + b"a" * 40_000 + b"\r\n"
    yield "a huge header", (POST + long + b"\r\n",), b"431", b"invalid_http"
    many = b"".join(b"X-%d: b\r\n" % number for number in range(5000))
    yield "many headers", (POST + many + b"\r\n",), b"431", b"invalid_http"
    yield "headers without end", (POST, 0.1, long[:-2], 0.1, long[:-2]), b"431", b"invalid_http"
    yield "a huge path", (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",), b"431", b"invalid_http"
    yield (
        "no http",
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300) + b"\r\n\r\n",),
        b"400",
        b"invalid_http",
    )
    yield "no host", (b"GET /v1/models HTTP/1.1\r\n\r\n",), b"400", b"invalid_http"
    yield (
        "another host",
        (b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",),
        b"403",
        b"host_not",
    )
    yield "a bad length", (POST + b"Content-Length: -5\r\n\r\n",), b"400", b"invalid_http"
    yield "two lengths", (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",), b"400", b"invalid_http"
    yield "a bad chunk", (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",), b"400", b""
    yield "an odd encoding", (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",), b"501|400", b"invalid_http"
    yield "a space in a name", (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",), b"400", b"invalid_http"
    yield "a length of terabytes", (POST + b"Content-Length: 9999999999999\r\n\r\n" + bytes(1000),), b"413", b"body_too"
    chunks = [b"100000\r\n" + b"a" * 0x100000 + b"\r\n"] * 6
    yield "chunks without end", (POST + b"Transfer-Encoding: chunked\r\n\r\n", *chunks), b"413", b"body_too_large"
    yield "slow headers", (b"POST /v1/chat", 1.0), b"408", b"header_timeout"
    yield "silence", (1.0,), b"408", b"header_timeout"
    drops = [piece for letter in b"GET /v1/models HTTP/1.1" for piece in (bytes([letter]), 0.04)]
    yield "headers letter by letter", tuple(drops), b"408", b"header_timeout"
    yield "a body that stops", (POST + b"Content-Length: 500\r\n\r\n" + BODY[:20], 0.8), b"408", b"body_timeout"
    drips = [piece for letter in BODY for piece in (bytes([letter]), 0.1)][:60]
    yield "a body letter by letter", (POST + b"Content-Length: 5000\r\n\r\n", *drips), b"408", b"body_timeout"


RAW = list(raw())


@pytest.mark.parametrize(("name", "parts", "status", "code"), RAW, ids=[name for name, *_ in RAW])
def test_what_is_no_http_or_too_slow_is_told_so(
    client: Client, name: str, parts: tuple[bytes | float, ...], status: bytes, code: bytes
) -> None:
    got = spoken(client, *parts)
    assert got.split(b" ", 2)[1] in status.split(b"|"), got[:300]
    assert b'"error"' in got and code in got


def test_afterwards_the_server_is_as_before(client: Client) -> None:
    assert client.healthy()
    assert (
        client.text(asked("and now <image>?", uri(PNG), uri(JPEG, "image/jpeg")))
        == "[(40, 30), (40, 30)] and now <image>?"
    )
    assert len(client.server.api.pictures) == 0 and client.server.api.desk.taken == 0


def test_pictures_are_turned_flattened_and_taken_by_their_content(client: Client) -> None:
    exif = PILImage.Exif()
    exif[0x0112] = 6
    turned = encoded(picture(), "JPEG", exif=exif)
    animated = io.BytesIO()
    picture(1).save(animated, "GIF", save_all=True, append_images=[picture(2)])
    clear = encoded(PILImage.new("RGBA", (7, 5), (0, 0, 0, 0)))
    for data, kind, size in (
        (turned, "image/jpeg", (30, 40)),
        (animated.getvalue(), "image/gif", (40, 30)),
        (clear, "image/png", (7, 5)),
        (WEBP, "image/png", (40, 30)),
    ):
        assert (
            client.text(asked("", uri(data, kind)) | {"messages": asked("q", uri(data, kind))["messages"]})
            == f"[{size}] q"
        )


def test_a_video_becomes_frames(client: Client) -> None:
    import av

    held = io.BytesIO()
    with av.open(held, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height = 64, 48
        for number in range(16):
            frame = av.VideoFrame.from_image(PILImage.new("RGB", (64, 48), (number * 15, 0, 0)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    part = {"type": "video_url", "video_url": {"url": uri(held.getvalue(), "video/mp4")}}
    told = client.text({"messages": [{"role": "user", "content": [part, {"type": "text", "text": "q"}]}]})
    assert told == f"{[(64, 48)] * 4} q", "as many as this server takes images"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ({"url": uri(b"words", "video/mp4")}, "is not a video: it begins with 'words'; MP4, MOV, WebM and Matroska"),
        ({"url": uri(b"\0\0\0\x18ftypmp42" + bytes(40), "video/mp4")}, ": found a video that cannot be read ("),
        ({"url": uri(PNG, "video/mp4")}, "is a picture (PNG), not a video; send it as image_url"),
        ({"url": uri(PNG)}, "is declared as image/png, not as video/"),
        ({"url": "/etc/passwd"}, "is no data URI of base64; send data:video/"),
    ],
)
def test_what_is_no_video_is_told_with_what_was_found(client: Client, url: dict[str, str], told: str) -> None:
    answer = client.post({"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": url}]}]})
    refused(answer, 400, "invalid_video")
    error = answer.json()["error"]
    assert error["param"] == "messages[0].content[0].video_url.url" and told in error["message"], error


def test_a_video_of_an_unknown_codec_is_told(client: Client, tmp_path: Path) -> None:
    part = {"type": "video_url", "video_url": {"url": uri(unknown_codec(tmp_path / "a").read_bytes(), "video/webm")}}
    answer = client.post({"messages": [{"role": "user", "content": [part]}]})
    refused(answer, 400, "invalid_video")
    assert "found a video that cannot be read (no decoder for its frames)" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["video_url", "image_url"])
def test_a_field_that_is_named_as_its_kind_is_named_once(client: Client, kind: str) -> None:
    for part in ({"type": kind, kind: "data:video/mp4;base64,AAAA"}, {"type": kind}):
        answer = client.post({"messages": [{"role": "user", "content": [part]}]})
        assert answer.json()["error"]["param"] == f"messages[0].content[0].{kind}", part


def test_connections_have_a_bound() -> None:
    with Server(Looking(), port=0, limits=Limits(connections=5, header_seconds=5)) as server:
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
        time.sleep(0.2)
        got = spoken(Client(server), b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 503 " in got and b'"overloaded"' in got
        for line in held:
            line.close()
        time.sleep(0.2)
        assert Client(server).healthy()


class Endless:
    """Writes until it is cancelled."""

    name = "endless"
    running = begun = 0

    def reply(self, conversation: Conversation, options: SamplingOptions = GREEDY) -> Answer:
        def write(cancelled: threading.Event) -> Pieces:
            self.begun += 1
            self.running += 1
            while not cancelled.wait(0.002):
                yield "word " * 10_000
            self.running -= 1
            return Ending("cancelled")

        return Answer(write)


def test_an_answer_that_nobody_reads_is_cut(serving: Callable[..., Client]) -> None:
    model = Endless()
    client = serving(model, limits=Limits(slots=1, write_seconds=0.5))
    body = json.dumps({"model": "endless", **asked("q"), "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", client.server.port)) as line:
        line.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        end = time.monotonic() + 15
        while client.server.api.desk.taken or not model.begun:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert model.running == 0
