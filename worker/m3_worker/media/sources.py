"""The bytes behind the URL of an image or a video.

Owns what may be read at all. data: URLs are in the request already; http(s) is fetched only by a worker that was told
to (`--allow-media-urls`), because whoever makes a server fetch can make it look around in its own network. So every
host is resolved here, every address it has must be public, and the connection goes to an address that was checked, not
to a name that may mean another one by then; redirects start over. Proxies of the environment are not used: they would
do the resolving.
"""

import asyncio
import base64
import binascii
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence

import httpx

from m3_worker.media.items import MediaError, MediaLimits

MAX_REDIRECTS = 3
_DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?P<parameters>(?:;[^;,]*)*),", re.IGNORECASE)
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {"accept-encoding": "identity", "user-agent": "m3serve"}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to the addresses of the host. Raises OSError."""


def data_url_bytes(url: str, limits: MediaLimits) -> bytes:
    """The content of a base64 data: URL. Raises MediaError; the size is checked before anything is decoded."""
    head = _DATA_URL.match(url)
    if head is None:
        raise MediaError("the data: URL has no comma: must be data:TYPE;base64,CONTENT")
    _check_type(head["type"])
    if not head["parameters"].lower().endswith(";base64"):
        raise MediaError("the data: URL is not base64: must be data:TYPE;base64,CONTENT")
    size = (len(url) - head.end()) // 4 * 3 - url.count("=", len(url) - 2)
    if size > limits.item_bytes:
        raise MediaError(f"it has {size:,} bytes: must be at most {limits.item_bytes:,}")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"the data: URL is not valid base64: {error}") from None


def is_public(address: Address) -> bool:
    """Whether an address is of the public internet. One that leads to an IPv4 address is judged by that one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is not None:
            return is_public(embedded)
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def system_resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system knows them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class MediaFetcher:
    """Fetches http(s) URLs within limits. Each fetch has connections of its own: none is shared between hosts."""

    def __init__(
        self,
        limits: MediaLimits,
        resolve: Resolve = system_resolve,
        permits: Callable[[Address], bool] = is_public,
    ) -> None:
        self._limits = limits
        self._resolve = resolve
        self._permits = permits
        self._ssl: ssl.SSLContext = httpx.create_ssl_context(trust_env=False)

    async def fetch(self, url: str) -> bytes:
        """The body that a GET of the URL answers with. Raises MediaError."""
        try:
            async with asyncio.timeout(self._limits.seconds):
                for _ in range(MAX_REDIRECTS + 1):
                    answer = await self._get(_parsed(url))
                    if isinstance(answer, bytes):
                        return answer
                    url = answer
        except TimeoutError:
            raise MediaError(f"fetching it took more than {self._limits.seconds:.0f} seconds") from None
        except httpx.HTTPError as error:
            raise MediaError(f"it cannot be fetched: {type(error).__name__}") from None
        raise MediaError(f"it redirects more than {MAX_REDIRECTS} times")

    async def _get(self, url: httpx.URL) -> bytes | str:
        """The body, or the URL that it redirects to."""
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = await self._checked(url.host, port)
        async with httpx.AsyncClient(
            verify=self._ssl, trust_env=False, timeout=self._limits.seconds, follow_redirects=False
        ) as client:
            for number, address in enumerate(addresses, start=1):
                request = client.build_request(
                    "GET",
                    url.copy_with(host=address),
                    headers={**_HEADERS, "host": url.netloc.decode("ascii")},
                    extensions={"sni_hostname": url.host},  # the certificate must be the name's, not the address's
                )
                try:
                    response = await client.send(request, stream=True)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    if number == len(addresses):
                        raise
                    continue
                try:
                    return await self._read(response, url)
                finally:
                    await response.aclose()
        raise MediaError("its host has no address")

    async def _checked(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise MediaError("its host cannot be resolved") from None
        if not addresses:
            raise MediaError("its host has no address")
        if not all(self._permits(ipaddress.ip_address(address)) for address in addresses):
            raise MediaError("its host has an address that is not public: private networks are not read from")
        return addresses

    async def _read(self, response: httpx.Response, url: httpx.URL) -> bytes | str:
        if response.status_code in _REDIRECTS and "location" in response.headers:
            return str(url.join(response.headers["location"]))
        if response.status_code != 200:
            raise MediaError(f"its host answers {response.status_code}")
        _check_type(response.headers.get("content-type", ""))
        body = bytearray()
        async for part in response.aiter_raw():  # as sent: a compressed body could grow without bound
            body += part
            if len(body) > self._limits.item_bytes:
                raise MediaError(f"it has more than {self._limits.item_bytes:,} bytes")
        return bytes(body)


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise MediaError("its URL is not valid") from None
    if parsed.scheme not in ("http", "https"):
        raise MediaError(f"its URL has the scheme {parsed.scheme[:20]!r}: must be data, http or https")
    if (parsed.port or 0) > 65535:
        raise MediaError("its URL is not valid")
    if not parsed.host or parsed.userinfo:
        raise MediaError("its URL must name a host, and no user")
    return parsed


def _check_type(content_type: str) -> None:
    if content_type.strip().lower().startswith("audio/"):
        raise MediaError("audio is not supported: this model sees images and video, it does not hear")
