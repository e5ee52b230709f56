"""What tests of `m3_router.shared` start and wait for."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from m3_router.config import RedisSettings
from m3_router.shared.link import Link

WITHIN_SECONDS = 20.0
"""For what is to happen by itself; the machine may be busy."""

CALL_SECONDS = 0.5
"""Of one call: the default of 20 ms is a promise to who waits, which a busy machine breaks now and then."""


@asynccontextmanager
async def running_link(settings: RedisSettings, *, is_shared: bool = True) -> AsyncIterator[Link]:
    """A link that runs; with `is_shared`, once Redis takes part."""
    link = Link(settings, lambda mode, reason: None)
    running = asyncio.create_task(link.run())
    try:
        if is_shared:
            async with asyncio.timeout(WITHIN_SECONDS):
                await link.until_shared()
        yield link
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def eventually(holds: Callable[[], bool]) -> None:
    """Return once it holds. Raises TimeoutError after WITHIN_SECONDS."""
    async with asyncio.timeout(WITHIN_SECONDS):
        while True:
            if holds():
                return
            await asyncio.sleep(0.005)
