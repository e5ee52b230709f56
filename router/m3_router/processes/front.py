"""The admin port of a router of several processes: asks all of them, or passes on to one.

Owns what is answered for all: metrics and usage put together, probes, acts done everywhere. All else is passed on to
the process that `?process=I` names, or to the first that runs. Who may see it is decided here, by the rules of
`admin.access`, and once more by the process, which is told the peer and writes the audit.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Final, Protocol

import httpx
import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from m3_router.admin import Access, DeniedError
from m3_router.admin.app import MAX_ACT_BYTES
from m3_router.admin.peer import PEER_HEADER
from m3_router.admin.usage import Usage, usage_document
from m3_router.money.spend_rows import summed
from m3_router.processes.exposition import LABEL, merged

_OPEN: Final = frozenset({"/", "/healthz", "/metrics", "/readyz"})
_PAGE_PREFIX: Final = "/console/"
# Of one connection, and so not passed on (RFC 9110, section 7.6.1); and what the supervisor says itself.
_OWN_HEADERS: Final = frozenset(
    {"connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", PEER_HEADER}
)
_decode_usage: Final = msgspec.json.Decoder(Usage).decode


class Process(Protocol):
    """As much of a `child.Child` as asking it takes."""

    index: int
    restarts: int
    client: httpx.AsyncClient

    @property
    def is_running(self) -> bool: ...


def front_app(
    processes: Sequence[Process], *, access: Access, shares_redis: bool, is_draining: Callable[[], bool]
) -> FastAPI:
    """The application. shares_redis: every process knows the usage of all."""
    app = FastAPI(title="m3-router admin", docs_url=None, redoc_url=None, openapi_url=None)
    front = _Front(processes)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        path = request.scope["path"]
        if path not in _OPEN and not (path.startswith(_PAGE_PREFIX) and path.count("/") == _PAGE_PREFIX.count("/")):
            try:
                access.reader(_peer(request), request.headers)
            except DeniedError as error:
                headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
                return JSONResponse({"error": error.message}, error.status, headers)
        return await call_next(request)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await front.metrics(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        reason = "draining" if is_draining() else await front.why_not_ready()
        return JSONResponse({"status": reason or "ok"}, 503 if reason else 200)

    app.include_router(_data_routes(front, shares_redis))
    return app


def _data_routes(front: "_Front", shares_redis: bool) -> APIRouter:
    """What is asked of all processes, unless the query names one; and what one answers."""
    routes = APIRouter()

    @routes.post("/api/acts/{name}")
    async def act(request: Request) -> Response:
        return await (front.pass_on if "process" in request.query_params else front.act)(request)

    @routes.get("/api/usage")
    async def usage(request: Request) -> Response:
        return await (front.pass_on if shares_redis or "process" in request.query_params else front.usage)(request)

    @routes.get("/api/usage.csv")
    async def usage_csv(request: Request) -> Response:
        return await (front.pass_on if "process" in request.query_params else front.usage_csv)(request)

    @routes.get("/{path:path}")
    async def other(request: Request) -> Response:
        return await front.pass_on(request)

    return routes


class _Front:
    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = processes
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Processes(processes))

    async def metrics(self) -> bytes:
        """Of all that answer, with what is known of those that do not."""
        answers = await self._ask_all(lambda process: process.client.get("/metrics"))
        texts = {index: answer.text for index, answer in answers.items() if answer.status_code == 200}
        return merged(texts).encode() + generate_latest(self._registry)

    async def why_not_ready(self) -> str | None:
        """None if at least one process is ready."""
        answers = await self._ask_all(lambda process: process.client.get("/readyz"))
        if any(answer.status_code == 200 for answer in answers.values()):
            return None
        reasons = [f"process {index}: {answer.json()['status']}" for index, answer in answers.items()]
        return "; ".join(reasons) or "no process answers"

    async def pass_on(self, request: Request) -> Response:
        """To one process, its answer as it comes."""
        process = self._one(request.query_params.get("process"))
        if process is None:
            return JSONResponse({"error": f"process: expected 0 to {len(self._processes) - 1}."}, 404)
        body = await _small_body(request)
        try:
            answer = await process.client.send(_like(request, process.client, body), stream=True)
        except httpx.HTTPError:
            return JSONResponse({"error": f"Process {process.index} does not answer."}, 503)
        headers = {name: value for name, value in answer.headers.items() if name not in _OWN_HEADERS}
        return StreamingResponse(_parts_of(answer), answer.status_code, headers)

    async def act(self, request: Request) -> Response:
        """In every process. Done if all have done it; else the first refusal, which says whose it is."""
        body = await _small_body(request)
        answers = await self._ask_all(lambda process: process.client.send(_like(request, process.client, body)))
        for process in self._processes:
            answer = answers.get(process.index)
            if answer is None:
                return JSONResponse({"error": f"Process {process.index} does not answer."}, 503)
            if answer.status_code != 200:
                message = answer.json().get("error", f"it answered {answer.status_code}")
                return JSONResponse({"error": f"Process {process.index}: {message}"}, answer.status_code)
        said = list(dict.fromkeys(answer.json()["message"] for answer in answers.values()))
        return JSONResponse({"message": " / ".join(said) + f" ({len(answers)} processes)"})

    async def usage(self, request: Request) -> Response:
        """The sums of all processes, of which each knows its own."""
        answers = await self._ask_all(lambda process: process.client.send(_like(request, process.client, b"")))
        parts = []
        for process in self._processes:
            answer = answers.get(process.index)
            if answer is None:  # a sum without its part would be wrong, and look right
                return JSONResponse({"error": f"Process {process.index} does not answer."}, 503)
            if answer.status_code != 200:
                return Response(answer.content, answer.status_code, media_type="application/json")
            parts.append(_decode_usage(answer.content))
        return Response(
            usage_document(summed([part.rows for part in parts]), parts[0].scope), media_type="application/json"
        )

    async def usage_csv(self, request: Request) -> Response:
        """The bills of all processes, under one line of names."""
        answers: list[httpx.Response] = []
        for process in self._processes:
            try:
                answer = await process.client.send(_like(request, process.client, b""), stream=True)
            except httpx.HTTPError:
                answer = None
            if answer is None or answer.status_code != 200:
                content = b"" if answer is None else await answer.aread()
                for other in answers:
                    await other.aclose()
                if answer is None:
                    return JSONResponse({"error": f"Process {process.index} does not answer."}, 503)
                return Response(content, answer.status_code, media_type="application/json")
            answers.append(answer)
        headers = {"content-disposition": answers[0].headers["content-disposition"]}
        return StreamingResponse(_one_table(answers), media_type=answers[0].headers["content-type"], headers=headers)

    def _one(self, asked: str | None) -> Process | None:
        if asked is None:
            return next((process for process in self._processes if process.is_running), self._processes[0])
        return next((process for process in self._processes if str(process.index) == asked), None)

    async def _ask_all(self, ask: Callable[[Process], Awaitable[httpx.Response]]) -> dict[int, httpx.Response]:
        answers = await asyncio.gather(*(ask(process) for process in self._processes), return_exceptions=True)
        found: dict[int, httpx.Response] = {}
        for process, answer in zip(self._processes, answers, strict=True):
            if isinstance(answer, httpx.Response):
                found[process.index] = answer
            elif not isinstance(answer, httpx.HTTPError):
                raise answer
        return found


class _Processes(Collector):
    """What the supervisor itself knows."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("m3_router_process_up", "1 if the process runs.", labels=[LABEL])
        restarts = CounterMetricFamily("m3_router_process_restarts", "Times a process was begun again.", labels=[LABEL])
        for process in self._processes:
            up.add_metric([str(process.index)], process.is_running)
            restarts.add_metric([str(process.index)], process.restarts)
        yield from (up, restarts)


def _like(request: Request, client: httpx.AsyncClient, body: bytes) -> httpx.Request:
    """The same request, to a process."""
    headers = [(name, value) for name, value in request.headers.items() if name not in _OWN_HEADERS]
    query = httpx.QueryParams([term for term in request.query_params.multi_items() if term[0] != "process"])
    target = request.scope["raw_path"] + (f"?{query}".encode() if query else b"")
    return client.build_request(
        request.method,
        client.base_url.copy_with(raw_path=target),
        headers=[*headers, (PEER_HEADER, _peer(request))],
        content=body or None,
    )


async def _small_body(request: Request) -> bytes:
    """The body, or one byte more of it than any act may have, which the process refuses."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_ACT_BYTES:
            return body[: MAX_ACT_BYTES + 1]
    return body


async def _parts_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()


async def _one_table(answers: Sequence[httpx.Response]) -> AsyncIterator[bytes]:
    """One table after the other, but the first line of the first alone."""
    try:
        for place, answer in enumerate(answers):
            head: bytes | None = b"" if place else None
            async for part in answer.aiter_bytes():
                if head is None:
                    yield part
                    continue
                head += part
                _, found, rest = head.partition(b"\r\n")
                if found:
                    head = None
                    yield rest
    finally:
        for answer in answers:
            await answer.aclose()


def _peer(request: Request) -> str:
    return request.client.host if request.client is not None else ""
