"""Answers that know when their client is gone, whole or as server-sent events.

Owns the form of an event stream: one write for what one step brought, an error as an event of its own, `[DONE]` only
after a finished answer. A connection that closes is noticed while nothing is being sent, and so during prefill too.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from m3_worker.api.errors import ApiError
from m3_worker.api.generation import engine_failed
from m3_worker.token_stream import EngineFailedError

T = TypeVar("T")
Next = TypeVar("Next")
Next_co = TypeVar("Next_co", covariant=True)
Whole_co = TypeVar("Whole_co", covariant=True)

CLIENT_CLOSED_REQUEST = 499


class Source(Protocol[Next_co, Whole_co]):
    """Where an answer comes from: a `Generation`, or `Choices`, or what a dialect makes of them."""

    @property
    def is_finished(self) -> bool:
        """Whether the last part was given."""

    async def next(self) -> Next_co:
        """Wait for the next part. Raises EngineFailedError or ApiError."""

    async def collect(self) -> Whole_co:
        """Wait for the whole answer. Raises ApiError."""

    def close(self) -> None:
        """Give up what is unfinished."""

    def headers(self) -> dict[str, str]:
        """What is known before the first byte."""


class ClientGoneError(Exception):
    """The connection was closed before the answer was there."""


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `work`, which is cancelled as soon as the client closes the connection: ClientGoneError then.

    `receive` must have delivered the whole body.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_closed(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def whole_answer(source: Source[Any, T], receive: Receive, render: Callable[[T], Response]) -> Response:
    """Wait for the answer and render it; give it up if the client leaves. Raises ApiError if the engine fails."""
    try:
        return render(await unless_gone(source.collect(), receive))
    except ClientGoneError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        source.close()


class EventStream(Response, Generic[Next]):
    """A response of server-sent events, one JSON object each."""

    media_type = "text/event-stream"

    def __init__(
        self,
        source: Source[Next, Any],
        render: Callable[[Next], Iterable[dict[str, Any]]],
        last: Callable[[], dict[str, Any]] | None,
    ) -> None:
        """`render` makes the events of a part, `last` the one before `[DONE]`."""
        super().__init__(headers={**source.headers(), "cache-control": "no-cache"})
        del self.headers["content-length"]
        self._source = source
        self._render = render
        self._last = last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the answer is finished or the client is gone."""
        try:
            await unless_gone(self._send_events(send), receive)
        except (ClientGoneError, OSError):  # a server may tell of a closed connection by refusing to write
            return
        finally:
            self._source.close()

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while not self._source.is_finished:
            try:
                events = b"".join(map(_event, self._render(await self._source.next())))
            except (EngineFailedError, ApiError) as error:
                refusal = error if isinstance(error, ApiError) else engine_failed(error)
                await send({"type": "http.response.body", "body": _event(refusal.body())})
                return
            if self._source.is_finished:
                break
            if events:
                await send({"type": "http.response.body", "body": events, "more_body": True})
        if self._last is not None:
            events += _event(self._last())
        await send({"type": "http.response.body", "body": events + b"data: [DONE]\n\n"})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _closed(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
