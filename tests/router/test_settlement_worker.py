"""What the router asks and what our worker answers are one contract: both ends, over a socket."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from m3_fakes.http import wait_until
from m3_fakes.worker import FakeWorker, running_worker
from m3_router.config import ContextTier, ServiceTier
from m3_router.http.worker_end import WorkerConnections
from m3_router.money.bill import Bill, Usage
from m3_router.money.bill_lines import bill_from
from m3_router.money.bill_records import Line
from m3_router.money.ledger import Ledger
from m3_router.relay.settlement import Settlement
from m3_router.workers.workers import WorkerAddress


class Prices:
    def context_tier(self, model: str, tokens: int, wall: float) -> ContextTier:
        return "standard"

    def cost(self, model: str, service_tier: ServiceTier, usage: Usage, wall: float) -> tuple[ContextTier, int]:
        return "standard", usage.input_tokens * 300 + usage.output_tokens * 1200


@pytest.fixture
def worker() -> Iterator[FakeWorker]:
    with running_worker() as one:
        yield one


@pytest.fixture
async def settlement(worker: FakeWorker) -> AsyncIterator[Settlement]:
    loop = asyncio.get_running_loop()
    connections = WorkerConnections(loop)
    address = WorkerAddress.from_url(worker.url)
    asking = Settlement(loop, connections, lambda bill: address, timeout_seconds=20)
    yield asking
    asking.close()
    connections.close()
    await asyncio.sleep(0)


def dispatch(worker: FakeWorker, bill: Bill, attempt: str, prompt: list[int]) -> socket.socket:
    """A stream of up to 50 tokens, as the router would send it."""
    fields = {"model": "fake", "prompt": prompt, "max_tokens": 50, "stream": True, "return_token_ids": True}
    body = json.dumps(fields).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: w\r\nx-request-id: {bill.request_id}\r\nx-m3-attempt: {attempt}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", worker.port), timeout=10)
    connection.sendall(head.encode() + body)
    return connection


def receive(connection: socket.socket, what: bytes) -> None:
    received = b""
    while what not in received:
        received += connection.recv(65536)


async def settled(ledger: Ledger, bill: Bill, read: list[Bill]) -> Bill:
    async with asyncio.timeout(20):
        while ledger.pending:  # noqa: ASYNC110 - the ledger tells nobody else
            await asyncio.sleep(0.005)
    ledger.publish()
    assert read == [bill]
    return bill


def ledger_of(settlement: Settlement) -> tuple[Ledger, list[Bill]]:
    read: list[Bill] = []
    later: Callable[[float, Callable[[], None]], object] = lambda seconds, call: None  # noqa: E731
    return Ledger(Prices(), lambda lines, count: None, (read.extend,), later, name="r", records=settlement), read


@pytest.mark.parametrize("tokens", [1, 4, 17])
async def test_an_abort_after_k_tokens_costs_the_prompt_and_k_tokens(
    worker: FakeWorker, settlement: Settlement, tokens: int
) -> None:
    ledger, read = ledger_of(settlement)
    bill = bill_from(Line(1.0, "a/b c?d", "/v1/completions", service_tier="standard", attempts=1))
    ledger.open(bill)
    gate = worker.hold_steps()
    connection = await asyncio.to_thread(dispatch, worker, bill, ledger.attempt(bill), [5, 6, 7])
    for _ in range(tokens):  # one by one, so that each is an event
        gate.release()
        await asyncio.to_thread(receive, connection, b"data:")
    connection.close()
    ledger.settle_later(bill, "client_gone", Usage(3, 0, 0, 99))
    await settled(ledger, bill, read)
    gate.release(1000)
    assert (bill.estimated, bill.output_tokens, bill.cost_nanousd) == (False, tokens, 3 * 300 + tokens * 1200)


async def test_an_abort_in_prefill_costs_what_was_computed_of_the_prompt(
    worker: FakeWorker, settlement: Settlement
) -> None:
    ledger, read = ledger_of(settlement)
    bill = bill_from(Line(1.0, "early", "/v1/completions", service_tier="standard", attempts=1))
    ledger.open(bill)
    gate = worker.hold_steps()
    connection = await asyncio.to_thread(dispatch, worker, bill, ledger.attempt(bill), [9] * 200)
    gate.release(2)
    await asyncio.to_thread(wait_until, lambda: worker.engine.counters.steps == 2)
    connection.close()
    ledger.settle_later(bill, "client_gone", None)
    await asyncio.to_thread(wait_until, lambda: worker.engine.in_flight_count == 0)
    gate.release(1000)
    await settled(ledger, bill, read)
    assert bill.estimated is False
    assert bill.input_tokens in (64, 96)  # the third step was begun, or it was not
    assert bill.cost_nanousd == bill.input_tokens * 300


async def test_another_request_that_came_with_the_same_id_is_not_mistaken_for_it(
    worker: FakeWorker, settlement: Settlement
) -> None:
    ledger, read = ledger_of(settlement)
    ours, other = (
        bill_from(Line(1.0, "same", "/v1/completions", service_tier="standard", attempts=1)) for _ in range(2)
    )
    for bill, prompt in ((other, [1] * 20), (ours, [2] * 3)):
        ledger.open(bill)
        connection = await asyncio.to_thread(dispatch, worker, bill, ledger.attempt(bill), prompt)
        await asyncio.to_thread(receive, connection, b"[DONE]")
        connection.close()
    ledger.settle_later(ours, "client_gone", None)
    await settled(ledger, ours, read)
    assert (ours.input_tokens, ours.estimated) == (3, False)
