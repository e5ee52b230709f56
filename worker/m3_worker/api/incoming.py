"""What a request brings, before any dialect: headers that are read, a body within its limit, one JSON object, a model.

Owns the refusals that are the same everywhere: 503 while not ready, 413, malformed JSON, unknown model.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3_worker.api.errors import ApiError, field_error, not_ready, shown
from m3_worker.serving import Phase, ServedModel, WorkerState
from m3_worker.usage_records import UsageRecord

log = logging.getLogger(__name__)

MAX_PRIORITY = 100
INLINE_BYTES = 32768
"""Bodies up to this size are parsed on the event loop; beyond, a thread is cheaper than the stall."""

T = TypeVar("T")
Parsed = TypeVar("Parsed", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Incoming:
    """One request for a model: who it is for, and its body as an object."""

    model: ServedModel
    priority: int
    cache_salt: bytes
    """Its tenant, from `x-m3-tenant`: cached pages are never shared between two."""
    body: dict[str, Any]
    body_bytes: int
    usage_record: UsageRecord | None
    """Takes note of what it uses; None where it asks nothing of the model but its tokenizer."""

    def work_bytes(self, slow_fields: Iterable[str]) -> int:
        """For `off_loop`: the body's size, but never small where a field is given that takes long however short."""
        is_slow = any(self.body.get(name) for name in slow_fields)
        return max(self.body_bytes, INLINE_BYTES + 1) if is_slow else self.body_bytes


async def receive_request(request: Request, state: WorkerState, *, needs_model: bool = True) -> Incoming:
    """Read and check what every dialect needs; a body may leave `model` out if it is not needed. Raises ApiError.

    The body is read in any case, so that the connection stays in step.
    """
    raw = await _read_body(request, state.max_body_bytes)
    log.debug("%s of %d bytes for tenant %s", request.url.path, len(raw), request.headers.get("x-m3-tenant", "-"))
    if state.phase is not Phase.READY or state.model is None:
        raise not_ready(state)
    priority = _priority(request.headers)
    body = await off_loop(len(raw), _json_object, raw)
    name = body.get("model")
    model = state.model if name is None and not needs_model else require_model(state.model, name)
    cache_salt = request.headers.get("x-m3-tenant", "").encode()
    return Incoming(model, priority, cache_salt, body, len(raw), getattr(request.state, "usage_record", None))


def parse_object(kind: type[Parsed], body: Mapping[str, Any]) -> Parsed:
    """The fields of a body. Raises ApiError 400 for the first that is wrong."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise field_error(error, kind.model_fields) from None


async def off_loop(size: int, call: Callable[..., T], *args: object) -> T:
    """Call a pure function: here if its input is small, on a thread if it is not."""
    return call(*args) if size <= INLINE_BYTES else await asyncio.to_thread(call, *args)


def require_model(served: ServedModel, name: object) -> ServedModel:
    """The model of that name. Raises ApiError: 400 without a name, 404 with those there are for another."""
    if not isinstance(name, str):
        message = "model is required" if name is None else f"model is {shown(name)}: must be a string"
        raise ApiError(400, message, param="model", code="invalid_value" if name is not None else "missing_field")
    if name != served.name:
        message = f"the model {shown(name)} does not exist; this worker serves {shown(served.name)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return served


async def _read_body(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit, f"{declared} bytes")
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit, "more")
        parts.append(part)
    return b"".join(parts)


def _too_large(limit: int, found: str) -> ApiError:
    message = f"the body has {found}: the limit is {limit} bytes"
    return ApiError(413, message, code="body_too_large")


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        body = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, not {shown(body)}", code="invalid_json")
    return body


def _priority(headers: Headers) -> int:
    text = headers.get("x-m3-priority", "0")
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_PRIORITY):
        message = f"x-m3-priority is {shown(text)}: must be an integer from 0 to {MAX_PRIORITY}"
        raise ApiError(400, message, param="x-m3-priority", code="invalid_value")
    return int(text)


class RequestIds:
    """ASGI middleware: every answer carries `x-request-id`, the client's own where it sent one.

    Anthropic's clients look for it in `request-id`, so it stands there too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id") or f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = headers["request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)
