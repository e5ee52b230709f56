"""The connection that brings a worker's KV events: followed for as long as the worker is there.

Owns one request, `GET /internal/kv-events`, and its repetition: with growing pauses, from the batch after the last one
that was read, or from a snapshot where that is not possible. What the lines mean is the view's. A worker without that
path (404) is asked again seldom. Silence for longer than the worker's own sign of life counts as a lost connection.
"""

import asyncio
import functools
import logging
from typing import Final
from urllib.parse import quote

from m3_router.http.messages import Answer
from m3_router.http.worker_end import AnswerSink, WorkerConnection, WorkerConnections
from m3_router.kv_events.lines import EventsError, LineReader
from m3_router.kv_events.view import CacheView
from m3_router.workers.workers import WorkerAddress

CONNECT_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 30.0  # the worker says every ten that it is alive
FIRST_PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 10.0
UNKNOWN_PAUSE_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)


class Follower:
    """Follows one worker. `run` until it is cancelled."""

    def __init__(self, connections: WorkerConnections, address: WorkerAddress, view: CacheView) -> None:
        self._connections = connections
        self._address = address
        self._view = view
        self.is_following = False
        self.reason = "not connected yet"

    async def run(self) -> None:
        """Follow, and follow again when the connection is lost, until cancelled."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            stream = _Stream(self._view)
            try:
                await self._follow(stream)
            except (ConnectionError, EventsError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
                if self.is_following or stream.status == 404:
                    _log.warning("KV events of worker %s: %s", self._address.name, reason)
                self.is_following, self.reason = False, reason
            if stream.status == 404:
                pause = UNKNOWN_PAUSE_SECONDS
            elif stream.lines:
                pause = FIRST_PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _follow(self, stream: "_Stream") -> None:
        """Until the stream ends. Raises ConnectionError, EventsError or TimeoutError."""
        send = functools.partial(self._send, stream)
        dial = self._connections.dial(self._address, CONNECT_SECONDS, send, stream.worker_lost)
        try:
            while not stream.has_ended:
                stream.has_news.clear()
                async with asyncio.timeout(SILENCE_SECONDS):
                    await stream.has_news.wait()
                if stream.lines:
                    self.is_following, self.reason = True, ""
            stream.raise_failure()
        except TimeoutError:
            raise TimeoutError(f"silent for {SILENCE_SECONDS:g} s") from None
        finally:
            dial.cancel()
            stream.close()

    def _send(self, stream: "_Stream", connection: WorkerConnection) -> None:
        stream.connection = connection
        path = "/internal/kv-events"
        if self._view.number is not None:
            path += f"?epoch={quote(self._view.epoch, safe='')}&after={self._view.number}"
        head = f"GET {path} HTTP/1.1\r\nhost: {self._address.name}\r\n\r\n"
        connection.send(head.encode(), b"", stream)


class _Stream(AnswerSink):
    """One answer, read into the view as it comes."""

    def __init__(self, view: CacheView) -> None:
        self._view = view
        self._reader = LineReader()
        self._failure: Exception | None = None
        self.connection: WorkerConnection | None = None
        self.has_news = asyncio.Event()
        self.has_ended = False
        self.status = 0
        self.lines = 0

    def worker_answered(self, answer: Answer | None, body: bytes, is_complete: bool) -> None:
        if answer is not None:
            self.status = answer.status
        try:
            if self.status == 200:
                for line in self._reader.feed(body):
                    self._view.take(line)
                    self.lines += 1
        except EventsError as error:
            self._end(error)
            return
        if is_complete:
            self.connection = None
            reason = "the worker ended the stream" if self.status == 200 else f"the worker answered {self.status}"
            self._end(ConnectionError(reason))
        self.has_news.set()

    def worker_lost(self, reason: str) -> None:
        self.connection = None
        self._end(ConnectionError(reason))

    def raise_failure(self) -> None:
        """Raise what ended it."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Give the connection up; harmless if it is gone."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()

    def _end(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self.has_ended = True
        self.close()
        self.has_news.set()
