"""The log of KV events as something to wait for on an event loop: from the engine's thread to those who pass it on.

Owns waking up and catching up: who follows gets every batch in order, or a snapshot in place of those that it missed.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from m3_worker.scheduling.kv_events import EventBatch, EventLog, Snapshot

Part = Snapshot | list[EventBatch]
"""An empty list says only that the log is alive."""


async def follow(log: EventLog, after: int | None, alive_seconds: float) -> AsyncGenerator[Part]:
    """What comes after batch `after`; None, or a batch that has left the ring, begins with a snapshot.

    Gives an empty list when nothing came for `alive_seconds`. Ends when the log is closed. A follower that falls behind
    by more than the ring gets a snapshot again.
    """
    loop = asyncio.get_running_loop()
    grown = asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(grown.set)

    log.listen(wake)
    try:
        while True:
            grown.clear()
            is_closed = log.is_closed
            batches = log.after(after) if after is not None else None
            if batches is None:
                snapshot = log.snapshot()
                after = snapshot.number
                yield snapshot
            elif batches:
                after = batches[-1].number
                yield batches
            elif is_closed:
                return
            else:
                try:
                    async with asyncio.timeout(alive_seconds):
                        await grown.wait()
                except TimeoutError:
                    yield []
    finally:
        log.unlisten(wake)
