"""The second port: what the router has done and sees, for people, Prometheus and the kubelet; and what they may change.

Owns the FastAPI application: paths, status codes, headers. Holds no state of its own. Who may do what is decided by
`access`, what an act does by whoever handed it in.
"""

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from m3_router.admin.access import Access, DeniedError
from m3_router.admin.acts import ActError, Acts, checked_fields
from m3_router.admin.audit import Audit
from m3_router.admin.files import SECURITY_HEADERS, PageFile, load_page
from m3_router.admin.state import Observatory
from m3_router.admin.usage import UsageSource, usage_routes
from m3_router.money.ledger import RING_BILLS, Ledger
from m3_router.placement.pools import Pools

MAX_ACT_BYTES: Final = 4096

_encode: Final = msgspec.json.Encoder().encode


def admin_app(
    *,
    ledger: Ledger,
    pools: Pools,
    collectors: Iterable[Collector],
    why_not_ready: Callable[[], str | None],
    observatory: Observatory,
    access: Access,
    acts: Acts,
    audit: Audit,
    usage: UsageSource,
) -> FastAPI:
    """The application of the admin port."""
    app = FastAPI(title="m3-router admin", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers.update(SECURITY_HEADERS)
        response.headers.setdefault("cache-control", "no-store")
        return response

    @app.exception_handler(DeniedError)
    async def denied(_: Request, error: DeniedError) -> Response:
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
        return JSONResponse({"error": error.message}, error.status, headers)

    @app.exception_handler(ActError)
    async def cannot(_: Request, error: ActError) -> Response:
        return JSONResponse({"error": error.message}, error.status)

    app.include_router(_open_routes(collectors, why_not_ready, load_page()))
    app.include_router(_guarded_routes(ledger, pools, observatory, access, usage))
    app.include_router(_act_routes(access, acts, audit))
    return app


# Coroutines all, so that they run in the event loop, where the data plane's state is never half changed.


def _open_routes(
    collectors: Iterable[Collector], why_not_ready: Callable[[], str | None], page: dict[str, PageFile]
) -> APIRouter:
    """What everyone may see: probes, metrics, and the page without its data."""
    routes = APIRouter()
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        reason = why_not_ready()
        if reason is not None:
            response.status_code = 503
        return {"status": reason or "ok"}

    @routes.get("/")
    async def console(request: Request) -> Response:
        return _page_file(page["index.html"], request)

    @routes.get("/console/{name}")
    async def page_file(name: str, request: Request) -> Response:
        file = page.get(name)
        return JSONResponse({"error": "There is no such file."}, 404) if file is None else _page_file(file, request)

    return routes


def _guarded_routes(
    ledger: Ledger, pools: Pools, observatory: Observatory, access: Access, usage: UsageSource
) -> APIRouter:
    """What the owner of the machine and the holder of the admin key may see."""

    async def may_read(request: Request) -> None:
        access.reader(_peer(request), request.headers)

    routes = APIRouter(dependencies=[Depends(may_read)])

    @routes.get("/ledger")
    async def newest_bills(limit: Annotated[int, Query(ge=1, le=RING_BILLS)] = 100) -> Response:
        return Response(_encode(ledger.newest(limit)), media_type="application/json")

    @routes.get("/workers")
    async def workers() -> list[dict[str, Any]]:
        return [
            {
                "pool": pool.settings.name,
                "name": worker.name,
                "address": f"{worker.address.host}:{worker.address.port}",
                "state": worker.state,
                "reason": worker.reason,
                "requests_in_flight": worker.requests,
                "tokens_in_flight": worker.tokens,
            }
            for pool in pools
            for worker in sorted(pool.workers, key=lambda worker: worker.name)
        ]

    @routes.get("/api/state")
    async def state(since: Annotated[int, Query(ge=0, le=2**53)] = 0) -> Response:
        ledger.publish()
        document = observatory.state(time.monotonic(), time.time(), since)
        return Response(_encode(document), media_type="application/json")

    routes.include_router(usage_routes(usage))
    return routes


def _act_routes(access: Access, acts: Acts, audit: Audit) -> APIRouter:
    """What they may change. Every attempt is one audit line."""
    routes = APIRouter()

    @routes.post("/api/acts/{name}")
    async def act(name: str, request: Request) -> dict[str, str]:
        who, what, peer = "nobody", dict[str, str](), _peer(request)
        try:
            who = access.changer(peer, request.headers)
            run = acts.find(name)
            what = checked_fields(name, await _small_json(request))
            message = await run(what)
        except (DeniedError, ActError) as error:
            audit.record(name[:64], who=who, peer=peer, what=what, outcome="refused", message=error.message)
            raise
        except Exception as error:
            audit.record(name, who=who, peer=peer, what=what, outcome="failed", message=type(error).__name__)
            raise
        audit.record(name, who=who, peer=peer, what=what, outcome="done", message=message)
        return {"message": message}

    return routes


async def _small_json(request: Request) -> object:
    """The body, whose size is checked as it comes. Raises ActError (400, 413, 415)."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ActError(415, "Send the fields as application/json.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_ACT_BYTES:
            raise ActError(413, f"The fields of an act are never longer than {MAX_ACT_BYTES} bytes.")
    try:
        return msgspec.json.decode(body or b"{}")
    except msgspec.DecodeError as error:
        raise ActError(400, f"The body is not JSON: {error}.") from error


def _page_file(file: PageFile, request: Request) -> Response:
    # The name of a file says nothing of its version: browsers ask each time, and usually get no body.
    headers = {"etag": file.etag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


def _peer(request: Request) -> str:
    return request.client.host if request.client is not None else ""
