"""A router follows its workers' events over real connections, and picks the thread up when one breaks."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest

from m3_fakes.cache_sink import HeldBlocks
from m3_fakes.worker import FakeWorker, running_worker
from m3_router.http.worker_end import WorkerConnections
from m3_router.kv_events import native
from m3_router.kv_events.native import Follower
from m3_router.kv_events.view import CacheView
from m3_router.kv_events.vllm import HeldBound, Subscriber
from m3_router.workers.workers import WorkerAddress
from m3_worker.kv_events_zmq import KvEventPublisher, payload
from m3_worker.scheduling.kv_events import Cleared, EventBatch, EventLog, Medium, Removed, Stored

WITHIN_SECONDS = 20.0
BLOCK_TOKENS = 8


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_SECONDS):
        while True:
            if holds():
                return
            await asyncio.sleep(0.005)


class Following:
    """A follower that runs, with what it was told."""

    def __init__(self, address: WorkerAddress) -> None:
        self.index = HeldBlocks()
        self.view = CacheView(self.index)
        self.connections = WorkerConnections(asyncio.get_running_loop())
        self.follower = Follower(self.connections, address, self.view)


@asynccontextmanager
async def following(url: str) -> AsyncIterator[Following]:
    one = Following(WorkerAddress.from_url(url))
    running = asyncio.create_task(one.follower.run())
    try:
        yield one
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        one.connections.close()


@pytest.fixture
def worker() -> Iterator[FakeWorker]:
    with running_worker() as worker:
        yield worker


def chain_of(prompt: list[int]) -> list[int]:
    return [hash(tuple(prompt[:end])) for end in range(BLOCK_TOKENS, len(prompt) + 1, BLOCK_TOKENS)]


async def complete(worker: FakeWorker, one: Following, request_id: str, prompt: list[int]) -> None:
    """One request through a router: sent, and answered with its usage."""
    one.view.sent(request_id, chain_of(prompt))
    async with httpx.AsyncClient(base_url=worker.url, timeout=20) as client:
        body = {"model": "fake", "prompt": prompt, "max_tokens": 1}
        answer = await client.post("/v1/completions", json=body, headers={"x-request-id": request_id})
        one.view.answered(request_id, answer.json()["usage"]["prompt_tokens"])


async def test_what_a_worker_stores_is_confirmed_and_what_it_forgets_is_gone(worker: FakeWorker) -> None:
    async with following(worker.url) as one:
        await eventually(lambda: one.follower.is_following and one.view.number is not None)
        assert one.index.epochs == [worker.engine.events.epoch + ".0"]
        first, second = [1] * 20, [1] * 16 + [2] * 12
        await complete(worker, one, "first", first)
        await complete(worker, one, "second", second)
        await eventually(lambda: one.index.held == {*chain_of(first), *chain_of(second)})
        async with httpx.AsyncClient(base_url=worker.url) as client:
            await client.delete("/internal/prefix-cache")
        await eventually(lambda: one.index.held == set())
        assert one.index.epochs[1:] == [f"{worker.engine.events.epoch}.{worker.engine.events.last_number}"]


async def test_nothing_is_missed_over_connections_that_break_again_and_again(
    worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(native, "SILENCE_SECONDS", 0.1)
    async with following(worker.url) as one:
        await eventually(lambda: one.view.number is not None)
        known: set[int] = set()
        for number in range(5):
            await eventually(lambda: not one.follower.is_following)
            prompt = [number + 20] * 20
            known.update(chain_of(prompt))
            await complete(worker, one, f"request {number}", prompt)
        await eventually(lambda: one.index.held == known)
        assert one.index.epochs == [worker.engine.events.epoch + ".0"]


async def test_a_broken_connection_is_taken_up_where_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        lines = b'{"kind":"start","epoch":"e &1","page_tokens":4,"number":6}\n'
        if len(heads) == 1:
            lines += b'{"kind":"snapshot","number":6,"events":[],"more":false}\n'
        number = 6 + len(heads)
        lines += b'{"kind":"batch","number":%d,"events":[]}\n' % number
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n" + lines)
        writer.close()
        await writer.wait_closed()

    monkeypatch.setattr(native, "FIRST_PAUSE_SECONDS", 0.01)
    heads: list[bytes] = []
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, following(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as one:
        await eventually(lambda: len(heads) >= 3)
        assert heads[:3] == [
            b"GET /internal/kv-events HTTP/1.1",
            b"GET /internal/kv-events?epoch=e%20%261&after=7 HTTP/1.1",
            b"GET /internal/kv-events?epoch=e%20%261&after=8 HTTP/1.1",
        ]
        assert one.index.epochs == ["e &1.0"]


async def test_a_worker_without_events_is_asked_seldom_and_told_of() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    heads: list[bytes] = []
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with following(f"http://127.0.0.1:{port}") as one:
            await eventually(lambda: one.follower.reason == "the worker answered 404")
            await asyncio.sleep(2 * native.FIRST_PAUSE_SECONDS)
            assert heads == [b"GET /internal/kv-events HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n\r\n" % port]


async def test_garbage_in_place_of_events_ends_the_connection_and_says_why() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nno line of ours\n")
        await reader.read()
        closed.set()
        writer.close()

    closed = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, following(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as one:
        async with asyncio.timeout(WITHIN_SECONDS):
            await closed.wait()
        await eventually(lambda: "malformed" in one.follower.reason)
        assert one.index.epochs == []


async def test_a_worker_that_is_not_there_is_tried_again() -> None:
    async with following("http://127.0.0.1:9") as one:
        await eventually(lambda: one.follower.reason.startswith("no connection"))
        assert not one.follower.is_following


# vLLM's form


class Bound(HeldBound):
    """One that counts what it says."""

    def __init__(self) -> None:
        self.clears = 0
        super().__init__(self._count_clear)

    def _count_clear(self) -> None:
        self.clears += 1


def message(number: int, *events: Stored | Removed | Cleared) -> list[bytes]:
    return [b"", number.to_bytes(8, "big"), payload(EventBatch(number + 1, 0.0, events), 4)]


def pages(*names: bytes) -> Stored:
    return Stored(names, None, array("q", range(4 * len(names))))


def test_what_a_worker_can_hold_is_bounded_by_what_it_stored_and_did_not_remove() -> None:
    bound = Bound()
    assert bound.max_tokens is None
    bound.take(message(0, pages(b"a", b"b", b"c")))
    assert bound.max_tokens == 12
    bound.take(message(1, Removed((b"a",)), Stored((b"a",), None, array("q"), Medium.HOST)))
    assert bound.max_tokens == 12
    bound.take(message(2, Removed((b"a",), Medium.HOST), Removed((b"b",))))
    assert bound.max_tokens == 4


def test_without_the_whole_history_nothing_is_known_until_the_cache_is_cleared() -> None:
    bound = Bound()
    bound.take(message(5, pages(b"a")))
    assert bound.max_tokens is None
    bound.take(message(6, Cleared(), pages(b"b")))
    assert (bound.max_tokens, bound.clears) == (4, 1)
    bound.take(message(8, pages(b"c")))
    assert bound.max_tokens is None


def test_numbers_that_begin_again_are_a_new_process() -> None:
    bound = Bound()
    bound.take(message(0, pages(b"a", b"b")))
    bound.take(message(0, pages(b"c")))
    assert (bound.max_tokens, bound.clears) == (4, 1)
    bound.take(message(1))
    bound.take(message(1, pages(b"d")))  # it began again, and we missed the beginning
    assert (bound.max_tokens, bound.clears) == (None, 2)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"", b"12345678"],
        [b"", b"12345678", b"\xc1"],
        [b"", b"12345678", msgspec.msgpack.encode(7)],
        [b"", b"12345678", msgspec.msgpack.encode([0.0, [["Unknown"]]])],
        [b"", b"12345678", msgspec.msgpack.encode([0.0, [["BlockStored", 5, None, [], 4]]])],
        [b"", b"12345678", msgspec.msgpack.encode([0.0, [["BlockRemoved"]]])],
        [b"", b"12345678", msgspec.msgpack.encode([0.0, [[]]])],
    ],
)
def test_a_message_of_another_form_is_counted_and_ends_what_was_known(frames: list[bytes]) -> None:
    bound = Bound()
    bound.take(message(0, pages(b"a")))
    bound.take(frames)
    assert (bound.malformed, bound.max_tokens) == (1, None)


def test_events_may_be_maps() -> None:
    bound = Bound()
    events = [{"type": "BlockStored", "block_hashes": [1, 2], "block_size": 16, "lora_id": None}]
    bound.take([b"kv", bytes(8), msgspec.msgpack.encode([0.0, events, 0])])
    assert bound.max_tokens == 32


async def test_a_publisher_is_followed_over_zeromq() -> None:
    log = EventLog("e", 4)
    publisher = KvEventPublisher("tcp://127.0.0.1:*", None)
    bound = Bound()
    port = int(publisher.endpoints[0].rpartition(":")[2])
    tasks = [asyncio.create_task(publisher.run(log)), asyncio.create_task(Subscriber("127.0.0.1", port, bound).run())]

    def clear_until_heard() -> bool:
        log.append([Cleared(), pages(b"a", b"b")], 0.0)
        return bound.clears > 0

    try:
        await eventually(clear_until_heard)
        assert bound.max_tokens == 8
        log.append([Removed((b"a",))], 0.0)
        await eventually(lambda: bound.max_tokens == 4)
        assert bound.malformed == 0
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        publisher.close()
