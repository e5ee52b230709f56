"""Any replica can tell what was used on all of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from m3_redis import CALL_SECONDS, RedisServer, eventually, running_link
from m3_router.config import RedisSettings
from m3_router.money.bill_lines import bill_from, line_of
from m3_router.money.bill_records import Line
from m3_router.money.journal import Journal
from m3_router.money.spend import Spend
from m3_router.shared import fleet_spend, ledger_stream
from m3_router.shared.fleet_spend import FleetSpend
from m3_router.shared.ledger_stream import LedgerStream

KEY = "{m3}:ledger"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_stream, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(ledger_stream, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(fleet_spend, "WAIT_SECONDS", 0.02)
    monkeypatch.setattr(fleet_spend, "PAUSE_SECONDS", 0.001)


class Replica:
    def __init__(self, journal: Journal, stream: LedgerStream, fleet: FleetSpend) -> None:
        self.journal = journal
        self.stream = stream
        self.fleet = fleet
        self.own = Spend()

    def settle(self, count: int) -> None:
        bills = []
        for _ in range(count):
            number = self.journal.opened(0, b"o")
            line = Line(1.0, "r", "/", "t", model="m", number=number, output_tokens=1, cost_nanousd=1200)
            bills.append(bill_from(line))
        lines = [line_of(bill) for bill in bills]
        sequences = [self.journal.settled(bill.number, line) for bill, line in zip(bills, lines, strict=True)]
        self.own.count(bills)
        self.stream.offer(sequences, lines)

    @property
    def known_requests(self) -> int:
        """Of the fleet, as this replica tells of it."""
        whole = Spend()
        whole.add(self.own)
        whole.add(self.fleet.others)
        return sum(row.requests for row in whole.rows(tenant="t"))


@asynccontextmanager
async def running_replica(server: RedisServer, directory: Path) -> AsyncIterator[Replica]:
    journal = Journal(directory, 2**16, 100, awaits_redis=True)
    async with running_link(RedisSettings(url=server.url, call_seconds=CALL_SECONDS)) as link:
        replica = Replica(journal, LedgerStream(link, journal, 1000), FleetSpend(link, journal.name))
        tasks = [asyncio.create_task(replica.stream.run()), asyncio.create_task(replica.fleet.run())]
        try:
            yield replica
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            journal.close()


async def test_every_replica_comes_to_know_every_bill_once(redis_server: RedisServer, tmp_path: Path) -> None:
    async with running_replica(redis_server, tmp_path / "a") as one:
        one.settle(70)
        async with running_replica(redis_server, tmp_path / "b") as other:
            other.settle(30)
            one.settle(5)
            await eventually(lambda: one.known_requests == other.known_requests == 105)
            assert one.fleet.others.rows()[0].cost_nanousd == 30 * 1200
            assert other.fleet.others.rows()[0].cost_nanousd == 75 * 1200


async def test_bills_that_are_sent_again_to_an_emptied_redis_are_not_counted_again(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with (
        running_replica(redis_server, tmp_path / "a") as one,
        running_replica(redis_server, tmp_path / "b") as other,
    ):
        for count in (3, 4, 5):
            one.settle(count)
            await eventually(lambda: other.known_requests == one.known_requests)
        redis_server.restart()
        one.settle(1)
        await eventually(lambda: one.stream.is_caught_up and other.known_requests == 13)
        with redis_server.client() as client:
            entries = client.xrange(KEY)
        assert sum(len(fields[b"sequences"].split()) for _, fields in entries) == 13  # all of them came again
        await eventually(lambda: other.fleet._position == entries[-1][0])
        assert other.known_requests == one.known_requests == 13


async def test_what_is_no_entry_is_counted_as_such_and_passed_over(redis_server: RedisServer, tmp_path: Path) -> None:
    async with running_replica(redis_server, tmp_path) as replica:
        bill = msgspec.json.encode(Line(1.0, "r", "/", "t", number=1))
        with redis_server.client() as client:
            client.xadd(KEY, {"something": "else"})
            client.xadd(KEY, {"journal": "x", "sequences": "1 2", "bills": bill})
            client.xadd(KEY, {"journal": "x", "sequences": "one", "bills": bill})
            client.xadd(KEY, {"journal": "x", "sequences": "1", "bills": b"{"})
            client.xadd(KEY, {"journal": "x", "sequences": "1", "bills": b"\xff"})
            client.xadd(KEY, {"journal": "x", "sequences": "1", "bills": bill})
        await eventually(lambda: replica.known_requests == 1)
        assert replica.fleet.malformed_entries == 5
