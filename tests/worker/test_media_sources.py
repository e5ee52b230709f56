"""What may be read: data: URLs within limits; http(s) when it is allowed, from public addresses, whatever names say."""

import asyncio
import ipaddress
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from m3_media import data_url
from m3_worker.media.items import MediaError, MediaLimits
from m3_worker.media.sources import Address, MediaFetcher, data_url_bytes, is_public

LIMITS = MediaLimits(item_bytes=10_000, seconds=5)
HANG = threading.Event()


class Site(BaseHTTPRequestHandler):
    """A site for which every path is a behaviour."""

    seen: list[str]

    def do_GET(self) -> None:
        self.server.seen.append(f"{self.headers['host']} {self.path}")  # type: ignore[attr-defined] # set by the fixture
        path = self.path.strip("/")
        if path.startswith("to:"):
            self.answer(302, location=path[3:])
        elif path == "loop":
            self.answer(302, location="/loop")
        elif path == "missing":
            self.answer(404)
        elif path == "sound":
            self.answer(200, b"ID3", content_type="audio/mpeg")
        elif path == "huge":
            self.answer(200, bytes(20_000))
        elif path == "slow":
            HANG.wait(10)
        else:
            self.answer(200, b"content")

    def answer(self, status: int, body: bytes = b"", location: str = "", content_type: str = "image/png") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[ThreadingHTTPServer]:
    HANG.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.seen = []  # type: ignore[attr-defined] # for the tests to read
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    HANG.set()
    server.shutdown()
    server.server_close()
    thread.join()


async def everything_is_here(host: str, port: int) -> Sequence[str]:
    """Every name is this machine's; addresses are themselves."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        return ["127.0.0.1"]


def loopback_is_public(address: Address) -> bool:
    return str(address) == "127.0.0.1"


def fetch(url: str, limits: MediaLimits = LIMITS) -> bytes:
    """As if 127.0.0.1 were the internet."""
    return asyncio.run(MediaFetcher(limits, everything_is_here, loopback_is_public).fetch(url))


def refusal(url: str, fetcher: MediaFetcher) -> str:
    with pytest.raises(MediaError) as error:
        asyncio.run(fetcher.fetch(url))
    return str(error.value)


def test_a_body_is_fetched_by_its_name(site: ThreadingHTTPServer) -> None:
    port = site.server_port
    assert fetch(f"http://pictures.example:{port}/a.png?x=1") == b"content"
    assert site.seen == [f"pictures.example:{port} /a.png?x=1"]  # type: ignore[attr-defined] # see the fixture


def test_redirects_are_followed_three_times_at_most(site: ThreadingHTTPServer) -> None:
    base = f"http://a.example:{site.server_port}"
    assert fetch(f"{base}/to:{base}/there") == b"content"
    assert fetch(f"{base}/to:/there") == b"content"
    with pytest.raises(MediaError, match="it redirects more than 3 times"):
        fetch(f"{base}/loop")
    assert sum("/loop" in line for line in site.seen) == 4  # type: ignore[attr-defined] # see the fixture


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
    ],
)
def test_this_machine_is_not_read_from_however_it_is_written(site: ThreadingHTTPServer, host: str) -> None:
    """With the system's own resolver and the rule as it is served with."""
    message = refusal(f"http://{host}:{site.server_port}/", MediaFetcher(LIMITS))
    assert message == "its host has an address that is not public: private networks are not read from"
    assert site.seen == []  # type: ignore[attr-defined] # see the fixture


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "172.16.3.4",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "198.18.0.1",
        "192.0.2.1",
        "224.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "fe80::1",
        "fc00::1",
        "fd12::1",
        "ff02::1",
        "::",
        "2001:db8::1",
        "::ffff:10.0.0.1",
        "2002:a00:1::1",
        "64:ff9b::a9fe:a9fe",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)
def test_addresses_that_are_not_public_are_known(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_addresses_that_are_public_are_known(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_name_with_one_private_address_among_public_ones_is_refused() -> None:
    async def both(host: str, port: int) -> Sequence[str]:
        return ["1.1.1.1", "10.0.0.5"]

    assert "not public" in refusal("https://mixed.example/", MediaFetcher(LIMITS, both))


def test_the_address_that_was_checked_is_the_one_that_is_asked(site: ThreadingHTTPServer) -> None:
    """A name that means another address the second time it is looked up (DNS rebinding) gains nothing: it is not."""
    lookups = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        lookups.append(host)
        return ["127.0.0.1"] if len(lookups) == 1 else ["10.0.0.1"]

    fetcher = MediaFetcher(LIMITS, rebinding, loopback_is_public)
    assert asyncio.run(fetcher.fetch(f"http://rebinding.example:{site.server_port}/")) == b"content"
    assert lookups == ["rebinding.example"]


@pytest.mark.parametrize("target", ["http://10.0.0.1/secret", "http://[::1]/", "http://inner.example/"])
def test_a_redirect_to_a_private_address_is_refused(site: ThreadingHTTPServer, target: str) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["192.168.0.1"] if host == "inner.example" else await everything_is_here(host, port)

    fetcher = MediaFetcher(LIMITS, resolve, loopback_is_public)
    assert "not public" in refusal(f"http://a.example:{site.server_port}/to:{target}", fetcher)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "its URL has the scheme 'file': must be data, http or https"),
        ("ftp://a.example/x", "its URL has the scheme 'ftp'"),
        ("gopher://a.example/x", "its URL has the scheme 'gopher'"),
        ("/etc/passwd", "its URL has the scheme ''"),
        ("http://", "its URL must name a host, and no user"),
        ("http://user:secret@a.example/", "its URL must name a host, and no user"),
        ("http://a.example:99999/", "its URL is not valid"),
        ("http://\x00/", "its URL is not valid"),
    ],
)
def test_other_urls_are_refused(url: str, message: str) -> None:
    assert refusal(url, MediaFetcher(LIMITS, everything_is_here, loopback_is_public)).startswith(message)


def test_a_redirect_to_a_file_is_refused(site: ThreadingHTTPServer) -> None:
    with pytest.raises(MediaError, match="its URL has the scheme 'file'"):
        fetch(f"http://a.example:{site.server_port}/to:file:///etc/passwd")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "its host answers 404"),
        ("huge", "it has more than 10,000 bytes"),
        ("sound", "audio is not supported: this model sees images and video, it does not hear"),
    ],
)
def test_a_bad_answer_is_refused(site: ThreadingHTTPServer, path: str, message: str) -> None:
    with pytest.raises(MediaError) as error:
        fetch(f"http://a.example:{site.server_port}/{path}")
    assert str(error.value) == message


def test_fetching_has_a_time_limit_for_all_of_it(site: ThreadingHTTPServer) -> None:
    with pytest.raises(MediaError, match="fetching it took more than 0 seconds"):
        fetch(f"http://a.example:{site.server_port}/slow", MediaLimits(seconds=0.2))


def test_a_host_that_does_not_answer_is_told_without_details(site: ThreadingHTTPServer) -> None:
    site.server_close()
    with pytest.raises(MediaError) as error:
        fetch(f"http://a.example:{site.server_port}/")
    assert str(error.value) == "it cannot be fetched: ConnectError"


def test_a_data_url_is_its_content() -> None:
    assert data_url_bytes(data_url(b"\x00\x01picture"), LIMITS) == b"\x00\x01picture"
    assert len(data_url_bytes(data_url(bytes(10_000)), LIMITS)) == 10_000
    assert data_url_bytes("DATA:image/png;name=x;BASE64,AAE=", LIMITS) == b"\x00\x01"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64", "the data: URL has no comma: must be data:TYPE;base64,CONTENT"),
        ("data:image/png,abc", "the data: URL is not base64"),
        ("data:image/png;base64,a b=", "the data: URL is not valid base64: "),
        ("data:image/png;base64,abc", "the data: URL is not valid base64: "),
        ("data:audio/wav;base64,AAAA", "audio is not supported: this model sees images and video, it does not hear"),
        (data_url(bytes(10_001)), "it has 10,001 bytes: must be at most 10,000"),
    ],
    ids=["no comma", "no base64", "a space", "no padding", "sound", "too long"],
)
def test_a_bad_data_url_is_refused(url: str, message: str) -> None:
    with pytest.raises(MediaError) as error:
        data_url_bytes(url, LIMITS)
    assert str(error.value).startswith(message)
