"""Errors as each dialect's clients read them, and how a failed check of a field becomes a sentence.

OpenAI: {"error": {message, type, param, code}}. Anthropic, under `/v1/messages`: {"type": "error", "error": {type,
message}, "request_id"}, where a full engine is 529 instead of 429. A message names the field, its value and the rule.
"""

import difflib
import json
import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from m3_worker.serving import Phase, WorkerState

log = logging.getLogger(__name__)

_TYPES = {400: "invalid_request_error", 404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error"}
_OVERLOADED = 529
_ANTHROPIC_PATH = "/v1/messages"


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, Any]:
        """The JSON object of the error."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer, in OpenAI's shape."""
        return json_response(self.body(), self.status, self._headers())

    def anthropic_body(self, request_id: str | None) -> dict[str, Any]:
        """The JSON object of the error in Anthropic's shape."""
        if self.status == 429:
            kind = "overloaded_error"
        else:
            kind = _TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": request_id}

    def anthropic_response(self, request_id: str | None) -> Response:
        """The whole answer, in Anthropic's shape."""
        status = _OVERLOADED if self.status == 429 else self.status
        return json_response(self.anthropic_body(request_id), status, self._headers())

    def _headers(self) -> dict[str, str]:
        return {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:  # noqa: ANN401 # any JSON
    """A JSON answer, non-ASCII text as it is."""
    content = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Response(content.encode(), status, headers, media_type="application/json")


def not_ready(state: WorkerState) -> ApiError:
    """503 with the phase the worker is in."""
    words = {
        Phase.LOADING: ("the model is still loading", 5),
        Phase.DRAINING: ("the worker is shutting down and takes no new requests", 1),
        Phase.FAILED: (f"the engine failed: {state.reason}", 30),
    }
    message, seconds = words[state.phase]
    return ApiError(503, message, code=f"worker_{state.phase}", retry_after_seconds=seconds)


def field_error(error: ValidationError, known: Iterable[str]) -> ApiError:
    """400 for the first field that broke a rule, with the nearest known name if it is an unknown field."""
    fault = error.errors(include_url=False, include_context=False)[0]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
    if fault["type"] == "missing":
        return ApiError(400, f"{name} is required", param=name, code="missing_field")
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, list(known), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return ApiError(400, f"{name} is not a known field{hint}", param=name, code="unknown_field")
    rule = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if not name:
        return ApiError(400, rule, code="invalid_value")
    return ApiError(400, f"{name} is {shown(fault['input'])}: {rule}", param=name, code="invalid_value")


def shown(value: object) -> str:
    """A value for a message: JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def request_id_of(request: Request) -> str | None:
    """The id under which the request is answered."""
    found: str | None = getattr(request.state, "request_id", None)
    return found


def error_response(request: Request, error: ApiError) -> Response:
    """The answer in the dialect of the request's path."""
    path = request.url.path
    if path == _ANTHROPIC_PATH or path.startswith(f"{_ANTHROPIC_PATH}/"):
        return error.anthropic_response(request_id_of(request))
    return error.response()


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of the app one of its dialect: ours, unknown paths and methods, and defects."""

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)  # noqa: S101 # by registration
        return error_response(request, error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 # by registration
        if error.status_code == 404:
            message = f"there is no {request.method} {request.url.path} here"
        elif error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}"
        else:
            message = str(error.detail) or HTTPStatus(error.status_code).phrase
        response = error_response(request, ApiError(error.status_code, message))
        response.headers.update(error.headers or {})
        return response

    async def client_gone(request: Request, _: Exception) -> Response:
        log.debug("the client of %s %s left before its request was whole", request.method, request.url.path)
        return Response(status_code=400)  # which nobody reads

    async def defect(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return error_response(request, ApiError(500, "internal error; the worker's log has the details"))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientDisconnect, client_gone)
    app.add_exception_handler(Exception, defect)
