"""A ledger in a process of its own, to be killed: `python -m m3_ledger_writer DIRECTORY REDIS_URL LIFE REQUESTS`.

It settles requests in every way there is, at random but by the seed LIFE, and says on stdout what it does: `sent ID`
before a request is noted and dispatched, `noted ID` after. What a request uses follows from its id, so that everyone
can know it: this is what the workers say of it. With REQUESTS 0 it only recovers what the lives before it have left,
waits until Redis has everything, says `done` and ends; otherwise it works until it is killed.
"""

import asyncio
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

from m3_router.config import ContextTier, RedisSettings, ServiceTier
from m3_router.money.bill import Bill, Usage
from m3_router.money.bill_lines import bill_from
from m3_router.money.bill_records import Line
from m3_router.money.journal import Journal
from m3_router.money.ledger import Ledger
from m3_router.shared.ledger_stream import LedgerStream
from m3_router.shared.link import Link

SEGMENT_BYTES = 2**16
STREAM_ENTRIES = 1_000_000


def usage_of(request_id: str) -> Usage:
    """What the request uses, wherever and whenever one asks."""
    number = zlib.crc32(request_id.encode())
    return Usage(number % 5000, number % 7, 0, number // 5000 % 300)


def cost_of(usage: Usage) -> int:
    """At the list price, in nano-dollars."""
    return (usage.input_tokens - usage.cached_tokens) * 300 + usage.cached_tokens * 60 + usage.output_tokens * 1200


class _Prices:
    def context_tier(self, model: str, tokens: int, wall: float) -> ContextTier:
        return "standard"

    def cost(self, model: str, service_tier: ServiceTier, usage: Usage, wall: float) -> tuple[ContextTier, int]:
        return "standard", cost_of(usage)


class _Workers:
    """They remember everything, and answer after a while."""

    def __init__(self, random_: random.Random) -> None:
        self._random = random_
        self._asked = 0
        self.has_told_all = asyncio.Event()
        self.has_told_all.set()

    def ask(self, bill: Bill, attempt: str, done: Callable[[Usage | None], None]) -> None:
        self._asked += 1
        self.has_told_all.clear()
        asyncio.get_running_loop().call_later(self._random.uniform(0, 0.05), self._tell, bill, done)

    def _tell(self, bill: Bill, done: Callable[[Usage | None], None]) -> None:
        done(usage_of(bill.request_id))
        self._asked -= 1
        if not self._asked:
            self.has_told_all.set()


async def _work(ledger: Ledger, life: str, requests: int, random_: random.Random) -> None:
    running: list[Bill] = []
    for number in range(requests):
        line = Line(number, f"{life}-{number}", "/v1/completions", service_tier="standard", worker="w", attempts=1)
        bill = bill_from(line)
        sys.stdout.write(f"sent {bill.request_id}\n")
        sys.stdout.flush()
        ledger.open(bill)
        sys.stdout.write(f"noted {bill.request_id}\n")
        sys.stdout.flush()
        running.append(bill)
        if random_.random() < 0.1:  # tried again, elsewhere
            bill.worker, bill.attempts = "v", 2
            ledger.open(bill)
        while len(running) > random_.randrange(20):
            ended = running.pop(random_.randrange(len(running)))
            if random_.random() < 0.7:
                ledger.settle(ended, "ok", usage_of(ended.request_id))
            else:
                ledger.settle_later(ended, "client_gone", None)
        if random_.random() < 0.2:
            await asyncio.sleep(random_.uniform(0, 0.01))
    await asyncio.Event().wait()  # until it is killed


async def _main(directory: Path, redis_url: str, life: str, requests: int) -> None:
    random_ = random.Random(life)
    loop = asyncio.get_running_loop()
    workers = _Workers(random_)
    journal = Journal(directory, SEGMENT_BYTES, retain_segments=10_000, awaits_redis=True)
    link = Link(RedisSettings(url=redis_url), lambda mode, reason: None)
    stream = LedgerStream(link, journal, STREAM_ENTRIES)
    ledger = Ledger(
        _Prices(),
        lambda lines, count: None,
        (),
        loop.call_later,
        name="",
        journal=journal,
        records=workers,
        stream=stream,
    )
    tasks = [loop.create_task(link.run()), loop.create_task(stream.run())]
    ledger.recover()
    if requests:
        await _work(ledger, life, requests, random_)
    await workers.has_told_all.wait()
    ledger.close()
    if not await stream.flush(60):
        sys.exit("Redis did not get everything within a minute")
    sys.stdout.write("done\n")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    journal.close()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
