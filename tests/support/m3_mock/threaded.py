"""A router on a thread of its own, for tests whose clients block."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import httpx

from m3_mock.running import LogStream
from m3_router.config import RouterConfig
from m3_router.router import Router

START_SECONDS = 20.0


@contextmanager
def router_on_thread(config: RouterConfig, ready: int) -> Iterator[str]:
    """Serve until the block is left; gives the router's URL once so many of its workers are ready."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, Router]] = Future()

    async def serve() -> None:
        stopped = asyncio.Event()
        try:
            router = Router(config, LogStream())
            await router.start()
        except BaseException as error:
            started.set_exception(error)
            raise
        started.set_result((asyncio.get_running_loop(), stopped, router))
        await stopped.wait()
        await router.stop()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="router")
    thread.start()
    loop, stopped, router = started.result(START_SECONDS)
    try:
        _wait_until_ready(f"http://{router.admin_address}/workers", ready)
        yield f"http://{router.address}"
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(START_SECONDS)


def _wait_until_ready(url: str, ready: int) -> None:
    until = time.monotonic() + START_SECONDS
    while sum(worker["state"] == "ready" for worker in httpx.get(url, trust_env=False).json()) < ready:
        assert time.monotonic() < until, "the workers did not become ready"
        time.sleep(0.01)
