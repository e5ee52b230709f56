"""Asking workers what a request used: once, bounded in time and number, and whatever they answer."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from m3_router.http.worker_end import WorkerConnections
from m3_router.money.bill import Usage
from m3_router.money.bill_lines import bill_from
from m3_router.money.bill_records import Line
from m3_router.relay.settlement import MAX_ANSWER_BYTES, Settlement
from m3_router.workers.workers import WorkerAddress

Answer = Callable[[str], bytes | None]


def record(**fields: Any) -> dict[str, Any]:
    return {
        "attempt": "a-1-1",
        "state": "ended",
        "prompt_tokens": 10,
        "cached_tokens": 4,
        "completion_tokens": 3,
        **fields,
    }


def answer(*records: Any, status: int = 200) -> bytes:
    body = json.dumps({"request_id": "r", "records": records}).encode()
    return b"HTTP/1.1 %d OK\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


@dataclass
class Worker:
    """Answers every request with what `reply` makes of its target: bytes, nothing ever (None), or the end (b"")."""

    reply: Answer = lambda _: answer(record())
    targets: list[str] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    has_two: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    @property
    def address(self) -> WorkerAddress:
        return WorkerAddress.from_url(f"http://127.0.0.1:{self.port}")

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Worker"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.targets.append(head.split()[1].decode())
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                if self.in_flight == 2:
                    self.has_two.set()
                await self.gate.wait()
                self.in_flight -= 1
                reply = self.reply(self.targets[-1])
                if reply is None:
                    await reader.read()
                    return
                if not reply:
                    return
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()


@dataclass
class Bench:
    worker: Worker
    settlement: Settlement
    connections: WorkerConnections
    told: list[Usage | None] = field(default_factory=list)

    async def ask(self, attempt: str = "a-1-1", request_id: str = "r") -> Usage | None:
        done: asyncio.Future[Usage | None] = asyncio.get_running_loop().create_future()
        bill = bill_from(Line(1.0, request_id, "/v1/completions", pool="p", worker="w"))

        def take(usage: Usage | None) -> None:
            self.told.append(usage)
            done.set_result(usage)

        self.settlement.ask(bill, attempt, take)
        return await done


@pytest.fixture
async def bench(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Bench]:
    caplog.set_level(logging.INFO)
    loop = asyncio.get_running_loop()
    connections = WorkerConnections(loop)
    async with Worker().running() as worker:
        worker.gate.set()
        settlement = Settlement(loop, connections, lambda bill: worker.address, timeout_seconds=5.0, max_in_flight=2)
        try:
            yield Bench(worker, settlement, connections)
        finally:
            settlement.close()
            connections.close()
            await asyncio.sleep(0)


async def test_the_worker_is_asked_for_this_request_and_this_attempt(bench: Bench) -> None:
    assert await bench.ask("a-1-1", "a/b?c d") == Usage(10, 4, 0, 3)
    (target,) = bench.worker.targets
    assert target == "/internal/usage/a%2Fb%3Fc%20d?attempt=a-1-1&wait_seconds=1.5"
    assert (bench.settlement.answered, bench.settlement.unanswered) == (1, 0)


@pytest.mark.parametrize(
    "reply",
    [
        answer(record(attempt="another")),
        answer(record(state="running")),
        answer(),
        answer(record(prompt_tokens=-1)),
        answer(record(prompt_tokens="10")),
        answer(record(completion_tokens=1.5)),
        answer(status=404),
        answer(record(), status=500),
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n\xff\xfe\xfd",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n" + b" " * (MAX_ANSWER_BYTES + 1),
        b"garbage\r\n\r\n",
        b"",
    ],
)
async def test_what_is_no_count_of_this_attempt_is_no_answer(bench: Bench, reply: bytes) -> None:
    bench.worker.reply = lambda _: reply
    assert await bench.ask() is None
    assert (bench.settlement.answered, bench.settlement.unanswered) == (0, 1)


async def test_more_cached_than_there_were_is_cut_to_the_input(bench: Bench) -> None:
    bench.worker.reply = lambda _: answer(record(cached_tokens=11))
    assert await bench.ask() == Usage(10, 10, 0, 3)


async def test_a_worker_that_says_nothing_is_waited_for_only_so_long(bench: Bench) -> None:
    bench.settlement.timeout_seconds = 0.05
    bench.worker.reply = lambda _: None
    assert await bench.ask() is None


async def test_a_worker_that_is_gone_cannot_say(bench: Bench) -> None:
    async with Worker().running() as gone:
        address = gone.address
    settlement = Settlement(asyncio.get_running_loop(), bench.connections, lambda bill: address)
    bench.settlement = settlement
    assert await bench.ask() is None


async def test_a_worker_that_is_unknown_is_not_asked(bench: Bench) -> None:
    bench.settlement = Settlement(asyncio.get_running_loop(), bench.connections, lambda bill: None)
    assert await bench.ask() is None
    assert bench.worker.targets == []


async def test_a_connection_that_was_closed_as_we_wrote_to_it_is_not_the_workers_answer(bench: Bench) -> None:
    await bench.ask()
    bench.worker.reply = lambda _: b"" if len(bench.worker.targets) == 2 else answer(record())
    assert await bench.ask() == Usage(10, 4, 0, 3)
    assert len(bench.worker.targets) == 3


async def test_no_more_than_the_limit_are_on_their_way_and_all_are_told(bench: Bench) -> None:
    bench.worker.gate.clear()
    asked = [asyncio.ensure_future(bench.ask()) for _ in range(7)]
    await bench.worker.has_two.wait()
    bench.worker.gate.set()
    assert await asyncio.gather(*asked) == [Usage(10, 4, 0, 3)] * 7
    assert bench.worker.most_in_flight == 2


async def test_the_end_tells_everyone_that_nobody_can_say(bench: Bench) -> None:
    bench.worker.gate.clear()
    asked = [asyncio.ensure_future(bench.ask()) for _ in range(5)]
    await bench.worker.has_two.wait()
    bench.settlement.close()
    assert await asyncio.gather(*asked) == [None] * 5
    assert await bench.ask() is None
    assert len(bench.told) == 6
