"""Settled bills in Redis: every one, and once, whatever is killed, frozen, emptied or full on the way."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

import m3_ledger_writer
from m3_ledger_writer import cost_of, usage_of
from m3_redis import CALL_SECONDS, RedisServer, eventually, running_link
from m3_router.config import RedisSettings
from m3_router.money.bill_records import Line
from m3_router.money.journal import Journal
from m3_router.money.segments import HEAD, RECORD, read_records, segment_paths
from m3_router.shared import ledger_stream
from m3_router.shared.ledger_stream import LedgerStream, part_of

KEY = "{m3}:ledger"


@pytest.fixture(autouse=True)
def _quick_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_stream, "FLUSH_SECONDS", 0.01)


def entries(server: RedisServer) -> list[dict[bytes, bytes]]:
    with server.client() as client:
        return [fields for _, fields in client.xrange(KEY)]


def sent(server: RedisServer, journal: str | None = None) -> list[bytes]:
    return [
        line
        for entry in entries(server)
        if journal is None or entry[b"journal"].decode() == journal
        for line in entry[b"bills"].split(b"\n")
    ]


class Replica:
    """A journal and its stream; `settle` does what the ledger does."""

    def __init__(self, journal: Journal, stream: LedgerStream) -> None:
        self.journal = journal
        self.stream = stream
        self.settled: list[bytes] = []

    def settle(self, count: int, padding: int = 0) -> None:
        lines = [b"%s-%d%s" % (self.journal.name.encode(), len(self.settled) + n, b"." * padding) for n in range(count)]
        sequences = [self.journal.settled(self.journal.opened(0, b"bill"), line) for line in lines]
        self.settled += lines
        self.stream.offer(sequences, lines)


@asynccontextmanager
async def running_replica(
    server: RedisServer, directory: Path, *, is_shared: bool = True, **settings: Any
) -> AsyncIterator[Replica]:
    redis = RedisSettings(url=server.url, call_seconds=CALL_SECONDS)
    journal = Journal(directory, 2**16, settings.get("retain_segments", 1000), awaits_redis=True)
    async with running_link(redis, is_shared=is_shared) as link:
        stream = LedgerStream(link, journal, settings.get("max_entries", 100_000))
        running = asyncio.create_task(stream.run())
        try:
            yield Replica(journal, stream)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            journal.close()


async def caught_up(replica: Replica) -> None:
    assert await replica.stream.flush(20)


async def test_bills_are_in_the_stream_in_the_order_in_which_they_were_settled(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with running_replica(redis_server, tmp_path) as replica:
        for count in (1, 5, 64):
            replica.settle(count)
            await asyncio.sleep(0.005)
        await caught_up(replica)
        assert sent(redis_server) == replica.settled
        sequences = [[int(sequence) for sequence in entry[b"sequences"].split()] for entry in entries(redis_server)]
        assert [len(entry[b"bills"].split(b"\n")) for entry in entries(redis_server)] == list(map(len, sequences))
        in_order = [sequence for entry in sequences for sequence in entry]
        assert in_order == sorted(set(in_order))
        with redis_server.client() as client:
            assert int(client.get(f"{KEY}:applied:{replica.journal.name}")) == in_order[-1]


async def test_what_was_settled_without_redis_is_sent_when_it_comes(redis_server: RedisServer, tmp_path: Path) -> None:
    redis_server.kill()
    async with running_replica(redis_server, tmp_path, is_shared=False) as replica:
        replica.settle(100)
        assert not await replica.stream.flush(0.05)
        redis_server.start()
        await caught_up(replica)
        assert sent(redis_server) == replica.settled


async def test_what_an_earlier_process_did_not_send_is_sent_by_the_next(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with running_replica(redis_server, tmp_path) as first:
        first.settle(10)
        await caught_up(first)
        redis_server.freeze()
        first.settle(200, padding=1000)
    redis_server.thaw()
    async with running_replica(redis_server, tmp_path) as second:
        second.settle(3)
        await caught_up(second)
        assert sent(redis_server) == first.settled + second.settled


async def test_more_than_fits_into_memory_is_read_from_the_files(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_stream, "MAX_WAITING_BYTES", 10_000)
    monkeypatch.setattr(ledger_stream, "READ_BYTES", 50_000)
    redis_server.kill()
    async with running_replica(redis_server, tmp_path, is_shared=False) as replica:
        for _ in range(40):
            replica.settle(10, padding=700)
        assert replica.stream.waiting_bills < 20
        redis_server.start()
        await asyncio.sleep(0.05)
        replica.settle(5)
        await caught_up(replica)
        assert sent(redis_server) == replica.settled
        assert max(len(entry[b"bills"]) for entry in entries(redis_server)) < ledger_stream.MAX_ENTRY_BYTES + 1000


async def test_a_redis_that_comes_back_empty_gets_everything_again(redis_server: RedisServer, tmp_path: Path) -> None:
    async with running_replica(redis_server, tmp_path) as replica:
        replica.settle(50)
        await caught_up(replica)
        redis_server.restart()
        replica.settle(1)
        await eventually(lambda: replica.stream.is_caught_up and len(sent(redis_server)) >= 51)
        assert sent(redis_server) == replica.settled


async def test_an_idle_replica_sees_that_redis_has_lost_its_bills(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_stream, "CHECK_SECONDS", 0.02)
    async with running_replica(redis_server, tmp_path) as replica:
        replica.settle(50)
        await caught_up(replica)
        with redis_server.client() as client:
            client.flushall()
        await eventually(lambda: len(sent(redis_server)) >= 50)
        assert sent(redis_server) == replica.settled


async def test_a_full_redis_gets_them_when_it_has_room(redis_server: RedisServer, tmp_path: Path) -> None:
    async with running_replica(redis_server, tmp_path) as replica:
        replica.settle(5)
        await caught_up(replica)
        redis_server.fill()
        replica.settle(20)
        assert not await replica.stream.flush(0.1)
        redis_server.make_room()
        await caught_up(replica)
        assert sent(redis_server) == replica.settled


async def test_the_same_bills_sent_again_over_other_connections_are_written_once(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """As when a frozen Redis goes on: it finds the calls of connections that were given up, and the new one."""
    journal = Journal(tmp_path, 2**16, 10, awaits_redis=True)
    client = Redis(unix_socket_path=str(redis_server.socket_path))
    async with running_link(RedisSettings(url=redis_server.url, call_seconds=CALL_SECONDS)) as link:
        stream = LedgerStream(link, journal, 1000)
        parts = [part_of([5], [b"one"]), part_of([7], [b"two"]), part_of([9], [b"three"])]
        replies = await asyncio.gather(*(stream._write(client, 0, parts[:2]) for _ in range(20)))
        assert set(replies) == {7}
        assert sent(redis_server) == [b"one", b"two"]
        assert await stream._write(client, 0, parts) == 7
        assert sent(redis_server) == [b"one", b"two"]
    await client.aclose()
    journal.close()


async def test_what_a_frozen_redis_was_told_before_it_froze_is_not_told_again(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with running_replica(redis_server, tmp_path) as replica:
        for _ in range(3):
            replica.settle(3)
            await asyncio.sleep(random.Random(len(replica.settled)).uniform(0.005, 0.02))
            redis_server.freeze()
            replica.settle(3)
            await asyncio.sleep(0.6)  # longer than a call may take: it is given up, with its commands on their way
            redis_server.thaw()
        await caught_up(replica)
        assert sent(redis_server) == replica.settled


async def test_replicas_share_a_stream_and_nothing_else(redis_server: RedisServer, tmp_path: Path) -> None:
    async with (
        running_replica(redis_server, tmp_path / "a") as one,
        running_replica(redis_server, tmp_path / "b") as other,
    ):
        for _ in range(20):
            one.settle(3)
            other.settle(2)
            await asyncio.sleep(0.002)
        await asyncio.gather(caught_up(one), caught_up(other))
        for replica in (one, other):
            assert sent(redis_server, replica.journal.name) == replica.settled


async def test_segments_go_once_redis_has_what_is_in_them(redis_server: RedisServer, tmp_path: Path) -> None:
    async with running_replica(redis_server, tmp_path, retain_segments=2) as replica:
        redis_server.freeze()
        replica.settle(300, padding=1000)
        kept = replica.journal.segments
        assert kept > 4
        redis_server.thaw()
        await caught_up(replica)
        assert replica.journal.segments == 2
        assert sent(redis_server) == replica.settled


async def test_an_old_copy_of_a_journal_is_not_mistaken_for_it(
    redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_replica(redis_server, tmp_path) as replica:
        replica.settle(1)
        await caught_up(replica)
        with redis_server.client() as client:
            client.set(f"{KEY}:applied:{replica.journal.name}", replica.journal.last_sequence + 2**40)
        replica.settle(1)
        await eventually(lambda: "empty directory" in caplog.text)
        assert sent(redis_server) == replica.settled[:1]


class Lives:
    """A router's ledger that is killed and started again, over one directory and one Redis."""

    def __init__(self, directory: Path, server: RedisServer, seed: int) -> None:
        self.directory = directory
        self.output = directory.with_suffix(".out")
        self.server = server
        self.random = random.Random(seed)
        self.seed = seed
        self.sent: set[str] = set()
        self.noted: set[str] = set()
        self.kills = 0

    def live(self, seconds: float, faults: list[str]) -> None:
        """One life of so long, with faults of Redis on the way, and its violent end."""
        with self._start(10_000_000) as writer:
            try:
                self._wait_for_output(writer)
                for fault in faults:
                    time.sleep(seconds / (len(faults) + 1))
                    self._fault(fault)
                time.sleep(seconds / (len(faults) + 1))
            finally:
                writer.kill()
        self._read(self.output.read_text())
        self.kills += 1
        if self.random.random() < 0.7:
            self._tear()

    def finish(self) -> None:
        """The last life, which recovers and comes to an end."""
        with self._start(0) as writer:
            assert writer.wait(90) == 0
        assert self.output.read_text() == "done\n"

    def _start(self, requests: int) -> "subprocess.Popen[bytes]":
        life = f"{self.seed}.{self.kills}"
        command = [sys.executable, "-m", m3_ledger_writer.__name__, str(self.directory), self.server.url, life]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with self.output.open("wb") as output:  # not a pipe: nobody reads, and it must not wait for that
            return subprocess.Popen([*command, str(requests)], stdout=output, env=environment)

    def _wait_for_output(self, writer: "subprocess.Popen[bytes]") -> None:
        until = time.monotonic() + 30
        while not self.output.stat().st_size:
            assert writer.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)

    def _read(self, output: str) -> None:
        for line in output.splitlines(keepends=True):
            word, _, request_id = line.strip().partition(" ")
            if line.endswith("\n"):
                (self.sent if word == "sent" else self.noted).add(request_id)

    def _fault(self, fault: str) -> None:
        if fault == "freeze":
            self.server.freeze()
            time.sleep(self.random.uniform(0.01, 0.1))
            self.server.thaw()
        else:
            self.server.restart()

    def _tear(self) -> None:
        """Leave behind the last record what a record that was being written leaves there."""
        path = segment_paths(self.directory)[-1]
        end = HEAD.size + sum(RECORD.size + len(record.payload) for record in read_records(path))
        with path.open("r+b") as file:
            file.seek(end)
            file.write(self.random.randbytes(self.random.randrange(1, 400)))


@pytest.mark.parametrize("seed", range(2))
def test_the_ledger_is_what_the_workers_did_however_often_writer_and_redis_are_killed(
    redis_server: RedisServer, tmp_path: Path, seed: int
) -> None:
    lives = Lives(tmp_path / "ledger", redis_server, seed)
    for _ in range(3):
        faults = [lives.random.choice(["freeze", "freeze", "empty"]) for _ in range(lives.random.randrange(4))]
        lives.live(lives.random.uniform(0.3, 1.5), faults)
    lives.finish()
    bills = [msgspec.json.decode(line, type=Line) for line in sent(redis_server)]
    billed = Counter(bill.request_id for bill in bills)
    assert max(billed.values()) == 1
    assert len({bill.number for bill in bills}) == len(bills)
    # What was noted is billed; of what was dispatched at the moment of a kill, it may be or not, one request a life.
    assert lives.noted <= set(billed) <= lives.sent
    assert len(lives.sent - lives.noted) <= lives.kills
    assert len(lives.noted) > 100
    for bill in bills:
        assert (bill.input_tokens, bill.output_tokens) == (
            usage_of(bill.request_id).input_tokens,
            usage_of(bill.request_id).output_tokens,
        )
    assert sum(bill.cost_nanousd for bill in bills) == sum(cost_of(usage_of(request_id)) for request_id in billed)
    assert {bill.outcome for bill in bills} >= {"ok", "client_gone", "router_lost"}
