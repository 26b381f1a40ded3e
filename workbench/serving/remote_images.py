"""The only code that fetches a URL on a client's word: https, listed domains, public addresses, with limits.

Knows: which addresses are public, that a name must be looked up once and the address that was checked be the one
connected to, that each redirect a new URL. Does not know: requests, models, pictures' formats.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from urllib.parse import urljoin, urlsplit

import httpx

from workbench.errors import WorkbenchError
from workbench.serving.errors import ApiError

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""The addresses of a name, as texts."""
_REDIRECTS = 3
_AT_ONCE = 8


class RemoteImages:
    """Fetches images from `domains` (each with its subdomains), in at most `seconds` and `limit` bytes.

    resolve, public, context: how names become addresses, which of those may be connected to, and whom TLS trusts.
    """

    def __init__(
        self,
        domains: Iterable[str],
        *,
        limit: int,
        seconds: float = 10.0,
        resolve: Resolve | None = None,
        public: Callable[[str], bool] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.domains = tuple(_domain(each) for each in domains)
        self.limit, self.seconds = limit, seconds
        self._resolve, self._public = resolve or _looked_up, public or is_public
        self._context = context or ssl.create_default_context()
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def fetch(self, url: str, where: str) -> bytes:
        """The bytes at `url`. Raises `ApiError` 400 that says why they are not fetched, and no address."""
        try:
            async with asyncio.timeout(self.seconds), self._turn:
                for _ in range(_REDIRECTS + 1):
                    data, url = await self._get(url, where)
                    if data is not None:
                        return data
        except TimeoutError:
            raise _refused(where, f"was not fetched within {self.seconds:.0f} s") from None
        except (httpx.HTTPError, ssl.SSLError, OSError) as problem:
            raise _refused(where, f"could not be fetched ({type(problem).__name__})") from None
        raise _refused(where, f"redirects more than {_REDIRECTS} times")

    async def _get(self, url: str, where: str) -> tuple[bytes | None, str]:
        """(bytes, the URL), or (None, where the server sends us)."""
        host, port = self._checked(url, where)
        address = await self._address(host, where)
        parts = urlsplit(url)
        # To the address that was checked, not to the name again: its next lookup may say something else.
        netloc = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        target = httpx.URL(parts._replace(netloc=netloc, fragment="").geturl())
        named = {"host": host if port == 443 else f"{host}:{port}", "accept": "image/*", "accept-encoding": "identity"}
        transport = httpx.AsyncHTTPTransport(verify=self._context, trust_env=False, retries=0)
        async with (
            httpx.AsyncClient(transport=transport, trust_env=False, timeout=self.seconds) as client,
            client.stream("GET", target, headers=named, extensions={"sni_hostname": host}) as answer,
        ):
            if answer.status_code in (301, 302, 303, 307, 308) and "location" in answer.headers:
                return None, urljoin(url, answer.headers["location"])
            if answer.status_code != 200:
                raise _refused(where, f"was answered with status {answer.status_code}")
            data = bytearray()
            async for part in answer.aiter_raw():
                data += part
                if len(data) > self.limit:
                    raise _refused(where, f"is larger than {self.limit:,} bytes")
            return bytes(data), url

    def _checked(self, url: str, where: str) -> tuple[str, int]:
        """(host, port) of a URL that may be fetched."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").encode("idna").decode().lower().rstrip("."), parts.port or 443
        except ValueError:
            raise _refused(where, "is not a URL") from None
        if parts.scheme != "https":
            raise _refused(where, f"is of scheme {parts.scheme[:20] or 'none'!r}; only https and data URIs are taken")
        if parts.username is not None or parts.password is not None:
            raise _refused(where, "carries a user name or password")
        if not any(host == each or host.endswith(f".{each}") for each in self.domains):
            raise _refused(where, "is not of a domain that this server fetches from")
        return host, port

    async def _address(self, host: str, where: str) -> str:
        """One address of the host; every one of them must be public, or a second lookup could choose another."""
        try:
            found = list(await self._resolve(host))
        except (OSError, UnicodeError):
            found = []
        if not found:
            raise _refused(where, "has a host that is not known")
        if not all(self._public(each) for each in found):
            raise _refused(where, "leads to an address that is not public")
        return found[0]


def is_public(address: str) -> bool:
    """Whether an address is of the public internet: global, no multicast, and none that stands for another."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found.is_site_local:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


async def _looked_up(host: str) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=1)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _domain(text: str) -> str:
    """A listed domain as it is compared; raises `WorkbenchError` for what is none."""
    bare = text.strip().lower().strip(".")
    if not bare or "/" in bare or ":" in bare or "*" in bare:
        raise WorkbenchError("--allow-remote-images", found=repr(text), expected="domains such as images.example.org")
    return bare.encode("idna").decode()


def _refused(where: str, found: str) -> ApiError:
    return ApiError(400, f"{where} {found}.", code="invalid_image_url", param=where)
