"""URLs on a client's word: a real https server on loopback, names that resolve to where they should not."""

from __future__ import annotations

import asyncio
import http.server
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import trustme

from tests.serving.requests_made import Client, asked, encoded, picture
from tests.serving.test_hostile import BODIES, IMAGES, LIMITS, RAW, URLS, Looking, refused
from workbench.errors import WorkbenchError
from workbench.serving.remote_images import RemoteImages, is_public
from workbench.serving.run import Server

NAME = "pictures.example.org"
PNG = encoded(picture())


class Web:
    """An https server that answers as its path says, and counts."""

    def __init__(self) -> None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(NAME, f"cdn.{NAME}", "other.example.com").configure_cert(context)
        self.trusting = ssl.create_default_context()
        authority.configure_trust(self.trusting)
        self.asked: list[tuple[str, str]] = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _handler(web) -> Any:  # noqa: N805 - `self` is the handler's
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append((self.headers["host"], self.path))
                kind, _, rest = self.path.lstrip("/").partition("/")
                if kind == "to":
                    self.send_response(302)
                    self.send_header("location", rest.replace("PORT", str(web.port)))
                    self.end_headers()
                elif kind == "status":
                    self.send_error(int(rest))
                elif kind == "slow":
                    self.send_response(200)
                    self.end_headers()
                    for _ in range(100):
                        self.wfile.write(b"x")
                        time.sleep(0.1)
                else:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(bytes(3 * 2**20) if kind == "huge" else b"<html>" if kind == "html" else PNG)

            def log_message(self, *told: Any) -> None:
                pass

        return Handler


ADDRESSES = {
    "public": "93.184.215.14", "loopback": "127.0.0.1", "loopback-high": "127.255.255.254", "any": "0.0.0.0",
    "private-10": "10.0.0.5", "private-172": "172.16.0.1", "private-192": "192.168.1.1",
    "link-local": "169.254.169.254", "carrier": "100.64.0.1", "multicast": "224.0.0.1",
    "broadcast": "255.255.255.255", "reserved": "240.0.0.1", "test-net": "192.0.2.1", "benchmark": "198.18.0.1",
    "v6-loopback": "::1", "v6-any": "::", "v6-mapped": "::ffff:127.0.0.1", "v6-mapped-private": "::ffff:10.0.0.1",
    "v6-local": "fc00::1", "v6-link": "fe80::1", "v6-multicast": "ff02::1", "v6-6to4": "2002:7f00:1::",
    "v6-nat64": "64:ff9b::7f00:1", "v6-teredo": "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "v6-doc": "2001:db8::1", "v6-site": "fec0::1",
}  # fmt: skip
"""Sub-domain -> where its name leads."""


async def resolve(host: str) -> Sequence[str]:
    first = host.split(".")[0]
    if first == "mixed":
        return ["93.184.215.14", "127.0.0.1"]
    if first == "nowhere":
        raise OSError("not known")
    return [ADDRESSES[first]] if first in ADDRESSES else ["127.0.0.1"]


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.server.shutdown()


@pytest.fixture(scope="module")
def strict(web: Web) -> Iterator[Client]:
    """As it is in earnest, but for the resolver."""
    remote = RemoteImages([NAME], limit=2**20, seconds=1.5, resolve=resolve, context=web.trusting)
    with Server(Looking(), port=0, limits=LIMITS, remote=remote) as server:
        yield Client(server)


@pytest.fixture(scope="module")
def client(web: Web) -> Iterator[Client]:
    """One that takes loopback for public, so that there is somebody to fetch from."""
    public = lambda address: address == "127.0.0.1" or is_public(address)  # noqa: E731
    remote = RemoteImages([NAME], limit=2**20, seconds=1.5, resolve=resolve, context=web.trusting, public=public)
    with Server(Looking(), port=0, limits=LIMITS, remote=remote) as server:
        yield Client(server)


def test_a_listed_name_is_fetched_by_its_checked_address(client: Client, web: Web) -> None:
    assert client.text(asked("q", f"https://{NAME}:{web.port}/a.png?x=1")) == "[(40, 30)] q"
    assert web.asked[-1] == (f"{NAME}:{web.port}", "/a.png?x=1")
    assert client.text(asked("q", f"https://CDN.{NAME}:{web.port}/b")) == "[(40, 30)] q"
    assert client.text(asked("q", f"https://{NAME}:{web.port}/to//c.png")) == "[(40, 30)] q", "a redirect is followed"


HOSTILE = [
    *(f"https://{name}.{NAME}/a.png" for name in ADDRESSES if name != "public"),
    *(f"https://{name}.{NAME}/a.png" for name in ("mixed", "nowhere")),
    f"http://{NAME}/a.png", f"https://evil{NAME}/", f"https://{NAME}.evil.com/", f"https://{NAME}@evil.com/",
    f"https://u:p@{NAME}/", "https://evil.com/?" + NAME, "https://evil.com/#" + NAME, f"https://evil.com\\@{NAME}/",
    "https://127.0.0.1/", "https://[::1]/", "https://2130706433/", "https://0x7f.1/", f"https://{NAME}:99999/",
    f"https://{NAME}:x/", "https://", "https:///a.png", f"https://{NAME}%00.evil.com/", f"https://{NAME}%2eevil.com/",
    "https://xn--e1afmkfd/", "https://" + "a" * 300 + f".{NAME}/", f"https://ⓔvil.com/{NAME}", f"https://{NAME}​/",
]  # fmt: skip


@pytest.mark.parametrize("url", HOSTILE)
def test_a_url_that_leads_elsewhere_is_refused(strict: Client, web: Web, url: str) -> None:
    before = len(web.asked)
    answer = strict.post(asked("q", url))
    refused(answer, 400, "invalid_image_url")
    name = url.removeprefix("https://").split(".")[0]
    assert "not public" in answer.text or name not in ADDRESSES
    assert "127.0.0.1" not in answer.text and "169.254" not in answer.text and len(web.asked) == before


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("to/http://{name}:PORT/a.png", "scheme"),
        ("to/file:///etc/passwd", "scheme"),
        ("to/https://other.example.com:PORT/a.png", "domain"),
        ("to/https://private-10.{name}:PORT/a.png", "not public"),
        ("to/https://v6-mapped-private.{name}/a.png", "not public"),
        ("to/https://{name}:PORT/" + "to/https://{name}:PORT/" * 5 + "a.png", "redirects more than"),
        ("status/404", "status 404"),
        ("status/500", "status 500"),
        ("slow/x", "within 2 s"),
        ("huge/x", "larger than"),
        ("html/x", "is not an image"),
    ],
)
def test_what_comes_back_is_checked_too(client: Client, web: Web, path: str, says: str) -> None:
    answer = client.post(asked("q", f"https://{NAME}:{web.port}/{path.format(name=NAME)}"))
    assert answer.status_code == 400 and says in answer.json()["error"]["message"], answer.text


def test_a_certificate_of_somebody_else_is_refused(client: Client, web: Web) -> None:
    answer = client.post(asked("q", f"https://unnamed.{NAME}:{web.port}/a.png"))
    assert answer.status_code == 400 and "could not be fetched" in answer.text


def test_others_are_answered_while_one_is_fetched(client: Client, web: Web) -> None:
    slow = threading.Thread(target=client.post, args=(asked("q", f"https://{NAME}:{web.port}/slow/x"),))
    slow.start()
    begun = time.monotonic()
    assert client.text(asked("q")) == "[] q" and time.monotonic() - begun < 1.0 and slow.is_alive()
    slow.join()
    assert client.healthy() and len(client.server.api.pictures) == 0


def test_a_name_is_looked_up_once(web: Web) -> None:
    """A second lookup could lead elsewhere than the address that was checked."""
    looked: list[str] = []

    async def once(host: str) -> Sequence[str]:
        looked.append(host)
        return ["127.0.0.1"] if len(looked) == 1 else ["10.0.0.1"]

    remote = RemoteImages([NAME], limit=2**20, resolve=once, context=web.trusting, public=lambda address: True)
    assert asyncio.run(remote.fetch(f"https://{NAME}:{web.port}/a.png", "here")) == PNG
    assert looked == [NAME]


def test_public_is_what_is_used_where_nothing_is_said() -> None:
    assert RemoteImages([NAME], limit=1)._public is is_public
    assert is_public("93.184.215.14") and is_public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    assert not is_public("nonsense")


@pytest.mark.parametrize("domain", ["", "*.example.org", "https://example.org", "example.org/x", "host:80"])
def test_a_domain_that_is_none_is_told_before_anything_starts(domain: str) -> None:
    with pytest.raises(WorkbenchError, match="--allow-remote-images"):
        RemoteImages([domain], limit=1)


def test_two_hundred_hostile_requests_in_all() -> None:
    assert len(IMAGES) + len(URLS) + len(BODIES) + len(RAW) + len(HOSTILE) >= 200


def test_the_server_is_well_after_all_of_that(strict: Client, client: Client) -> None:
    assert strict.healthy() and client.healthy()
