"""A page that tells how far the download is, in Prometheus' text format, at any path of one port."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Progress:
    """Bytes that are there, of those needed; `done_bytes` looks at the disk, whoever writes to it."""

    clock: Callable[[], float] = time.monotonic
    needed_bytes: int | None = None
    done_bytes: Callable[[], int] = lambda: 0
    _began: tuple[float, int] | None = field(default=None, init=False)

    def begin(self, needed_bytes: int, done_bytes: Callable[[], int]) -> None:
        """From now on it is known how much there is to do."""
        self._began = (self.clock(), done_bytes())
        self.needed_bytes, self.done_bytes = needed_bytes, done_bytes

    def page(self) -> str:
        """The page as of now; empty until it is known how much is needed."""
        if self.needed_bytes is None or self._began is None:
            return ""
        done = self.done_bytes()
        lines = [f"m3_fetch_needed_bytes {self.needed_bytes}", f"m3_fetch_done_bytes {done}"]
        seconds, brought = self.clock() - self._began[0], done - self._began[1]
        if brought > 0 and seconds > 0:
            lines.append(f"m3_fetch_seconds_left {(self.needed_bytes - done) * seconds / brought:.0f}")
        return "".join(f"{line}\n" for line in lines)


@contextmanager
def telling(progress: Progress, host: str, port: int) -> Iterator[int]:
    """Serve the page; the port it is at. Raises OSError if there is none to have."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = progress.page().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody wants to read of every scrape."""

    with ThreadingHTTPServer((host, port), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, name="page", daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
