"""Where lines go: one JSON line per request on stdout, everything else the process says as JSON lines on stderr.

Owns the way from the event loop to stdout. The loop never waits for whoever reads the log: a thread writes; if the
reader falls MAX_PENDING_BYTES behind, lines are dropped and counted.
"""

import contextlib
import logging
import queue
import threading
import time
from typing import BinaryIO

import msgspec

MAX_PENDING_BYTES = 16 * 2**20
GATHER_SECONDS = 0.02
PASSED_ON_BYTES = 2**16


class LineWriter:
    """Writes lines to a stream, in order, from a thread of its own."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        # Only the loop adds to `_handed_bytes` and only the thread to `_written_bytes`.
        self._handed_bytes = 0
        self._written_bytes = 0
        self.dropped = 0
        self._batches: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_batches, name="request-log", daemon=True)
        self._thread.start()

    def write(self, lines: bytes, count: int) -> None:
        """Hand `count` whole lines to the thread."""
        if self._handed_bytes - self._written_bytes > MAX_PENDING_BYTES:
            self.dropped += count
            return
        self._handed_bytes += len(lines)
        self._batches.put(lines)

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Write what is left, and end the thread."""
        self._batches.put(None)
        self._thread.join(timeout_seconds)

    def _write_batches(self) -> None:
        is_open = True
        while is_open:
            batches = [self._batches.get()]
            # Each time this thread runs it takes the interpreter from the loop: run seldom, and write all there is.
            time.sleep(GATHER_SECONDS)
            with contextlib.suppress(queue.Empty):
                while True:
                    batches.append(self._batches.get_nowait())
            lines = b"".join(batch for batch in batches if batch is not None)
            is_open = None not in batches
            try:
                self._stream.write(lines)
                self._stream.flush()
            except (OSError, ValueError):  # the reader is gone: count, and go on serving
                self.dropped += lines.count(b"\n")
            self._written_bytes += len(lines)


def pass_on_lines(source: int, sink: BinaryIO) -> None:
    """Copy whole lines from a file descriptor to a stream that others write to as well, until the end of it.

    For a thread; closes the descriptor. One call of `sink.write` is one piece of its output. What a reader that is gone
    does not take is lost; whoever writes must not be held up by it.
    """
    begun = b""
    with open(source, "rb", buffering=0) as stream:
        while data := stream.read(PASSED_ON_BYTES):
            end = data.rfind(b"\n") + 1
            if end:
                _pass_on(begun + data[:end], sink)
                begun = b""
            begun += data[end:]
    if begun:
        _pass_on(begun + b"\n", sink)


def _pass_on(lines: bytes, sink: BinaryIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        sink.write(lines)
        sink.flush()


class JsonFormatter(logging.Formatter):
    """A log record as one JSON line."""

    def format(self, record: logging.LogRecord) -> str:
        """`time`, `level`, `logger` and `message`, and the traceback if there is one."""
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def configure(level: str) -> None:
    """Send the process's log records to stderr as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("kubernetes").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
