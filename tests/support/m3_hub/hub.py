"""The hub's listing with sizes and digests, and its files with ranges, by way of a redirect as the real one has it."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit


@dataclass
class Fault:
    """An answer other than the file or the listing."""

    status: int = 200
    code: str = ""
    cut_after_bytes: int | None = None
    """The connection ends after so many bytes of the body."""
    stall_after_bytes: int | None = None
    """Nothing more comes after so many bytes, until the hub goes."""
    times: int = 1


@dataclass
class FakeHub:
    """One repository at one commit."""

    repo: str = "acme/model"
    revision: str = "0123456789abcdef0123456789abcdef01234567"
    files: dict[str, bytes] = field(default_factory=dict)
    large: frozenset[str] = frozenset()
    announced: dict[str, bytes] = field(default_factory=dict)
    """Files that the listing describes by another content than is sent."""
    token: str | None = None
    faults: dict[str, Fault] = field(default_factory=dict)
    """By the path that is asked for, before redirects."""
    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Path, Range header, and token of each request."""
    closing: threading.Event = field(default_factory=threading.Event)

    def listing(self) -> dict[str, object]:
        siblings = []
        for name, sent in self.files.items():
            content = self.announced.get(name, sent)
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            sibling: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
            if name in self.large:
                sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            siblings.append(sibling)
        return {"id": self.repo, "sha": self.revision, "siblings": siblings}

    def ranges_of(self, name: str) -> list[str]:
        """Range headers of the requests for a file's bytes, in order."""
        return [ranges for path, ranges, _ in self.requests if path == f"/cdn/{name}"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: FakeHub) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go in the middle are what tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        hub, path, token = self.server.hub, unquote(urlsplit(self.path).path), self.headers.get("Authorization")
        hub.requests.append((path, self.headers.get("Range", ""), token))
        fault = hub.faults.get(path)
        if fault is not None and fault.times > 0:
            fault.times -= 1
        else:
            fault = None
        prefix = f"/{hub.repo}/resolve/{hub.revision}/"
        if fault is not None and fault.status != 200:
            self._send(fault.status, b"", {"X-Error-Code": fault.code} if fault.code else {})
        elif path.startswith("/cdn/"):
            self._file(path.removeprefix("/cdn/"), fault or Fault())
        elif hub.token is not None and token != f"Bearer {hub.token}":
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif path == f"/api/models/{hub.repo}/revision/{hub.revision}":
            self._send(200, json.dumps(hub.listing()).encode(), {})
        elif path.startswith(prefix) and path.removeprefix(prefix) in hub.files:
            port = self.server.server_address[1]
            # Another host, as far as a client can tell.
            self._send(302, b"", {"Location": f"http://localhost:{port}/cdn/{quote(path.removeprefix(prefix))}"})
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _file(self, name: str, fault: Fault) -> None:
        hub, ranges = self.server.hub, self.headers.get("Range", "")
        start = int(ranges.removeprefix("bytes=").rstrip("-")) if ranges else 0
        body = hub.files[name][start:]
        self.send_response(206 if ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault.cut_after_bytes is not None:
            self.wfile.write(body[: fault.cut_after_bytes])
            self.close_connection = True
        elif fault.stall_after_bytes is not None:
            self.wfile.write(body[: fault.stall_after_bytes])
            hub.closing.wait(60)
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Tests read `requests`."""


@contextmanager
def running_hub(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub, answering at `hub.url`."""
    with _Server(hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()
            thread.join()
