"""A router in the test's own event loop, in front of mock engines."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from m3_mock import MockEngine
from m3_mock.running import LogStream, Running, StartRouter, config_for
from m3_router.router import Router


@pytest.fixture
async def start_router() -> AsyncIterator[StartRouter]:
    """Starts routers; waits until `ready` workers are ready (default: all of them)."""
    async with AsyncExitStack() as stack:

        async def start(engines: list[MockEngine] | list[str], *, ready: int | None = None, **settings: Any) -> Running:
            log = LogStream()
            router = Router(config_for(engines, **settings), log)
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
            async with asyncio.timeout(10):
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
