"""A router in the test's own event loop, in front of mock engines."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from m3_mock import MockEngine, Speaker
from m3_mock.running import WITHIN_SECONDS, LogStream, Running, StartRouter, config_for
from m3_router.router import Router


@pytest.fixture
async def start_router() -> AsyncIterator[StartRouter]:
    """Starts routers; waits until `ready` workers are ready (default: all of them).

    path: where the configuration is written, and read again when it changes. worker_tls: how upstreams are checked.
    """
    async with AsyncExitStack() as stack:

        async def start(
            engines: Sequence[MockEngine | str],
            *,
            ready: int | None = None,
            path: Path | None = None,
            worker_tls: ssl.SSLContext | None = None,
            **settings: Any,
        ) -> Running:
            log = LogStream()
            config = config_for(engines, **settings)
            if path is not None:
                path.write_text(config.to_yaml())  # noqa: ASYNC240 - a few lines, before anything runs
            router = Router(config, log, path=path, worker_tls=worker_tls)
            await router.start()
            stack.push_async_callback(router.stop)
            clients = [
                await stack.enter_async_context(
                    httpx.AsyncClient(base_url=f"http://{address}", timeout=20, trust_env=False)
                )
                for address in (router.address, router.admin_address)
            ]
            running = Running(router, *clients, log)
            stack.callback(lambda: [writer.transport.abort() for writer in running.writers])
            expected = len(engines) if ready is None else ready
            async with asyncio.timeout(WITHIN_SECONDS):
                while True:
                    workers = (await running.admin.get("/workers")).json()
                    if sum(worker["state"] == "ready" for worker in workers) >= expected:
                        break
                    await asyncio.sleep(0.005)
            return running

        yield start


@pytest.fixture
async def engine() -> AsyncIterator[MockEngine]:
    async with MockEngine().running() as one:
        yield one


@pytest.fixture
async def engines() -> AsyncIterator[list[MockEngine]]:
    async with MockEngine().running() as one, MockEngine().running() as other:
        yield [one, other]


@pytest.fixture
async def speaker() -> AsyncIterator[Speaker]:
    async with Speaker().running() as one:
        yield one


@pytest.fixture
async def speakers() -> AsyncIterator[list[Speaker]]:
    """Two, whose answers have different ids."""
    async with Speaker(name="a").running() as one, Speaker(name="b").running() as other:
        yield [one, other]
