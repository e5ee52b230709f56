"""`GET /internal/kv-events`: what this worker has cached, as a stream that a router can follow; and a way to clear it.

One JSON object a line (application/x-ndjson), for as long as the connection lasts:

    {"kind": "start", "epoch": E, "page_tokens": P, "number": N}
    {"kind": "snapshot", "number": N, "cleared": C, "events": [...], "more": true | false}
    {"kind": "batch", "number": N, "unix_seconds": T, "events": [...]}
    {"kind": "alive", "number": N}                                            when nothing else came for ten seconds

The query `epoch=E&after=N` goes on behind batch N of that epoch. Without it, with the epoch of an earlier start, or
where batches have left the ring, a snapshot comes first: whoever follows forgets all, and takes the events of its lines
up to the one with "more": false. C is the number of the newest batch with a "cleared" event, 0 if there was none: E and
C together name all that can be in the cache. Batches count up by one. An event is one of

    {"event": "stored", "names": [hex, ...], "parent": hex | null, "medium": "device" | "host",
     "request": id, "first_page": N}
    {"event": "removed", "names": [hex, ...], "medium": ...}
    {"event": "cleared"}

Names are sha256 chains over pages (`m3_worker.scheduling.prefix`); a page can be in both media, and is gone when it is
in neither.
"request" is the `x-request-id` of the request that filled the pages, and "first_page" the place of the first of them in
its sequence, counted from 0; both are left out where pages were only moved, and in a snapshot.
`tokens=true` adds "token_ids" to what is stored on the device: these are prompts, so they are sent only if asked for.

`DELETE /internal/prefix-cache` makes the worker forget what it has cached: 204, and a "cleared" event.
"""

import contextlib
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from m3_worker.api.errors import ApiError, not_ready
from m3_worker.kv_event_stream import Part, follow
from m3_worker.scheduling.kv_events import Cleared, Event, EventLog, Removed, Snapshot
from m3_worker.serving import Phase, ServedModel, WorkerState

ALIVE_SECONDS = 10.0
MAX_FOLLOWERS = 64
SNAPSHOT_LINE_PAGES = 256
_MAX_DIGITS = 18


def kv_event_routes(state: WorkerState) -> APIRouter:
    """The routes for those who route by what is cached."""
    router = APIRouter()
    followers = 0

    @router.get("/internal/kv-events")
    async def kv_events(request: Request) -> Response:
        nonlocal followers
        log = _ready(state).engine.events
        with_tokens = _flag(request, "tokens")
        after = _number(request, "after")
        if request.query_params.get("epoch") != log.epoch:
            after = None
        if followers >= MAX_FOLLOWERS:
            raise ApiError(429, f"{followers} connections follow already, no more may", retry_after_seconds=10)

        async def lines() -> AsyncGenerator[bytes]:
            nonlocal followers
            followers += 1
            try:
                async with contextlib.aclosing(event_lines(log, after, with_tokens)) as parts:
                    async for part in parts:
                        yield part
            finally:
                followers -= 1

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @router.delete("/internal/prefix-cache")
    async def forget() -> Response:
        _ready(state).engine.forget_cached()
        return Response(status_code=204)

    return router


async def event_lines(
    log: EventLog, after: int | None, with_tokens: bool, alive_seconds: float = ALIVE_SECONDS
) -> AsyncGenerator[bytes]:
    """The lines of one follower, each part of the log as one piece."""
    yield _line({"kind": "start", "epoch": log.epoch, "page_tokens": log.page_tokens, "number": log.last_number})
    async with contextlib.aclosing(follow(log, after, alive_seconds)) as parts:
        async for part in parts:
            yield b"".join(_part_lines(part, log, with_tokens))


def _part_lines(part: Part, log: EventLog, with_tokens: bool) -> Iterator[bytes]:
    if isinstance(part, Snapshot):
        for first in range(0, max(len(part.stored), 1), SNAPSHOT_LINE_PAGES):
            stored = part.stored[first : first + SNAPSHOT_LINE_PAGES]
            events = [_event(event, with_tokens) for event in stored]
            more = first + SNAPSHOT_LINE_PAGES < len(part.stored)
            told = {"kind": "snapshot", "number": part.number, "cleared": part.cleared, "events": events, "more": more}
            yield _line(told)
        return
    if not part:
        yield _line({"kind": "alive", "number": log.last_number})
    for batch in part:
        events = [_event(event, with_tokens) for event in batch.events]
        yield _line({"kind": "batch", "number": batch.number, "unix_seconds": batch.unix_seconds, "events": events})


def _event(event: Event, with_tokens: bool) -> dict[str, Any]:
    if isinstance(event, Cleared):
        return {"event": "cleared"}
    names = [name.hex() for name in event.names]
    if isinstance(event, Removed):
        return {"event": "removed", "names": names, "medium": event.medium.value}
    parent = event.parent.hex() if event.parent is not None else None
    told: dict[str, Any] = {"event": "stored", "names": names, "parent": parent, "medium": event.medium.value}
    if event.client_id is not None:
        told |= {"request": event.client_id, "first_page": event.first_page}
    return {**told, "token_ids": event.token_ids.tolist()} if with_tokens else told


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _ready(state: WorkerState) -> ServedModel:
    """The model, also while the worker drains. Raises ApiError 503."""
    if state.model is None or state.phase is Phase.FAILED:
        raise not_ready(state)
    return state.model


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise ApiError(400, f"{name} is {text[:40]}: must be the number of a batch, 0 or more", param=name)
    return int(text)


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false")
    if text not in ("true", "false"):
        raise ApiError(400, f"{name} is {text[:40]}: must be true or false", param=name)
    return text == "true"
