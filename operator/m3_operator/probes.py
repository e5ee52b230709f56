"""The two small HTTP servers of the process: /healthz for the kubelet, /metrics for Prometheus. On the event loop, so
that what they read is never halfway through a change.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from m3_operator.errors import OperatorError
from m3_operator.health import Health
from m3_operator.metrics import Metrics

_Handler = Callable[[web.Request], Awaitable[web.Response]]


@contextlib.asynccontextmanager
async def serving_health(health: Health, host: str, port: int) -> AsyncIterator[None]:
    """Answer /healthz: 200 while all is well, else 503, with the figures as JSON. Raises OperatorError: port taken."""

    async def healthz(_: web.Request) -> web.Response:
        is_well, figures = health.report()
        return web.json_response(figures, status=200 if is_well else 503)

    async with _serving("/healthz", healthz, host, port):
        yield


@contextlib.asynccontextmanager
async def serving_metrics(metrics: Metrics, host: str, port: int) -> AsyncIterator[None]:
    """Answer /metrics. Raises OperatorError: port taken."""

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async with _serving("/metrics", exposition, host, port):
        yield


@contextlib.asynccontextmanager
async def _serving(path: str, handler: _Handler, host: str, port: int) -> AsyncIterator[None]:
    application = web.Application()
    application.router.add_get(path, handler)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise OperatorError(f"cannot answer {path} on {host}:{port}: {error.strerror or error}") from None
    try:
        yield
    finally:
        await runner.cleanup()
