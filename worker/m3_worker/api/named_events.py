"""Server-sent events with names, as Anthropic's Messages and OpenAI's Responses stream them.

Owns their form: `event:` and `data:`, one write for what one step brought, no `[DONE]`, an error as an event of its
own, and a ping while nothing comes, so that nobody between takes the connection for dead. What the events say is the
dialect's; when the client is gone is streams'.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from m3_worker.api.errors import ApiError
from m3_worker.api.generation import Delta, Generation, engine_failed
from m3_worker.api.streams import ClientGoneError, unless_gone
from m3_worker.token_stream import EngineFailedError

Event = tuple[str, Mapping[str, Any]]
"""Its name and its JSON object."""

PING_SECONDS = 10.0


class Narrator(Protocol):
    """Tells one generation as events of its dialect."""

    def events(self, delta: Delta) -> Iterable[Event]:
        """What a delta brings; the one with a finish reason brings all that is left."""

    def failed(self, error: ApiError) -> Iterable[Event]:
        """What is told instead of the rest, if the engine fails."""

    def ping(self) -> Iterable[Event]:
        """What is told while there is nothing to tell; may be nothing."""


class NamedEvents(Response):
    """A response of named events, until the generation is finished or the client is gone."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, narrator: Narrator, ping_seconds: float = PING_SECONDS) -> None:
        super().__init__(headers={**generation.headers(), "cache-control": "no-cache"})
        del self.headers["content-length"]
        self._generation = generation
        self._narrator = narrator
        self._ping_seconds = ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await unless_gone(self._send_events(send), receive)
        except (ClientGoneError, OSError):  # a server may tell of a closed connection by refusing to write
            return
        finally:
            self._generation.close()

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        is_over = False
        while not is_over:
            try:
                async with asyncio.timeout(self._ping_seconds):
                    delta = await self._generation.next()
                events, is_over = self._narrator.events(delta), delta.finish_reason is not None
            except TimeoutError:
                events = self._narrator.ping()
            except (EngineFailedError, ApiError) as error:
                refusal = error if isinstance(error, ApiError) else engine_failed(error)
                events, is_over = self._narrator.failed(refusal), True
            body = b"".join(map(_encoded, events))
            if body or is_over:
                await send({"type": "http.response.body", "body": body, "more_body": not is_over})


def _encoded(event: Event) -> bytes:
    name, value = event
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {data}\n\n".encode()
