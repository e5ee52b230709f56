"""The second port: what the router has done and sees, for people, Prometheus and the kubelet.

Owns the FastAPI application; holds nothing. It has no authentication, so it listens on loopback unless told otherwise.
"""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from m3_router.ledger import RING_BILLS, Ledger
from m3_router.pools import Pools


def admin_app(ledger: Ledger, pools: Pools, collector: Collector, is_draining: Callable[[], bool]) -> FastAPI:
    """The application of the admin port."""
    app = FastAPI(title="m3-router admin", docs_url=None, redoc_url=None)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)

    # Coroutines, so that they run in the event loop, where the data plane's state is never half changed.
    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/ledger")
    async def newest_bills(limit: Annotated[int, Query(ge=1, le=RING_BILLS)] = 100) -> Response:
        return Response(msgspec.json.encode(ledger.newest(limit)), media_type="application/json")

    @app.get("/workers")
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

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        if is_draining():
            response.status_code = 503
            return {"status": "draining"}
        if not pools.has_ready_worker():
            response.status_code = 503
            return {"status": "no worker is ready"}
        return {"status": "ok"}

    return app
