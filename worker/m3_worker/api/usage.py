"""`GET /internal/usage/{request id}`: what a request has used, also one that was aborted or whose answer got lost.

    {"request_id": R, "records": [{"attempt": A, "state": "running" | "ended", "prompt_tokens": P, "cached_tokens": C,
                                   "completion_tokens": N}, ...]}

The id is that of `x-request-id`, the attempt that of `x-m3-attempt`, which tells apart what was sent twice under one id
("" where none was given). The query `attempt=A` asks for one attempt, `wait_seconds=S` holds the answer until all that
is told of has ended, at most five seconds. 404: no such request among the newest ones.

Also owns the middleware that begins a record with each request under `/v1/` and ends it with its answer.
"""

import math
import time

from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from m3_worker.api.errors import ApiError, json_response, shown
from m3_worker.serving import WorkerState
from m3_worker.usage_records import UsageRecords

MAX_WAIT_SECONDS = 5.0


def usage_routes(state: WorkerState) -> APIRouter:
    """The route for those who settle bills; it answers as long as the process lives."""
    router = APIRouter()

    @router.get("/internal/usage/{request_id:path}")
    async def usage(request: Request, request_id: str) -> Response:
        wait_seconds = _wait_seconds(request)
        records = state.usage_records.find(request_id, request.query_params.get("attempt"))
        if not records:
            message = f"request {shown(request_id)} is not among the newest ones of this worker"
            raise ApiError(404, message, code="unknown_request")
        until = time.monotonic() + wait_seconds
        for record in records:
            await record.wait_until_ended(max(until - time.monotonic(), 0.0))
        told = [
            {
                "attempt": record.attempt,
                "state": "ended" if record.is_ended else "running",
                "prompt_tokens": record.used.prompt_tokens,
                "cached_tokens": record.used.cached_tokens,
                "completion_tokens": record.used.completion_tokens,
            }
            for record in records
        ]
        return json_response({"request_id": request_id, "records": told})

    return router


class RecordUsage:
    """ASGI middleware, inside `RequestIds`: a record of usage goes along with each request for the model."""

    def __init__(self, app: ASGIApp, records: UsageRecords) -> None:
        self._app = app
        self._records = records

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        attempt = Headers(scope=scope).get("x-m3-attempt", "")
        record = self._records.begin(scope["state"]["request_id"], attempt)
        scope["state"]["usage_record"] = record
        try:
            await self._app(scope, receive, send)
        finally:
            record.leave()


def _wait_seconds(request: Request) -> float:
    text = request.query_params.get("wait_seconds", "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        message = f"wait_seconds is {text[:40]}: must be a number from 0 to {MAX_WAIT_SECONDS:g}"
        raise ApiError(400, message, param="wait_seconds")
    return seconds
