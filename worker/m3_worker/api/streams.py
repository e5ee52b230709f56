"""Answers that know when their client is gone, whole or as server-sent events.

Owns the form of an event stream: one write for what one step brought, an error as an event of its own, `[DONE]` only
after a finished answer. A connection that closes is noticed while nothing is being sent, and so during prefill too.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from m3_worker.api.generation import Delta, Generation, engine_failed
from m3_worker.engine import EngineFailedError

T = TypeVar("T")

_CLIENT_CLOSED_REQUEST = 499


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


async def whole_answer(generation: Generation, receive: Receive, render: Callable[[Delta], Response]) -> Response:
    """Wait for the answer and render it; give it up if the client leaves. Raises ApiError if the engine fails."""
    try:
        return render(await unless_gone(generation.collect(), receive))
    except ClientGoneError:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    finally:
        generation.close()


class EventStream(Response):
    """A response of server-sent events, one JSON object each."""

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        render: Callable[[Delta], Iterable[dict[str, Any]]],
        last: Callable[[], dict[str, Any]] | None,
    ) -> None:
        """`render` makes the events of a delta, `last` the one before `[DONE]`."""
        super().__init__(headers={**generation.headers(), "cache-control": "no-cache"})
        del self.headers["content-length"]
        self._generation = generation
        self._render = render
        self._last = last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the answer is finished or the client is gone."""
        try:
            await unless_gone(self._send_events(send), receive)
        except (ClientGoneError, OSError):  # a server may tell of a closed connection by refusing to write
            return
        finally:
            self._generation.close()

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while self._generation.finish_reason is None:
            try:
                events = b"".join(map(_event, self._render(await self._generation.next())))
            except EngineFailedError as error:
                await send({"type": "http.response.body", "body": _event(engine_failed(error).body())})
                return
            if self._generation.finish_reason is not None:
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
